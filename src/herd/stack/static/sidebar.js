// The list of chats: newest first, by day, searched in titles and texts.
import { chats, deleteChat, newChat, openChat, search, setChat } from "./chats.js";
import { Icon, html, useEffect, useRef, useState, useStore } from "./lib.js";
import { language, t } from "./i18n.js";
import { panel } from "./panels.js";
import { settings } from "./settings-store.js";

export const startChat = () => newChat({ system: settings.value.system });

/** @param {{ shown: boolean, onClose: () => void }} props */
export function Sidebar({ shown, onClose }) {
  const { list, open } = useStore(chats);
  const [words, setWords] = useState("");
  const [found, setFound] = useState(/** @type {Set<string> | null} */ (null));
  useEffect(() => {
    if (!words.trim()) return setFound(null);
    let late = false;
    const timer = setTimeout(() => search(words).then((ids) => late || setFound(ids)), 120);
    return () => ((late = true), clearTimeout(timer));
  }, [words, list]);
  const kept = found ? list.filter((chat) => found.has(chat.id)) : list;
  const groups = byDay(kept);
  return html`<nav class=${`sidebar${shown ? " shown" : ""}`} aria-label=${t("chats")}>
    <div class="row top"><span class="brand"><img src="/page/icon.svg" alt="" width="26" height="26" />herd</span><span class="grow"></span>
      <button type="button" class="quiet only-phone" aria-label=${t("close")} onClick=${onClose}><${Icon} name="close" /></button></div>
    <button type="button" class="new" onClick=${() => (startChat(), onClose())}><${Icon} name="plus" />${t("newChat")}</button>
    <label class="search"><${Icon} name="search" /><input id="search" type="search" value=${words} placeholder=${t("search")} aria-label=${t("search")}
      onInput=${(/** @type {any} */ event) => setWords(event.target.value)} /></label>
    <div class="list">
      ${groups.map(([day, some]) => html`<h2>${day}</h2><ul>${some.map((chat) => html`<${Row} key=${chat.id} chat=${chat} open=${open?.id === chat.id} onClose=${onClose} />`)}</ul>`)}
      ${!kept.length && html`<p class="muted empty">${found ? t("nothingFound") : t("noChats")}</p>`}
    </div>
    <div class="foot">
      ${/** @type {[string, any, string][]} */ ([["documents", "book", t("documents")], ["jobs", "jobs", t("jobs")], ["settings", "gear", t("settings")], ["help", "help", t("shortcuts")]]).map(
        ([name, icon, label]) => html`<button type="button" class="quiet labelled" onClick=${() => (panel.set({ name }), onClose())}><${Icon} name=${icon} /><span>${label}</span></button>`,
      )}
    </div>
  </nav>`;
}

/** @param {{ chat: import("./chats.js").Chat, open: boolean, onClose: () => void }} props */
function Row({ chat, open, onClose }) {
  const [asked, setAsked] = useState("");
  const [title, setTitle] = useState(chat.title);
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => void (asked === "rename" && input.current?.select()), [asked]);
  if (asked === "rename") {
    const done = () => (setAsked(""), title.trim() && setChat(chat, { title: title.trim() }));
    return html`<li class="open"><input ref=${input} value=${title} aria-label=${t("rename")} onInput=${(/** @type {any} */ event) => setTitle(event.target.value)} onBlur=${done}
      onKeyDown=${(/** @type {KeyboardEvent} */ event) => (event.key === "Enter" ? done() : event.key === "Escape" && setAsked(""))} /></li>`;
  }
  if (asked === "delete") {
    return html`<li class="open asks"><span>${t("deleteThis")}</span><button type="button" class="danger" onClick=${() => deleteChat(chat.id)}>${t("delete")}</button>
      <button type="button" onClick=${() => setAsked("")}>${t("cancel")}</button></li>`;
  }
  return html`<li class=${open ? "open" : ""}>
    <button type="button" class="chat" title=${chat.title} aria-current=${open ? "true" : undefined} onClick=${() => (openChat(chat.id), onClose())}>${chat.title}</button>
    <span class="tools"><button type="button" class="quiet" title=${t("rename")} aria-label=${t("renameChat", { title: chat.title })} onClick=${() => (setTitle(chat.title), setAsked("rename"))}><${Icon} name="edit" /></button>
    <button type="button" class="quiet" title=${t("delete")} aria-label=${t("deleteChat", { title: chat.title })} onClick=${() => setAsked("delete")}><${Icon} name="trash" /></button></span></li>`;
}

/** @param {import("./chats.js").Chat[]} list @returns {[string, import("./chats.js").Chat[]][]} */
function byDay(list) {
  /** @type {Map<string, import("./chats.js").Chat[]>} */
  const groups = new Map();
  const midnight = new Date().setHours(0, 0, 0, 0);
  const DAY = 86_400_000;
  for (const chat of list) {
    const days = Math.ceil((midnight - chat.changed) / DAY);
    const name = days <= 0 ? t("today") : days === 1 ? t("yesterday") : days < 7 ? t("thisWeek") : new Intl.DateTimeFormat(language.value.code, { month: "long", year: "numeric" }).format(chat.changed);
    groups.set(name, [...(groups.get(name) ?? []), chat]);
  }
  return [...groups];
}
