// Settings of the page, and what a chat is answered with: its system prompt, its sampling, its tools. The server's defaults stand beside them.
import { has, json, savedKey, saveKey, server } from "./api.js";
import { chats, copyOthers, current, deleteEverything, exportAll, importAll, keepAt, setChat } from "./chats.js";
import { ROUTE } from "./history.js";
import { download, html, useEffect, useRef, useState, useStore } from "./lib.js";
import { LANGUAGES, speak, t } from "./i18n.js";
import { modelName, turn } from "./turn.js";
import { BUILTIN, readTool, setTools, tools } from "./tools.js";
import { setSettings, settings } from "./settings-store.js";

/** Name, least, most, step. @type {[string, number, number | undefined, number][]} */
const NUMBERS = [
  ["temperature", 0, 100, 0.1],
  ["top_p", 0, 1, 0.05],
  ["top_k", 0, undefined, 1],
  ["min_p", 0, 1, 0.01],
  ["repetition_penalty", 0, 100, 0.05],
  ["presence_penalty", -100, 100, 0.1],
  ["frequency_penalty", -100, 100, 0.1],
  ["max_tokens", 1, undefined, 1],
  ["seed", 0, undefined, 1],
];

export function Controls() {
  const { open } = useStore(chats);
  const { models } = useStore(server);
  if (!open) return null;
  const defaults = models.find((one) => one.id === modelName())?.herd?.defaults ?? {};
  const { params } = open;
  /** @param {string} name @param {any} value */
  const set = (name, value) => {
    const next = { ...params, [name]: value };
    if (value === "" || value === undefined) delete next[name];
    setChat(open, { params: next });
  };
  return html`<label>${t("systemPrompt")}<textarea rows="5" value=${open.system} placeholder=${t("systemPlaceholder")}
      onInput=${(/** @type {any} */ event) => setChat(open, { system: event.target.value })}></textarea></label>
    <h3>${t("sampling")}</h3><p class="muted">${t("samplingText")}</p>
    <div class="grid">${NUMBERS.map(([name, least, most, step]) => html`<label>${name}
      <input type="number" name=${name} min=${least} max=${most} step=${name === "top_k" || step === 1 ? 1 : "any"} value=${params[name] ?? ""} placeholder=${defaultText(name, defaults[name])}
        onInput=${(/** @type {any} */ event) => set(name, event.target.value === "" ? "" : Number(event.target.value))} />
      <span class="muted">${t(/** @type {any} */ (`hint_${name}`))}</span></label>`)}</div>
    <label>stop<input name="stop" value=${(params.stop ?? []).join(", ")} placeholder=${defaultText("stop", defaults.stop?.length ? defaults.stop.join(", ") : null)}
      onChange=${(/** @type {any} */ event) => set("stop", event.target.value.split(",").map((/** @type {string} */ one) => one.trim()).filter(Boolean) || "")} /></label>
    <${Extra} value=${params.extra ?? ""} onChange=${(/** @type {string} */ text) => set("extra", text)} />
    <div class="row"><button type="button" onClick=${() => setChat(open, { params: {}, system: settings.value.system })}>${t("asServer")}</button><span class="grow"></span>
      <button type="button" onClick=${() => setSettings({ params, system: open.system })}>${t("forNewChats")}</button></div>`;
}

/** @param {string} name @param {any} value */
function defaultText(name, value) {
  if (value !== null && value !== undefined) return String(value);
  return name === "max_tokens" ? t("toContext") : name === "seed" ? t("random") : t("none");
}

/** Fields of the request that have no control of their own, as JSON. @param {{ value: string, onChange: (text: string) => void }} props */
function Extra({ value, onChange }) {
  const [text, setText] = useState(value);
  const [wrong, setWrong] = useState("");
  const read = (/** @type {string} */ given) => {
    setText(given);
    try {
      const found = given.trim() ? JSON.parse(given) : {};
      if (typeof found !== "object" || Array.isArray(found) || found === null) throw new Error(t("notAnObject"));
      setWrong("");
      onChange(given.trim());
    } catch (error) {
      setWrong(error instanceof Error ? error.message : String(error));
    }
  };
  return html`<label>${t("extra")}<textarea class="code-input" name="extra" rows="2" spellcheck="false" value=${text} placeholder='{"logit_bias": {}}'
    aria-invalid=${Boolean(wrong)} onInput=${(/** @type {any} */ event) => read(event.target.value)}></textarea>
    ${wrong && html`<span class="wrong" role="alert">${wrong}</span>`}</label>`;
}

export function Tools() {
  const { open } = useStore(chats);
  const { own, trusted } = useStore(tools);
  const [stores, setStores] = useState(/** @type {any[]} */ ([]));
  const [text, setText] = useState("");
  const [wrong, setWrong] = useState("");
  const [mcp, setMcp] = useState("");
  const runs = has("/v1/responses");
  useEffect(() => void (has("/v1/vector_stores") && json("/v1/vector_stores?limit=100").then((found) => setStores(found.data), () => {})), []);
  if (!open) return null;
  /** @param {string} name @param {boolean} on */
  const set = (name, on) => setChat(open, { tools: on ? [...open.tools, name] : open.tools.filter((one) => one !== name) });
  /** @param {string} name @param {string} label @param {string} about @param {any} [more] */
  const row = (name, label, about, more) => html`<li><label class="check"><input type="checkbox" name=${name} checked=${open.tools.includes(name)}
    onChange=${(/** @type {any} */ event) => set(name, event.target.checked)} /><span><strong>${label}</strong><span class="muted">${about}</span></span></label>${more}</li>`;
  const add = () => {
    try {
      const tool = readTool(text);
      setTools({ own: [...own.filter((one) => one.name !== tool.name), tool] });
      set(tool.name, true);
      setText("");
      setWrong("");
    } catch (error) {
      setWrong(error instanceof Error ? error.message : String(error));
    }
  };
  return html`<p class="muted">${t("toolsText")}</p>
    <h3>${t("toolsHere")}</h3>
    <ul class="rows">${BUILTIN.map((tool) => row(tool.name, tool.name, tool.description))}
      ${own.map((tool) => row(tool.name, tool.name, tool.description, html`<button type="button" class="quiet" aria-label=${t("removeTool", { name: tool.name })}
        onClick=${() => (setTools({ own: own.filter((one) => one !== tool) }), set(tool.name, false))}>${t("remove")}</button>`))}</ul>
    ${trusted.length > 0 && html`<p>${t("trusted")} ${trusted.map((name) => html`<code>${name}</code> `)}<button type="button" onClick=${() => setTools({ trusted: [] })}>${t("askAgain")}</button></p>`}
    <label>${t("toolSchema")}<textarea class="code-input" rows="4" spellcheck="false" value=${text} onInput=${(/** @type {any} */ event) => setText(event.target.value)}
      placeholder='{"name": "get_weather", "description": "…", "parameters": {"type": "object", "properties": {}}}'></textarea></label>
    ${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    <div class="row"><span class="grow"></span><button type="button" onClick=${add} disabled=${!text.trim()}>${t("addTool")}</button></div>
    <h3>${t("toolsServer")}</h3>
    ${runs
      ? html`<ul class="rows">${row("server:web_search", "web_search", t("aboutSearch"))}${row("server:code_interpreter", "code_interpreter", t("aboutCode"))}
        ${stores.map((store) => row(`server:file_search=${store.id}`, `file_search: ${store.name || store.id}`, t("aboutDocuments", { count: store.file_counts?.completed ?? 0 })))}
        ${open.tools.filter((name) => name.startsWith("server:mcp=")).map((name) => row(name, `mcp: ${name.slice(11)}`, t("aboutMcp")))}</ul>
        <form class="row" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), mcp.trim() && set(`server:mcp=${mcp.trim()}`, true), setMcp(""))}>
          <input class="grow" aria-label=${t("mcpAddress")} placeholder=${t("mcpAddress")} value=${mcp} onInput=${(/** @type {any} */ event) => setMcp(event.target.value)} />
          <button type="submit">${t("addMcp")}</button></form>`
      : html`<p class="muted">${t("noServerTools")}</p>`}`;
}

export function Settings() {
  const values = useStore(settings);
  const [told, setTold] = useState("");
  const [asked, setAsked] = useState(false);
  const file = useRef(/** @type {HTMLInputElement | null} */ (null));
  const { node: busy } = useStore(turn);
  const offered = has(ROUTE);
  /** Do what may fail, and tell how it went. @param {() => Promise<string>} work */
  const tell = (work) => work().then(setTold, (error) => setTold(`${t("failed")} ${error instanceof Error ? error.message : error}`));
  const save = () => tell(async () => (download(`herd-chats-${new Date().toISOString().slice(0, 10)}.json`, new Blob([JSON.stringify(await exportAll())], { type: "application/json" })), ""));
  /** @param {any} event */
  const read = async (event) => {
    const [given] = event.target.files;
    event.target.value = "";
    if (!given) return;
    await tell(async () => t("imported", { count: await importAll(JSON.parse(await given.text())) }));
  };
  /** @param {"enterSends" | "stats" | "wide"} name @param {import("./i18n.js").Word} word */
  const check = (name, word) => html`<label class="check"><input type="checkbox" name=${name} checked=${values[name]} onChange=${(/** @type {any} */ event) => setSettings({ [name]: event.target.checked })} />${t(word)}</label>`;
  return html`<div class="grid two"><label>${t("language")}<select name="language" value=${values.language || document.documentElement.lang} onChange=${(/** @type {any} */ event) => (setSettings({ language: event.target.value }), speak(event.target.value))}>
      ${Object.entries(LANGUAGES).map(([code, name]) => html`<option value=${code} selected=${code === document.documentElement.lang}>${name}</option>`)}</select></label>
    <label>${t("theme")}<select name="theme" value=${values.theme} onChange=${(/** @type {any} */ event) => setSettings({ theme: event.target.value })}>
      ${["system", "light", "dark"].map((name) => html`<option value=${name} selected=${name === values.theme}>${t(/** @type {any} */ (`theme_${name}`))}</option>`)}</select></label></div>
    ${check("enterSends", "enterSends")}${check("stats", "showStats")}${check("wide", "wide")}
    <label>${t("systemForNew")}<textarea rows="3" name="system" value=${values.system} onInput=${(/** @type {any} */ event) => setSettings({ system: event.target.value })}></textarea></label>
    ${savedKey() && html`<div class="row"><span class="grow">${t("keyIsKept")}</span><button type="button" onClick=${() => (saveKey("", false), location.reload())}>${t("forgetKey")}</button></div>`}
    <h3>${t("yourChats")}</h3>
    <label>${t("keepAt")}<select name="keep" value=${values.keep} disabled=${Boolean(busy)} onChange=${(/** @type {any} */ event) => {
      const { value } = event.target;
      event.target.value = values.keep; // until it is so
      void tell(async () => (await keepAt(value), ""));
    }}><option value="browser" selected=${values.keep === "browser"}>${t("inBrowser")}</option>
      <option value="server" selected=${values.keep === "server"} disabled=${!offered && values.keep !== "server"}>${t("atServer")}</option></select>
      <span class="muted">${values.keep === "server" ? t("keptServer") : `${t("keptHere")} ${offered ? "" : t("noHistory")}`}</span></label>
    <div class="row wrap"><button type="button" onClick=${save}>${t("export")}</button><button type="button" onClick=${() => file.current?.click()}>${t("import")}</button>
      <input ref=${file} type="file" accept="application/json,.json" hidden aria-label=${t("import")} onChange=${read} />
      ${offered && html`<button type="button" onClick=${() => tell(async () => t("imported", { count: await copyOthers() }))}>${t(values.keep === "server" ? "copyBrowser" : "copyServer")}</button>`}<span class="grow"></span>
      ${asked ? html`<button type="button" class="danger" onClick=${() => tell(async () => (await deleteEverything(), setAsked(false), t("allDeleted")))}>${t("deleteAllSure")}</button><button type="button" onClick=${() => setAsked(false)}>${t("cancel")}</button>`
        : html`<button type="button" class="danger" onClick=${() => setAsked(true)}>${t("deleteAll")}</button>`}</div>
    <div role="status">${told}</div>
    <p class="muted version">herd ${server.value.version}</p>`;
}

export { current };
