// Work in the background: training runs with their curves, batches and how far they are; asked for anew while the panel is open.
import { ApiError, blob, has, json } from "./api.js";
import { Curves } from "./curves.js";
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
  return html`${wrong && html`<div class="note error" role="alert">${wrong}</div>`}${has("/v1/herd/training-runs") && html`<${Training} />`}
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

const runs = "/v1/herd/training-runs";

/**
 * What an address gives, asked for anew every so often.
 * @param {string} path
 * @param {number} every_ms
 * @param {(found: any) => void} found
 * @param {(why: string) => void} failed
 */
function usePolled(path, every_ms, found, failed) {
  useEffect(() => {
    let timer = 0;
    let left = false;
    const load = async () => {
      try {
        const told = await json(path);
        if (!left) found(told);
      } catch (error) {
        // Whom the key does not let see them has none; that is no failure.
        if (error instanceof ApiError && error.status === 403) return;
        if (!left) failed(error instanceof Error ? error.message : String(error));
      }
      if (!left) timer = window.setTimeout(load, every_ms);
    };
    void load();
    return () => ((left = true), clearTimeout(timer));
  }, [path]);
}

function Training() {
  const [list, setList] = useState(/** @type {any} */ (null));
  const [wrong, setWrong] = useState("");
  usePolled(runs, 3000, (told) => (setList(told.data), setWrong("")), setWrong);
  if (!list && !wrong) return null;
  return html`<h3>${t("training")}</h3>${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    ${list && !list.length && html`<p class="muted">${t("noRuns")}</p>`}${list?.map((/** @type {any} */ run) => html`<${Run} key=${run.id} run=${run} />`)}`;
}

/** @param {{ run: any }} props */
function Run({ run }) {
  const [open, setOpen] = useState(run.status === "running");
  const stage = run.stages.at(-1);
  const when = new Intl.DateTimeFormat(language.value.code, { dateStyle: "medium", timeStyle: "short" }).format(run.updated_at * 1000);
  const step = stage && number(stage.step ?? 0);
  const far = stage && (stage.num_steps ? t("stepOf", { step, most: number(stage.num_steps) }) : t("step", { step }));
  return html`<section class="card run"><div class="row"><strong>${run.id}</strong><span class="muted">${[run.recipe !== run.id && run.recipe, when].filter(Boolean).join(" · ")}</span>
      <span class="grow"></span><span class="muted">${run.status}</span></div>
    ${stage && html`<span>${[run.stages.length > 1 && stage.name, far, stage.loss !== null && `loss ${number(stage.loss, { maximumFractionDigits: 3 })}`].filter(Boolean).join(" · ")}</span>`}
    ${stage?.num_steps && html`<progress max=${stage.num_steps} value=${stage.step ?? 0} aria-label=${t("progress")}></progress>`}
    ${stage && html`<div><button type="button" aria-expanded=${open} onClick=${() => setOpen(!open)}>${t("curves")}</button></div>`}
    ${open && stage && html`<${RunCurves} id=${run.id} live=${run.status === "running"} />`}</section>`;
}

/** @param {{ id: string, live: boolean }} props */
function RunCurves({ id, live }) {
  const [stages, setStages] = useState(/** @type {any[]} */ ([]));
  const [wrong, setWrong] = useState("");
  usePolled(`${runs}/${encodeURIComponent(id)}/metrics?points=200`, live ? 3000 : 15_000, (told) => (setStages(told.stages), setWrong("")), setWrong);
  return html`${wrong && html`<div class="note error" role="alert">${wrong}</div>`}
    ${stages.map((stage) => html`<div key=${stage.name}>${stages.length > 1 && html`<h4>${stage.name}</h4>`}<${Curves} series=${stage.series} /></div>`)}`;
}
