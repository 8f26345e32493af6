// What every part of the page stands on: Preact with htm, small stores, ids, dates, and the clipboard. Knows nothing of chats or models.
import { Component, h, html, render, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";

export { Component, h, html, render, useEffect, useLayoutEffect, useMemo, useRef, useState };

/** A value that is watched. @template T */
export class Store {
  /** @param {T} value */
  constructor(value) {
    this.value = value;
    /** @type {Set<() => void>} */
    this.readers = new Set();
  }

  /** @param {Partial<T>} patch */
  set(patch) {
    this.value = { ...this.value, ...patch };
    this.tell();
  }

  tell() {
    for (const reader of [...this.readers]) reader();
  }

  /** @param {() => void} reader */
  watch(reader) {
    this.readers.add(reader);
    return () => this.readers.delete(reader);
  }
}

/** The store's value; the component is drawn again whenever it changes. @template T @param {Store<T>} store @returns {T} */
export function useStore(store) {
  const [, draw] = useState(0);
  useLayoutEffect(() => {
    const off = store.watch(() => draw((n) => n + 1));
    return () => void off();
  }, [store]);
  return store.value;
}

/** An id that no one can guess; crypto.randomUUID is missing on plain http. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @type {Map<() => void, number>} */
const due = new Map();

/**
 * Run once before the next frame is drawn, however often it is asked for; in a hidden tab, which draws none, within a quarter second.
 * @param {() => void} work
 */
export function onceAFrame(work) {
  if (due.has(work)) return;
  due.set(work, 1);
  const run = () => {
    due.delete(work);
    work();
  };
  if (document.hidden) setTimeout(run, 250);
  else requestAnimationFrame(run);
}

/** @param {string} text @returns {Promise<boolean>} */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Hand a file to the reader. @param {string} name @param {Blob} blob */
export function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {number} bytes */
export function sizeText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; bytes >= 1024 && at < units.length - 1; at++) bytes /= 1024;
  return `${bytes < 10 && at ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

/** @param {unknown} value */
export function pretty(value) {
  if (typeof value !== "string") return JSON.stringify(value, null, 2);
  try {
    return JSON.stringify(JSON.parse(value), null, 2);
  } catch {
    return value;
  }
}

const PATHS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h10",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 13l4 4L19 7",
  edit: "M4 20l4-1L19 8l-3-3L5 16zM14 7l3 3",
  again: "M5 12a7 7 0 1 0 2-5L4 9M4 4v5h5",
  clip: "M8 12l6-6a3 3 0 0 1 4 4l-8 8a5 5 0 0 1-7-7l7-7",
  gear: "M4 7h10M18 7h2M4 17h2M10 17h10M14 4.500v5M8 14.500v5",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  tool: "M14 6a4 4 0 0 0 5 5l-8 8a2 2 0 0 1-5-5l8-8zM19 5l-3 3",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M6 10l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  search: "M10.500 4a6.500 6.500 0 1 0 0 13 6.500 6.500 0 0 0 0-13zM15.500 15.500L20 20",
  book: "M5 4h10a3 3 0 0 1 3 3v13H8a3 3 0 0 1-3-3zM5 17a3 3 0 0 1 3-3h10",
  jobs: "M4 19h16M6 16l4-6 4 3 5-8",
  help: "M9 9a3 3 0 1 1 4 3c-1 .4-1 1-1 2M12 17.500v.5",
  trace: "M6 5v14M6 8h8M6 13h12M6 18h5",
  shield: "M12 3l7 3v6c0 5-4 8-7 9-3-1-7-4-7-9V6z",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  key: "M14 10a4 4 0 1 0-3 3.900l2 2.100h2v2h2v2h3v-3z",
};

/** @param {{ name: keyof typeof PATHS }} props */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}
