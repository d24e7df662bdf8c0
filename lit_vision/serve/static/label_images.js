// Images fetched and decoded before they are shown.
import { isOutage } from "/static/label_outbox.js";
import { api, element } from "/static/session.js";

const AHEAD = 4; // images: at three seconds an image that is twelve seconds; more would show older proposals
const FIRST_WAIT = 500, LONGEST_WAIT = 4000; // milliseconds between tries

/** Return an image, with its answer, as the server has it now. */
export function itemOf(number) {
  return api(`/v1/label/item/${number}`);
}

/**
 * Return an img element of an image that is decoded, and note which bytes of the file it shows (image.seen); throws an error
 * with a status if the server has no such image.
 */
export async function loadPicture(image) {
  const answer = await fetch(`/v1/label/images/${image.number}`);
  if (!answer.ok) throw Object.assign(new Error(`${image.path}: cannot be read`), { status: answer.status });
  const picture = element("img", { alt: image.path, decoding: "sync", draggable: "false" });
  picture.src = URL.createObjectURL(await answer.blob());
  image.seen = answer.headers.get("ETag")?.replaceAll('"', "");
  await picture.decode();
  return picture;
}

/** Free the memory of an image's element. */
export function forget(shown) {
  if (shown?.picture?.src) URL.revokeObjectURL(shown.picture.src);
}

/** Return a small picture of an image, fetched when it scrolls into view. */
export function thumbnail(image) {
  const picture = element("img", { alt: image.path, loading: "lazy" });
  picture.src = `/v1/label/images/${image.number}?side=256`;
  return picture;
}

/** The next images to label, in the server's order. What is handed out is {image, picture} or {image, fault}. */
export class ImagesAhead {
  /** unasked(): numbers that the server would give again, as their answers are on the way. onReady(): there is one to take. */
  constructor(unasked, onReady) {
    Object.assign(this, { unasked, onReady });
    this.ready = [];
    this.ended = false; // the server has no more
    this.filling = null;
    this.round = 0;
    this.retry = () => {}; // try again now, while the server does not answer
  }

  /** Return the next image, or undefined if none is ready. */
  take() {
    const next = this.ready.shift();
    this.fill();
    return next;
  }

  /** Put an image back, to be the next again. */
  putBack(shown) {
    this.ready.unshift(shown);
  }

  /** Leave out an image that is shown from elsewhere. */
  drop(number) {
    this.ready = this.ready.filter((shown) => shown.image.number !== number);
  }

  /** Forget all: the server numbers its images anew. */
  clear() {
    this.ready.forEach(forget);
    this.ready = [];
    this.round += 1;
    this.ended = false;
  }

  fill() {
    this.filling ??= this.#fill().finally(() => { this.filling = null; });
    return this.filling;
  }

  async #fill() {
    let wait = FIRST_WAIT;
    while (this.ready.length < AHEAD) {
      const round = this.round;
      try {
        const held = new Set([...this.ready.map((shown) => shown.image.number), ...this.unasked()]);
        const query = new URLSearchParams({ count: AHEAD - this.ready.length, skip: [...held].join(",") });
        const { images } = await api(`/v1/label/next?${query}`);
        if (round !== this.round) continue;
        this.ended = images.length === 0;
        if (this.ended) break;
        for (const image of images) {
          const shown = await this.#load(image);
          if (round !== this.round) break;
          const now = new Set([...this.ready.map((one) => one.image.number), ...this.unasked()]);
          if (now.has(image.number)) { forget(shown); continue; } // was opened from elsewhere meanwhile
          this.ready.push(shown);
          this.onReady();
        }
        wait = FIRST_WAIT;
      } catch { // no answer: the outbox or the state's poll says so
        await new Promise((done) => { this.retry = done; setTimeout(done, wait); });
        wait = Math.min(LONGEST_WAIT, 2 * wait);
      }
    }
    this.onReady();
  }

  async #load(image) {
    try {
      return { image, picture: await loadPicture(image) };
    } catch (error) {
      if (error.status === 401 || (isOutage(error) && error.name !== "EncodingError")) throw error; // is asked for again
      return { image, fault: `${image.path}: cannot be shown` };
    }
  }
}
