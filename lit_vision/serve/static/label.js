// The page to label images: one image, its classes by keys, and what was answered.
import { api, element } from "/static/session.js";
import { Classes } from "/static/label_classes.js";
import { useMine } from "/static/label_conflict.js";
import { setUpFinish } from "/static/label_finish.js";
import { ImagesAhead, itemOf, loadPicture } from "/static/label_images.js";
import { isOutage, newId, Outbox } from "/static/label_outbox.js";
import { countAnswer, plural, showProgress } from "/static/label_progress.js";
import { proposalOf, showQuestion, theEnd } from "/static/label_question.js";
import { Recent, textOf } from "/static/label_recent.js";
import { setUpReview } from "/static/label_review.js";
import { openSimilar } from "/static/label_similar.js";

const by = (id) => document.getElementById(id);
const POLL = 2000; // milliseconds between looks at the server's state
const VIEWS = ["label", "review", "finish"];
let state = null; // as the server gave it last
let shown = null; // the image on the page, {image, picture} or {image, fault}
let chosen = []; // labels of the image, where it may have several
let pollFailed = false;
let outbox, ahead, classes, recent, review;
const watchers = new Map(); // id of an answer: called with the error, or null when it is saved

start().catch((error) => say(error.message, true));

async function start() {
  state = await firstState();
  by("title").textContent = document.title = state.root;
  document.title = `Label ${state.root}`;
  by("multiple").checked = state.multiple;
  by("multiple-label").hidden = !state.multiple;
  outbox = new Outbox(state.store ?? state.root, { onDone, onRefused, onChange: showSaved });
  ahead = new ImagesAhead(() => [...outbox.numbers, ...(shown ? [shown.image.number] : [])], showNextIfNone);
  classes = new Classes({ onChoose: choose, onChange: classesChanged, sent: () => outbox.empty() });
  recent = new Recent(open);
  review = setUpReview({ give, open });
  setUpFinish();
  listen();
  setState(state);
  outbox.send();
  showSaved();
  openView(location.hash.slice(1));
  ahead.fill();
  if (!state.classes.length) classes.openNew();
  recent.fillFromServer().catch(() => {}); // only undo of earlier visits needs it
  pollForever();
  document.body.dataset.ready = "true";
}

/** Return the state; the page may be opened while the server starts. */
async function firstState() {
  while (true) {
    try {
      return await api("/v1/label/state");
    } catch (error) {
      if (!isOutage(error)) throw error;
      say("The server does not answer; trying again.", true);
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

function listen() {
  const buttons = { accept, undo, help: openHelp, skip: () => answer("skip", []), unsure: () => answer("unsure", []), similar: similar };
  for (const [id, act] of Object.entries(buttons)) by(id).addEventListener("click", act);
  by("view-label").addEventListener("click", (event) => { // so that Enter does not press the button once more
    if (event.detail && event.target.closest("button") && !document.activeElement.matches("input")) by("stage").focus();
  });
  by("multiple").addEventListener("change", () => { chosen = []; showAnswerParts(); by("stage").focus(); });
  for (const tab of document.querySelectorAll("[data-view]")) tab.addEventListener("click", () => openView(tab.dataset.view));
  addEventListener("hashchange", () => openView(location.hash.slice(1)));
  addEventListener("keydown", onKey);
  addEventListener("beforeunload", (event) => { if (outbox.size) event.preventDefault(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
}

function onKey(event) {
  if (event.repeat || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  const { key, target } = event;
  if (target.matches("input:not([type=checkbox]), select")) return;
  const inLabel = !by("view-label").hidden;
  if (event.ctrlKey || event.metaKey) {
    if (key.toLowerCase() !== "z" || !inLabel) return;
    undo();
  } else if (key === "?") openHelp();
  else if (!inLabel || (key === "Enter" && target.closest("button, a"))) return;
  else if (key === "Enter") accept();
  else if (key === "ArrowRight") answer("skip", []);
  else if (key === "ArrowLeft" || key === "Backspace") undo();
  else if (key === "0") answer("unsure", []);
  else if (key === "+" || key === "=") classes.openNew();
  else if (key === "F2") classes.openRename();
  else if (key === "/" && !by("find-label").hidden) by("find").focus();
  else if (key === ".") similar();
  else if (classes.withKey(key)) choose(classes.withKey(key));
  else return;
  event.preventDefault();
}

function openView(name) {
  const wanted = VIEWS.includes(name) ? name : "label";
  for (const view of VIEWS) by(`view-${view}`).hidden = view !== wanted;
  for (const tab of document.querySelectorAll("[data-view]")) {
    if (tab.dataset.view === wanted) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  history.replaceState(null, "", wanted === "label" ? location.pathname : `#${wanted}`);
  if (wanted === "review") review.load();
  if (wanted === "label") by("stage").focus({ preventScroll: true });
}

function openHelp() {
  by("keys").showModal();
}

function say(text, bad = false) {
  by("status").textContent = text;
  by("status").classList.toggle("bad", bad);
}

// The image on the page

function show(next) {
  shown = next;
  const { image, picture, fault } = next;
  chosen = [...(image.answer?.labels ?? [])];
  by("stage").replaceChildren(picture ?? element("p", { class: "bad" }, fault ?? "Loading"));
  if (!picture && !fault) loadInto(next);
  by("name").textContent = image.path;
  showAnswerParts();
}

async function loadInto(next) {
  try {
    next.picture = await loadPicture(next.image);
  } catch (error) {
    next.fault = `${next.image.path}: cannot be shown`;
  }
  if (shown === next) by("stage").replaceChildren(next.picture ?? element("p", { class: "bad" }, next.fault));
}

function showNextIfNone() {
  if (shown) return;
  const next = ahead.take();
  if (next) return show(next);
  by("stage").replaceChildren(ahead.ended ? theEnd(openView) : element("p", { class: "faint" }, "Waiting for the next image"));
  by("name").textContent = "";
  showAnswerParts();
}

function showAnswerParts() {
  showQuestion(shown?.image, chosen, by("multiple").checked, state.annotator);
  classes.show({ chosen, proposed: proposalOf(shown?.image)?.labels ?? [], several: by("multiple").checked });
}

// Answers

function choose(name) {
  if (!by("multiple").checked) return answer("label", [name]);
  chosen = chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name];
  showAnswerParts();
}

function accept() {
  const proposal = proposalOf(shown?.image);
  if (by("multiple").checked && (chosen.length || !proposal)) return answer("label", chosen);
  if (!proposal) return say(shown ? "This image has no proposal: press the key of its class." : "The next image is not here yet.");
  answer("label", proposal.labels);
}

/** Answer the image on the page, and show the next one. */
function answer(kind, labels) {
  if (!shown) return say(ahead.ended ? "Every image has an answer." : "The next image is not here yet.");
  const before = shown.image.answer;
  const same = before?.kind === kind && before.labels.length === labels.length && labels.every((one) => before.labels.includes(one));
  if (!same) recent.add({ ...shown, before, id: give(shown.image, kind, labels), text: textOf({ kind, labels }), mark: "saving" });
  shown = null;
  say("");
  showNextIfNone();
}

/** Send an answer to an image, which replaces the answer that it has here; return its id. Calls watch(error or null). */
function give(image, kind, labels, watch = null) {
  const id = newId();
  const body = { number: image.number, path: image.path, kind, labels, id, replaces: image.answer?.id ?? null, seen: image.seen };
  image.answer = { id, kind, labels, annotator: state.annotator };
  if (watch) watchers.set(id, watch);
  ahead.drop(image.number);
  outbox.add({ address: "/v1/label/answers", number: image.number, body });
  return id;
}

function undo() {
  const last = recent.pop();
  if (!last) return say("Nothing to undo.");
  if (last.mark !== "failed") outbox.add({ address: "/v1/label/undo", number: last.image.number, body: { id: last.id } });
  last.image.answer = last.before;
  open(last);
  say(`Taken back: ${last.text}.`);
}

/** Show an image again; the one that was shown comes after it. */
function open(again) {
  openView("label");
  if (shown?.image.number === again.image.number) return show({ ...again, picture: shown.picture ?? again.picture });
  if (shown && !shown.image.answer) ahead.putBack(shown);
  ahead.drop(again.image.number);
  show({ image: again.image, picture: again.picture });
}

function similar() {
  if (shown) openSimilar(shown.image, { classNames: classes.list.map((one) => one.name), give, open });
}

// What the server says

function onDone({ address, body }, reply) {
  const isUndo = address.endsWith("undo");
  countAnswer(isUndo ? -1 : 1);
  if (!isUndo) recent.mark(body.id, "saved");
  else if (shown?.image.number === reply.number && !outbox.numbers.includes(reply.number)) {
    shown.image.answer = reply.answer; // the one before may be of an earlier visit, or of another browser
    showAnswerParts();
  }
  settle(body.id, null);
  if (reply.state) setState({ ...state, ...reply.state });
}

async function onRefused({ address, body, number }, error) {
  if (address.endsWith("undo")) return; // it was taken back already, or never saved
  const theirs = error.content?.answer;
  if (error.status === 409 && theirs !== undefined) {
    const mine = theirs && textOf(theirs) === textOf(body) ? false : !theirs || await useMine(body, theirs);
    if (mine) return outbox.add({ address, number, body: { ...body, replaces: theirs?.id ?? null } });
    recent.remove(body.id);
    return settle(body.id, theirs && textOf(theirs) !== textOf(body) ? new Error(`is ${textOf(theirs)}`) : null);
  }
  const failed = recent.mark(body.id, "failed", error.message);
  if (failed?.image.answer?.id === body.id) failed.image.answer = failed.before;
  settle(body.id, error);
  say(error.status === 410 ? `${body.path} has changed on the disk and will be shown again.` : `Not saved: ${body.path}: ${error.message}`, true);
}

function settle(id, error) {
  watchers.get(id)?.(error);
  watchers.delete(id);
}

function setState(next) {
  const restarted = state && next.run !== state.run;
  state = next;
  classes.update(state.classes);
  showProgress(state);
  if (restarted) numbersChanged();
  if (!shown && state.answered + outbox.size < state.images) ahead.fill();
}

/** The server has started again: its numbers may be those of other images. What is shown stays if it is the same image. */
async function numbersChanged() {
  ahead.clear();
  recent.forgetNumbers();
  const checked = shown;
  const same = checked && await itemOf(checked.image.number).then((item) => item.path === checked.image.path, () => false);
  if (checked && !same && shown === checked) shown = null;
  showNextIfNone();
  ahead.fill();
}

function classesChanged(list, renamed) {
  state.classes = list;
  if (renamed) {
    const other = (name) => (name === renamed.from ? renamed.to : name);
    for (const one of [shown, ...ahead.ready, ...recent.list].filter(Boolean)) {
      if (one.image.proposal) one.image.proposal.labels = one.image.proposal.labels.map(other);
      if (one.image.answer) one.image.answer.labels = one.image.answer.labels.map(other);
    }
    chosen = chosen.map(other);
    recent.rename();
  }
  showAnswerParts();
}

async function pollForever() {
  while (true) {
    await new Promise((done) => setTimeout(done, POLL));
    if (!document.hidden) await poll();
  }
}

async function poll() {
  try {
    setState(await api("/v1/label/state", { signal: AbortSignal.timeout(10_000) }, 0));
    pollFailed = false;
    outbox.retry();
    ahead.retry();
  } catch (error) {
    pollFailed = isOutage(error);
  }
  showSaved();
}

/** Say whether all answers are saved, and whether the server is there. */
function showSaved() {
  const away = pollFailed || outbox.away !== null;
  const waiting = `${plural(outbox.size, "answer waits", "answers wait")} in this browser`;
  let text = "The server does not answer; is lit-vision label still running? ";
  text += outbox.size ? `${waiting} and will be sent when it is back.` : "Every answer is saved.";
  if (outbox.away?.status) text = `The server cannot save (${outbox.away.message}). ${waiting}; they are sent again and again.`;
  if (away && by("away").textContent !== text) by("away").textContent = text;
  if (!away && !by("away").hidden) say(outbox.size ? "The server is back." : "The server is back; every answer is saved.");
  by("away").hidden = !away;
  by("saved-text").textContent = outbox.size ? (away ? `${outbox.size} not sent yet` : `Saving ${outbox.size}`) : "All saved";
  by("saved").classList.toggle("busy", outbox.size > 0);
}
