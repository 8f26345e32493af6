// The reader's own choices, kept in this browser.
import * as db from "./db.js";
import { Store } from "./lib.js";

/** What the page can be told. `params` holds for chats that do not say otherwise. */
export const settings = new Store({
  model: "",
  language: "",
  theme: "system",
  system: "",
  enterSends: true,
  stats: true,
  params: /** @type {Record<string, any>} */ ({}),
  wide: false,
  keep: /** @type {"browser" | "server"} */ ("browser"),
});

export async function loadSettings() {
  settings.set((await db.setting("page")) ?? {});
}

/** @param {Partial<typeof settings.value>} patch */
export function setSettings(patch) {
  settings.set(patch);
  void db.keep("page", settings.value);
}
