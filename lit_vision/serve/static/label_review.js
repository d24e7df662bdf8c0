// Review: labels that look wrong, near duplicates that differ, classes with few images, all answers.
import { api, element } from "/static/session.js";
import { thumbnail } from "/static/label_images.js";
import { plural } from "/static/label_progress.js";
import { textOf } from "/static/label_recent.js";

const by = (id) => document.getElementById(id);
const ABOUT = {
  wrong: ["label looks wrong to the model", "labels look wrong to the model, the surest first", "No label looks wrong to the model."],
  duplicates: ["pair of images is alike and has different labels", "pairs of images are alike and have different labels",
    "No two images that are alike have different labels."],
  thin: ["class has few images; below it are images without a label that may belong to it",
    "classes have few images; below each are images without a label that may belong to it", "No class has few images."],
  answers: ["answer", "answers, newest first", "No answer yet."],
};

/** give(image, kind, labels, watch) sends an answer, open({image}) shows an image; load() of what is returned shows the list. */
export function setUpReview({ give, open }) {
  let kind = "wrong", page = 0, round = 0;

  async function load(more = false) {
    const mine = ++round;
    page = more ? page + 1 : 0;
    for (const tab of document.querySelectorAll("[data-kind]")) {
      if (tab.dataset.kind === kind) tab.setAttribute("aria-current", "true");
      else tab.removeAttribute("aria-current");
    }
    if (!more) by("review-items").replaceChildren();
    by("review-about").textContent = "Looking; this may take a few seconds.";
    by("review-more").hidden = true;
    try {
      const found = await api(`/v1/label/review?kind=${kind}&page=${page}`, {}, 5);
      if (mine !== round) return; // another list was chosen meanwhile
      const [one, many, none] = ABOUT[kind];
      by("review-about").textContent = found.total ? `${plural(found.total, one, many)}.` : none;
      by("review-items").append(...found.items.map(card));
      by("review-more").hidden = !found.items.length || by("review-items").children.length >= found.total;
    } catch (error) {
      if (mine === round) by("review-about").textContent = error.status ? error.message : "The server does not answer; choose the list again.";
    }
  }

  /** Return a button that gives images labels, or confirms those that they have; the card shows that it is saved. */
  function labelButton(text, list, images, labels = null, primary = false) {
    const button = element("button", { type: "button", ...(primary && { class: "primary" }) }, text);
    button.addEventListener("click", () => {
      for (const other of list.querySelectorAll("button")) other.disabled = true;
      const note = element("p", { class: "faint", role: "status" }, "Saving");
      list.append(note);
      let left = images.length;
      for (const image of images) {
        give(image, "label", labels ?? image.answer.labels, (error) => {
          left -= 1;
          if (error) note.className = "bad";
          if (error || note.className !== "bad") note.textContent = error ? `Not saved: ${error.message}` : (left ? "Saving" : `Saved: ${text}`);
          list.dataset.done = String(!left);
        });
      }
    });
    return button;
  }

  function openButton(image) {
    const button = element("button", { type: "button" }, "Open");
    button.addEventListener("click", () => open({ image }));
    return button;
  }

  /** Return a picture that opens its image, with label and path. */
  function figure(image) {
    const made = element("figure"), button = element("button", { type: "button", class: "picture-button", "aria-label": `Open ${image.path}` });
    button.append(thumbnail(image));
    button.addEventListener("click", () => open({ image }));
    const text = image.answer && kind !== "answers" ? `${textOf(image.answer)}: ${image.path}` : image.path;
    made.append(button, element("figcaption", { class: "faint" }, text));
    return made;
  }

  function card(item) {
    const made = element("li", { class: "item" });
    const pictures = element("div", { class: "pictures" }), words = element("div", { class: "words" }), row = element("div", { class: "row" });
    words.append(...(kind === "answers" ? [] : [element("p", {}, item.text)]), row);
    if (kind === "thin") {
      const name = item.class;
      for (const image of item.images) {
        const one = figure(image), actions = element("div", { class: "row" });
        if (name) actions.append(labelButton(`Is ${name}`, actions, [image], [name]));
        one.append(actions);
        pictures.append(one);
      }
      made.classList.add("many");
      made.append(words, pictures);
      return made;
    }
    pictures.append(...item.images.map(figure));
    const [first, second] = item.images, labels = first.answer?.labels ?? [];
    if (kind === "wrong") {
      if (first.proposal) row.append(labelButton(`Change to ${first.proposal.labels.join(", ")}`, row, [first], first.proposal.labels, true));
      row.append(labelButton(`Keep ${labels.join(", ")}`, row, [first], labels), openButton(first));
    } else if (kind === "duplicates" && second) {
      const theirs = second.answer?.labels ?? [];
      row.append(labelButton(`Both ${labels.join(", ")}`, row, [second], labels), labelButton(`Both ${theirs.join(", ")}`, row, [first], theirs));
      row.append(labelButton("Keep both", row, [first, second]));
    } else {
      const { annotator, time } = first.answer ?? {};
      const when = time ? new Date(time).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" }) : "";
      if (first.answer) words.prepend(element("h3", {}, textOf(first.answer)), element("p", { class: "faint" }, [annotator, when].filter(Boolean).join(", ")));
      row.append(openButton(first));
    }
    made.append(pictures, words);
    return made;
  }

  for (const tab of document.querySelectorAll("[data-kind]")) {
    tab.addEventListener("click", () => { kind = tab.dataset.kind; load(); });
  }
  by("review-more").addEventListener("click", () => load(true));
  return { load };
}
