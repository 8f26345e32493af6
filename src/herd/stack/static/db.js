// What is kept in this browser: chats, their nodes, and settings, in IndexedDB, and what is on its way to the server. Nothing of it leaves
// the machine by itself.

/** @type {Map<string, Promise<IDBDatabase>>} */
const opened = new Map();

/** A database of its own for the outbox: one that pages had opened before cannot be given another store. @param {"herd" | "herd-outbox"} name */
function open(name = "herd") {
  /** @type {Promise<IDBDatabase>} */
  const opening = opened.get(name) ?? new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      const db = request.result;
      if (name === "herd-outbox") return void db.createObjectStore("outbox", { keyPath: "key" });
      db.createObjectStore("chats", { keyPath: "id" });
      db.createObjectStore("nodes", { keyPath: "id" }).createIndex("chat", "chat");
      db.createObjectStore("settings");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  opened.set(name, opening);
  return opening;
}

/**
 * @param {"chats" | "nodes" | "settings" | "outbox"} name
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest | void} work
 * @returns {Promise<any>}
 */
async function within(name, mode, work) {
  const db = await open(name === "outbox" ? "herd-outbox" : "herd");
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(name, mode);
    const request = work(transaction.objectStore(name));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** @param {"chats" | "nodes"} name @param {object[]} rows */
export const putAll = (name, rows) => within(name, "readwrite", (store) => rows.forEach((row) => store.put(row)));

export const allChats = () => within("chats", "readonly", (store) => store.getAll());
export const allNodes = () => within("nodes", "readonly", (store) => store.getAll());

/** @param {string} chat */
export const nodesOf = (chat) => within("nodes", "readonly", (store) => store.index("chat").getAll(chat));

/** @param {string} chat */
export async function deleteChat(chat) {
  const db = await open();
  const transaction = db.transaction(["chats", "nodes"], "readwrite");
  transaction.objectStore("chats").delete(chat);
  const cursor = transaction.objectStore("nodes").index("chat").openKeyCursor(chat);
  cursor.onsuccess = () => {
    if (!cursor.result) return;
    transaction.objectStore("nodes").delete(cursor.result.primaryKey);
    cursor.result.continue();
  };
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = () => reject(transaction.error);
  });
}

/** @returns {Promise<import("./history.js").Unsent[]>} */
export const outbox = () => within("outbox", "readonly", (store) => store.getAll());

/** @param {import("./history.js").Unsent[]} rows */
export const post = (rows) => within("outbox", "readwrite", (store) => rows.forEach((row) => store.put(row)));

/** @param {import("./history.js").Unsent[]} rows */
export const forget = (rows) => within("outbox", "readwrite", (store) => rows.forEach((row) => store.delete(row.key)));

/** Take out what was sent, but nothing that was changed meanwhile. @param {import("./history.js").Unsent[]} rows */
export const sent = (rows) =>
  within("outbox", "readwrite", (store) => {
    for (const row of rows) {
      const found = store.get(row.key);
      found.onsuccess = () => void (found.result?.stamp === row.stamp && store.delete(row.key));
    }
  });

/** Everything, settings too. */
export async function deleteAll() {
  await within("outbox", "readwrite", (store) => void store.clear());
  const db = await open();
  const transaction = db.transaction(["chats", "nodes", "settings"], "readwrite");
  for (const name of ["chats", "nodes", "settings"]) transaction.objectStore(name).clear();
  await new Promise((resolve) => (transaction.oncomplete = resolve));
}

/** @param {string} name */
export const setting = (name) => within("settings", "readonly", (store) => store.get(name));

/** @param {string} name @param {unknown} value */
export const keep = (name, value) => within("settings", "readwrite", (store) => store.put(value, name));
