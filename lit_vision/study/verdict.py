"""What a study's cells support: which start, against which baseline, by how much, and how sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_vision.evaluation.metrics import Difference, paired_difference
from lit_vision.results.tables import BASELINES

TUNED, PROBED = (
    "finetune",
    "linear",
)  # of a pre-trained start, by the fixed recipe; the second where time left too few of the first
FEWEST_SEEDS = 3
FEWEST_TESTS = 100  # with less, no winner is named
TOO_FEW_TESTS = "test images are too few for a claim"
_ANSWERS = {
    "a is better": ("wins", ""),
    "b is better": ("loses", ""),
    "no difference shown": ("open", "the difference is within two standard errors"),
    "too few pairs": ("open", "there are too few seeds for a claim"),
}


@dataclass(frozen=True)
class Verdict:
    """The answer at one number of labels.

    Attributes:
        labels: how many.
        best: cell of the chosen pre-trained start; None if none was run.
        chosen_on: how it was chosen, without the test split.
        best_baseline: cell of the baseline with the highest test accuracy, so the hardest one to beat.
        difference: best minus rival, over paired seeds.
        answer: "wins", "loses" or "open".
        reason: why it is open, else "".
    """

    labels: int
    best: Mapping[str, Any] | None
    chosen_on: str
    best_baseline: Mapping[str, Any]
    difference: Difference | None
    answer: str
    reason: str = ""


def is_baseline(init: str) -> bool:
    """Whether a start uses no pre-trained weights."""
    return init.startswith(BASELINES)


def verdicts(cells: Sequence[Mapping[str, Any]], tests: int) -> list[Verdict]:
    """One per number of labels.

    The pre-trained start is the one whose frozen features do best in k-fold cross-validation inside the labels, fine-tuned by the
    fixed recipe (or probed, where the budget left too few fine-tunings): the test split has no say. The rival is picked on the test split, against us.

    Args:
        cells: of results.json.
        tests: number of test images.
    """
    found = []
    for labels in sorted({cell["labels"] for cell in cells}):
        here = [cell for cell in cells if cell["labels"] == labels and cell["values"]]
        baselines = [cell for cell in here if is_baseline(cell["init"])]
        if not baselines:
            continue
        best_baseline = max(baselines, key=lambda cell: cell["mean"])
        inits = dict.fromkeys(cell["init"] for cell in here if not is_baseline(cell["init"]))
        by = {(cell["init"], cell["protocol"]): cell for cell in here}
        candidates = {init: cell for init in inits if (cell := _representative_cell(by, init))}
        probes = {init: by[init, PROBED] for init in candidates if (init, PROBED) in by}
        held = {init: cell["held_out"] for init, cell in probes.items() if cell.get("held_out") is not None}
        if not candidates:
            found.append(Verdict(labels, None, "", best_baseline, None, "open", "no pre-trained start was run"))
            continue
        if held:
            best, chosen = candidates[max(held, key=held.get)], "k-fold linear probe inside the labels"
        else:
            best, chosen = (
                next(iter(candidates.values())),
                "the first that was run (one label a class: nothing to hold out)",
            )
        found.append(_compare(labels, best, chosen, best_baseline, tests))
    return found


def _representative_cell(by: Mapping[tuple[str, str], Mapping], init: str) -> Mapping | None:
    """The cell that stands for a start: its fine-tuning, unless that has too few seeds where its probe has more. No accuracy is read."""
    tuned, probed = by.get((init, TUNED)), by.get((init, PROBED))
    if tuned and probed and len(tuned["values"]) < min(FEWEST_SEEDS, len(probed["values"])):
        return probed
    return tuned or probed


def _compare(labels: int, best: Mapping, chosen: str, best_baseline: Mapping, tests: int) -> Verdict:
    pairs = min(
        len(best["values"]), len(best_baseline["values"])
    )  # a costly start may have fewer seeds, always the first ones
    difference = paired_difference(best["values"][:pairs], best_baseline["values"][:pairs])
    answer, reason = _ANSWERS[difference.supports]
    if tests < FEWEST_TESTS:  # also where seeds agree: what they share is the few images
        answer, reason = "open", f"{tests} {TOO_FEW_TESTS}"
    return Verdict(labels, best, chosen, best_baseline, difference, answer, reason)


def sentence(verdict: Verdict) -> str:
    """The verdict in words, percent points with standard error and seeds."""
    name = lambda cell: f"{cell['init']} + {cell['protocol']}"  # noqa: E731
    percent = lambda cell: f"{100 * cell['mean']:.1f} %"  # noqa: E731
    head = f"With {verdict.labels} labels: "
    if verdict.best is None:
        return f"{head}{verdict.reason}; the best baseline is {name(verdict.best_baseline)} with {percent(verdict.best_baseline)}."
    d = verdict.difference
    same = lambda cell: f"{name(cell)} {100 * sum(cell['values'][: d.n]) / d.n:.1f} %"  # noqa: E731
    seeds = f"the same {d.n} seeds" if d.n > 1 else "one seed"
    both = f"{same(verdict.best)} against {same(verdict.best_baseline)} on {seeds}"
    se = "" if d.se is None else f" ± {100 * d.se:.1f}"
    gap = f"{100 * d.mean:+.1f}{se} points{' (± standard error)' if se else ''}"
    if verdict.answer == "wins":
        return f"{head}pre-training wins within this budget. {both}: {gap}."
    if verdict.answer == "loses":
        return f"{head}pre-training does not pay within this budget. {both}: {gap}."
    return f"{head}no winner, since {verdict.reason}. {both}: {gap}."
