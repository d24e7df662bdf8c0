// Answers on their way to the server. They stay in the browser until the server has them on disk, are sent in order, and each has
// an id: one that is sent twice, because the server or the network failed in between, counts once.
import { api } from "/static/session.js";

const SECONDS_TO_ANSWER = 30; // until a request counts as failed
const FIRST_WAIT = 250, LONGEST_WAIT = 4000; // milliseconds between tries

/** Return a random id. crypto.randomUUID is missing on pages that came from another machine without TLS. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** POST JSON; return the answer's JSON. */
export function post(path, body, seconds = SECONDS_TO_ANSWER) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return api(path, { ...options, signal: AbortSignal.timeout(1000 * seconds) }, 0);
}

/** True if the server, not the request, is the reason of an error: the same request may be sent again. */
export function isOutage(error) {
  return error.status === undefined || error.status >= 500 || error.status === 408 || error.status === 429;
}

export class Outbox {
  /**
   * store: id of the store that the answers are for; those of an earlier visit of the page are sent too.
   * onDone(entry, reply), onRefused(entry, error): of each entry; what they return is awaited before the next one is sent.
   * onChange(): the number of waiting entries, or `away`, has changed.
   */
  constructor(store, { onDone, onRefused, onChange }) {
    this.prefix = `lit_vision_answer:${store}:`;
    Object.assign(this, { onDone, onRefused, onChange });
    this.away = null; // the error while the server does not answer
    this.entries = this.#kept();
    this.count = 0;
    this.retry = () => {}; // send again now, while the server does not answer
  }

  get size() {
    return this.entries.length;
  }

  /** Numbers of images whose answers wait. */
  get numbers() {
    return this.entries.map((entry) => entry.number);
  }

  /** Add an entry, {address, number, body}, and send it when those before it are done. */
  add(entry) {
    const order = `${String(Date.now()).padStart(15, "0")}-${String(this.count++).padStart(6, "0")}`;
    const kept = { ...entry, key: `${this.prefix}${order}-${newId().slice(0, 6)}` };
    try {
      localStorage.setItem(kept.key, JSON.stringify(kept));
    } catch { /* no room, or not allowed: the entry is kept while the page is open */ }
    this.entries.push(kept);
    this.onChange();
    this.send();
  }

  /** Wait until every entry is sent; throws if the server does not answer. */
  async empty() {
    while (this.entries.length) {
      if (this.away) throw this.away;
      await new Promise((done) => setTimeout(done, 30));
    }
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    try {
      while (this.entries.length) await this.#sendFirst();
    } finally {
      this.sending = false;
    }
  }

  async #sendFirst() {
    const entry = this.entries[0];
    let wait = FIRST_WAIT, reply, failure;
    while (true) {
      try {
        reply = await post(entry.address, entry.body);
        failure = null;
      } catch (error) {
        failure = error;
      }
      if (!failure || !isOutage(failure)) break;
      this.away = failure;
      this.onChange();
      await new Promise((done) => { this.retry = done; setTimeout(done, wait); });
      wait = Math.min(LONGEST_WAIT, 2 * wait);
    }
    this.away = null;
    this.#remove(entry);
    await (failure ? this.onRefused(entry, failure) : this.onDone(entry, reply));
    this.onChange();
  }

  #remove(entry) {
    this.entries.splice(this.entries.indexOf(entry), 1);
    try {
      localStorage.removeItem(entry.key);
    } catch { /* was not kept */ }
  }

  #kept() {
    const found = [];
    try {
      for (const key of Object.keys(localStorage).sort()) {
        if (key.startsWith(this.prefix)) found.push(JSON.parse(localStorage.getItem(key)));
      }
    } catch { /* not allowed */ }
    return found;
  }
}
