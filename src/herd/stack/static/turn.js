// A turn: what is sent, what comes back, which tools are asked for, until the model has nothing more to ask. `advance` looks at the last
// message alone, so a turn goes on after the page was closed as if it had not been.
import { events, server } from "./api.js";
import { addNode, current, flush, nodes, path, setChat, touch } from "./chats.js";
import { Store } from "./lib.js";
import { settings } from "./settings-store.js";
import { allTools, runTool, tools } from "./tools.js";
import { t } from "./i18n.js";
import { respond } from "./responses.js";

/** @typedef {import("./chats.js").Node} Node @typedef {import("./chats.js").Call} Call @typedef {import("./chats.js").Chat} Chat */

/** What is being written: null, or the node. `said` is read to those who cannot see. */
export const turn = new Store({ node: /** @type {Node | null} */ (null), said: "", control: /** @type {AbortController | null} */ (null) });

/** Rounds of tools in one turn, after which the reader is asked. */
const MOST_ROUNDS = 12;

/** @param {string} text @param {{ name: string, text: string }[]} files */
export function say(text, files) {
  const node = addNode({ role: "user", parent: current().leaf, text, files: files.length ? files : undefined });
  touch(node);
  return answer();
}

/** Another message in the place of one, on a branch of its own. @param {Node} node @param {string} text */
export function sayInstead(node, text) {
  touch(addNode({ role: "user", parent: node.parent, text, files: node.files }));
  return answer();
}

/** Another answer in the place of one. @param {Node} node */
export function answerAgain(node) {
  stop();
  setChat(current(), { leaf: node.parent });
  return answer();
}

export function stop() {
  turn.value.control?.abort();
}

/** The open chat as messages. What a file holds goes in whole, before what is said about it. @param {Chat} chat @param {Node[]} shown */
export function messagesOf(chat, shown) {
  /** @type {any[]} */
  const out = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  for (const node of shown) {
    if (node.role === "tool") out.push({ role: "tool", tool_call_id: node.call, name: node.name, content: node.text });
    else if (node.role === "user") out.push({ role: "user", content: withFiles(node) });
    else if (node.calls?.length) {
      const calls = node.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
      out.push({ role: "assistant", content: node.text || null, tool_calls: calls });
    } else if (node.text) out.push({ role: "assistant", content: node.text });
  }
  return out;
}

/** @param {Node} node */
export function withFiles(node) {
  const files = (node.files ?? []).map((file) => `File ${file.name}:\n\`\`\`\n${file.text}\n\`\`\``);
  return [...files, node.text].filter(Boolean).join("\n\n");
}

/** @param {Chat} chat */
function bodyOf(chat, /** @type {Node[]} */ shown) {
  const { extra, ...params } = { ...settings.value.params, ...chat.params };
  const offered = allTools().filter((tool) => chat.tools.includes(tool.name));
  const functions = offered.map(({ name, description, parameters }) => ({ type: "function", function: { name, description, parameters } }));
  return {
    model: modelName(),
    messages: messagesOf(chat, shown),
    stream: true,
    stream_options: { include_usage: true },
    ...(functions.length ? { tools: functions } : {}),
    ...Object.fromEntries(Object.entries(params).filter(([, value]) => value !== "" && value !== undefined)),
    ...(extra ? JSON.parse(extra) : {}),
  };
}

export const modelName = () => server.value.models.find((one) => one.id === settings.value.model)?.id ?? server.value.models[0]?.id ?? "";

/** Write an answer to what is shown, and go on while it asks for tools that may run. @param {number} round */
export async function answer(round = 0) {
  const chat = current();
  const shown = path();
  const node = addNode({ role: "assistant", parent: chat.leaf, busy: true, model: modelName(), steps: [] });
  const control = new AbortController();
  turn.set({ node, control, said: t("answering") });
  const began = performance.now();
  let first = 0;
  const seen = () => (first ||= performance.now());
  try {
    if (usesResponses(chat)) await respond(chat, shown, node, control.signal, seen);
    else await complete(bodyOf(chat, shown), node, control.signal, seen);
  } catch (error) {
    if (control.signal.aborted) node.finish = "stopped";
    else {
      node.error = error instanceof Error ? error.message : String(error);
      node.errorCode = /** @type {any} */ (error).code ?? "error";
    }
  }
  const ended = performance.now();
  node.busy = false;
  if (node.stats) Object.assign(node.stats, { first_ms: (first || ended) - began, total_ms: ended - began });
  for (const call of node.calls ?? []) if (node.error || node.finish === "stopped") call.state = "denied";
  touch(node);
  void flush();
  if (turn.value.control === control) turn.set({ node: null, control: null, said: saidOf(node) });
  else if (!turn.value.node) turn.set({ said: saidOf(node) });
  if (current().id === chat.id && current().leaf === node.id) await advance(node, round);
}

/** @param {Node} node */
function saidOf(node) {
  if (node.error) return `${t("failed")} ${node.error}`;
  if (node.finish === "stopped") return t("stopped");
  if (node.calls?.some((call) => call.state === "waiting")) return t("toolWaits", { name: node.calls[0].name });
  return node.stats ? t("answered", { count: node.stats.answer }) : t("done");
}

/** @param {object} body @param {Node} node @param {AbortSignal} signal @param {() => void} seen */
async function complete(body, node, signal, seen) {
  for await (const chunk of events("/v1/chat/completions", body, signal)) {
    const choice = chunk.choices?.[0];
    if (chunk.usage) {
      const { prompt_tokens: prompt, completion_tokens: count, prompt_tokens_details: details } = chunk.usage;
      const written = chunk.timings?.predicted_per_second ?? 0;
      node.stats = { prompt, answer: count, cached: details?.cached_tokens ?? 0, first_ms: 0, total_ms: 0, written };
    }
    if (chunk.herd) node.verdict = chunk.herd;
    if (choice) {
      const { delta, finish_reason: finish } = choice;
      if (choice.herd) node.verdict = choice.herd;
      if (delta?.content) {
        seen();
        node.text += delta.content;
      }
      if (delta?.refusal) node.text += delta.refusal;
      for (const part of delta?.tool_calls ?? []) {
        seen();
        addCall(node, part);
      }
      if (finish) node.finish = finish;
    }
    touch(node);
  }
}

/** @param {Node} node @param {any} part */
function addCall(node, part) {
  node.calls ??= [];
  const call = (node.calls[part.index ?? 0] ??= { id: part.id ?? "", name: "", arguments: "", state: "waiting" });
  if (part.id) call.id = part.id;
  if (part.function?.name) call.name += part.function.name;
  if (part.function?.arguments) call.arguments += part.function.arguments;
}

/** Whether tools of the server's are wanted, which only /v1/responses runs. @param {Chat} chat */
export const usesResponses = (chat) => server.value.paths.has("/v1/responses") && chat.tools.some((name) => name.startsWith("server:"));

/** Run the calls of a node that may run; when none is open, send the results. @param {Node} node */
async function advance(node, round = 0) {
  const open = (node.calls ?? []).filter((call) => !call.server || call.kind === "mcp_approval");
  if (!open.length || node.error || node.finish === "stopped") return;
  for (const call of open) if (call.state === "waiting" && tools.value.trusted.includes(call.name)) run(node, call);
  if (open.some((call) => call.state === "waiting")) {
    turn.set({ said: t("toolWaits", { name: open.find((call) => call.state === "waiting")?.name ?? "" }) });
    return;
  }
  let parent = node.id;
  if (current().leaf !== node.id) return;
  for (const call of open) {
    if (call.kind === "mcp_approval") continue;
    parent = addNode({ role: "tool", parent, call: call.id, name: call.name, text: call.result ?? "" }).id;
    touch(/** @type {Node} */ (nodes.get(parent)));
  }
  if (round + 1 >= MOST_ROUNDS) {
    turn.set({ said: t("manyRounds", { count: MOST_ROUNDS }) });
    return;
  }
  await answer(round + 1);
}

/** @param {Node} node @param {Call} call */
function run(node, call) {
  try {
    const result = runTool(call.name, call.arguments);
    if (result === null) return;
    Object.assign(call, { state: "done", result });
  } catch (error) {
    Object.assign(call, { state: "failed", result: `error: ${error instanceof Error ? error.message : error}` });
  }
  touch(node);
}

/**
 * What the reader decides about a call. `result` is given by hand for a tool that the page cannot run.
 * @param {Node} node @param {Call} call @param {"allow" | "always" | "deny"} choice @param {string} [result]
 */
export async function decide(node, call, choice, result) {
  if (choice === "always") {
    tools.value.trusted.push(call.name);
    const { setTools } = await import("./tools.js");
    setTools({ trusted: [...new Set(tools.value.trusted)] });
  }
  if (choice === "deny") Object.assign(call, { state: "denied", result: "The user did not allow this call." });
  else if (call.kind === "mcp_approval") call.state = "done";
  else if (result !== undefined) Object.assign(call, { state: "done", result });
  else run(node, call);
  touch(node);
  void flush();
  await advance(node);
}
