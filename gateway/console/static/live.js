// The overview, live: one stream of events for the whole console, while it can be seen.

import { get } from "./api.js";

const AGAIN_MS = [500, 1000, 2000, 5000];
// Events come once a second. A connection that is silent for so long is dead, though nobody has said so.
const SILENT_MS = 8000;

/** `state`: "connecting", "live", or "away" while the gateway does not answer. `newest`: the newest overview, or null. */
export class Live {
  #source = null;
  #timer = 0;
  #failures = 0;
  #watchers = new Set();

  constructor(onEnd) {
    this.newest = null;
    this.state = "connecting";
    this.#onEnd = onEnd;
    document.addEventListener("visibilitychange", () => this.#wanted() ? this.#open() : this.#close());
    window.addEventListener("pagehide", () => this.#close());
    window.addEventListener("pageshow", () => this.#wanted() && this.#open());
  }

  #onEnd;
  #started = false;

  start() {
    this.#started = true;
    if (this.#wanted()) this.#open();
  }

  stop() {
    this.#started = false;
    this.newest = null;
    this.#close();
  }

  /** Called with each change of `state`. */
  onState = () => {};

  /** Call `watcher(newest, state)` now if there is an overview, and with each later change, until `signal` aborts. */
  on(watcher, signal) {
    this.#watchers.add(watcher);
    signal?.addEventListener("abort", () => this.#watchers.delete(watcher), { once: true });
    if (this.newest) watcher(this.newest, this.state);
  }

  #wanted() {
    return this.#started && document.visibilityState !== "hidden";
  }

  #open() {
    this.#close();
    const source = (this.#source = new EventSource("/console/events"));
    this.#expect();
    source.addEventListener("overview", (event) => {
      this.#failures = 0;
      this.newest = JSON.parse(event.data);
      this.#tell("live");
      this.#expect();
    });
    source.addEventListener("problem", () => this.#expect());
    source.addEventListener("end", () => (this.stop(), this.#onEnd()));
    source.onerror = () => this.#again();
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #expect() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#again(), SILENT_MS);
  }

  /** Connect again: a browser does not do so by itself after a refusal. */
  #again() {
    this.#close();
    if (!this.#wanted()) return;
    this.#tell("away");
    const wait = AGAIN_MS[Math.min(this.#failures++, AGAIN_MS.length - 1)];
    this.#timer = setTimeout(async () => {
      try {
        const session = await get("/console/session");
        if (!session.role) return void (this.stop(), this.#onEnd());
      } catch {
        return this.#again();
      }
      if (this.#wanted()) this.#open();
    }, wait);
  }

  #tell(state) {
    this.state = state;
    this.onState(state);
    if (this.newest) for (const watcher of this.#watchers) watcher(this.newest, state);
  }
}
