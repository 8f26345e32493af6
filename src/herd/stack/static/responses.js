// A turn over /v1/responses, whose tools run on the server: search, documents, code, MCP. Its items become the same nodes that chat's do.
import { events } from "./api.js";
import { touch } from "./chats.js";
import { settings } from "./settings-store.js";
import { allTools } from "./tools.js";
import { withFiles, modelName } from "./turn.js";

/** @typedef {import("./chats.js").Node} Node @typedef {import("./chats.js").Chat} Chat @typedef {import("./chats.js").Call} Call */

/** @param {Chat} chat */
function toolsOf(chat) {
  /** @type {any[]} */
  const out = allTools()
    .filter((tool) => chat.tools.includes(tool.name))
    .map(({ name, description, parameters }) => ({ type: "function", name, description, parameters }));
  for (const name of chat.tools) {
    const [kind, rest] = name.startsWith("server:") ? name.slice(7).split(/=(.*)/s) : ["", ""];
    if (kind === "web_search") out.push({ type: "web_search" });
    else if (kind === "code_interpreter") out.push({ type: "code_interpreter", container: { type: "auto" } });
    else if (kind === "file_search") out.push({ type: "file_search", vector_store_ids: rest.split(",") });
    else if (kind === "mcp") {
      const [label, url] = rest.split(/ (.*)/s);
      out.push({ type: "mcp", server_label: label, server_url: url, require_approval: "always" });
    }
  }
  return out;
}

/** What was said, as items; those of the server's own making go back as they came, with what the reader decided. @param {Node[]} shown */
function inputOf(shown) {
  /** @type {any[]} */
  const out = [];
  for (const node of shown) {
    if (node.role === "user") out.push({ role: "user", content: withFiles(node) });
    else if (node.role === "tool") out.push({ type: "function_call_output", call_id: node.call, output: node.text });
    else if (node.items) {
      out.push(...node.items);
      for (const call of node.calls ?? []) {
        if (call.kind === "mcp_approval") out.push({ type: "mcp_approval_response", approval_request_id: call.id, approve: call.state === "done" });
      }
    } else {
      if (node.text) out.push({ role: "assistant", content: node.text });
      for (const call of node.calls ?? []) {
        if (!call.server) out.push({ type: "function_call", call_id: call.id, name: call.name, arguments: call.arguments });
      }
    }
  }
  return out;
}

/** @param {Chat} chat @param {Node[]} shown @param {Node} node @param {AbortSignal} signal @param {() => void} seen */
export async function respond(chat, shown, node, signal, seen) {
  const { max_tokens: most, temperature, top_p } = { ...settings.value.params, ...chat.params };
  const given = { max_output_tokens: most, temperature, top_p };
  const body = {
    model: modelName(),
    input: inputOf(shown),
    instructions: chat.system.trim() || undefined,
    tools: toolsOf(chat),
    stream: true,
    store: false,
    include: ["file_search_call.results", "code_interpreter_call.outputs", "web_search_call.action.sources"],
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== "" && value !== undefined)),
  };
  for await (const event of events("/v1/responses", body, signal)) {
    take(node, event, seen);
    touch(node);
  }
}

/** @param {Node} node @param {any} event @param {() => void} seen */
function take(node, event, seen) {
  const { type, item } = event;
  if (type === "response.output_text.delta" || type === "response.refusal.delta") {
    seen();
    node.text += event.delta;
  } else if (type === "response.output_text.annotation.added") (node.citations ??= []).push(event.annotation);
  else if (type === "response.output_item.added") begin(node, item);
  else if (type === "response.output_item.done") end(node, item);
  else if (type === "response.failed") throw Object.assign(new Error(event.response.error?.message ?? "the response failed"), { code: event.response.error?.code });
  else if (type === "response.completed" || type === "response.incomplete") finish(node, event.response);
  if (!/\.delta$|created$|in_progress$|content_part|output_text/.test(type)) {
    node.steps?.push({ at: Date.now(), name: type.replace(/^response\./, ""), detail: item ? [item.type, item.name].filter(Boolean).join(" ") : undefined });
  }
}

/** @param {Node} node @param {any} item @returns {Call | undefined} */
function callOf(node, item) {
  const id = item.call_id ?? item.id;
  const found = node.calls?.find((call) => call.id === id);
  if (found) return found;
  const names = { web_search_call: "web_search", file_search_call: "file_search", code_interpreter_call: "code_interpreter" };
  const name = item.name ?? names[/** @type {keyof typeof names} */ (item.type)];
  if (!name || item.type === "message") return undefined;
  /** @type {Call} */
  const call = { id, name, arguments: "", state: "running", kind: item.type === "mcp_approval_request" ? "mcp_approval" : item.type };
  if (item.type !== "function_call") call.server = item.server_label ?? "server";
  (node.calls ??= []).push(call);
  return call;
}

/** @param {Node} node @param {any} item */
function begin(node, item) {
  callOf(node, item);
}

/** @param {Node} node @param {any} item */
function end(node, item) {
  if (item.type === "message") {
    for (const part of item.content ?? []) if (part.annotations?.length) node.citations = part.annotations;
    return;
  }
  const call = callOf(node, item);
  if (!call) return;
  call.arguments = item.arguments ?? item.code ?? JSON.stringify(item.queries ?? item.action ?? {});
  if (item.type === "function_call") call.state = "waiting";
  else if (item.type === "mcp_approval_request") call.state = "waiting";
  else {
    call.state = item.error || item.status === "failed" ? "failed" : "done";
    call.result = item.error ? String(item.error.message ?? item.error) : resultOf(item);
    for (const output of item.outputs ?? []) outputOf(node, output);
    for (const file of item.files ?? []) outputOf(node, { type: "file", ...file });
  }
}

/** @param {any} item */
function resultOf(item) {
  if (item.type === "file_search_call") return (item.results ?? []).map((/** @type {any} */ one) => `${one.filename} (${one.score?.toFixed?.(2) ?? ""})\n${one.text ?? ""}`).join("\n\n") || item.status;
  if (item.type === "code_interpreter_call") return (item.outputs ?? []).map((/** @type {any} */ one) => one.logs ?? "").filter(Boolean).join("\n") || item.status;
  return String(item.output ?? item.status ?? "");
}

/** @param {Node} node @param {any} output */
function outputOf(node, output) {
  if (output.type === "image") (node.outputs ??= []).push({ kind: "image", url: output.url ?? output.image_url, name: output.name ?? output.filename });
  else if (output.type === "file") (node.outputs ??= []).push({ kind: "file", url: output.url ?? `/v1/files/${output.file_id ?? output.id}/content`, name: output.filename ?? output.name });
}

/** @param {Node} node @param {any} response */
function finish(node, response) {
  const usage = response.usage;
  if (usage) node.stats = { prompt: usage.input_tokens, answer: usage.output_tokens, cached: usage.input_tokens_details?.cached_tokens ?? 0, first_ms: 0, total_ms: 0 };
  const why = response.incomplete_details?.reason;
  node.finish = why === "max_output_tokens" ? "length" : why === "content_filter" ? "content_filter" : node.calls?.some((call) => call.state === "waiting") ? "tool_calls" : "stop";
  if (response.herd) node.verdict = response.herd;
  node.items = response.output;
  /** @type {any[]} */
  const passages = (response.output ?? []).flatMap((/** @type {any} */ item) => item.results ?? []);
  for (const one of node.citations ?? []) one.text ??= passages.find((passage) => passage.file_id === one.file_id)?.text ?? "";
}
