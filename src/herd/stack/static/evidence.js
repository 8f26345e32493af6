// What an answer rests on: the steps of a turn, plots and files that code made, and the passages of documents that it cites.
import { blob } from "./api.js";
import { Icon, download, html, useEffect, useState } from "./lib.js";
import { number, t } from "./i18n.js";
import { openSource } from "./documents.js";

/** @typedef {import("./chats.js").Node} Node */

/** @param {{ node: Node }} props */
export function Steps({ node }) {
  const steps = node.steps ?? [];
  if (!steps.length) return null;
  const began = steps[0].at;
  return html`<details class="trace"><summary><${Icon} name="trace" />${t("trace", { count: steps.length })}</summary>
    <ol>${steps.map((step) => html`<li><span class="muted">${number((step.at - began) / 1000, { minimumFractionDigits: 2, maximumFractionDigits: 2 })} s</span>${" "}
      <code>${step.name}</code>${step.detail && html`<pre tabindex="0">${step.detail}</pre>`}</li>`)}</ol></details>`;
}

/** @param {{ node: Node }} props */
export function Outputs({ node }) {
  if (!node.outputs?.length) return null;
  return html`<div class="outputs">${node.outputs.map((output) => html`<${Output} output=${output} />`)}</div>`;
}

/** @param {{ output: NonNullable<Node["outputs"]>[0] }} props */
function Output({ output }) {
  const [source, setSource] = useState("");
  const { url = "", name = "", kind, text } = output;
  // A picture is shown from the answer itself or from this server's files; the content policy lets no other through.
  useEffect(() => {
    let made = "";
    if (kind !== "image") return;
    if (url.startsWith("data:image/")) setSource(url);
    else if (url.startsWith("/v1/")) void blob(url).then((found) => setSource((made = URL.createObjectURL(new Blob([found], { type: "image/png" })))), () => {});
    return () => URL.revokeObjectURL(made);
  }, [url]);
  const fetched = async () => download(name || (kind === "image" ? "plot.png" : "file"), url.startsWith("data:") ? unpacked(url) : await blob(url));
  if (kind === "image" && source) {
    return html`<figure><img src=${source} alt=${name || t("plot")} /><figcaption>${name}<button type="button" class="quiet" onClick=${fetched}
      aria-label=${t("save")}><${Icon} name="save" /></button></figcaption></figure>`;
  }
  if (text !== undefined) return html`<pre tabindex="0" class="logs">${text}</pre>`;
  return html`<button type="button" class="file-out" onClick=${fetched}><${Icon} name="save" />${name || t("file")}</button>`;
}

/** What a data: address holds; to fetch one, the content policy would have to let it in. @param {string} url */
function unpacked(url) {
  const [head, body] = url.slice(5).split(/,(.*)/s);
  return new Blob([Uint8Array.from(atob(body), (char) => char.charCodeAt(0))], { type: head.split(";")[0] });
}

/** @param {{ node: Node }} props */
export function Citations({ node }) {
  const found = node.citations ?? [];
  if (!found.length) return null;
  const distinct = [...new Map(found.map((one) => [one.file_id ?? one.url, one])).values()];
  return html`<div class="citations"><span class="label">${t("sources")}</span>${distinct.map((one, at) =>
    one.url && /^https?:/.test(one.url)
      ? html`<a class="chip" href=${one.url} target="_blank" rel="noopener noreferrer nofollow">${at + 1} ${one.title || one.url}</a>`
      : html`<button type="button" class="chip" onClick=${() => openSource(one)}>${at + 1} ${one.filename || one.file_id}</button>`)}</div>`;
}
