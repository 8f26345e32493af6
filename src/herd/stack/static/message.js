// One message: what was said, its files, the tools that were asked for, what it cost, and what can be done with it.
import { answerAgain, decide, sayInstead, turn } from "./turn.js";
import { nodes, path, showBranch, siblings, watchNode } from "./chats.js";
import { Component, Icon, copyText, html, pretty, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { MarkdownView } from "./markdown.js";
import { number, t } from "./i18n.js";
import { settings } from "./settings-store.js";
import { BUILTIN } from "./tools.js";
import { Citations, Outputs, Steps } from "./evidence.js";

/** @typedef {import("./chats.js").Node} Node @typedef {import("./chats.js").Call} Call */

/** Drawn when its node changes, or when what is shown around it does: never because another message grows. */
export class Message extends Component {
  /** @param {{ node: Node, version: string, last: boolean }} props */
  constructor(props) {
    super(props);
    this.off = () => {};
  }

  componentDidMount() {
    this.off = watchNode(this.props.node.id, () => this.setState({}));
  }

  componentWillUnmount() {
    this.off();
  }

  /** @param {any} next @param {any} state */
  shouldComponentUpdate(next, state) {
    return state !== this.state || next.version !== this.props.version || next.last !== this.props.last;
  }

  render() {
    const { node, last } = this.props;
    if (node.role === "tool") return null;
    return node.role === "user" ? html`<${Said} node=${node} />` : html`<${Answer} node=${node} last=${last} />`;
  }
}

/** @param {{ node: Node }} props */
function Said({ node }) {
  const [editing, setEditing] = useState(false);
  const [text, setText] = useState(node.text);
  const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useEffect(() => void (editing && area.current?.focus()), [editing]);
  const send = () => {
    setEditing(false);
    void sayInstead(node, text);
  };
  if (editing) {
    return html`<article class="message said editing" aria-label=${t("you")}>
      <textarea ref=${area} value=${text} rows=${Math.min(12, text.split("\n").length + 1)} aria-label=${t("edit")}
        onInput=${(/** @type {any} */ event) => setText(event.target.value)}
        onKeyDown=${(/** @type {KeyboardEvent} */ event) => {
          if (event.key === "Escape") setEditing(false);
          else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), send());
          event.stopPropagation();
        }}></textarea>
      <div class="row"><button type="button" onClick=${() => setEditing(false)}>${t("cancel")}</button>
        <button type="button" class="primary" onClick=${send}>${t("sendEdit")}</button></div>
    </article>`;
  }
  return html`<article class="message said" aria-label=${t("you")}>
    ${node.files?.map((file) => html`<details class="file"><summary><${Icon} name="clip" />${file.name}
      <span class="muted">${t("characters", { count: number(file.text.length) })}</span></summary><pre tabindex="0">${file.text}</pre></details>`)}
    ${node.text && html`<div class="bubble">${node.text}</div>`}
    <div class="actions">
      <${Branches} node=${node} />
      <${CopyButton} text=${node.text} />
      <button type="button" class="quiet edit" title=${t("edit")} aria-label=${t("edit")}
        onClick=${() => (setText(node.text), setEditing(true))}><${Icon} name="edit" /></button>
    </div>
  </article>`;
}

/** @param {{ node: Node, last: boolean }} props */
function Answer({ node, last }) {
  const root = useRef(/** @type {HTMLElement | null} */ (null));
  const view = useRef(/** @type {MarkdownView | null} */ (null));
  useLayoutEffect(() => {
    if (!root.current) return;
    view.current ??= new MarkdownView(root.current);
    let frame = 0;
    const draw = () => {
      if (!view.current?.update(node.text, !node.busy)) frame = requestAnimationFrame(draw);
    };
    draw();
    return () => cancelAnimationFrame(frame);
  });
  const waits = node.busy && !node.text && !node.calls?.length;
  return html`<article class=${`message answer${node.busy ? " busy" : ""}`} aria-label=${node.model || t("model")} data-node=${node.id}>
    <${Steps} node=${node} />
    ${waits && html`<div class="waits" aria-hidden="true"><i></i><i></i><i></i></div>`}
    <div class="markdown" ref=${root}></div>
    <${Outputs} node=${node} />
    ${node.calls?.map((call) => html`<${ToolCall} key=${call.id} node=${node} call=${call} />`)}
    <${Citations} node=${node} />
    <${Endings} node=${node} last=${last} />
    ${!node.busy && html`<div class="actions">
      <${Branches} node=${node} />
      <${CopyButton} text=${node.text} />
      <button type="button" class="quiet again" title=${t("again")} aria-label=${t("again")}
        onClick=${() => answerAgain(node)}><${Icon} name="again" /></button>
      ${settings.value.stats && node.stats && html`<${Statistics} node=${node} />`}
    </div>`}
  </article>`;
}

/** How it ended, where that was not by itself. @param {{ node: Node, last: boolean }} props */
function Endings({ node }) {
  const verdict = node.verdict;
  const blocked = node.finish === "content_filter";
  return html`
    ${blocked && html`<div class="note guard" role="note"><${Icon} name="shield" /><div><strong>${t("guarded")}</strong>
      ${verdict && html`<details><summary>${verdictText(verdict)}</summary><pre tabindex="0">${pretty(verdict)}</pre></details>`}</div></div>`}
    ${node.finish === "length" && html`<div class="note">${t("cutByLength")}</div>`}
    ${node.finish === "stopped" && html`<div class="note">${t("stopped")}</div>`}
    ${node.error && html`<div class="note error" role="alert"><div><strong>${t("failed")}</strong> ${node.error}</div>
      <button type="button" class="retry" onClick=${() => answerAgain(node)}>${t("retry")}</button></div>`}`;
}

/** @param {any} verdict */
function verdictText(verdict) {
  const found = verdict.verdict ?? verdict.guard ?? verdict;
  const categories = found.categories ?? found.violations ?? found.violation_type ?? [];
  return [found.shield ?? found.shield_id ?? "", ...[categories].flat(), found.reason ?? found.user_message ?? ""].filter((one) => typeof one === "string" && one).join(" · ") || t("details");
}

/** @param {{ node: Node }} props */
function Statistics({ node }) {
  const stats = /** @type {import("./chats.js").Stats} */ (node.stats);
  // The server's own measure, where it tells one: a guard may hold an answer back and let it go at once, which says nothing of the model.
  const after = stats.total_ms - stats.first_ms;
  const seconds = (after < stats.total_ms / 4 ? stats.total_ms : after) / 1000;
  const speed = stats.written || (stats.answer > 1 && seconds > 0 ? (stats.answer - 1) / seconds : 0);
  const parts = [
    t("tokens", { count: number(stats.answer) }),
    speed && t("speed", { count: number(speed, { maximumFractionDigits: speed < 10 ? 1 : 0 }) }),
    t("first", { count: number(stats.first_ms / 1000, { maximumFractionDigits: 2 }) }),
    t("promptTokens", { count: number(stats.prompt) }),
    stats.cached && t("cached", { count: number(stats.cached) }),
  ];
  return html`<span class="stats">${parts.filter(Boolean).join(" · ")}</span>`;
}

/** @param {{ node: Node }} props */
function Branches({ node }) {
  const all = siblings(node);
  if (all.length < 2) return null;
  const at = all.indexOf(node.id);
  const step = (/** @type {number} */ by) => html`<button type="button" class="quiet" disabled=${!all[at + by]} onClick=${() => showBranch(all[at + by])}
    title=${by < 0 ? t("earlierBranch") : t("laterBranch")} aria-label=${by < 0 ? t("earlierBranch") : t("laterBranch")}><${Icon} name=${by < 0 ? "left" : "right"} /></button>`;
  return html`<span class="branches">${step(-1)}<span>${at + 1}/${all.length}</span>${step(1)}</span>`;
}

/** @param {{ text: string }} props */
function CopyButton({ text }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    setDone(await copyText(text));
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="quiet copy" title=${done ? t("copied") : t("copy")} aria-label=${done ? t("copied") : t("copyMessage")}
    onClick=${copy}><${Icon} name=${done ? "check" : "copy"} /></button>`;
}

/** @param {{ node: Node, call: Call }} props */
function ToolCall({ node, call }) {
  const [result, setResult] = useState("");
  const byHand = !call.server && !BUILTIN.some((one) => one.name === call.name);
  const waits = call.state === "waiting" && !node.busy;
  const state = waits ? t("asks") : { waiting: t("running"), running: t("running"), done: t("done"), denied: t("denied"), failed: t("failed") }[call.state];
  return html`<section class=${`tool ${waits ? "asks" : call.state}`} aria-label=${t("toolCall", { name: call.name })}>
    <details open=${waits || undefined}>
      <summary><${Icon} name="tool" /><code>${call.name}</code>${call.server && html`<span class="muted">${call.server}</span>`}<span class="state">${state}</span></summary>
      <div class="label">${t("arguments")}</div><pre tabindex="0" class="arguments">${pretty(call.arguments || "{}")}</pre>
      ${call.result !== undefined && html`<div class="label">${t("result")}</div><pre tabindex="0" class="result">${pretty(call.result)}</pre>`}
    </details>
    ${waits && html`<div class="approval">
      ${byHand && html`<label class="grow"><span class="label">${t("resultByHand")}</span>
        <textarea rows="2" value=${result} onInput=${(/** @type {any} */ event) => setResult(event.target.value)}></textarea></label>`}
      <div class="row">
        <button type="button" class="primary allow" onClick=${() => decide(node, call, "allow", byHand ? result : undefined)}>${byHand ? t("sendResult") : t("allow")}</button>
        ${!byHand && !call.server && html`<button type="button" onClick=${() => decide(node, call, "always")}>${t("always")}</button>`}
        <button type="button" class="deny" onClick=${() => decide(node, call, "deny")}>${t("deny")}</button>
      </div></div>`}
  </section>`;
}

/** What makes a message other than its own text: the branches beside it. @param {Node} node */
export const versionOf = (node) => `${siblings(node).length}`;

export { nodes, path, turn };
