"""Verdicts of a study: at each number of labels the contender that was chosen inside the labels, against the others.

A contender is an init with a protocol: one cell of results.json at each number of labels. Besides the keys of
`lit_vision.results.schema.CELL` a cell may have these, one value per seed in the order of `seeds`; a missing one is
made up for as its reader says:

    balanced_values: balanced accuracy on the test split, 0 to 1.
    held_out_values: accuracy in k-fold cross-validation inside the labels; protocols that train no network.
    judged_values: accuracy on one stratified half of the labels after training on the other half; trained protocols,
        and the protocol without a training that cross-validation prefers.
    held_out_balanced_values, judged_balanced_values: the same as balanced accuracy.
    multiply_adds: that one model has cost, its pre-training included.
    metric: of all these values, if it is not accuracy: "macro AP", with several labels an image.

The choice inside the labels and the verdict use one metric, see `metric_for`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_vision.evaluation.metrics import paired_difference
from lit_vision.evaluation.paired_intervals import Interval, interval_over_images, paired_interval
from lit_vision.results.tables import BASELINES
from lit_vision.study.metrics_of_cells import ACCURACY, BALANCED, Cell, Metric, metric_for, values_on_test
from lit_vision.study.presets import method_of

FROZEN = ("logreg", "linear", "knn")  # protocols that train no network; a linear head answers with fewer multiply-adds
TUNED, PROBED = "finetune", "linear"
FEWEST_SEEDS = 3  # a contender with fewer is left out if others have more
FEWEST_TESTS = 100  # with fewer test images a note stands beside the sentence


@dataclass(frozen=True)
class Choice:
    """The contender that was chosen at one number of labels, and on what; the test split is not used.

    Attributes:
        cell: of the contender.
        chosen_on: a phrase such as "k-fold cross-validation inside the labels".
    """

    cell: Cell
    chosen_on: str


@dataclass(frozen=True)
class Verdict:
    """Comparison of the chosen contender with the best of the other side at one number of labels.

    Attributes:
        labels: number of labeled images.
        best: cell of the chosen contender.
        chosen_on: on what it was chosen, without the test split.
        other: the contender it is compared with: if `best` uses pre-trained weights, of those that do not the one with
            the highest test accuracy, and the reverse.
        interval: `best` minus `other`.
        metric: of the interval and of the choice.
        second: the contender that would be chosen inside the labels among those that cost no more than `recommended`
            (among all others if there is none); None if there is no other.
        tests: number of test images.
        images: those that count alike, see `images_that_count`; 0: all.
    """

    labels: int
    best: Cell
    chosen_on: str
    other: Cell
    interval: Interval
    metric: Metric
    second: Cell | None
    tests: int
    images: int = 0

    @property
    def winner(self) -> Cell | None:
        """The better of `best` and `other`; None if the interval holds 0."""
        if not self.interval.excludes_zero:
            return None
        return self.best if self.interval.mean > 0 else self.other

    @property
    def recommended(self) -> Cell:
        """The winner; without one the contender that was chosen inside the labels."""
        return self.winner or self.best

    @property
    def note(self) -> str:
        """A sentence about a small test split, or a small class in it, or ""."""
        images = self.images or self.tests
        if (images if self.metric is BALANCED else self.tests) >= FEWEST_TESTS:
            return ""
        text = f"The test split has only {self.tests} images"
        if self.metric is BALANCED:
            text = f"One test image of the smallest class is {100 / images:.1f} points"
        elif self.metric is ACCURACY:
            text += f", of which one is {100 / self.tests:.1f} points"
        others = "; that others might have stood there is not part of the interval" if self.interval.n > 1 else ""
        return f"{text}{others}."


def is_baseline(init: str) -> bool:
    """True if an init uses no pre-trained weights."""
    return init.startswith(BASELINES)


def verdicts(
    cells: Sequence[Cell],
    tests: int,
    per_class: Sequence[int] | None = None,
    tests_per_class: Sequence[int] | None = None,
) -> list[Verdict]:
    """Return a verdict for each number of labels at which there are at least two contenders.

    Args:
        cells: of results.json.
        tests: number of test images.
        per_class: labeled training images of each class, which decide the metric; None: taken as equal.
        tests_per_class: test images of each class; those without any do not count. None: taken as equal.
    """
    found, metric = [], metric_for(cells, per_class)
    for labels in sorted({cell["labels"] for cell in cells}):
        here = _with_enough_seeds([cell for cell in cells if cell["labels"] == labels and cell["values"]])
        if len(here) < 2:
            continue
        choice = choose(here, metric)
        others = [cell for cell in here if is_baseline(cell["init"]) != is_baseline(choice.cell["init"])]
        others = others or [cell for cell in here if cell is not choice.cell]
        other = max(others, key=lambda cell: _mean(values_on_test(cell, metric)))
        images = images_that_count(metric, tests, tests_per_class)
        interval = _interval(choice.cell, other, metric, images)
        verdict = Verdict(labels, choice.cell, choice.chosen_on, other, interval, metric, None, tests, images)
        found.append(replace(verdict, second=_second(here, verdict.recommended, metric)))
    return found


def images_that_count(metric: Metric, tests: int, tests_per_class: Sequence[int] | None) -> int:
    """Return the test images, or for a mean over the classes the number of classes times the images of the smallest.

    One image is then at most 1 / images of the metric.

    Args:
        metric: of `metric_for`.
        tests: number of test images.
        tests_per_class: of each class; those without any do not count. None: taken as equal.
    """
    if metric is ACCURACY or not tests_per_class:
        return tests
    present = [count for count in tests_per_class if count]
    return len(present) * min(present)


def choose(cells: Sequence[Cell], metric: Metric = ACCURACY) -> Choice:
    """Return the contender to use at one number of labels, chosen inside the labels.

    Of those that train no network the one with the highest held-out value, then of that and the trained ones the one
    with the highest judged value. What is within one standard error (paired over seeds) of the highest counts
    as equal, and of equals the cheapest is taken, in a fixed order: pixels, public weights, from scratch, public
    weights trained on, pre-trained here; then by multiply-adds. Seconds decide nothing: they differ from run to run.

    Where no training was judged, the recipe is fixed: the fine-tuning of the init that held-out values prefer, if it
    has enough seeds.

    Args:
        cells: at one number of labels, at least one, each with values.
        metric: of held-out and judged values; cells of an earlier version have them as accuracy only.
    """
    frozen = choose_frozen(cells, metric)
    judged = [cell for cell in cells if cell["protocol"] not in FROZEN and _by_seed(cell, "judged_values")]
    if judged and (frozen is None or _by_seed(frozen, "judged_values")):
        candidates = [frozen, *judged] if frozen else judged
        best = _highest(candidates, _known(candidates, metric.judged, ACCURACY.judged))
        return Choice(best, "one half of the labels, after training on the other")
    if frozen is not None:
        tuned = [cell for cell in cells if cell["init"] == frozen["init"] and cell["protocol"] == TUNED]
        chosen = "k-fold cross-validation inside the labels"
        return Choice(tuned[0], f"{chosen}, fine-tuned by a fixed recipe") if tuned else Choice(frozen, chosen)
    weights = [cell for cell in cells if not is_baseline(cell["init"])]
    return Choice(min(weights or cells, key=_cost), "its cost alone, since the labels are too few to hold some out")


def choose_frozen(cells: Sequence[Cell], metric: Metric = ACCURACY) -> Cell | None:
    """Return the contender without a training that cross-validation prefers; None if none has a held-out value.

    It is the one that is to be judged against the trained ones.

    Args:
        cells: at one number of labels.
        metric: as for `choose`.
    """
    candidates = [cell for cell in cells if cell["protocol"] in FROZEN and _by_seed(cell, "held_out_values")]
    return _highest(candidates, _known(candidates, metric.held_out, ACCURACY.held_out)) if candidates else None


def _known(candidates: Sequence[Cell], key: str, otherwise: str) -> str:
    """Return the key if all candidates have values of it, else the other."""
    return key if all(_by_seed(cell, key) for cell in candidates) else otherwise


def _highest(candidates: Sequence[Cell], key: str) -> Cell:
    """Return the cheapest of those within one standard error of the highest mean, over the seeds that all have."""
    scores = [_by_seed(cell, key) for cell in candidates]
    seeds = sorted(set.intersection(*map(set, scores)))
    if not seeds:  # nothing is paired: the means have to do
        return max(candidates, key=lambda cell: _mean(list(_by_seed(cell, key).values())))
    values = [[score[seed] for seed in seeds] for score in scores]
    top = max(range(len(candidates)), key=lambda i: (_mean(values[i]), -i))
    equal = []
    for cell, own in zip(candidates, values):
        gap = paired_difference(values[top], own)
        if gap.mean <= (gap.se or 0.0):
            equal.append(cell)
    return min(equal, key=_cost)


def _by_seed(cell: Cell, key: str) -> dict[int, float]:
    """Return the values of a cell by seed; of an earlier version's cells the mean `held_out` stands for every seed."""
    seeds, mean = _seeds(cell), cell.get("held_out")
    if key == "held_out_values" and key not in cell and mean is not None:
        return dict.fromkeys(seeds, float(mean))
    return {seed: value for seed, value in zip(seeds, cell.get(key) or []) if value is not None}


def _seeds(cell: Cell) -> list[int]:
    return list(cell.get("seeds") or range(len(cell["values"])))


def _with_enough_seeds(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with at least FEWEST_SEEDS seeds, or with the most that any has; no accuracy is read."""
    most = max((len(cell["values"]) for cell in cells), default=0)
    return [cell for cell in cells if len(cell["values"]) >= min(FEWEST_SEEDS, most)]


def _cost(cell: Cell) -> tuple[int, int, float, int]:
    """Return a key that orders contenders by cost: the same in every run of a study."""
    protocol = cell["protocol"]
    order = FROZEN.index(protocol) if protocol in FROZEN else len(FROZEN)
    return _cost_group(cell), order, cell.get("multiply_adds") or 0.0, int(protocol == TUNED)  # it trains all weights


def _cost_group(cell: Cell) -> int:
    """Return 0 for the cheapest kind of contender to 5 for the most costly."""
    init, frozen = cell["init"], cell["protocol"] in FROZEN
    if is_baseline(init):
        return 0 if frozen else 2
    if method_of(init):
        return 4 if frozen else 5
    return 1 if frozen else 3


def _second(cells: Sequence[Cell], best: Cell, metric: Metric) -> Cell | None:
    rest = [cell for cell in cells if cell is not best]
    rest = [cell for cell in rest if _cost_group(cell) <= _cost_group(best)] or rest
    return choose(rest, metric).cell if rest else None


def _interval(a: Cell, b: Cell, metric: Metric, images: int) -> Interval:
    """Return the interval of a - b over the seeds that both have, and over the test images where these do not differ.

    Balanced accuracy and macro AP are then taken as shares of as many images as the rarest class of the test split has,
    times the classes: for macro AP an approximation.
    """
    first = dict(zip(_seeds(a), values_on_test(a, metric)))
    second = dict(zip(_seeds(b), values_on_test(b, metric)))
    shared = [seed for seed in first if seed in second]
    if shared:
        return paired_interval([first[seed] for seed in shared], [second[seed] for seed in shared], images)
    return interval_over_images(_mean(list(first.values())), _mean(list(second.values())), images)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sentence(verdict: Verdict) -> str:
    """Return the verdict as a sentence, one of two: which is better by how many points, or by how little they differ.

    The interval is over the paired seeds; a verdict from one seed, or from seeds that all give the same, says so, and
    its interval is over the test images.
    """
    interval, head = verdict.interval, f"With {verdict.labels} labels: "
    points = "points" if verdict.metric is ACCURACY else f"points of {verdict.metric.name}"
    seeds = f"{interval.n} seeds"
    if interval.n == 1:
        several = min(len(cell["values"]) for cell in (verdict.best, verdict.other)) > 1
        seeds = f"{'the same in all seeds' if several else 'one seed'}, over {verdict.tests} test images"
    winner = verdict.winner
    if winner is None:
        both = f"{contender(verdict.best)} and {contender(verdict.other)}"
        return f"{head}{both} differ by less than {interval.bound_in_points:.1f} {points} (95 %, {seeds})."
    loser = verdict.other if winner is verdict.best else verdict.best
    ends = sorted((abs(interval.low), abs(interval.high)))
    digits = 1 if 100 * ends[0] >= 0.05 else 2
    low, high = (f"{100 * end:.{digits}f}" for end in ends)
    gap = f"{100 * abs(interval.mean):.{digits}f} {points}"
    better = f"{contender(winner)} is better than {contender(loser)}"
    return f"{head}{better} by {gap} (95 % interval {low} to {high}, {seeds})."


def contender(cell: Cell) -> str:
    """Return the name of a contender, "init + protocol" as in the table."""
    return f"{cell['init']} + {cell['protocol']}"
