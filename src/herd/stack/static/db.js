// What is kept in this browser: chats, their nodes, and settings, in IndexedDB. Nothing of it leaves the machine by itself.

/** @type {Promise<IDBDatabase> | null} */
let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("herd", 1);
    request.onupgradeneeded = () => {
      const db = request.result;
      db.createObjectStore("chats", { keyPath: "id" });
      db.createObjectStore("nodes", { keyPath: "id" }).createIndex("chat", "chat");
      db.createObjectStore("settings");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/**
 * @param {"chats" | "nodes" | "settings"} name
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest | void} work
 * @returns {Promise<any>}
 */
async function within(name, mode, work) {
  const db = await open();
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(name, mode);
    const request = work(transaction.objectStore(name));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/**
 * @param {"chats" | "nodes"} name
 * @param {object[]} rows
 */
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

/** Everything, settings too. */
export async function deleteAll() {
  const db = await open();
  const transaction = db.transaction(["chats", "nodes", "settings"], "readwrite");
  for (const name of ["chats", "nodes", "settings"]) transaction.objectStore(name).clear();
  await new Promise((resolve) => (transaction.oncomplete = resolve));
}

/** @param {string} name */
export const setting = (name) => within("settings", "readonly", (store) => store.get(name));

/**
 * @param {string} name
 * @param {unknown} value
 */
export const keep = (name, value) => within("settings", "readwrite", (store) => store.put(value, name));
