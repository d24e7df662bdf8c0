// The page to try a model: images in, answers as bars, boxes, masks, pictures and neighbors.
import { api, element } from "/static/session.js";
import { offerSearch, pictures } from "/static/search.js";
import { drawBoxes, drawClasses, overlayFor } from "/static/overlay.js";

const by = (id) => document.getElementById(id);
const MOST_AT_ONCE = 2; // requests
const CLASSES_SHOWN = 12; // of segmentation and several labels, before a button shows all
let model = null;
const answers = []; // what was answered, as predict writes it
const waiting = [];
let running = 0;
let number = 0;

start().catch((error) => say(error.message, true));

async function start() {
  model = await api("/v1/model");
  by("title").textContent = model.name;
  const classes = model.classes.length ? `${model.classes.length} classes, ` : model.task === "captioning" ? "" : "no classes, ";
  by("about").textContent = `${model.task}, ${classes}${model.runtime}${model.license ? `, license: ${model.license}` : ""}`;
  document.title = `Try ${model.name}`;
  for (const name of ["top_k", "min_score"]) by(`${name}-label`).hidden = !(name in model.options);
  for (const name of ["why", "neighbors", "mask"]) by(`${name}-label`).hidden = !offers(name);
  if ("top_k" in model.options) {
    by("top_k").max = model.classes.length;
    by("top_k").value = Math.min(model.options.top_k, model.classes.length);
  }
  if (model.searches) offerSearch(model);
  if (!model.predicts && !offers("neighbors") && !offers("restored")) {
    say("This model has features and no predictions. Start it with --index to see the nearest images here.", true);
  }
  by("files").addEventListener("change", () => { add(by("files").files); by("files").value = ""; });
  document.addEventListener("dragover", (event) => { event.preventDefault(); by("drop").classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) by("drop").classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    by("drop").classList.remove("over");
    add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  by("min_score").addEventListener("input", () => {
    by("min_score-value").textContent = Number(by("min_score").value).toFixed(2);
    redraw();
  });
  by("mask").addEventListener("change", redraw);
  by("clear").addEventListener("click", clear);
  by("save").addEventListener("click", save);
  document.body.dataset.ready = "true";
}

/** True if answers of this server may include it, and this page can show it: a canvas has 8 bits for a class. */
function offers(name) {
  return model.include.includes(name) && (name !== "mask" || model.classes.length <= 256);
}

function say(text, bad = false) {
  by("status").textContent = text;
  by("status").className = bad ? "bad" : "faint";
}

function clear() {
  for (const image of document.querySelectorAll(".picture img")) URL.revokeObjectURL(image.src);
  by("cards").replaceChildren();
  answers.length = waiting.length = 0;
  by("clear").hidden = by("save").hidden = true;
  say("");
  by("files").focus();
}

function save() {
  const lines = answers.map((answer) => JSON.stringify(answer)).join("\n") + "\n";
  const link = element("a", { download: "predictions.jsonl" });
  link.href = URL.createObjectURL(new Blob([lines], { type: "application/jsonl" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function redraw() {
  for (const card of by("cards").children) card.draw?.();
}

function add(files) {
  const newest = by("cards").firstChild; // the images of one drop keep their order
  for (const file of files) {
    const card = element("li", { class: "card", "aria-busy": "true", id: `card-${number++}` });
    const title = element("h3", {}, file.name || "pasted image");
    const answer = element("div", { class: "answer" });
    answer.append(title, element("p", { class: "faint" }, "waiting"));
    card.append(element("div", { class: "picture" }), answer);
    by("cards").insertBefore(card, newest);
    waiting.push({ file, card });
  }
  if (files.length) by("clear").hidden = false;
  next();
}

function next() {
  while (running < MOST_AT_ONCE && waiting.length) {
    running += 1;
    const { file, card } = waiting.shift();
    run(file, card)
      .catch((error) => fail(card, error.message))
      .finally(() => {
        running -= 1;
        card.removeAttribute("aria-busy");
        const left = running + waiting.length;
        const done = by("cards").children.length - left;
        say(left ? `${done} done, ${left} to go` : `${done} ${done === 1 ? "image" : "images"} done`);
        next();
      });
  }
}

function fail(card, message) {
  const answer = card.querySelector(".answer");
  answer.replaceChildren(answer.firstChild, element("p", { class: "bad", role: "alert" }, message));
}

async function run(file, card) {
  const image = element("img", { alt: "" });
  image.src = URL.createObjectURL(file);
  const shown = await image.decode().then(() => true, () => false);
  if (shown) card.querySelector(".picture").append(image);
  const include = ["why", "neighbors", "mask"].filter((name) => offers(name) && by(name).checked);
  if (offers("restored")) include.push("restored");
  if (!shown) include.push("preview"); // a format that browsers do not show
  const query = new URLSearchParams({ include: include.join(",") });
  if ("top_k" in model.options && by("top_k").value) query.set("top_k", by("top_k").value);
  const form = new FormData();
  form.append("image", file, file.name || "pasted.png");
  const [answer] = (await api(`/v1/predict?${query}`, { method: "POST", body: form })).results;
  if (!card.isConnected) return; // cleared meanwhile
  if (answer.error) return fail(card, answer.error);
  if (answer.preview) {
    image.src = `data:image/jpeg;base64,${answer.preview}`;
    await image.decode();
    card.querySelector(".picture").append(image);
  }
  image.alt = `the image ${answer.path}`;
  image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < 128);
  const { why, neighbors, mask, preview, restored, ...plain } = answer;
  answers.push(plain);
  by("save").hidden = false;
  await show(card, image, answer);
}

async function show(card, image, answer) {
  const panel = card.querySelector(".answer");
  const list = element("ul", { class: "scores" });
  panel.replaceChildren(panel.firstChild, list);
  if (answer.predictions) {
    answer.predictions.forEach((p, i) => list.append(scoreRow(p.label, p.score, i ? "" : "first")));
  } else if ("caption" in answer) {
    const share = Math.exp(answer.log_probability);
    list.replaceWith(
      element("p", { class: "caption" }, answer.caption || "(no words)"),
      element("p", { class: "faint" }, `${(100 * share).toFixed(1)} % a token (geometric mean)`),
    );
  } else if (answer.labels) {
    const note = answer.labels.length ? `Labels: ${answer.labels.join(", ")}` : "No label reaches its threshold.";
    panel.insertBefore(element("p", {}, note), list);
    const sorted = Object.entries(answer.scores).sort((a, b) => b[1] - a[1]);
    fold(list, sorted.map(([name, score]) => scoreRow(name, score, answer.labels.includes(name) ? "first" : "")));
  } else if (answer.detections) {
    showDetections(card, image, answer, list);
  } else if (answer.shares) {
    const sorted = Object.entries(answer.shares).sort((a, b) => b[1] - a[1]);
    fold(list, sorted.map(([name, share]) => scoreRow(name, share, "", model.colors[model.classes.indexOf(name)])));
  }
  if (answer.mask) await showMask(card, image, answer.mask);
  if (answer.why) {
    const extra = element("div", { class: "extra" });
    const picture = element("img", { alt: "the image, and the image under a map of what the model looked at" });
    picture.src = `data:image/png;base64,${answer.why}`;
    extra.append(element("h4", {}, "Why: what the model looked at (yellow most)"), picture);
    card.append(extra);
  }
  if (answer.restored) card.append(besideOriginal(image, answer.restored));
  if (answer.neighbors) card.append(pictures("Nearest images (cosine of the features)", answer.neighbors, model.index_images));
}

/** The restored image beside the one that came, both at one size, and a link to keep it. */
function besideOriginal(image, png) {
  const extra = element("div", { class: "extra" });
  const pair = element("div", { class: "pair" });
  const before = element("img", { alt: "the image as it came" });
  before.src = image.src;
  const after = element("img", { alt: "the restored image" });
  after.src = `data:image/png;base64,${png}`;
  const link = element("a", { download: "restored.png" }, "Save the restored image");
  link.href = after.src;
  pair.append(before, after);
  extra.append(element("h4", {}, "As it came, and restored"), pair, link);
  return extra;
}

function scoreRow(name, score, kind = "", color = null) {
  const row = element("li", kind ? { class: kind } : {});
  const label = element("span", { class: "name" });
  if (color) {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = color;
    label.append(swatch);
  }
  label.append(name);
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  const filled = element("i");
  filled.style.width = `${100 * score}%`;
  if (color) filled.style.background = color;
  bar.append(filled);
  row.append(label, element("span", { class: "value" }, `${(100 * score).toFixed(1)} %`), bar);
  return row;
}

/** Put rows into a list, the later ones behind a button. */
function fold(list, rows) {
  list.append(...rows.slice(0, CLASSES_SHOWN));
  if (rows.length <= CLASSES_SHOWN) return;
  const more = element("button", { type: "button" }, `Show all ${rows.length}`);
  more.addEventListener("click", () => { more.remove(); list.append(...rows.slice(CLASSES_SHOWN)); });
  list.after(more);
}

function showDetections(card, image, answer, list) {
  const canvas = overlayFor(image);
  card.draw = (chosen = null) => {
    const least = Number(by("min_score").value);
    const found = answer.detections.filter((d) => d.score >= least);
    drawBoxes(canvas, image, answer, found, (label) => model.colors[model.classes.indexOf(label)], chosen);
    return found;
  };
  const fill = () => {
    const found = card.draw();
    const rows = found.map((detection) => {
      const row = scoreRow(detection.label, detection.score, "", model.colors[model.classes.indexOf(detection.label)]);
      row.tabIndex = 0;
      const show = () => card.draw(detection), hide = () => card.draw();
      for (const event of ["mouseenter", "focus"]) row.addEventListener(event, show);
      for (const event of ["mouseleave", "blur"]) row.addEventListener(event, hide);
      return row;
    });
    const hidden = answer.detections.length - found.length;
    const note = `${found.length} found${hidden ? `, ${hidden} with a lower score` : ""}`;
    list.replaceChildren(element("li", { class: "faint" }, note), ...rows);
  };
  fill();
  by("min_score").addEventListener("change", () => { if (card.isConnected) fill(); });
}

async function showMask(card, image, mask) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${mask}`;
  await picture.decode();
  const canvas = overlayFor(image);
  card.draw = () => {
    canvas.hidden = !by("mask").checked;
    if (!canvas.hidden) drawClasses(canvas, picture, model.colors, model.background);
  };
  card.draw();
}
