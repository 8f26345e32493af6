// The server, as the page speaks to it: one key, JSON and event streams, and errors that keep the server's own words.
import { Store } from "./lib.js";
import { SseReader } from "./sse.js";

/**
 * @typedef {{ id: string, max_model_len?: number, num_parameters?: number, dtype?: string, model_type?: string,
 *   herd?: { state: string, device: string, memory_bytes: number, free_bytes: number | null, max_sequences: number,
 *   defaults: Record<string, any> } }} Model
 */

/** What is known of the server. `paths` are its routes, by OpenAPI. */
export const server = new Store({
  models: /** @type {Model[]} */ ([]),
  paths: /** @type {Set<string>} */ (new Set()),
  version: "",
  state: /** @type {"connecting" | "ready" | "starting" | "down" | "locked"} */ ("connecting"),
});

/** An error that the server told, or that the way to it made. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status @param {string} code */
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const KEY = "herd.key";

export function savedKey() {
  return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
}

/** @param {string} key @param {boolean} remember  also after the browser is closed */
export function saveKey(key, remember) {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  if (key) (remember ? localStorage : sessionStorage).setItem(KEY, key);
}

/** @param {string} path @param {{ method?: string, body?: unknown, form?: FormData, signal?: AbortSignal }} [options] */
async function ask(path, { method, body, form, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  const key = savedKey();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const content = body === undefined ? form : JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, { method: method ?? (content ? "POST" : "GET"), headers, body: content, signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached. Is `herd serve` still running?", 0, "network");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** @param {Response} response */
async function errorOf(response) {
  const text = await response.text();
  let told;
  try {
    told = JSON.parse(text).error;
  } catch {
    told = null;
  }
  if (response.status === 401) server.set({ state: "locked" });
  return new ApiError(told?.message ?? (text || response.statusText), response.status, told?.code ?? String(response.status));
}

/** @param {string} path @param {Parameters<typeof ask>[1]} [options] @returns {Promise<any>} */
export async function json(path, options) {
  return (await ask(path, options)).json();
}

/** @param {string} path @returns {Promise<Blob>} */
export async function blob(path) {
  return (await ask(path)).blob();
}

/**
 * The events of a stream. Leaving the loop early, or the signal, ends the request on the server too.
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} signal
 */
export async function* events(path, body, signal) {
  const response = await ask(path, { body, signal });
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const sse = new SseReader();
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new ApiError("The connection broke before the answer was whole.", 0, "network");
      }
      if (part.done) throw new ApiError("The stream ended before the answer did.", 0, "network");
      for (const { event, data } of sse.push(part.value)) {
        if (data === "[DONE]") return;
        const found = JSON.parse(data);
        if (event === "error" || found.error?.message) {
          const told = found.error?.message ? found.error : found;
          throw new ApiError(told.message ?? data, 0, told.code ?? "error");
        }
        yield found;
        if (found.type === "response.completed" || found.type === "response.incomplete") return;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Learn what the server has. */
export async function learn() {
  try {
    const [models, document] = await Promise.all([json("/v1/models"), json("/openapi.json")]);
    const state = models.data[0]?.herd?.state ?? "ready";
    server.set({
      models: models.data,
      paths: new Set(Object.keys(document.paths ?? {})),
      version: document.info?.version ?? "",
      state: state === "ready" ? "ready" : "starting",
    });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    server.set({ state: error.status === 401 ? "locked" : "down" });
  }
}

/** @param {string} path */
export const has = (path) => server.value.paths.has(path);
