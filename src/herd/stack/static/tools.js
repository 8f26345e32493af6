// Functions that the page offers to the model. Two are done here; others are yours, by JSON schema, and you give their result by hand.
import { Store } from "./lib.js";
import * as db from "./db.js";

/** @typedef {{ name: string, description: string, parameters: object, builtin?: boolean }} PageTool */

/** @type {PageTool[]} */
export const BUILTIN = [
  {
    name: "current_time",
    description: "Tell the date and time where the reader is.",
    parameters: { type: "object", properties: { time_zone: { type: "string", description: "An IANA name such as Europe/Rome; leave it out for the reader's own." } } },
    builtin: true,
  },
  {
    name: "calculate",
    description: "Work out arithmetic exactly as written: + - * / ^ % parentheses, sqrt, sin, cos, tan, log, exp, abs, round, pi, e.",
    parameters: { type: "object", properties: { expression: { type: "string", description: "For example (17 + 4) * sqrt(2)." } }, required: ["expression"] },
    builtin: true,
  },
];

/** Yours, and which names may run without being asked for. */
export const tools = new Store({ own: /** @type {PageTool[]} */ ([]), trusted: /** @type {string[]} */ ([]) });

export async function loadTools() {
  tools.set((await db.setting("tools")) ?? {});
}

/** @param {Partial<typeof tools.value>} patch */
export function setTools(patch) {
  tools.set(patch);
  void db.keep("tools", tools.value);
}

export const allTools = () => [...BUILTIN, ...tools.value.own];

/** @param {string} text  a function as OpenAI writes it, with or without the outer {"type": "function"} @returns {PageTool} */
export function readTool(text) {
  const given = JSON.parse(text);
  const tool = given.function ?? given;
  if (!/^[A-Za-z_][\w-]{0,63}$/.test(tool?.name ?? "")) throw new Error('"name" must be letters, digits, _ or -');
  if (BUILTIN.some((one) => one.name === tool.name)) throw new Error(`"${tool.name}" is the page's own`);
  if (tool.parameters !== undefined && tool.parameters?.type !== "object") throw new Error('"parameters" must be a JSON schema of type object');
  return { name: tool.name, description: String(tool.description ?? ""), parameters: tool.parameters ?? { type: "object", properties: {} } };
}

/** What a built-in gives; null for a tool whose result only the reader knows. @param {string} name @param {string} given  its arguments as JSON */
export function runTool(name, given) {
  if (!BUILTIN.some((one) => one.name === name)) return null;
  const args = JSON.parse(given || "{}");
  if (name === "calculate") return String(calculate(String(args.expression ?? "")));
  const zone = args.time_zone || undefined;
  return new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long", timeZone: zone }).format(new Date());
}

const FUNCTIONS = /** @type {Record<string, (x: number) => number>} */ ({
  sqrt: Math.sqrt, sin: Math.sin, cos: Math.cos, tan: Math.tan, log: Math.log, exp: Math.exp, abs: Math.abs, round: Math.round,
});
const CONSTANTS = /** @type {Record<string, number>} */ ({ pi: Math.PI, e: Math.E });

/** Arithmetic by descent through the grammar: sum, product, sign, power, atom. Code is never run. @param {string} text */
export function calculate(text) {
  const parts = text.replaceAll("**", "^").match(/\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+|[A-Za-z]+|[^\s]/g) ?? [];
  let at = 0;
  /** @param {string} wanted */
  const take = (wanted) => parts[at] === wanted && ++at > 0;
  const sum = () => {
    let value = product();
    for (;;) {
      if (take("+")) value += product();
      else if (take("-")) value -= product();
      else return value;
    }
  };
  const product = () => {
    let value = sign();
    for (;;) {
      if (take("*")) value *= sign();
      else if (take("/")) value /= sign();
      else if (take("%")) value %= sign();
      else return value;
    }
  };
  /** @type {() => number} */
  const sign = () => (take("-") ? -sign() : take("+") ? sign() : power());
  const power = () => {
    const base = atom();
    return take("^") ? base ** sign() : base;
  };
  /** @type {() => number} */
  const atom = () => {
    const part = parts[at++];
    if (part === undefined) throw new Error("the expression ends too early");
    if (part === "(") {
      const value = sum();
      if (!take(")")) throw new Error("a ) is missing");
      return value;
    }
    if (/^[\d.]/.test(part)) return Number(part);
    if (Object.hasOwn(CONSTANTS, part)) return CONSTANTS[part];
    if (Object.hasOwn(FUNCTIONS, part) && parts[at] === "(") return FUNCTIONS[part](atom());
    throw new Error(`cannot read ${JSON.stringify(part)}`);
  };
  const value = sum();
  if (at < parts.length) throw new Error(`cannot read ${JSON.stringify(parts[at])}`);
  return value;
}
