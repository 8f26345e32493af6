// Curves of numbers over steps, as SVG: one small chart for each name, those with a common beginning (heldout/en, heldout/de) in one.
import { html } from "./lib.js";
import { number, t } from "./i18n.js";

const [WIDTH, HEIGHT] = [300, 96];
const FIRST = ["loss", "heldout"];

/** @typedef {[number, number][]} Points */

/** @param {{ series: Record<string, Points> }} props */
export function Curves({ series }) {
  /** @type {Map<string, [string, Points][]>} */
  const charts = new Map();
  for (const [name, points] of Object.entries(series)) {
    const [group, ...rest] = name.split("/");
    const key = rest.length ? `${group}/` : group;
    charts.set(key, [...(charts.get(key) ?? []), [rest.join("/") || name, points]]);
  }
  const rank = (/** @type {string} */ key) => (FIRST.indexOf(key.replace("/", "")) + 1 || 9) + (key === "loss/" ? 0.5 : 0);
  const sorted = [...charts].sort(([a], [b]) => rank(a) - rank(b) || a.localeCompare(b));
  return html`<div class="curves">${sorted.map(([key, lines]) => html`<${Chart} key=${key} name=${key.replace("/", "")} lines=${lines} />`)}</div>`;
}

/** @param {number} value */
const short = (value) => number(value, value !== 0 && Math.abs(value) < 0.01 ? { notation: "scientific", maximumFractionDigits: 1 } : { maximumSignificantDigits: 4 });

/** @param {{ name: string, lines: [string, Points][] }} props */
function Chart({ name, lines }) {
  const all = lines.flatMap(([, points]) => points);
  const steps = all.map(([step]) => step);
  const values = all.map(([, value]) => value);
  const [left, right, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
  const x = (/** @type {number} */ step) => (right > left ? ((step - left) / (right - left)) * WIDTH : WIDTH / 2);
  const y = (/** @type {number} */ value) => (high > low ? HEIGHT - ((value - low) / (high - low)) * HEIGHT : HEIGHT / 2);
  const path = (/** @type {Points} */ points) =>
    points.length === 1 ? `M${x(points[0][0]) - 2} ${y(points[0][1])}h4` : points.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  /** @param {[string, Points]} line */
  const ending = ([line, points]) => `${lines.length > 1 ? `${line} ` : ""}${short(/** @type {[number, number]} */ (points.at(-1))[1])}`;
  const last = lines.map(ending).join(", ");
  return html`<figure><figcaption><strong>${name}</strong>
      ${lines.map(([line, points], at) => html`<span key=${line} class=${lines.length > 1 ? `key-${at % 6}` : "muted"}>${ending([line, points])}</span>`)}</figcaption>
    <svg viewBox=${`0 -4 ${WIDTH} ${HEIGHT + 8}`} preserveAspectRatio="none" role="img" aria-label=${t("curveIs", { name, last, step: number(right) })}>
      ${lines.map(([line, points], at) => html`<path key=${line} class=${`line line-${at % 6}`} d=${path(points)} vector-effect="non-scaling-stroke" />`)}</svg>
    <div class="row muted"><span>${number(left)}</span><span class="grow"></span><span>${short(low)} – ${short(high)}</span><span class="grow"></span><span>${number(right)}</span></div></figure>`;
}
