// Beside the image: accuracy, its curve, what more labels would give, and the pace.
import { element } from "/static/session.js";

const by = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 400, HEIGHT = 104, LEFT = 48, BOTTOM = 22, TOP = 8, RIGHT = 10; // of the curve
const PAUSE = 60_000; // milliseconds: more between two answers is a pause and no part of the pace
const LAST = 20; // answers that the pace is taken from

export const count = (n) => n.toLocaleString("en");
export const percent = (x) => `${Math.round(100 * x)} %`;
/** A probability, which is never shown as certain. */
export const confidence = (x) => (x > 0.99 ? "more than 99 %" : percent(x));
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

const times = []; // of the answers of this visit

/** Count an answer that was given now (1), or taken back (-1). */
export function countAnswer(step) {
  if (step > 0) times.push(Date.now());
  else times.pop();
}

/** Return answers a minute, without pauses; null until there are enough. */
function pace() {
  const steps = times.slice(1).map((time, i) => time - times[i]).filter((step) => step < PAUSE).slice(-LAST);
  if (steps.length < 5) return null;
  return 60_000 / Math.max(1, steps.reduce((sum, step) => sum + step, 0) / steps.length);
}

export function showProgress(state) {
  const left = state.images - state.answered;
  by("bar").max = Math.max(1, state.images);
  by("bar").value = state.answered;
  const parts = [plural(state.labeled, "label"), state.skipped && `${count(state.skipped)} skipped`,
    state.unsure && `${count(state.unsure)} not sure`, `${count(left)} left`];
  by("count").textContent = parts.filter(Boolean).join(", ");
  const speed = pace();
  by("pace").textContent = `${count(state.today)} today${speed ? `, about ${Math.round(speed)} a minute` : ""}`;
  showAccuracy(state);
  drawCurve(state.curve);
  by("more").textContent = state.more ? sentence(state.more) : "";
  const { done, total } = state.features;
  const reading = done < total ? `The model has seen ${count(done)} of ${count(total)} images.` : "";
  by("features").textContent = state.problem ? sentence(state.problem) : reading;
  by("features").className = state.problem ? "bad" : "faint";
}

function showAccuracy({ audit, model }) {
  const line = by("accuracy");
  if (!audit) {
    line.className = "faint";
    line.textContent = model ? "Accuracy is measured on the images drawn at random; none has a label yet."
      : "A model learns from your labels as you go; its proposals and accuracy will stand here.";
    return;
  }
  line.className = "accuracy";
  line.replaceChildren(element("b", {}, percent(audit.accuracy)), " right",
    element("span", { class: "faint" }, ` (${Math.round(100 * audit.low)} to ${percent(audit.high)}; ${audit.right} of ${plural(audit.images, "image")} drawn at random)`));
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function svg(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

/** Draw accuracy against labels. */
function drawCurve(curve) {
  if (curve.length < 2) return by("curve").replaceChildren();
  const [first, last] = [curve[0], curve[curve.length - 1]];
  const values = curve.map((point) => point.accuracy);
  const low = Math.max(0, Math.floor(10 * Math.min(...values)) / 10), high = Math.min(1, Math.ceil(10 * Math.max(...values)) / 10);
  const x = (labels) => LEFT + (WIDTH - LEFT - RIGHT) * (labels - first.labels) / Math.max(1, last.labels - first.labels);
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / Math.max(0.1, high - low);
  const text = `Accuracy from ${percent(first.accuracy)} at ${first.labels} labels to ${percent(last.accuracy)} at ${last.labels}`;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img", "aria-label": text });
  for (const value of [low, high]) {
    picture.append(svg("line", { class: "line", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, percent(value)));
  }
  picture.append(svg("polyline", { points: curve.map((point) => `${x(point.labels)},${y(point.accuracy)}`).join(" ") }));
  picture.append(svg("circle", { cx: x(last.labels), cy: y(last.accuracy), r: 3.5 }));
  picture.append(svg("text", { x: LEFT, y: HEIGHT - 5 }, count(first.labels)));
  picture.append(svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, plural(last.labels, "label")));
  by("curve").replaceChildren(picture);
}
