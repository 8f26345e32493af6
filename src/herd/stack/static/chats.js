// Conversations as trees: an edit or another answer makes a branch, and none is ever lost. `path` is what is shown and what is sent.
import * as kept from "./history.js";
import { Store, newId, onceAFrame } from "./lib.js";
import { setSettings, settings } from "./settings-store.js";

/**
 * @typedef {{ id: string, name: string, arguments: string, state: "waiting" | "running" | "done" | "denied" | "failed", result?: string,
 *   server?: string, kind?: string }} Call
 * @typedef {{ prompt: number, answer: number, cached: number, first_ms: number, total_ms: number, written?: number }} Stats
 * @typedef {{ text: string, file_id?: string, filename?: string, url?: string, title?: string, index?: number }} Citation
 * @typedef {{ at: number, name: string, detail?: string }} Step
 * @typedef {{ id: string, chat: string, parent: string | null, made: number, role: "user" | "assistant" | "tool", text: string,
 *   files?: { name: string, text: string }[], calls?: Call[], call?: string, name?: string, stats?: Stats, finish?: string,
 *   error?: string, errorCode?: string, verdict?: any, citations?: Citation[], outputs?: { kind: string, url?: string, text?: string,
 *   name?: string }[], steps?: Step[], busy?: boolean, model?: string, items?: any[] }} Node
 * @typedef {{ id: string, title: string, made: number, changed: number, leaf: string | null, system: string,
 *   params: Record<string, any>, tools: string[] }} Chat
 */

/** The list of chats, and the one that is open. */
export const chats = new Store({
  list: /** @type {Chat[]} */ ([]),
  open: /** @type {Chat | null} */ (null),
  loaded: false,
});

/** The nodes of the open chat, by id. @type {Map<string, Node>} */
export let nodes = new Map();
/** @type {Map<string | null, string[]>} */
let children = new Map();
/** Which of several branches was shown last under a node. @type {Map<string | null, string>} */
let chosen = new Map();
/** @type {Map<string, Set<() => void>>} */
const readers = new Map();
/** @type {Set<Node>} */
const changed = new Set();
/** @type {Set<Node>} */
const unsaved = new Set();
let saving = 0;

/** Whose chats are listed, where they are the server's. @type {string | null} */
let whose = null;

export async function loadChats() {
  try {
    const list = await kept.allChats();
    list.sort((a, b) => b.changed - a.changed);
    const before = whose;
    // Where another key was given, what was open is not this reader's.
    whose = kept.onServer() ? kept.owner() : null;
    if (before !== null && whose !== null && before !== whose) newChat({ system: settings.value.system });
    // The open chat stays the object that it is: what is written in it goes on.
    const { open } = chats.value;
    chats.set({ list: list.map((one) => (open && one.id === open.id ? open : one)), loaded: true });
  } catch (error) {
    chats.set({ loaded: false });
    kept.report(error);
  }
}

/** Read again what another browser may have changed on the server, and send what it has not yet. */
export async function renew() {
  if (!kept.onServer()) return;
  await loadChats();
  if (chats.value.loaded) await kept.send();
}

/**
 * Keep chats somewhere else from now on; those of the other place stay there. Throws where they cannot be read.
 * @param {"browser" | "server"} place
 */
export async function keepAt(place) {
  await flush();
  const list = await kept.allChats(place);
  setSettings({ keep: place });
  list.sort((a, b) => b.changed - a.changed);
  chats.set({ list, loaded: true });
  newChat({ system: settings.value.system });
}

/** Copy the chats of the place where they are not kept now. */
export async function copyOthers() {
  const place = kept.onServer() ? "browser" : "server";
  const [list, rows] = await Promise.all([kept.allChats(place), kept.allNodes(place)]);
  return importAll({ format: "herd-chats", chats: list, nodes: rows });
}

/** A chat that is not stored before something is said in it. @param {Partial<Chat>} [given] */
export function newChat(given = {}) {
  nodes = new Map();
  children = new Map();
  chosen = new Map();
  const now = Date.now();
  chats.set({ open: { id: newId(), title: "", made: now, changed: now, leaf: null, system: "", params: {}, tools: [], ...given } });
}

/** @param {string} id */
export async function openChat(id) {
  const chat = chats.value.list.find((one) => one.id === id);
  if (!chat) return;
  await flush();
  let found;
  try {
    found = await kept.readChat(id);
  } catch (error) {
    return kept.report(error);
  }
  const rows = found.nodes;
  Object.assign(chat, found.chat);
  rows.sort((a, b) => a.made - b.made);
  nodes = new Map();
  children = new Map();
  chosen = new Map();
  for (const row of rows) {
    // What was being written when the page was left is told, not hidden.
    if (row.busy) Object.assign(row, { busy: false, error: row.error ?? "The page was closed before the answer was whole.", errorCode: "left" });
    index(row);
  }
  if (chat.leaf && !nodes.has(chat.leaf)) chat.leaf = rows.at(-1)?.id ?? null;
  for (let at = nodes.get(chat.leaf ?? ""); at; at = nodes.get(at.parent ?? "")) chosen.set(at.parent, at.id);
  chats.set({ open: chat });
}

/** @param {Node} node */
function index(node) {
  nodes.set(node.id, node);
  chosen.set(node.parent, node.id);
  const siblings = children.get(node.parent);
  if (siblings) siblings.push(node.id);
  else children.set(node.parent, [node.id]);
}

let last = 0;

/** A node under another, which becomes the end of what is shown. @param {Pick<Node, "role" | "parent"> & Partial<Node>} given @returns {Node} */
export function addNode(given) {
  const chat = /** @type {Chat} */ (chats.value.open);
  last = Math.max(last + 1, Date.now());
  const node = { id: newId(), chat: chat.id, made: last, text: "", ...given };
  index(node);
  // Kept before the chat points to it: a page that is closed now must not lead to a message that is not there.
  void kept.putAll("nodes", [node]);
  if (!chat.title && node.role === "user") chat.title = titleOf(node);
  setChat(chat, { leaf: node.id });
  return node;
}

/** @param {Node} node */
function titleOf(node) {
  const line = (node.text || node.files?.[0]?.name || "").trim().split("\n")[0];
  return line.length > 60 ? line.slice(0, 58).replace(/\s+\S*$/, "") + "…" : line;
}

/** Change a chat, put it first in the list, keep it. @param {Chat} chat @param {Partial<Chat>} patch */
export function setChat(chat, patch) {
  Object.assign(chat, patch, { changed: Date.now() });
  if (!chat.leaf) return chats.tell();
  void kept.putAll("chats", [chat]);
  saveSoon();
  chats.set({ list: [chat, ...chats.value.list.filter((one) => one.id !== chat.id)] });
}

/** The open chat as it is now. */
export const current = () => /** @type {Chat} */ (chats.value.open);

/** From the first message to the one that is shown last. @returns {Node[]} */
export function path() {
  const out = [];
  let at = chats.value.open?.leaf ?? null;
  while (at) {
    const node = nodes.get(at);
    if (!node) break;
    out.push(node);
    at = node.parent;
  }
  return out.reverse();
}

/** @param {Node} node */
export const siblings = (node) => children.get(node.parent) ?? [node.id];

/** Show the branch that a node is on, to the end where it was left. @param {string} id */
export function showBranch(id) {
  chosen.set(nodes.get(id)?.parent ?? null, id);
  let at = id;
  for (let next = chosen.get(at); next; next = chosen.get(at)) at = next;
  setChat(current(), { leaf: at });
}

/** Tell that a node has changed: whoever shows it is told once a frame, and it is kept within a second. @param {Node} node */
export function touch(node) {
  changed.add(node);
  unsaved.add(node);
  onceAFrame(tell);
  saveSoon();
}

function tell() {
  for (const node of changed) for (const reader of readers.get(node.id) ?? []) reader();
  changed.clear();
}

/** @param {string} id @param {() => void} reader */
export function watchNode(id, reader) {
  const found = readers.get(id) ?? new Set();
  readers.set(id, found.add(reader));
  return () => {
    found.delete(reader);
    if (!found.size) readers.delete(id);
  };
}

function saveSoon() {
  saving ||= window.setTimeout(flush, 1000);
}

export async function flush() {
  clearTimeout(saving);
  saving = 0;
  const rows = [...unsaved];
  unsaved.clear();
  if (rows.length) await kept.putAll("nodes", rows);
}

/** @param {string} id */
export async function deleteChat(id) {
  try {
    await kept.deleteChat(id);
  } catch (error) {
    return kept.report(error);
  }
  for (const node of [...unsaved]) if (node.chat === id) unsaved.delete(node);
  chats.set({ list: chats.value.list.filter((one) => one.id !== id) });
  if (chats.value.open?.id === id) newChat();
}

export async function deleteEverything() {
  await kept.deleteAll();
  unsaved.clear();
  localStorage.clear();
  sessionStorage.clear();
  chats.set({ list: [] });
  newChat();
}

/** Everything that is kept, as a file. */
export async function exportAll() {
  await flush();
  const [list, rows] = await Promise.all([kept.allChats(), kept.allNodes()]);
  return { format: "herd-chats", version: 1, chats: list, nodes: rows };
}

/** Take chats from a file; those that are here already are taken anew. @param {any} data */
export async function importAll(data) {
  if (data?.format !== "herd-chats" || !Array.isArray(data.chats) || !Array.isArray(data.nodes)) {
    throw new Error('not a file of chats: it has no "format": "herd-chats"');
  }
  /** @type {Set<string>} */
  const known = new Set(data.chats.map((/** @type {Chat} */ chat) => chat.id));
  for (const row of [...data.chats, ...data.nodes]) if (typeof row?.id !== "string") throw new Error("a row has no id");
  for (const row of data.nodes) if (!known.has(row.chat)) throw new Error(`the message ${row.id} belongs to no chat of the file`);
  kept.welcome([...known]);
  await kept.putAll("chats", data.chats.map((/** @type {Partial<Chat>} */ chat) => ({ system: "", params: {}, tools: [], ...chat })));
  await kept.putAll("nodes", data.nodes);
  if (kept.onServer()) await kept.send();
  await loadChats();
  return data.chats.length;
}

/** Chats whose title or messages hold every word. @param {string} words @returns {Promise<Set<string>>} */
export async function search(words) {
  await flush();
  if (kept.onServer()) return kept.search(words).catch((error) => (kept.report(error), new Set()));
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  /** @type {Map<string, string>} */
  const texts = new Map(chats.value.list.map((chat) => [chat.id, chat.title.toLowerCase()]));
  for (const node of await kept.allNodes()) texts.set(node.chat, `${texts.get(node.chat) ?? ""}\n${node.text.toLowerCase()}`);
  return new Set([...texts].filter(([, text]) => wanted.every((word) => text.includes(word))).map(([id]) => id));
}
