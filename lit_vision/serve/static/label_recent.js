// The last answers, newest first: what undo takes back, and small pictures to open an image again.
import { api, element } from "/static/session.js";
import { forget, thumbnail } from "/static/label_images.js";

const by = (id) => document.getElementById(id);
const SHOWN = 10; // with a picture; undo goes further back
const KEPT = 500;
const MARKS = { saving: "saving", saved: "saved", failed: "not saved" };

/** Return an answer in words. */
export function textOf({ kind, labels }) {
  if (kind === "label") return labels.join(", ") || "none of the classes";
  return kind === "skip" ? "skipped" : "not sure";
}

export class Recent {
  /** onOpen(answer): one was chosen. Answers are {id, image, picture or none, text, before, mark}. */
  constructor(onOpen) {
    this.onOpen = onOpen;
    this.list = []; // oldest first
  }

  /** Begin with the answers that the server has, so that undo works after the page was loaded anew. */
  async fillFromServer() {
    const { items } = await api("/v1/label/review?kind=answers&page=0");
    const known = new Set(this.list.map((one) => one.image.number));
    const older = items.map((item) => item.images[0]).filter((image) => image.answer && !known.has(image.number)).slice(0, SHOWN);
    const entries = older.map((image) => ({ id: image.answer.id, image, before: null, text: textOf(image.answer), mark: "saved" }));
    this.list.unshift(...entries.reverse());
    this.draw();
  }

  add(answer) {
    this.list.push(answer);
    if (this.list.length > KEPT) this.list.shift();
    const old = this.list[this.list.length - 1 - SHOWN];
    if (old?.picture) {
      forget(old);
      old.picture = undefined;
    }
    this.draw();
  }

  pop() {
    const last = this.list.pop();
    this.draw();
    return last;
  }

  remove(id) {
    this.list = this.list.filter((one) => one.id !== id);
    this.draw();
  }

  /** Show that an answer is saved or failed; return it if it is here. */
  mark(id, mark, why = "") {
    const found = this.list.find((one) => one.id === id);
    if (!found) return undefined;
    Object.assign(found, { mark, why });
    if (found.item) setMark(found.item, found);
    return found;
  }

  /** Write the labels anew: a class has another name. */
  rename() {
    for (const one of this.list) if (one.image.answer) one.text = textOf(one.image.answer);
    this.draw();
  }

  /** The server numbers its images anew: only those that wait, or have a picture, can be shown. */
  forgetNumbers() {
    this.list = this.list.filter((one) => one.picture);
    this.draw();
  }

  /** Draw the list when the next image has been painted, which comes first. */
  draw() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => setTimeout(() => { this.waits = false; this.#draw(); }));
  }

  #draw() {
    const items = this.list.slice(-SHOWN).reverse().map((answer) => {
      answer.item ??= this.#item(answer);
      answer.item.querySelector(".text").textContent = answer.text;
      const frame = answer.item.querySelector(".frame");
      if (!frame.firstChild) frame.append(small(answer));
      return answer.item;
    });
    by("recent").replaceChildren(...items);
  }

  #item(answer) {
    const item = element("li");
    const button = element("button", { type: "button", title: answer.image.path });
    button.append(element("span", { class: "frame" }), element("span", { class: "text" }), element("span", { class: "mark" }));
    button.addEventListener("click", () => this.onOpen(answer));
    item.append(button);
    setMark(item, answer);
    return item;
  }
}

function small({ picture, image }) {
  if (!picture) return thumbnail(image);
  const copy = element("img", { alt: image.path }); // the element itself may be on the page
  copy.src = picture.src;
  return copy;
}

function setMark(item, { mark, why }) {
  item.dataset.mark = mark;
  item.querySelector(".mark").textContent = MARKS[mark];
  item.querySelector("button").title = why || item.querySelector("button").title;
}
