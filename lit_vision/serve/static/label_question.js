// What is asked about the image on the page: why it is shown, and the proposal.
import { element } from "/static/session.js";
import { confidence } from "/static/label_progress.js";
import { textOf } from "/static/label_recent.js";

const by = (id) => document.getElementById(id);

/** Return the proposal that may be seen: never that of an audit image before its answer. */
export function proposalOf(image) {
  return image && !(image.audit && !image.answer) ? image.proposal : null;
}

/** Show why the image is asked for, and what Enter does. `chosen`: its labels so far, where it may have `several`. */
export function showQuestion(image, chosen, several, annotator) {
  const proposal = proposalOf(image), ownLabels = several && (chosen.length || !proposal);
  by("proposal").textContent = image ? reasonFor(image, annotator) : "";
  const text = ownLabels ? chosen.join(", ") || "none of the classes"
    : proposal && `${proposal.labels.join(", ") || "none of the classes"} ${confidence(proposal.confidence)}`;
  by("accept").hidden = !image || !text;
  by("accept").replaceChildren(element("kbd", {}, "Enter"), ` ${text}`);
  by("no-proposal").hidden = !image || !by("accept").hidden;
  by("no-proposal").textContent = image?.audit ? "No proposal is shown" : "No proposal yet";
}

function reasonFor({ audit, answer, reason }, annotator) {
  if (answer) return `Answered: ${textOf(answer)}${answer.annotator && answer.annotator !== annotator ? ` (${answer.annotator})` : ""}.`;
  if (audit) return "Drawn at random to measure accuracy.";
  return reason ? reason[0].toUpperCase() + reason.slice(1) + (reason.endsWith(".") ? "" : ".") : "";
}

/** Return what stands in the place of the image when all have an answer. */
export function theEnd(openView) {
  const box = element("div"), row = element("div", { class: "row" });
  for (const [view, text] of [["review", "Review the answers"], ["finish", "Finish"]]) {
    const button = element("button", { type: "button" }, text);
    button.addEventListener("click", () => openView(view));
    row.append(button);
  }
  box.append(element("p", {}, "Every image has an answer."), row);
  return box;
}
