// Images of the index: those nearest to an image, and the form that finds them by words.
import { api, element } from "/static/session.js";

const by = (id) => document.getElementById(id);
let asked = 0;

/** Return a heading and a list of images with their scores. */
export function pictures(title, images, withPictures) {
  const extra = element("div", { class: "extra" });
  const list = element("ul", { class: "nearest" });
  for (const { number, path, score } of images) {
    const entry = element("li");
    if (withPictures) {
      const picture = element("img", { alt: "", loading: "lazy" });
      picture.src = `/v1/index/${number}`;
      entry.append(picture);
    }
    entry.append(element("span", {}, `${path} `), element("span", { class: "faint" }, score.toFixed(2)));
    list.append(entry);
  }
  extra.append(element("h4", {}, title), list);
  return extra;
}

/** Show the form, for a model that can search its index by words. */
export function offerSearch(model) {
  by("words-label").textContent = `Find among ${model.indexed} images by words`;
  by("search").hidden = false;
  by("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search(by("words").value.trim(), model);
  });
}

async function search(text, model) {
  if (!text) return;
  const number = ++asked, place = by("found");
  place.hidden = false;
  place.setAttribute("aria-busy", "true");
  let shown;
  try {
    const { results } = await api(`/v1/search?${new URLSearchParams({ text })}`);
    shown = pictures(`Nearest to \u201c${text}\u201d (cosine of images and words)`, results, model.index_images);
  } catch (error) {
    shown = element("p", { class: "bad", role: "alert" }, error.message);
  }
  if (number !== asked) return; // a later question stands
  place.replaceChildren(shown);
  place.removeAttribute("aria-busy");
}
