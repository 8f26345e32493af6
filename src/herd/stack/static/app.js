// The page: chats at the side, the conversation, the composer under it, and the keys that work everywhere.
import { learn, server } from "./api.js";
import { chats, current, flush, loadChats, newChat, openChat, path, renew } from "./chats.js";
import { Composer } from "./composer.js";
import { keeping, send } from "./history.js";
import { Icon, copyText, html, onceAFrame, render, useEffect, useLayoutEffect, useRef, useState, useStore } from "./lib.js";
import { guess, language, speak, t } from "./i18n.js";
import { Message, versionOf } from "./message.js";
import { Panels, State, panel } from "./panels.js";
import { loadSettings, settings } from "./settings-store.js";
import { Sidebar, startChat } from "./sidebar.js";
import { loadTools } from "./tools.js";
import { answerAgain, modelName, say, stop, turn } from "./turn.js";

/** Nearer to the end than that counts as being there. */
const NEAR_PX = 48;

function App() {
  useStore(language);
  const { open } = useStore(chats);
  const { theme, wide } = useStore(settings);
  const [menu, setMenu] = useState(false);
  const { state, models } = useStore(server);
  const log = useRef(/** @type {HTMLElement | null} */ (null));
  const { away, follow, jump } = useFollow(log);
  const { node: busy, said } = useStore(turn);
  const { waiting, error } = useStore(keeping);
  useEffect(() => void (document.documentElement.dataset.theme = theme), [theme]);
  useEffect(() => void (document.title = open?.title ? `${open.title} · herd` : "herd"), [open?.title]);
  useLayoutEffect(() => jump(), [open?.id]);
  useKeys({ jump, menu: () => setMenu((on) => !on) });
  const shown = open ? path() : [];
  const id = modelName();
  return html`<a class="skip" href="#prompt" onClick=${(/** @type {Event} */ event) => (event.preventDefault(), document.getElementById("prompt")?.focus())}>${t("skip")}</a>
    <${Sidebar} shown=${menu} onClose=${() => setMenu(false)} />
    ${menu && html`<div class="veil" onClick=${() => setMenu(false)}></div>`}
    <main class=${wide ? "wide" : ""}>
      <header class="bar"><button type="button" class="quiet only-phone" aria-label=${t("chats")} onClick=${() => setMenu(true)}><${Icon} name="menu" /></button>
        <button type="button" class="model" aria-label=${t("modelIs", { name: id || "…" })} onClick=${() => panel.set({ name: "models" })}><strong>${id || "…"}</strong><${State} state=${models.find((one) => one.id === id)?.herd?.state ?? state} /></button>
        <h1 title=${open?.title}>${open?.title || t("newChat")}</h1>
        ${state === "locked" && html`<button type="button" class="quiet labelled" onClick=${() => panel.set({ name: "key" })}><${Icon} name="key" />${t("apiKey")}</button>`}</header>
      <div class="scroll-log" ref=${log} tabindex="0" role="log" aria-label=${t("conversation")} aria-busy=${busy ? "true" : "false"} aria-live="polite">
        <div class="column">
          ${shown.map((node, at) => html`<${Message} key=${node.id} node=${node} version=${versionOf(node)} last=${at === shown.length - 1} />`)}
          ${open && !shown.length && html`<${Welcome} />`}
        </div>
      </div>
      <div class="under"><div class="column">
        ${away && html`<button type="button" class="jump" onClick=${jump}><${Icon} name="down" />${t("jump")}</button>`}
        ${state === "down" && html`<div class="note error" role="alert">${t("serverDown")} <button type="button" onClick=${learn}>${t("retry")}</button></div>`}
        ${error && state !== "down" && state !== "locked" && html`<div class="note error kept" role="alert"><span>${waiting ? t("notKept", { count: waiting }) : t("failed")} ${error}</span>
          <button type="button" onClick=${() => (waiting ? send() : (keeping.set({ error: "" }), renew()))}>${t("retry")}</button></div>`}
        ${open && html`<${Composer} onSent=${() => onceAFrame(follow)} />`}
        <p class="fine">${t("fine")}</p>
      </div></div>
    </main>
    <div class="unseen" role="status">${said}</div>
    <${Panels} />`;
}

function Welcome() {
  const { state } = useStore(server);
  const ideas = [t("idea1"), t("idea2"), t("idea3"), t("idea4")];
  return html`<div class="welcome"><img src="/page/icon.svg" alt="" width="52" height="52" /><h2>${t("welcome")}</h2>
    <div class="ideas">${ideas.map((idea) => html`<button type="button" disabled=${state !== "ready"} onClick=${() => say(idea, [])}>${idea}</button>`)}</div></div>`;
}

/**
 * Follow what is written only while the reader is at the end. Whoever scrolls up stays where they are.
 * @param {{ current: HTMLElement | null }} log
 */
function useFollow(log) {
  const [away, setAway] = useState(false);
  const following = useRef(true);
  useEffect(() => {
    const box = /** @type {HTMLElement} */ (log.current);
    let before = box.scrollTop;
    const seen = () => {
      const left = box.scrollHeight - box.scrollTop - box.clientHeight;
      // Growing text moves the end away without the reader's doing; only their going up ends the following.
      if (left <= NEAR_PX) following.current = true;
      else if (box.scrollTop < before - 1) following.current = false;
      before = box.scrollTop;
      setAway(left > NEAR_PX && !following.current);
    };
    const grown = new ResizeObserver(() => {
      if (following.current) box.scrollTop = box.scrollHeight;
      before = box.scrollTop;
      setAway(box.scrollHeight - box.scrollTop - box.clientHeight > NEAR_PX && !following.current);
    });
    box.addEventListener("scroll", seen, { passive: true });
    grown.observe(/** @type {Element} */ (box.firstElementChild));
    grown.observe(box);
    return () => (box.removeEventListener("scroll", seen), grown.disconnect());
  }, []);
  const follow = () => {
    following.current = true;
    setAway(false);
    if (log.current) log.current.scrollTop = log.current.scrollHeight;
  };
  return { away, follow, jump: follow };
}

/** @param {{ jump: () => void, menu: () => void }} act */
function useKeys(act) {
  useEffect(() => {
    const click = (/** @type {string} */ selector) => {
      const found = /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(selector));
      found[found.length - 1]?.click();
    };
    const last = () => path().findLast((node) => node.role === "assistant");
    /** @type {Record<string, () => void>} */
    const keys = {
      "alt+n": startChat,
      "alt+s": () => (document.querySelector(".sidebar.shown") || innerWidth > 800 || act.menu(), setTimeout(() => document.getElementById("search")?.focus(), 0)),
      "alt+e": () => click(".said .edit"),
      "alt+r": () => last() && !turn.value.node && answerAgain(/** @type {any} */ (last())),
      "alt+c": () => void copyText(last()?.text ?? ""),
      "alt+a": () => click(".approval .allow"),
      "alt+d": () => click(".approval .deny"),
      "alt+j": act.jump,
      "alt+m": () => panel.set({ name: "models" }),
      "alt+o": () => panel.set({ name: "settings" }),
    };
    // Asked of the dialog itself: the store learns of its closing a moment later, and keys may come in between.
    const covered = () => document.querySelector("dialog[open]") !== null;
    const press = (/** @type {KeyboardEvent} */ event) => {
      const typing = /** @type {HTMLElement} */ (event.target).matches?.("input, textarea, select");
      if (event.key === "Escape" && !covered() && turn.value.node) stop();
      else if (event.key === "?" && !typing) panel.set({ name: "help" });
      else if (event.altKey && !event.ctrlKey && !event.metaKey) {
        // The key's place, since Alt may make another letter of it.
        const work = keys[`alt+${event.code.replace("Key", "").toLowerCase()}`];
        if (!work || covered()) return;
        event.preventDefault();
        work();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

async function start() {
  await loadSettings();
  await Promise.all([speak(settings.value.language || guess()), loadTools(), loadChats()]);
  newChat({ system: settings.value.system });
  const wanted = /^#chat=(\w+)$/.exec(location.hash)?.[1];
  if (wanted) await openChat(wanted);
  render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
  chats.watch(() => {
    const open = current();
    const hash = open?.leaf ? `#chat=${open.id}` : "";
    if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname);
  });
  addEventListener("hashchange", () => {
    const id = /^#chat=(\w+)$/.exec(location.hash)?.[1];
    if (id && id !== current()?.id) void openChat(id);
  });
  addEventListener("visibilitychange", () => void (document.hidden ? flush() : renew()));
  addEventListener("pagehide", () => void flush());
  let before = "";
  server.watch(() => {
    const { state } = server.value;
    if (state === "ready" && before !== "ready") void renew();
    before = state;
  });
  await learn();
  // The engine may start, fall and come back while the page is open.
  setInterval(() => void (server.value.state !== "locked" && !document.hidden && server.value.state !== "ready" && learn()), 2000);
}

void start();
