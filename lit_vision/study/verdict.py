"""Statistical verdicts of a study: the chosen init against the best baseline, with standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_vision.evaluation.metrics import Difference, paired_difference
from lit_vision.results.tables import BASELINES

# protocols that can represent a pre-trained init; the second if time left too few seeds of the first
TUNED, PROBED = "finetune", "linear"
FEWEST_SEEDS = 3
FEWEST_TESTS = 100  # with fewer test images no winner is named
TOO_FEW_TESTS = "test images are too few for a claim"
_ANSWERS = {
    "a is better": ("wins", ""),
    "b is better": ("loses", ""),
    "no difference shown": ("open", "the difference is within two standard errors"),
    "too few pairs": ("open", "there are too few seeds for a claim"),
}


@dataclass(frozen=True)
class Verdict:
    """Comparison of the chosen pre-trained init with the best baseline at one number of labels.

    Attributes:
        labels: number of labeled images.
        best: cell of the chosen pre-trained init; None if none was run.
        chosen_on: how it was chosen, without the test split.
        best_baseline: cell of the baseline with the highest test accuracy.
        difference: best minus best_baseline, over paired seeds.
        answer: "wins", "loses" or "open", for pre-training.
        reason: of an open answer, else "".
    """

    labels: int
    best: Mapping[str, Any] | None
    chosen_on: str
    best_baseline: Mapping[str, Any]
    difference: Difference | None
    answer: str
    reason: str = ""


def is_baseline(init: str) -> bool:
    """True if an init uses no pre-trained weights."""
    return init.startswith(BASELINES)


def verdicts(cells: Sequence[Mapping[str, Any]], tests: int) -> list[Verdict]:
    """Return a verdict for each number of labels.

    The chosen init is the one whose frozen features do best in k-fold cross-validation inside the labels, fine-tuned by
    the fixed recipe (or probed, if the budget left too few fine-tunings): the test split is not used. The baseline is
    chosen on the test split, to its advantage.

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
        held_out = {init: cell["held_out"] for init, cell in probes.items() if cell.get("held_out") is not None}
        if not candidates:
            found.append(Verdict(labels, None, "", best_baseline, None, "open", "no pre-trained init was run"))
            continue
        if held_out:
            best = candidates[max(held_out, key=lambda init: held_out[init])]
            chosen = "k-fold linear probe inside the labels"
        else:
            best = next(iter(candidates.values()))
            chosen = "the first that was run (one label a class: nothing to hold out)"
        found.append(_compare(labels, best, chosen, best_baseline, tests))
    return found


def _representative_cell(by: Mapping[tuple[str, str], Mapping[str, Any]], init: str) -> Mapping[str, Any] | None:
    """Return the fine-tuning of an init, or its probe if the fine-tuning has too few seeds; no accuracy is read."""
    tuned, probed = by.get((init, TUNED)), by.get((init, PROBED))
    if tuned and probed and len(tuned["values"]) < min(FEWEST_SEEDS, len(probed["values"])):
        return probed
    return tuned or probed


def _compare(
    labels: int, best: Mapping[str, Any], chosen: str, best_baseline: Mapping[str, Any], tests: int
) -> Verdict:
    pairs = min(
        len(best["values"]), len(best_baseline["values"])
    )  # a costly init may have fewer seeds, always the first
    difference = paired_difference(best["values"][:pairs], best_baseline["values"][:pairs])
    answer, reason = _ANSWERS[difference.supports]
    if tests < FEWEST_TESTS:  # even if all seeds agree: they share the few images
        answer, reason = "open", f"{tests} {TOO_FEW_TESTS}"
    return Verdict(labels, best, chosen, best_baseline, difference, answer, reason)


def sentence(verdict: Verdict) -> str:
    """Return the verdict as a sentence: percent points with standard error and number of seeds."""
    head = f"With {verdict.labels} labels: "
    d = verdict.difference
    if verdict.best is None or d is None:
        baseline = f"{_name(verdict.best_baseline)} with {100 * verdict.best_baseline['mean']:.1f} %"
        return f"{head}{verdict.reason}; the best baseline is {baseline}."
    seeds = f"the same {d.n} seeds" if d.n > 1 else "one seed"
    both = f"{_score(verdict.best, d.n)} against {_score(verdict.best_baseline, d.n)} on {seeds}"
    se = "" if d.se is None else f" ± {100 * d.se:.1f}"
    gap = f"{100 * d.mean:+.1f}{se} points{' (± standard error)' if se else ''}"
    if verdict.answer == "wins":
        return f"{head}pre-training wins within this budget. {both}: {gap}."
    if verdict.answer == "loses":
        return f"{head}pre-training does not pay within this budget. {both}: {gap}."
    return f"{head}no winner, since {verdict.reason}. {both}: {gap}."


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['init']} + {cell['protocol']}"


def _score(cell: Mapping[str, Any], seeds: int) -> str:
    return f"{_name(cell)} {100 * sum(cell['values'][:seeds]) / seeds:.1f} %"
