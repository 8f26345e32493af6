// Where the reader writes: text, files, which tools are on offer, how much of the context is used.
import { has, json, server } from "./api.js";
import { chats, current, path, setChat } from "./chats.js";
import { Icon, html, useEffect, useRef, useState, useStore } from "./lib.js";
import { number, t } from "./i18n.js";
import { settings } from "./settings-store.js";
import { messagesOf, modelName, say, stop, turn } from "./turn.js";
import { panel } from "./panels.js";

/** Of a file that goes into the prompt as text. Larger ones belong into a vector store. */
const MOST_FILE_BYTES = 4 * 2 ** 20;

/** @param {{ onSent: () => void }} props */
export function Composer({ onSent }) {
  const { open } = useStore(chats);
  const { node: busy } = useStore(turn);
  const { state } = useStore(server);
  const [text, setText] = useState("");
  const [files, setFiles] = useState(/** @type {{ name: string, text: string }[]} */ ([]));
  const [problem, setProblem] = useState("");
  const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const chooser = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => area.current?.focus(), [open?.id]);
  useEffect(() => {
    const box = area.current;
    if (!box) return;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
  }, [text]);
  const waits = open?.leaf && path().at(-1)?.calls?.some((call) => call.state === "waiting");
  const ready = (text.trim() || files.length) && !busy && !waits && state === "ready";
  const send = () => {
    if (!ready) return;
    const sent = say(text, files);
    setText("");
    setFiles([]);
    setProblem("");
    onSent();
    return sent;
  };
  /** @param {Iterable<File>} given */
  const attach = async (given) => {
    for (const file of given) {
      const found = await readFile(file);
      if (typeof found === "string") setProblem(found);
      else setFiles((before) => [...before, found]);
    }
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    if (event.key !== "Enter" || event.isComposing || event.shiftKey) return;
    if (!settings.value.enterSends && !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    void send();
  };
  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), send())}
      onDragOver=${(/** @type {DragEvent} */ event) => event.preventDefault()}
      onDrop=${(/** @type {DragEvent} */ event) => (event.preventDefault(), attach(event.dataTransfer?.files ?? []))}>
    ${problem && html`<div class="note error" role="alert">${problem}</div>`}
    ${files.length > 0 && html`<div class="files">${files.map((file) => html`<span class="chip">${file.name}
      <button type="button" class="quiet" aria-label=${t("removeFile", { name: file.name })} onClick=${() => setFiles(files.filter((one) => one !== file))}><${Icon} name="close" /></button></span>`)}</div>`}
    <textarea ref=${area} id="prompt" rows="1" value=${text} placeholder=${t("placeholder")} aria-label=${t("placeholder")}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)} onKeyDown=${key}
      onPaste=${(/** @type {ClipboardEvent} */ event) => event.clipboardData?.files.length && (event.preventDefault(), attach(event.clipboardData.files))}></textarea>
    <div class="row">
      <input ref=${chooser} type="file" multiple hidden onChange=${(/** @type {any} */ event) => (attach([...event.target.files]), (event.target.value = ""))} />
      <button type="button" class="quiet" title=${t("attach")} aria-label=${t("attach")} onClick=${() => chooser.current?.click()}><${Icon} name="clip" /></button>
      <button type="button" class=${`quiet labelled${open?.tools.length ? " on" : ""}`} aria-label=${t("toolsFor")} onClick=${() => panel.set({ name: "tools" })}><${Icon} name="tool" /><span>${t("tools")}${open?.tools.length ? ` ${open.tools.length}` : ""}</span></button>
      <button type="button" class=${`quiet labelled${open?.system || Object.keys(open?.params ?? {}).length ? " on" : ""}`} aria-label=${t("controlsFor")} onClick=${() => panel.set({ name: "controls" })}><${Icon} name="gear" /><span>${t("controls")}</span></button>
      <span class="grow"></span>
      <${Gauge} draft=${text} />
      ${busy
        ? html`<button type="button" class="send stop" title=${t("stop")} aria-label=${t("stop")} onClick=${stop}><${Icon} name="stop" /></button>`
        : html`<button type="submit" class="send" title=${t("send")} aria-label=${t("send")} disabled=${!ready}><${Icon} name="send" /></button>`}
    </div>
  </form>`;
}

/** @param {File} file @returns {Promise<{ name: string, text: string } | string>} the file, or what is wrong with it */
async function readFile(file) {
  if (file.size > MOST_FILE_BYTES) return t("fileTooLarge", { name: file.name, limit: "4 MiB" });
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return { name: file.name, text };
  } catch {
    // Told below.
  }
  return t("fileNotText", { name: file.name });
}

/** How full the context is: the last answer's count, and the server's own count of what is being written. @param {{ draft: string }} props */
function Gauge({ draft }) {
  const { models } = useStore(server);
  useStore(turn);
  const [draftTokens, setDraft] = useState(0);
  const most = models.find((one) => one.id === modelName())?.max_model_len ?? 0;
  const shown = path();
  const stats = shown.findLast((node) => node.stats)?.stats;
  useEffect(() => {
    if (!draft.trim() || !has("/tokenize")) return setDraft(0);
    const timer = setTimeout(() => json("/tokenize", { body: { prompt: draft, add_special_tokens: false } }).then((found) => setDraft(found.count), () => setDraft(0)), 400);
    return () => clearTimeout(timer);
  }, [draft]);
  const used = (stats ? stats.prompt + stats.answer : 0) + draftTokens;
  if (!most) return null;
  const share = Math.min(1, used / most);
  const text = t("context", { used: number(used), most: number(most) });
  return html`<span class=${`gauge${share > 0.9 ? " full" : ""}`} role="meter" aria-valuemin="0" aria-valuemax=${most} aria-valuenow=${used} aria-label=${text} title=${text}>
    <svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="8" /><circle class="used" cx="10" cy="10" r="8" pathLength="100" stroke-dasharray=${`${share * 100} 100`} /></svg>
    <span>${number(share, { style: "percent" })}</span></span>`;
}

/** What `messagesOf` and the open chat would send now, for those who want to see it. */
export const request = () => ({ model: modelName(), messages: messagesOf(current(), path()), ...current().params });

/** @param {Partial<import("./chats.js").Chat>} patch */
export const change = (patch) => setChat(current(), patch);
