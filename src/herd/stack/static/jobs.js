// Work in the background: batches and how far they are, asked for anew while the panel is open.
import { blob, has, json } from "./api.js";
import { download, html, useEffect, useState } from "./lib.js";
import { language, number, t } from "./i18n.js";

export function Jobs() {
  const [batches, setBatches] = useState(/** @type {any[]} */ ([]));
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    let timer = 0;
    const load = async () => {
      try {
        setBatches(has("/v1/batches") ? (await json("/v1/batches?limit=100")).data : []);
        setWrong("");
      } catch (error) {
        setWrong(error instanceof Error ? error.message : String(error));
      }
      timer = window.setTimeout(load, 2000);
    };
    void load();
    return () => clearTimeout(timer);
  }, []);
  return html`${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    <h3>${t("batches")}</h3>${has("/v1/files") && html`<${NewBatch} onMade=${(/** @type {any} */ one) => setBatches([one, ...batches])} />`}
    ${!batches.length && html`<p class="muted">${t("noBatches")}</p>`}${batches.map((one) => html`<${Batch} key=${one.id} batch=${one} />`)}`;
}

/** @param {{ onMade: (batch: any) => void }} props */
function NewBatch({ onMade }) {
  const [wrong, setWrong] = useState("");
  /** @param {any} event */
  const make = async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    event.target.value = "";
    try {
      const first = JSON.parse((await file.text()).split("\n", 1)[0]);
      const form = new FormData();
      form.append("purpose", "batch");
      form.append("file", file, file.name);
      const { id } = await json("/v1/files", { form });
      onMade(await json("/v1/batches", { body: { input_file_id: id, endpoint: first.url, completion_window: "24h" } }));
      setWrong("");
    } catch (error) {
      setWrong(error instanceof Error ? error.message : String(error));
    }
  };
  return html`<div class="row"><span class="grow muted">${t("batchText")}</span><label class="button">${t("newBatch")}<input type="file" accept=".jsonl" class="hidden" onChange=${make} /></label></div>
    ${wrong && html`<div class="note error" role="alert">${wrong}</div>`}`;
}

/** @param {{ batch: any }} props */
function Batch({ batch }) {
  const { total, completed, failed } = batch.request_counts;
  const save = async (/** @type {string} */ id) => download(`${id}.jsonl`, await blob(`/v1/files/${id}/content`));
  const open = ["validating", "in_progress"].includes(batch.status);
  const when = new Intl.DateTimeFormat(language.value.code, { dateStyle: "medium", timeStyle: "short" }).format(batch.created_at * 1000);
  return html`<section class="card"><div class="row"><strong>${batch.status}</strong><span class="muted">${when} · ${batch.endpoint}</span><span class="grow"></span>
      ${open && html`<button type="button" onClick=${() => json(`/v1/batches/${batch.id}/cancel`, { method: "POST" })}>${t("cancel")}</button>`}
      ${batch.output_file_id && html`<button type="button" onClick=${() => save(batch.output_file_id)}>${t("answers")}</button>`}
      ${batch.error_file_id && html`<button type="button" onClick=${() => save(batch.error_file_id)}>${t("errors")}</button>`}</div>
    <progress max=${total || 1} value=${completed + failed} aria-label=${t("progress")}></progress>
    <span class="muted">${t("batchCounts", { done: number(completed), total: number(total), failed: number(failed) })}</span>
    ${batch.errors?.data?.map((/** @type {any} */ one) => html`<div class="note error">${one.line ? `${one.line}: ` : ""}${one.message}</div>`)}</section>`;
}
