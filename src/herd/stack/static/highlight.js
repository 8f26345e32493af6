// Colours for code: comments, strings, numbers, words of the language, names that are called. One regular expression a family, no grammar;
// what it cannot tell stays plain. It reads and makes text nodes only.

const C = "//[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)";
const HASH = "#[^\\n]*";
const QUOTES = `"(?:\\\\[\\s\\S]|[^"\\\\\\n])*"?|'(?:\\\\[\\s\\S]|[^'\\\\\\n])*'?`;

/** @type {Record<string, { names: string, comment?: string, string?: string, words: string, insensitive?: boolean }>} */
const FAMILIES = {
  python: {
    names: "python py python3 ipython",
    comment: HASH,
    string: `[rbfuRBFU]{0,2}(?:"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|${QUOTES})`,
    words: "and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return try while with yield None True False self",
  },
  script: {
    names: "javascript js jsx mjs typescript ts tsx",
    comment: C,
    string: `\`(?:\\\\[\\s\\S]|[^\`\\\\])*\`?|${QUOTES}`,
    words: "async await break case catch class const continue debugger default delete do else enum export extends finally for from function get if implements import in instanceof interface let new of private public readonly return set static super switch this throw try type typeof var void while with yield null undefined true false",
  },
  c: {
    names: "c h cpp c++ cc hpp cuda java cs csharp c# go golang rust rs swift kotlin kt scala dart php zig",
    comment: C,
    words: "abstract as async auto await bool boolean break byte case catch char class const constexpr continue crate def default defer delete do double dyn else enum explicit export extends extern false final finally float fn for foreach func fun go goto if impl implements import in inline int interface internal is let long loop map match mod module move mut namespace new nil null nullptr object operator override package private protected pub public range ref return select self short signed sizeof static static_cast string struct super switch template this throw throws trait true try type typedef typename union unsafe unsigned use using val var virtual void volatile when where while yield u8 u16 u32 u64 i8 i16 i32 i64 f32 f64 usize isize String Vec Option Result Some None Ok Err",
  },
  shell: {
    names: "bash sh shell zsh console fish powershell dockerfile makefile make",
    comment: `(?<![\\w$])${HASH}`,
    words: "if then else elif fi for in do done while until case esac function return export local readonly set unset echo cd source sudo exit FROM RUN COPY CMD ENTRYPOINT ENV WORKDIR ARG EXPOSE",
  },
  sql: {
    names: "sql sqlite postgres postgresql mysql",
    comment: "--[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)",
    words: "select from where and or not null is in as on join left right inner outer full cross group by order having limit offset insert into values update set delete create table index view drop alter add primary key foreign references unique default check union all distinct case when then else end with exists between like asc desc count sum avg min max cast begin commit rollback returning",
    insensitive: true,
  },
  data: { names: "json jsonc json5 yaml yml toml ini", comment: `${HASH}|//[^\\n]*`, words: "true false null yes no on off" },
  markup: { names: "html xml svg vue", comment: "<!--[\\s\\S]*?(?:-->|$)", words: "" },
  css: { names: "css scss less", comment: "/\\*[\\s\\S]*?(?:\\*/|$)", words: "important inherit initial unset none auto" },
  other: { names: "ruby rb perl pl r julia jl lua elixir ex haskell hs", comment: `${HASH}|--[^\\n]*`, words: "begin class def do else elsif end ensure false for function if import in lambda local let library module my next nil not of or package print require rescue return self sub then true unless until use using when where while yield TRUE FALSE NULL" },
  diff: { names: "diff patch", words: "" },
};

/** @type {Map<string, RegExp>} */
const rules = new Map();

/** @param {string} name */
function ruleOf(name) {
  const family = Object.values(FAMILIES).find((one) => one.names.split(" ").includes(name));
  if (!family) return null;
  let rule = rules.get(family.names);
  if (!rule) {
    const parts = [
      `(?<comment>${family.comment ?? "$^"})`,
      `(?<string>${family.string ?? QUOTES})`,
      "(?<number>\\b(?:0[xX][\\da-fA-F_]+|0[bB][01_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b)",
      `(?<word>\\b(?:${family.words.split(" ").join("|") || "$^"})\\b|(?<=<\\/?)[a-zA-Z][\\w-]*(?=[\\s>/]))`,
      "(?<call>\\b[A-Za-z_]\\w*(?=\\())",
    ];
    rule = new RegExp(family.names.startsWith("diff") ? "(?<add>^\\+.*$)|(?<cut>^-.*$)|(?<call>^@@.*$)" : parts.join("|"), family.insensitive ? "gmi" : "gm");
    rules.set(family.names, rule);
  }
  return rule;
}

/** Longer texts stay plain: colours are not worth a frame. */
const MOST = 60_000;

/** @param {HTMLElement} code @param {string} language */
export function highlight(code, language) {
  const rule = ruleOf(language.toLowerCase());
  const text = code.textContent ?? "";
  if (!rule || text.length > MOST) return;
  const out = document.createDocumentFragment();
  let from = 0;
  for (const found of text.matchAll(rule)) {
    const kind = Object.entries(found.groups ?? {}).find(([, value]) => value !== undefined)?.[0];
    if (!kind || !found[0]) continue;
    if (found.index > from) out.append(text.slice(from, found.index));
    const span = document.createElement("span");
    span.className = `hl-${kind}`;
    span.textContent = found[0];
    out.append(span);
    from = found.index + found[0].length;
  }
  out.append(text.slice(from));
  code.replaceChildren(out);
}
