// Where chats are kept: in this browser, or on the server under the reader's key. What goes to the server lies in an outbox of this browser
// until the server has it, so nothing is lost when it refuses, falls, or the page is closed.
import { ApiError, json, savedKey } from "./api.js";
import * as db from "./db.js";
import { Store, newId } from "./lib.js";
import { settings } from "./settings-store.js";

/** @typedef {import("./chats.js").Chat} Chat @typedef {import("./chats.js").Node} Node @typedef {"browser" | "server"} Place */
/** @typedef {{ key: string, owner: string, kind: "chats" | "nodes", chat: string, stamp: string, row: any }} Unsent  what the server has not yet */

export const ROUTE = "/v1/herd/chats";
/** One request holds at most so many characters of messages (unless one message alone has more), and so many messages. */
const MOST_CHARS = 4_000_000;
const MOST_MESSAGES = 500;
const LONGEST_PAUSE_MS = 60_000;

/** `waiting` changes are not on the server; `error` is why, or what else went wrong there. */
export const keeping = new Store({ waiting: 0, error: "" });

/** Whose chats they are, by the server's word on a key. @type {{ name: string, key: string } | null} */
let heard = null;
/** Whose they are; null until the server was asked with the key of now. */
export const owner = () => (heard?.key === savedKey() ? heard.name : null);
/** Stands for whoever it will turn out to be; no name has it. */
const UNKNOWN = "\n";
/** Chats as they were last seen, since a message goes with its chat. @type {Map<string, Chat>} */
const known = new Map();
/** Chats that are being deleted here (false), or are (true): what is still being written in them is dropped. @type {Map<string, boolean>} */
const gone = new Map();
/** Ids of messages that this page wrote: those of them that are busy are sent when they are whole. @type {Set<string>} */
const written = new Set();
let timer = 0;
let changed = false;
let pause = 1000;
/** @type {Promise<void> | null} */
let sending = null;

export const onServer = () => settings.value.keep === "server";
const pathOf = (/** @type {string} */ chat) => `${ROUTE}/${encodeURIComponent(chat)}`;
const told = (/** @type {unknown} */ error) => (error instanceof Error ? error.message : String(error));
/** @param {unknown} error */
export const report = (error) => keeping.set({ error: told(error) });

/** What the server has not yet, of this reader's. @returns {Promise<Unsent[]>} */
async function unsent() {
  const whose = owner();
  return (await db.outbox()).filter((/** @type {Unsent} */ one) => one.owner === UNKNOWN || one.owner === whose);
}

/** @param {Place} place @returns {Promise<Chat[]>} */
export async function allChats(place = settings.value.keep) {
  if (place === "browser") return db.allChats();
  /** @type {Map<string, Chat>} */
  const found = new Map();
  const key = savedKey();
  for (let after = "", more = true; more; ) {
    const page = await json(`${ROUTE}?limit=1000${after && `&after=${encodeURIComponent(after)}`}`);
    heard = { name: page.owner, key };
    for (const chat of page.data) found.set(chat.id, { system: "", params: {}, tools: [], leaf: null, made: chat.changed, ...chat });
    [after, more] = [page.last_id, page.has_more];
  }
  for (const { kind, row } of await unsent()) if (kind === "chats") found.set(row.id, row);
  for (const [id, chat] of found) known.set(id, chat);
  return [...found.values()];
}

/** The messages of a chat; and the chat itself, where another browser may have gone on with it. @param {string} id @param {Place} place */
export async function readChat(id, place = settings.value.keep) {
  if (place === "browser") return { chat: null, nodes: /** @type {Node[]} */ (await db.nodesOf(id)) };
  let chat = null;
  /** @type {Map<string, Node>} */
  const nodes = new Map();
  try {
    const found = await json(pathOf(id));
    chat = found.chat;
    for (const node of found.messages) nodes.set(node.id, node);
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404)) throw error;
  }
  for (const one of await unsent()) {
    if (one.chat === id && one.kind === "nodes") nodes.set(one.row.id, one.row);
    else if (one.chat === id) chat = one.row;
  }
  return { chat, nodes: [...nodes.values()] };
}

/** @param {Place} place @returns {Promise<Node[]>} */
export async function allNodes(place = settings.value.keep) {
  if (place === "browser") return db.allNodes();
  const all = [];
  for (const chat of await allChats(place)) all.push(...(await readChat(chat.id, place)).nodes);
  return all;
}

/** @param {"chats" | "nodes"} kind @param {any[]} given */
export async function putAll(kind, given) {
  const rows = given.filter((row) => !gone.get(kind === "chats" ? row.id : row.chat));
  if (!onServer()) return db.putAll(kind, rows);
  for (const row of rows) kind === "chats" ? known.set(row.id, row) : written.add(row.id);
  const whose = owner() ?? UNKNOWN;
  await db.post(rows.map((row) => ({ key: `${whose} ${kind} ${row.id}`, owner: whose, kind, chat: kind === "chats" ? row.id : row.chat, stamp: newId(), row })));
  changed = true;
  sendSoon(1000);
}

/** @param {number} ms */
function sendSoon(ms) {
  timer ||= window.setTimeout(() => void send(), ms);
}

/** Send what the server has not yet. Never throws: what it refuses stays here, and is told. */
export function send() {
  clearTimeout(timer);
  timer = 0;
  sending ??= (async () => {
    do {
      changed = false;
      await sendAll();
    } while (changed && !keeping.value.error);
    if (changed) sendSoon(pause);
  })().finally(() => (sending = null));
  return sending;
}

async function sendAll() {
  if (!onServer()) return;
  let error = "";
  let again = false;
  try {
    if (owner() === null) await allChats();
    const whose = owner();
    /** @type {Map<string, Unsent[]>} */
    const byChat = new Map();
    for (const one of await unsent()) {
      if (!gone.has(one.chat) && !(one.row.busy && written.has(one.row.id))) byChat.set(one.chat, [...(byChat.get(one.chat) ?? []), one]);
    }
    for (const [id, rows] of byChat) {
      if (owner() !== whose) break;
      try {
        await sendChat(id, rows);
      } catch (refused) {
        const status = refused instanceof ApiError ? refused.status : 0;
        error ||= told(refused);
        again = status === 0 || status === 429 || status >= 500;
        if (again || status === 401) break;
      }
    }
  } catch (refused) {
    [error, again] = [told(refused), true];
  }
  pause = error ? Math.min(2 * pause, LONGEST_PAUSE_MS) : 1000;
  if (again) sendSoon(pause);
  const waiting = error ? (await unsent()).length : 0;
  if (waiting !== keeping.value.waiting || error !== keeping.value.error) keeping.set({ waiting, error });
}

/** @param {string} id @param {Unsent[]} rows */
async function sendChat(id, rows) {
  const heads = rows.filter((one) => one.kind === "chats");
  const chat = heads[0]?.row ?? known.get(id) ?? { id, title: rows[0].row.text.slice(0, 60) };
  let part = heads;
  let size = 0;
  const sendPart = async () => {
    const messages = part.filter((one) => one.kind === "nodes").map((one) => one.row);
    await json(pathOf(id), { method: "PUT", body: whole({ chat, messages }) });
    await db.sent(part);
    [part, size] = [[], 0];
  };
  for (const one of rows.filter((row) => row.kind === "nodes").sort((a, b) => a.row.made - b.row.made)) {
    const length = JSON.stringify(one.row).length;
    if (part.length >= MOST_MESSAGES || (size && size + length > MOST_CHARS)) await sendPart();
    part.push(one);
    size += length;
  }
  if (part.length) await sendPart();
}

/** Half a character, which a text of the page may hold and no JSON does, becomes the sign for one that is unknown. @param {any} body */
const whole = (body) => JSON.parse(JSON.stringify(body, (_, value) => (typeof value === "string" ? /** @type {any} */ (value).toWellFormed?.() ?? value : value)));

/** @param {string} id */
export async function deleteChat(id) {
  gone.set(id, false);
  try {
    if (onServer()) {
      await sending;
      await json(pathOf(id), { method: "DELETE" }).catch((error) => {
        if (error.status !== 404) throw error;
      });
      await db.forget((await unsent()).filter((one) => one.chat === id));
    } else await db.deleteChat(id);
    gone.set(id, true);
  } catch (error) {
    gone.delete(id);
    throw error;
  }
}

/** Everything: on the server, if chats are kept there, and then all of this browser. */
export async function deleteAll() {
  const list = await allChats();
  if (onServer()) {
    await sending;
    await json(ROUTE, { method: "DELETE" });
  }
  for (const one of list) gone.set(one.id, true);
  await db.deleteAll();
  keeping.set({ waiting: 0, error: "" });
}

/** Chats that come back from a file may be written again. @param {string[]} ids */
export const welcome = (ids) => ids.forEach((id) => gone.delete(id));

/** Ids of chats on the server that hold every word. @param {string} words @returns {Promise<Set<string>>} */
export async function search(words) {
  const found = new Set();
  for (let after = "", more = true; more; ) {
    const page = await json(`${ROUTE}?limit=1000&query=${encodeURIComponent(words)}${after && `&after=${encodeURIComponent(after)}`}`);
    for (const chat of page.data) found.add(chat.id);
    [after, more] = [page.last_id, page.has_more];
  }
  return found;
}
