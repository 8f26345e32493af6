// Formulas: the part of TeX that models write, as MathML, which the browser lays out with its own fonts. Elements are made one by one, so
// nothing in a formula can become a script. What is not known here is not guessed at: the formula stays as it was written.

const NS = "http://www.w3.org/1998/Math/MathML";

/** @typedef {Element} Part */

/** @param {string} name @param {(Part | string)[]} inner @param {Record<string, string>} [attributes] @returns {Part} */
function make(name, inner, attributes = {}) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inner);
  return element;
}

/** "name char name char ..." as a map. @param {string} text */
const table = (text) => Object.fromEntries(text.trim().split(/\s+/).reduce((/** @type {string[][]} */ out, word, at) => (at % 2 ? out[out.length - 1].push(word) : out.push([word]), out), []));

const LETTERS = table(`alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ nu ν xi ξ pi π varpi ϖ
  rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω
  infty ∞ partial ∂ nabla ∇ hbar ℏ ell ℓ Re ℜ Im ℑ aleph ℵ emptyset ∅ varnothing ∅ imath ı jmath ȷ angle ∠ top ⊤ bot ⊥ degree ° prime ′ dagger † square □ triangle △ checkmark ✓`);
const OPERATORS = table(`times × cdot ⋅ div ÷ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet • oplus ⊕ otimes ⊗ odot ⊙ ominus ⊖ cup ∪ cap ∩ setminus ∖ land ∧ wedge ∧ lor ∨ vee ∨ neg ¬ lnot ¬
  leq ≤ le ≤ geq ≥ ge ≥ ll ≪ gg ≫ neq ≠ ne ≠ approx ≈ sim ∼ simeq ≃ cong ≅ equiv ≡ propto ∝ in ∈ notin ∉ ni ∋ subset ⊂ subseteq ⊆ supset ⊃ supseteq ⊇ mid ∣ parallel ∥ perp ⊥ models ⊨ vdash ⊢
  to → rightarrow → leftarrow ← leftrightarrow ↔ Rightarrow ⇒ Leftarrow ⇐ Leftrightarrow ⇔ iff ⟺ implies ⟹ mapsto ↦ longrightarrow ⟶ uparrow ↑ downarrow ↓ hookrightarrow ↪ rightleftharpoons ⇌
  forall ∀ exists ∃ nexists ∄ therefore ∴ because ∵ ldots … dots … cdots ⋯ vdots ⋮ ddots ⋱ colon : lt < gt > prec ≺ succ ≻ triangleq ≜ coloneqq ≔ backslash \\`);
const BIG = table("sum ∑ prod ∏ coprod ∐ int ∫ iint ∬ iiint ∭ oint ∮ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ bigvee ⋁ bigwedge ⋀");
const FENCES = table("lbrace { rbrace } langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ vert | Vert ‖ lvert | rvert | lVert ‖ rVert ‖ lbrack [ rbrack ]");
const ACCENTS = table("hat ^ widehat ^ bar ¯ overline ¯ vec → tilde ~ widetilde ~ dot ˙ ddot ¨ overrightarrow → overbrace ⏞");
const BELOW = table("underline _ underbrace ⏟");
const FUNCTIONS = new Set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp deg dim ker hom arg det gcd Pr".split(" "));
const LIMITS = new Set("lim limsup liminf max min sup inf argmax argmin".split(" "));
const SPACES = /** @type {Record<string, string>} */ ({ ",": "0.17em", ":": "0.22em", ">": "0.22em", ";": "0.28em", "!": "-0.17em", " ": "0.25em", quad: "1em", qquad: "2em", "~": "0.25em" });
const SKIPPED = new Set("displaystyle textstyle scriptstyle limits nolimits nonumber notag big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr left. mathstrut allowbreak boldsymbol".split(" "));
/** Where an alphabet begins: capitals, small letters, digits; and its letters that Unicode had before. */
const ALPHABETS = /** @type {Record<string, { at: number[], other?: Record<string, string> }>} */ ({
  mathbb: { at: [0x1d538, 0x1d552, 0x1d7d8], other: { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" } },
  mathbf: { at: [0x1d400, 0x1d41a, 0x1d7ce] },
  bm: { at: [0x1d400, 0x1d41a, 0x1d7ce] },
  mathcal: { at: [0x1d49c, 0x1d4b6, 0], other: { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" } },
  mathscr: { at: [0x1d49c, 0x1d4b6, 0], other: { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" } },
  mathfrak: { at: [0x1d504, 0x1d51e, 0], other: { C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" } },
  mathsf: { at: [0x1d5a0, 0x1d5ba, 0x1d7e2] },
  mathtt: { at: [0x1d670, 0x1d68a, 0x1d7f6] },
});
/** Environments, with what stands before and after them. @type {Record<string, [string, string]>} */
const MATRICES = {
  matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"], cases: ["{", ""], array: ["", ""], smallmatrix: ["", ""],
  aligned: ["", ""], align: ["", ""], "align*": ["", ""], gathered: ["", ""], gather: ["", ""], "gather*": ["", ""], split: ["", ""], equation: ["", ""], "equation*": ["", ""],
};
/** Deeper nesting is no formula but an attack on the stack. */
const DEEPEST = 100;

class Reader {
  /** @param {string} source @param {boolean} display */
  constructor(source, display) {
    this.tokens = source.match(/\\[A-Za-z]+\*?|\\[\s\S]|\d+(?:\.\d+)?|[^\s]/gu) ?? [];
    this.source = source;
    this.display = display;
    this.at = 0;
    this.depth = 0;
  }

  get next() {
    return this.tokens[this.at];
  }

  /** @param {string} wanted */
  expect(wanted) {
    if (this.tokens[this.at++] !== wanted) throw new SyntaxError(`${wanted} is missing`);
  }

  /** Parts up to a token that ends them, which is left. @param {string[]} ends @returns {Part[]} */
  row(ends) {
    if (++this.depth > DEEPEST) throw new SyntaxError("nested too deep");
    const out = [];
    while (this.next !== undefined && !ends.includes(this.next)) {
      const part = this.scripted();
      if (part) out.push(part);
    }
    this.depth--;
    if (this.next === undefined && !ends.includes("")) throw new SyntaxError(`${ends[0]} is missing`);
    return out;
  }

  /** @returns {Part | null} */
  scripted() {
    const token = this.next;
    const base = this.atom();
    if (!base) return null;
    /** @type {Part | null} */ let low = null;
    /** @type {Part | null} */ let high = null;
    for (;;) {
      if (this.next === "\\limits" || this.next === "\\nolimits") this.at++;
      else if (this.next === "_" && !low) (this.at++, (low = this.argument()));
      else if (this.next === "^" && !high) (this.at++, (high = this.argument()));
      else if (this.next === "'") {
        let primes = "";
        while (this.next === "'") (this.at++, (primes += "′"));
        high = make("mo", [primes]);
      } else break;
    }
    if (!low && !high) return base;
    const name = token.slice(1);
    const stacked = LIMITS.has(name) || ((name in BIG) && !/int/.test(name)) || name === "underbrace" || name === "overbrace";
    const [one, other, both] = stacked && (this.display || /brace/.test(name)) ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    return low && high ? make(both, [base, low, high]) : low ? make(one, [base, low]) : make(other, [base, /** @type {Part} */ (high)]);
  }

  /** One group, or one part. @returns {Part} */
  argument() {
    const part = this.atom();
    if (!part) throw new SyntaxError("an argument is missing");
    return part;
  }

  /** @returns {Part | null} */
  atom() {
    const token = this.tokens[this.at++];
    if (token === undefined) throw new SyntaxError("the formula ends too early");
    if (token === "{") {
      const inner = this.row(["}"]);
      this.expect("}");
      return inner.length === 1 ? inner[0] : make("mrow", inner);
    }
    if (token === "}" || token === "&") throw new SyntaxError(`${token} stands alone`);
    if (token === "^" || token === "_") {
      this.at--;
      return make("mrow", []);
    }
    if (token[0] === "\\") return this.command(token.slice(1));
    if (/^\d/.test(token)) return make("mn", [token]);
    if (/^\p{L}$/u.test(token)) return make("mi", [token]);
    if (token === "~") return make("mspace", [], { width: SPACES["~"] });
    return make("mo", [token === "-" ? "−" : token === "*" ? "∗" : token], "()[]|/".includes(token) ? { stretchy: "false" } : {});
  }

  /** @param {string} name @returns {Part | null} */
  command(name) {
    if (name in LETTERS) return make("mi", [LETTERS[name]], /^[A-Z]/.test(name) ? { mathvariant: "normal" } : {});
    if (name in OPERATORS) return make("mo", [OPERATORS[name]]);
    if (name in BIG) return make("mo", [BIG[name]], { movablelimits: "false", largeop: "true" });
    if (name in FENCES) return make("mo", [FENCES[name]], { stretchy: "false" });
    if ("{}%$#&_|".includes(name)) return make("mo", [name === "|" ? "‖" : name], { stretchy: "false" });
    if (name in SPACES) return make("mspace", [], { width: SPACES[name] });
    if (FUNCTIONS.has(name) || LIMITS.has(name)) return make("mi", [name.replace(/^(arg|lim)(?=max|min|sup|inf)/, "$1\u2009")], { mathvariant: "normal" });
    if (SKIPPED.has(name)) return null;
    if (name in ACCENTS) return make("mover", [this.argument(), make("mo", [ACCENTS[name]], { stretchy: String(/wide|over/.test(name)) })], { accent: "true" });
    if (name in BELOW) return make("munder", [this.argument(), make("mo", [BELOW[name]], { stretchy: "true" })]);
    if (name in ALPHABETS) return this.alphabet(name);
    if (/^(?:d|t|c)?frac$/.test(name)) return make("mfrac", [this.argument(), this.argument()]);
    if (/^[dt]?binom$/.test(name)) return make("mrow", [make("mo", ["("]), make("mfrac", [this.argument(), this.argument()], { linethickness: "0" }), make("mo", [")"])]);
    if (name === "sqrt") return this.root();
    if (/^(?:text|textbf|textit|textrm|texttt|mathrm|mathit|operatorname\*?|mbox|tag)$/.test(name)) return this.text(name);
    if (name === "left") return this.fenced();
    if (name === "begin") return this.environment();
    if (name === "not") return make("mo", [(this.argument().textContent ?? "") + "\u0338"]);
    if (name === "overset" || name === "stackrel") {
      const above = this.argument();
      return make("mover", [this.argument(), above]);
    }
    if (name === "underset") {
      const under = this.argument();
      return make("munder", [this.argument(), under]);
    }
    if (name === "pmod") return make("mrow", [make("mspace", [], { width: "1em" }), make("mo", ["("]), make("mi", ["mod"]), make("mspace", [], { width: "0.3em" }), this.argument(), make("mo", [")"])]);
    if (name === "bmod" || name === "mod") return make("mo", ["mod"]);
    if (name === "boxed") return make("mrow", [this.argument()], { class: "boxed" });
    throw new SyntaxError(`\\${name} is not known`);
  }

  /** @param {string} name */
  alphabet(name) {
    const { at, other } = ALPHABETS[name];
    const text = this.argument().textContent ?? "";
    const shown = [...text].map((char) => {
      const found = other?.[char];
      if (found) return found;
      const [first, from] = /[A-Z]/.test(char) ? [at[0], 65] : /[a-z]/.test(char) ? [at[1], 97] : /\d/.test(char) ? [at[2], 48] : [0, 0];
      return first ? String.fromCodePoint(first + (char.codePointAt(0) ?? 0) - from) : char;
    });
    return make("mi", shown.length ? [shown.join("")] : []);
  }

  root() {
    if (this.next !== "[") return make("msqrt", [this.argument()]);
    this.at++;
    const index = this.row(["]"]);
    this.expect("]");
    return make("mroot", [this.argument(), make("mrow", index)]);
  }

  /** A text keeps its spaces, which tokens have lost: it is read from the source. @param {string} name */
  text(name) {
    if (this.next !== "{") return make("mi", [this.argument().textContent ?? ""], { mathvariant: "normal" });
    const before = this.tokens.slice(0, this.at);
    let place = 0;
    for (const token of before) place = this.source.indexOf(token, place) + token.length;
    const start = this.source.indexOf("{", place);
    let depth = 0;
    let end = start;
    for (; end < this.source.length; end++) {
      if (this.source[end] === "\\") end++;
      else if (this.source[end] === "{") depth++;
      else if (this.source[end] === "}" && --depth === 0) break;
    }
    if (depth) throw new SyntaxError("} is missing");
    for (let open = 0; ; ) {
      const token = this.tokens[this.at++];
      if (token === "{") open++;
      else if (token === "}" && --open === 0) break;
    }
    const said = this.source.slice(start + 1, end).replace(/\\([{}%$#&_ ])/g, "$1");
    if (/^(?:operatorname|mathrm)/.test(name)) return make("mi", [said.trim()], { mathvariant: "normal" });
    return make("mtext", [name === "tag" ? `\u2003(${said})` : said.replace(/^ | $/g, "\u00a0")]);
  }

  delimiter() {
    const token = this.tokens[this.at++];
    const name = token?.replace("\\", "");
    if (token === ".") return "";
    if (token?.[0] === "\\" && name in FENCES) return FENCES[name];
    if (token === "\\|") return "‖";
    if (name && "()[]{}|/<>".includes(name)) return name === "<" ? "⟨" : name === ">" ? "⟩" : name;
    throw new SyntaxError("a delimiter is missing");
  }

  fenced() {
    const open = this.delimiter();
    const inner = [];
    while (this.next !== "\\right") {
      if (this.next === undefined) throw new SyntaxError("\\right is missing");
      if (this.next === "\\middle") {
        this.at++;
        inner.push(make("mo", [this.delimiter()], { stretchy: "true", fence: "true" }));
      } else inner.push(...this.row(["\\right", "\\middle"]));
    }
    this.at++;
    return fence(open, inner, this.delimiter());
  }

  environment() {
    this.expect("{");
    let name = "";
    while (this.next !== undefined && this.next !== "}") name += this.tokens[this.at++];
    this.expect("}");
    const around = MATRICES[name];
    if (!around) throw new SyntaxError(`the environment ${name} is not known`);
    if (name === "array") {
      this.expect("{");
      while (this.next !== undefined && this.next !== "}") this.at++;
      this.expect("}");
    }
    /** @type {Part[][]} */
    const rows = [[]];
    for (;;) {
      rows[rows.length - 1].push(make("mtd", this.row(["&", "\\\\", "\\end"])));
      const token = this.tokens[this.at++];
      if (token === "\\\\") rows.push([]);
      else if (token === "\\end") break;
    }
    this.expect("{");
    while (this.next !== undefined && this.next !== "}") this.at++;
    this.expect("}");
    const last = rows[rows.length - 1];
    if (rows.length > 1 && last.length === 1 && !last[0].childNodes.length) rows.pop();
    const kind = /align|split|gather|equation/.test(name) ? "aligned" : name === "cases" ? "cases" : "matrix";
    const grid = make("mtable", rows.map((cells) => make("mtr", cells)), { class: kind, displaystyle: String(kind === "aligned") });
    return fence(around[0], [grid], around[1]);
  }
}

/** @param {string} open @param {Part[]} inner @param {string} close */
function fence(open, inner, close) {
  const mark = (/** @type {string} */ text, /** @type {string} */ form) => (text ? [make("mo", [text], { fence: "true", stretchy: "true", form })] : []);
  return make("mrow", [...mark(open, "prefix"), ...inner, ...mark(close, "postfix")]);
}

/** @param {string} source @param {boolean} display @returns {Part} */
export function formula(source, display) {
  const reader = new Reader(source, display);
  const inner = reader.row([""]);
  if (reader.next !== undefined) throw new SyntaxError(`${reader.next} stands alone`);
  const maths = make("math", [make("mrow", inner)], display ? { display: "block" } : {});
  maths.setAttribute("title", source);
  return maths;
}

/** @param {HTMLElement} place  holds the formula as text, and keeps it where it cannot be read */
export function typeset(place) {
  try {
    place.replaceChildren(formula(place.textContent ?? "", place.classList.contains("display")));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    place.classList.add("unread");
    place.title = error.message;
  }
}
