// Search by example: the images most like one, to give several of them a class at once.
import { api, element } from "/static/session.js";
import { thumbnail } from "/static/label_images.js";
import { plural } from "/static/label_progress.js";
import { textOf } from "/static/label_recent.js";

const by = (id) => document.getElementById(id);
const IMAGES = 24;

/** Open the images like `image`. give(image, kind, labels) sends an answer, open({image}) shows one. */
export async function openSimilar(image, { classNames, give, open }) {
  const chosen = new Set();
  const dialog = by("like"), apply = by("like-apply");
  const showCount = () => {
    apply.textContent = `Label ${plural(chosen.size, "image")}`;
    apply.disabled = chosen.size === 0 || !by("like-class").value;
  };
  by("like-title").textContent = `More like ${image.path}`;
  by("like-note").textContent = "Looking";
  by("like-images").replaceChildren();
  const proposed = image.answer?.labels[0] ?? (image.audit ? null : image.proposal?.labels[0]);
  by("like-class").replaceChildren(...classNames.map((name) => element("option", name === proposed ? { selected: "" } : {}, name)));
  showCount();
  by("like-close").onclick = () => dialog.close();
  apply.onclick = () => {
    for (const one of chosen) give(one, "label", [by("like-class").value]);
    dialog.close();
  };
  if (!dialog.open) dialog.showModal();
  try {
    const { images } = await api(`/v1/label/similar/${image.number}?count=${IMAGES}`, {}, 2);
    by("like-images").replaceChildren(...images.map((one) => tile(one, () => {
      if (one.answer) {
        dialog.close();
        return open({ image: one });
      }
      if (!chosen.delete(one)) chosen.add(one);
      showCount();
      return chosen.has(one);
    })));
    by("like-note").textContent = images.length ? "" : "No image is like this one.";
    by("like-images").querySelector("button")?.focus();
  } catch (error) {
    by("like-note").textContent = error.status ? error.message : "The server does not answer; try again.";
  }
}

function tile(image, onPress) {
  const item = element("li"), button = element("button", { type: "button", title: image.path });
  button.append(thumbnail(image), element("span", { class: "text" }, image.answer ? textOf(image.answer) : ""));
  if (!image.answer) button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => button.setAttribute("aria-pressed", Boolean(onPress())));
  item.append(button);
  return item;
}
