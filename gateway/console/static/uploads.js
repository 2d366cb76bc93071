// Uploads of documents: some at a time, each with its progress, and never over a document that is there unless the person
// says so.

import { at, errorOf, sentence } from "./api.js";
import { bytes, h, number, setText } from "./dom.js";
import { badge } from "./jobview.js";

const AT_ONCE = 3;
const MOST_FILES = 10_000;
const MOST_ROWS = 200;

/** The path of a document; its name may contain slashes. */
export function documentPath(folder, name) {
  return `${folder}/${name.split("/").map(encodeURIComponent).join("/")}`;
}

/** The path of an avatar's folder. */
export function folderPath(userId, avatar, folder) {
  return at`/admin/users/${userId}/avatars/${avatar}/` + folder;
}

/** What was dropped, folders too: a list of `{ file, name }`. */
export async function filesOf(transfer) {
  // The entries must be asked for before the first pause.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  const walk = async (entry, prefix) => {
    if (found.length >= MOST_FILES || entry.name.startsWith(".")) return;
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ file, name: prefix + entry.name });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const each of some) await walk(each, `${prefix}${entry.name}/`);
    }
  };
  for (const entry of entries) await walk(entry, "");
  return found;
}

/** A list of uploads into one folder. `onStored` is called when all that was given is done. */
export class Uploads {
  #waiting = [];
  #running = new Set();
  #done = 0;
  #failed = 0;
  #folder;
  #page;
  #onStored;

  constructor(page, folder, onStored) {
    [this.#page, this.#folder, this.#onStored] = [page, folder, onStored];
    this.summary = h("p", { class: "small", role: "status" });
    this.list = h("ul", { class: "uploads" });
    this.element = h("section", { class: "card stack", hidden: true }, h("h2", {}, "Uploads"), this.summary, this.list);
    page.signal.addEventListener("abort", () => this.#running.forEach((each) => each.abort()), { once: true });
  }

  /** Upload `files`, a list of `{ file, name }`. */
  add(files) {
    this.element.hidden = false;
    for (const { file, name } of files) this.#waiting.push(this.#row(file, name));
    this.#next();
  }

  #row(file, name) {
    const bar = h("progress", { max: 1, value: 0, "aria-label": `Upload of ${name}` });
    const state = h("span", { class: "small number" }, "waiting");
    const more = h("div", { class: "row" });
    const element = h("li", {}, h("div", { class: "row between" }, h("span", { class: "fills" }, name), state), bar, more);
    // A row for each of thousands would make the page slow: what waits behind them is only counted.
    if (this.list.childElementCount < MOST_ROWS) this.list.append(element);
    return { file, name, bar, state, more, element, replaces: false };
  }

  #next() {
    while (this.#running.size < AT_ONCE && this.#waiting.length) this.#start(this.#waiting.shift());
    const left = this.#waiting.length + this.#running.size;
    const failed = this.#failed ? `, ${number(this.#failed)} not stored` : "";
    setText(this.summary, `${number(this.#done)} stored, ${number(left)} to do${failed}`);
    if (!left) this.#onStored();
  }

  #start(row) {
    const { file, name, bar, state, more } = row;
    const ask = new XMLHttpRequest(); // fetch tells nothing of what was sent
    this.#running.add(ask);
    more.replaceChildren();
    ask.open("PUT", `${documentPath(this.#folder, name)}?defer_flag=true`);
    ask.setRequestHeader("Content-Type", "application/octet-stream");
    if (!row.replaces) ask.setRequestHeader("If-None-Match", "*");
    ask.upload.onprogress = ({ loaded, total }) => {
      bar.max = total || 1;
      bar.value = loaded;
      setText(state, `${bytes(loaded)} of ${bytes(total)}`);
    };
    ask.onloadend = () => {
      this.#running.delete(ask);
      if (this.#page.signal.aborted) return;
      if (ask.status === 200 || ask.status === 201) this.#stored(row, ask.status === 200);
      else this.#refused(row, ask);
      this.#next();
    };
    ask.send(file);
  }

  #stored({ element, bar, state }, isReplaced) {
    this.#done += 1;
    bar.hidden = true;
    state.replaceChildren(badge(isReplaced ? "Replaced" : "Stored", "ok"));
    if (this.list.childElementCount >= MOST_ROWS) element.remove();
  }

  #refused(row, ask) {
    this.#failed += 1;
    const { bar, state, more, element } = row;
    if (!element.isConnected) this.list.prepend(element);
    bar.hidden = true;
    const exists = ask.status === 412 && !row.replaces;
    const { message, hint } = ask.status
      ? errorOf(ask.status, ask.responseText)
      : { message: "the connection broke", hint: "nothing was stored; try again" };
    state.replaceChildren(badge(exists ? "Exists" : "Not stored", exists ? "warn" : "bad"));
    const again = (replaces) => {
      this.#failed -= 1;
      Object.assign(row, { replaces });
      bar.hidden = false;
      bar.value = 0;
      this.#waiting.push(row);
      this.#next();
    };
    const leave = () => {
      this.#failed -= 1;
      element.remove();
      this.#next();
    };
    more.replaceChildren(
      h("span", { class: "small fills" }, exists ? "There is a document of this name." : [sentence(message), " ", hint ? sentence(hint) : ""]),
      exists
        ? h("button", { class: "button", type: "button", "aria-label": `Replace ${row.name}`, onclick: () => again(true) }, "Replace it")
        : h("button", { class: "button", type: "button", "aria-label": `Upload ${row.name} again`, onclick: () => again(row.replaces) }, "Try again"),
      h("button", { class: "button quiet", type: "button", "aria-label": `Leave ${row.name} out`, onclick: leave }, "Leave it out"),
    );
  }
}
