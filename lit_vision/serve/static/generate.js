// The page of a generator: images from noise, by seed, number, class and steps.
import { api, element } from "/static/session.js";

const by = (id) => document.getElementById(id);
const LARGEST_SCALE = 4; // screen pixels a pixel

start().catch((error) => say(error.message, true));

async function start() {
  const model = await api("/v1/model");
  by("title").textContent = document.title = `Images of ${model.name}`;
  const classes = model.classes.length ? `${model.classes.length} classes` : "no classes";
  by("about").textContent = `${model.method}, ${classes}, ${model.size[1]} x ${model.size[0]} pixels`;
  by("num").max = model.limits.num;
  by("steps").max = model.limits.steps;
  by("steps-label").hidden = by("steps").disabled = model.steps === null;
  if (model.steps !== null) by("steps").value = model.steps;
  by("class-label").hidden = !model.classes.length;
  by("class").append(element("option", {}, "all in turn"), ...model.classes.map((name) => element("option", {}, name)));
  by("form").addEventListener("submit", (event) => { event.preventDefault(); make(); });
  by("next").addEventListener("click", () => {
    by("seed").stepUp();
    by("form").requestSubmit();
  });
  await make();
  document.body.dataset.ready = "true";
}

function say(text, bad = false) {
  by("status").textContent = text;
  by("status").className = bad ? "bad" : "faint";
}

async function make() {
  const query = new URLSearchParams({ seed: by("seed").value, num: by("num").value });
  const chosen = by("class").selectedIndex > 0 ? by("class").value : null; // a class may be named as the first entry
  if (chosen !== null) query.set("class", chosen);
  if (!by("steps").disabled) query.set("steps", by("steps").value);
  by("make").disabled = by("next").disabled = true;
  say("making images");
  try {
    show(await api(`/v1/generate?${query}`), `seed-${query.get("seed")}.png`);
    await by("picture").decode();
    scale();
    const count = Number(query.get("num"));
    const ofClass = chosen === null ? "" : ` of ${chosen}`;
    by("picture").alt = `${count === 1 ? "1 image" : `${count} images`}${ofClass} of seed ${query.get("seed")}`;
    say(by("picture").alt);
  } catch (error) {
    say(error.message, true);
  } finally {
    by("make").disabled = by("next").disabled = false;
  }
}

function show(picture, name) {
  URL.revokeObjectURL(by("picture").src);
  by("picture").src = by("save").href = URL.createObjectURL(picture);
  by("save").download = name;
  by("made").hidden = false;
}

/** Enlarge the picture by a whole number, so that all pixels are of one size. */
function scale() {
  const image = by("picture");
  const times = Math.floor(by("made").clientWidth / image.naturalWidth);
  image.style.width = `${image.naturalWidth * Math.min(Math.max(times, 1), LARGEST_SCALE)}px`;
}
addEventListener("resize", () => { if (!by("made").hidden) scale(); });
