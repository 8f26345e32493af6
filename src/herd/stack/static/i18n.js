// The page's own words in the eight languages of Llama 3.1. English is here from the start, any other comes when it is chosen.
import en from "./i18n/en.js";
import { Store } from "./lib.js";

export const LANGUAGES = { en: "English", de: "Deutsch", fr: "Français", it: "Italiano", pt: "Português", hi: "हिन्दी", es: "Español", th: "ไทย" };

/** @typedef {keyof typeof en} Word */

export const language = new Store({ code: "en", words: /** @type {Record<string, string>} */ (en) });

/** A text of the page, with its {values}. @param {Word} word @param {Record<string, string | number>} [values] */
export function t(word, values) {
  const text = language.value.words[word] ?? en[word] ?? word;
  return values ? text.replace(/\{(\w+)\}/g, (all, name) => String(values[name] ?? all)) : text;
}

/** @param {number} value @param {Intl.NumberFormatOptions} [options] */
export const number = (value, options) => new Intl.NumberFormat(language.value.code, options).format(value);

/** @param {string} code */
export async function speak(code) {
  const words = code === "en" ? en : (await import(`./i18n/${code}.js`)).default;
  document.documentElement.lang = code;
  language.set({ code, words });
}

/** The language of the browser, where the page has it. */
export function guess() {
  const codes = Object.keys(LANGUAGES);
  return navigator.languages.map((one) => one.slice(0, 2)).find((one) => codes.includes(one)) ?? "en";
}
