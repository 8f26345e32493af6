// Documents for answers to rest on: vector stores of the server's, what is in them, and the passage that a citation points to.
import { blob, has, json } from "./api.js";
import { Icon, html, sizeText, useEffect, useState } from "./lib.js";
import { number, t } from "./i18n.js";
import { panel } from "./panels.js";

/** @param {import("./chats.js").Citation} citation */
export const openSource = (citation) => panel.set({ name: "source", data: citation });

/** @param {{ data: import("./chats.js").Citation }} props */
export function Source({ data }) {
  const [text, setText] = useState("");
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    void blob(`/v1/files/${encodeURIComponent(data.file_id ?? "")}/content`).then(async (found) => setText(await found.text()), (error) => setWrong(error.message));
  }, [data.file_id]);
  const at = data.text ? text.indexOf(data.text) : -1;
  return html`<h3>${data.filename || data.file_id}</h3>
    ${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    ${data.text && at < 0 && html`<blockquote><mark>${data.text}</mark></blockquote>`}
    <pre class="source" tabindex="0">${at < 0 ? text : html`${text.slice(0, at)}<mark ref=${(/** @type {HTMLElement | null} */ mark) => mark?.scrollIntoView({ block: "center" })}>${data.text}</mark>${text.slice(at + data.text.length)}`}</pre>`;
}

export function Documents() {
  const [stores, setStores] = useState(/** @type {any[] | null} */ (null));
  const [name, setName] = useState("");
  const [wrong, setWrong] = useState("");
  const there = has("/v1/vector_stores");
  const load = () => json("/v1/vector_stores?limit=100").then((found) => setStores(found.data), (error) => setWrong(error.message));
  useEffect(() => void (there && load()), []);
  if (!there) return html`<p class="muted">${t("noStores")}</p>`;
  const create = async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      await json("/v1/vector_stores", { body: { name } });
      setName("");
      setWrong("");
    } catch (error) {
      setWrong(error instanceof Error ? error.message : String(error));
    }
    await load();
  };
  return html`<p class="muted">${t("documentsText")}</p>
    <form class="row" onSubmit=${create}><input class="grow" aria-label=${t("storeName")} placeholder=${t("storeName")} value=${name} required
      onInput=${(/** @type {any} */ event) => setName(event.target.value)} /><button type="submit" class="primary">${t("newStore")}</button></form>
    ${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    ${stores?.length === 0 && html`<p class="muted">${t("storesEmpty")}</p>`}
    ${stores?.map((store) => html`<${StoreCard} key=${store.id} store=${store} onChange=${load} />`)}`;
}

/** @param {{ store: any, onChange: () => void }} props */
function StoreCard({ store, onChange }) {
  const [files, setFiles] = useState(/** @type {any[]} */ ([]));
  const [wrong, setWrong] = useState("");
  const [busy, setBusy] = useState("");
  const base = `/v1/vector_stores/${store.id}`;
  const load = async () => {
    try {
      const found = (await json(`${base}/files?limit=100`)).data;
      setFiles(await Promise.all(found.map(async (/** @type {any} */ one) => ({ ...one, ...(await json(`/v1/files/${one.id}`).catch(() => ({}))), state: one.status, error: one.last_error }))));
      return found.some((/** @type {any} */ one) => one.status === "in_progress");
    } catch (error) {
      setWrong(error instanceof Error ? error.message : String(error));
      return false;
    }
  };
  useEffect(() => {
    let timer = 0;
    const again = async () => void ((await load()) && (timer = window.setTimeout(again, 1000)));
    void again();
    return () => clearTimeout(timer);
  }, [store.id, store.file_counts?.total]);
  /** @param {any} event */
  const add = async (event) => {
    for (const file of [...event.target.files]) {
      setBusy(file.name);
      const form = new FormData();
      form.append("purpose", "assistants");
      form.append("file", file, file.name);
      try {
        const { id } = await json("/v1/files", { form });
        await json(`${base}/files`, { body: { file_id: id } });
      } catch (error) {
        setWrong(`${file.name}: ${error instanceof Error ? error.message : error}`);
      }
    }
    setBusy("");
    event.target.value = "";
    onChange();
    await load();
  };
  const remove = async (/** @type {string} */ path) => (await json(path, { method: "DELETE" }).catch((error) => setWrong(error.message)), onChange(), load());
  return html`<section class="card"><div class="row"><strong>${store.name || store.id}</strong><span class="muted">${t("filesIn", { count: number(store.file_counts?.total ?? files.length) })}</span><span class="grow"></span>
      <label class="button">${t("addFiles")}<input type="file" multiple class="hidden" onChange=${add} /></label>
      <button type="button" class="quiet" aria-label=${t("deleteStore", { name: store.name || store.id })} onClick=${() => remove(base)}><${Icon} name="trash" /></button></div>
    ${busy && html`<p class="muted" role="status">${t("uploading", { name: busy })}</p>`}${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    <ul class="rows">${files.map((file) => html`<li><button type="button" class="link" onClick=${() => openSource({ text: "", file_id: file.id, filename: file.filename })}>${file.filename ?? file.id}</button>
      <span class="muted">${file.bytes ? sizeText(file.bytes) : ""} ${file.state}${file.error ? `: ${file.error.message}` : ""}</span><span class="grow"></span>
      <button type="button" class="quiet" aria-label=${t("removeFile", { name: file.filename ?? file.id })} onClick=${() => remove(`${base}/files/${file.id}`)}><${Icon} name="close" /></button></li>`)}</ul></section>`;
}
