// What opens over the conversation: one dialog at a time, closed by Escape, with the focus kept inside and given back.
import { ApiError, has, json, learn, saveKey, savedKey, server } from "./api.js";
import { Icon, Store, copyText, html, sizeText, useEffect, useLayoutEffect, useRef, useState, useStore } from "./lib.js";
import { number, t } from "./i18n.js";
import { renew } from "./chats.js";
import { modelName } from "./turn.js";
import { settings, setSettings } from "./settings-store.js";
import { Documents, Source } from "./documents.js";
import { Jobs } from "./jobs.js";
import { Controls, Settings, Tools } from "./settings.js";

/** @type {Store<{ name: string, data?: any }>} */
export const panel = new Store({ name: "" });

/** Every shortcut: keys, and what they do. They are named here once, for the page and for its help. */
export const SHORTCUTS = /** @type {[string, import("./i18n.js").Word][]} */ ([
  ["Enter", "send"],
  ["Shift+Enter", "newLine"],
  ["Escape", "stop"],
  ["Alt+N", "newChat"],
  ["Alt+S", "search"],
  ["Alt+E", "editLast"],
  ["Alt+R", "again"],
  ["Alt+C", "copyLast"],
  ["Alt+A", "allow"],
  ["Alt+D", "deny"],
  ["Alt+J", "jump"],
  ["Alt+M", "models"],
  ["Alt+O", "settings"],
  ["?", "shortcuts"],
]);

const PANELS = /** @type {Record<string, { title: import("./i18n.js").Word, body: any, wide?: boolean }>} */ ({
  models: { title: "models", body: Models },
  key: { title: "apiKey", body: Key },
  help: { title: "shortcuts", body: Help },
  tools: { title: "tools", body: Tools },
  controls: { title: "controls", body: Controls },
  settings: { title: "settings", body: Settings },
  documents: { title: "documents", body: Documents, wide: true },
  source: { title: "source", body: Source, wide: true },
  jobs: { title: "jobs", body: Jobs, wide: true },
});

export function Panels() {
  const { name, data } = useStore(panel);
  const { state } = useStore(server);
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useLayoutEffect(() => {
    if (name && !dialog.current?.open) dialog.current?.showModal();
    if (!name && dialog.current?.open) dialog.current.close();
  }, [name]);
  useEffect(() => void (state === "locked" && panel.set({ name: "key" })), [state]);
  const shown = PANELS[name];
  const close = () => panel.set({ name: "", data: undefined });
  return html`<dialog ref=${dialog} class=${shown?.wide ? "wide" : ""} aria-labelledby="panel-title" onClose=${close}
    onClick=${(/** @type {MouseEvent} */ event) => event.target === dialog.current && close()}>
    ${shown && html`<div class="panel">
      <header><h2 id="panel-title">${t(shown.title)}</h2><button type="button" class="quiet" aria-label=${t("close")} onClick=${close}><${Icon} name="close" /></button></header>
      <div class="body"><${shown.body} data=${data} close=${close} /></div></div>`}
  </dialog>`;
}

/** @param {{ close: () => void }} props */
function Models({ close }) {
  const { models, state } = useStore(server);
  useStore(settings);
  useEffect(() => void learn(), []);
  const answering = models.filter((one) => !one.model_type || one.model_type === "llm");
  return html`<p class="muted">${t("modelsText")}</p>
    <div class="cards" role="radiogroup" aria-label=${t("models")}>${answering.map((model) => {
      const { herd } = model;
      const chosen = modelName() === model.id;
      return html`<button type="button" class=${`card${chosen ? " chosen" : ""}`} role="radio" aria-checked=${chosen}
          onClick=${() => (setSettings({ model: model.id }), close())}>
        <span class="row"><strong>${model.id}</strong><span class="grow"></span><${State} state=${herd?.state ?? state} /></span>
        <span class="muted">${factsOf(model, model.max_model_len, herd?.device)}</span>
        ${herd?.memory_bytes && html`<${Fit} used=${herd.memory_bytes} free=${herd.free_bytes} />`}
      </button>`;
    })}</div>
    ${has("/v1/herd/models") && html`<${OnDisk} />`}`;
}

/** What else lies on the server's machine. A key that may not know is told nothing. */
function OnDisk() {
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [wrong, setWrong] = useState("");
  const [copied, setCopied] = useState("");
  useEffect(() => void json("/v1/herd/models").then(setFound, (error) => setWrong(error.status === 403 ? "-" : error.message)), []);
  if (wrong) return wrong !== "-" && html`<div class="note error" role="alert">${wrong}</div>`;
  if (!found) return html`<p class="muted" role="status">${t("lookingAtDisk")}</p>`;
  const others = found.data.filter((/** @type {any} */ one) => one.state !== "loaded");
  const room = (found.free_bytes ?? 0) + (found.served_bytes ?? 0);
  /** @param {any} one */
  const fit = (one) => one.problem ?? t(/** @type {any} */ (`fit_${one.fit ?? "unknown"}`), { need: sizeText(one.needs_bytes), room: sizeText(room) });
  return html`<h3>${t("onDisk")}</h3><p class="muted">${t("onDiskText")}</p>
    <ul class="rows disk" aria-label=${t("onDisk")}>${others.map((/** @type {any} */ one) => html`<li><div class="row wrap"><strong>${one.name}</strong><span class="grow"></span>
        <span class=${`state-dot ${one.problem || one.fit === "no" ? "down" : "idle"}`}><i></i>${t("diskSize", { size: sizeText(one.size_bytes) })}</span></div>
      <span class="muted">${[factsOf(one, one.context), fit(one)].filter(Boolean).join(" · ")}</span>
      ${one.command && html`<div class="row"><code class="grow">${one.command}</code><button type="button" class="quiet" aria-label=${`${t("copy")}: ${one.command}`}
        onClick=${async () => setCopied((await copyText(one.command)) ? one.name : "")}>${copied === one.name ? t("copied") : t("copy")}</button></div>`}</li>`)}
      ${!others.length && html`<li class="muted">${t("noOthers")}</li>`}</ul>`;
}

/** @param {{ num_parameters?: number, dtype?: string }} model @param {number} [context] @param {string} [device] */
function factsOf(model, context, device) {
  const count = model.num_parameters && t("parameters", { count: number(model.num_parameters, { notation: "compact", maximumFractionDigits: 1 }) });
  return [count, model.dtype, device, context && t("contextOf", { count: number(context) })].filter(Boolean).join(" · ");
}

/** @param {{ state: string }} props */
export function State({ state }) {
  const words = /** @type {Record<string, import("./i18n.js").Word>} */ ({ ready: "ready", starting: "starting", connecting: "connecting", locked: "locked" });
  return html`<span class=${`state-dot ${state}`}><i></i>${t(words[state] ?? "down")}</span>`;
}

/** @param {{ used: number, free: number | null }} props  of memory, in bytes; what is free besides it */
function Fit({ used, free }) {
  const text = free === null ? t("memoryTakes", { used: sizeText(used) }) : t("memoryFits", { used: sizeText(used), free: sizeText(free) });
  const share = free === null ? 1 : used / (used + free);
  return html`<span class="fit"><svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true"><rect width="100" height="4" rx="2" /><rect class="used" width=${Math.max(1, share * 100)} height="4" rx="2" /></svg><span>${text}</span></span>`;
}

/** @param {{ close: () => void }} props */
function Key({ close }) {
  const [key, setKey] = useState(savedKey());
  const [remember, setRemember] = useState(Boolean(localStorage.getItem("herd.key")));
  const [wrong, setWrong] = useState("");
  const enter = async (/** @type {Event} */ event) => {
    event.preventDefault();
    saveKey(key.trim(), remember);
    try {
      await json("/v1/models");
      await learn();
      await renew();
      close();
    } catch (error) {
      setWrong(error instanceof ApiError ? error.message : String(error));
    }
  };
  return html`<form onSubmit=${enter}><p class="muted">${t("keyText")}</p>
    <label>${t("apiKey")}<input type="password" autocomplete="off" value=${key} onInput=${(/** @type {any} */ event) => setKey(event.target.value)} required /></label>
    <label class="check"><input type="checkbox" checked=${remember} onChange=${(/** @type {any} */ event) => setRemember(event.target.checked)} />${t("keyRemember")}</label>
    ${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    <div class="row"><span class="grow"></span><button type="submit" class="primary">${t("enter")}</button></div></form>`;
}

function Help() {
  return html`<dl class="shortcuts">${SHORTCUTS.map(([keys, word]) => html`<div><dt>${keys.split("+").map((one) => html`<kbd>${one}</kbd>`)}</dt><dd>${t(word)}</dd></div>`)}</dl>`;
}
