// Markdown as it comes: blocks that are whole are drawn once and never touched again; only the last one, still open, is drawn anew.
// What a model writes is text from a stranger. HTML in it is shown as written, images are links, and DOMPurify stands behind both.
import { Lexer, Marked } from "./vendor/marked.js";
import { copyText } from "./lib.js";
import { t } from "./i18n.js";

/** @type {{ sanitize(text: string, options: object): any, addHook(name: string, hook: (node: Element) => void): void }} */
const purify = /** @type {any} */ (globalThis).DOMPurify;
const CLASSES = /^(language-[\w+#.-]{1,32}|maths|maths display|task)$/;
const OPTIONS = {
  ALLOWED_TAGS: "a b blockquote br code del div em h1 h2 h3 h4 h5 h6 hr i kbd li ol p pre s span strong sub sup table tbody td th thead tr ul".split(" "),
  ALLOWED_ATTR: ["href", "title", "class", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|#)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.hasAttribute("class") && !CLASSES.test(node.className)) node.removeAttribute("class");
  if (node.tagName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("rel", "noopener noreferrer nofollow");
  node.setAttribute("target", "_blank");
});

/** @param {string} text */
const escape = (text) => text.replace(/[&<>"]/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[char] ?? char);

/** @param {string} source @param {RegExp} rule @param {string} name @param {boolean} display */
function mathsToken(source, rule, name, display) {
  const found = rule.exec(source);
  return found ? { type: name, raw: found[0], text: found.slice(1).find((part) => part !== undefined) ?? "", display } : undefined;
}

const marked = new Marked({
  gfm: true,
  renderer: {
    html: (/** @type {any} */ { text }) => escape(text),
    image: (/** @type {any} */ { href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: (/** @type {any} */ { checked }) => `<span class="task">${checked ? "☑" : "☐"}</span> `,
  },
  extensions: [
    {
      name: "displayMaths",
      level: "block",
      start: (/** @type {string} */ source) => source.search(/\$\$|\\\[/),
      tokenizer: (/** @type {string} */ source) =>
        mathsToken(source, /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n|$)/, "displayMaths", true),
      renderer: (/** @type {any} */ token) => `<div class="maths display">${escape(token.text.trim())}</div>`,
    },
    {
      name: "inlineMaths",
      level: "inline",
      start: (/** @type {string} */ source) => source.search(/\$|\\\(/),
      tokenizer: (/** @type {string} */ source) =>
        mathsToken(source, /^(?:\$\$([^\n]+?)\$\$|\$((?! )(?:\\.|[^$\\\n])+?)(?<! )\$(?!\d)|\\\(([^\n]+?)\\\))/, "inlineMaths", false),
      renderer: (/** @type {any} */ token) => `<span class="maths">${escape(token.text)}</span>`,
    },
  ],
});

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)\n/;

/** One answer's text, drawn into an element as it grows. */
export class MarkdownView {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.text = "";
    this.closed = 0;
    this.cost_ms = 0;
    this.drawn = 0;
    this.reset();
  }

  reset() {
    this.root.replaceChildren();
    this.text = "";
    /** Characters of whole blocks, which are drawn for good. */
    this.closed = 0;
    /** @type {HTMLElement | null} */
    this.open = null;
    /** @type {{ data: Text, fence: string, shown: number, from: number } | null} */
    this.code = null;
    /** @type {Record<string, any>} */
    this.links = {};
    this.cost_ms = 0;
    this.drawn = 0;
  }

  /**
   * @param {string} text  all of it so far
   * @param {boolean} done  nothing more comes
   * @returns {boolean} whether all of it is drawn; where a block is dear to draw, frames are left out
   */
  update(text, done) {
    if (text.length < this.text.length || !text.startsWith(this.text)) this.reset();
    const now = performance.now();
    if (!done && now - this.drawn < 4 * this.cost_ms) return false;
    this.text = text;
    this.draw(done);
    this.drawn = performance.now();
    this.cost_ms = this.drawn - now;
    return true;
  }

  /** @param {boolean} done */
  draw(done) {
    if (this.code && !this.growCode(done)) return;
    const tail = this.text.slice(this.closed);
    const lexer = new Lexer(marked.defaults);
    Object.assign(lexer.tokens.links, this.links);
    const tokens = lexer.lex(tail);
    Object.assign(this.links, lexer.tokens.links);
    let last = tokens.length - 1;
    while (last >= 0 && tokens[last].type === "space") last--;
    tokens.forEach((token, at) => {
      if (at < last || done) {
        this.closed += token.raw.length;
        if (token.type !== "space" && token.type !== "def") this.close(this.block(token));
      }
    });
    if (done || last < 0) return;
    const fence = FENCE.exec(this.text.slice(this.closed));
    if (tokens[last].type === "code" && fence) this.openCode(fence);
    else this.show(this.block(tokens[last]));
  }

  /** A fenced block is not parsed while it grows: its new characters are added to one text node. @param {RegExpExecArray} fence */
  openCode(fence) {
    const frame = codeFrame(fence[2].trim().split(/\s/)[0]);
    const data = document.createTextNode("");
    frame.code.append(data);
    this.show(frame.root);
    this.code = { data, fence: fence[1], shown: this.closed + fence[0].length, from: this.closed };
    this.growCode(false);
  }

  /** @param {boolean} done @returns {boolean} whether the block is at its end, and the usual way goes on */
  growCode(done) {
    const code = /** @type {NonNullable<MarkdownView["code"]>} */ (this.code);
    const grown = this.text.slice(code.shown);
    const end = new RegExp(`^ {0,3}${code.fence[0]}{${code.fence.length},}[ \\t]*$`, "m").exec(grown);
    if (end || done) {
      this.code = null;
      return true;
    }
    // The last line may yet turn out to be the closing fence.
    const whole = grown.lastIndexOf("\n") + 1;
    if (whole) code.data.appendData(grown.slice(0, whole));
    code.shown += whole;
    return false;
  }

  /** @param {any} token @returns {HTMLElement} */
  block(token) {
    const block = document.createElement("div");
    block.className = "block";
    if (token.type === "code") {
      const frame = codeFrame((token.lang ?? "").split(/\s/)[0]);
      frame.code.textContent = token.text + "\n";
      return frame.root;
    }
    block.innerHTML = purify.sanitize(marked.parser([token]), OPTIONS);
    for (const pre of block.querySelectorAll("pre")) {
      const code = pre.querySelector("code");
      const frame = codeFrame(/language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "");
      frame.code.textContent = code?.textContent ?? "";
      pre.replaceWith(frame.root);
    }
    for (const table of block.querySelectorAll("table")) {
      const scroll = document.createElement("div");
      scroll.className = "scroll";
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "group");
      scroll.setAttribute("aria-label", t("table"));
      table.replaceWith(scroll);
      scroll.append(table);
    }
    return block;
  }

  /** @param {HTMLElement} block */
  show(block) {
    if (this.open) this.open.replaceWith(block);
    else this.root.append(block);
    this.open = block;
  }

  /** @param {HTMLElement} block */
  close(block) {
    this.show(block);
    this.open = null;
    for (const code of block.matches(".code") ? [block] : block.querySelectorAll(".code")) void colour(/** @type {HTMLElement} */ (code));
    const maths = /** @type {NodeListOf<HTMLElement>} */ (block.querySelectorAll(".maths"));
    if (maths.length) void import("./maths.js").then(({ typeset }) => maths.forEach(typeset));
  }
}

/** @param {string} language */
function codeFrame(language) {
  const root = document.createElement("div");
  root.className = "code";
  root.dataset.language = language;
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const label = document.createElement("span");
  label.textContent = language || t("text");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = t("copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(code.textContent ?? "")) ? t("copied") : t("notCopied");
    setTimeout(() => (button.textContent = t("copy")), 1500);
  });
  bar.append(label, button);
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", t("codeIn", { language: language || t("text") }));
  const code = document.createElement("code");
  pre.append(code);
  root.append(bar, pre);
  return { root, code };
}

/** @param {HTMLElement} frame */
async function colour(frame) {
  const language = frame.dataset.language;
  const code = frame.querySelector("code");
  if (!language || !code) return;
  const { highlight } = await import("./highlight.js");
  highlight(code, language);
}
