"""Report what choosing the images to label gains in a study, from the cells of `chosen_labels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_vision.evaluation.acquisition import RANDOM
from lit_vision.evaluation.labels_saved import labels_saved
from lit_vision.evaluation.paired_intervals import Interval, paired_interval
from lit_vision.results.tables import Table
from lit_vision.study.metrics_of_cells import ACCURACY, Metric, values_on_test
from lit_vision.study.report_content import Section

TITLE = "Choosing what to label"


def chosen_sentences(
    cells: Sequence[Mapping[str, Any]], metric: Metric, tests: int, images: int | None = None
) -> list[str]:
    """Return for each strategy and number of labels one of two sentences: better by how much, or how little it differs.

    Args:
        cells: of `ChosenLabels.measure`.
        metric: of `metric_for`.
        tests: number of test images.
        images: those that count alike, of `verdict.images_that_count`; None: all.
    """
    found = []
    for strategy in _strategies(cells):
        for cell, random in _pairs(cells, strategy):
            gap = _interval(cell, random, metric, images or tests)
            points = "points" if metric is ACCURACY else f"points of {metric.name}"
            over = f"{gap.n} seeds" if gap.n > 1 else f"over {tests} test images"
            if cell["values"] == random["values"]:
                found.append(f"With {cell['labels']} labels: {strategy} chooses no better and no worse than random.")
            elif gap.excludes_zero:
                word = "better" if gap.mean > 0 else "worse"
                low, high = sorted((abs(gap.low), abs(gap.high)))
                found.append(
                    f"With {cell['labels']} labels: chosen by {strategy}, they are {word} than drawn at random by "
                    f"{100 * abs(gap.mean):.1f} {points} (95 % interval {100 * low:.1f} to {100 * high:.1f}, {over})."
                )
            else:
                found.append(
                    f"With {cell['labels']} labels: chosen by {strategy} and drawn at random, they differ by less than "
                    f"{gap.bound_in_points:.1f} {points} (95 %, {over})."
                )
    return found


def chosen_section(
    cells: Sequence[Mapping[str, Any]], metric: Metric, tests: int, images: int | None = None
) -> Section:
    """Return the report's section about choosing; arguments as for `chosen_sentences`."""
    rows = []
    for strategy in _strategies(cells):
        pairs = _pairs(cells, strategy)
        saved = _saved(pairs, metric)
        for i, (cell, random) in enumerate(pairs):
            gap = _interval(cell, random, metric, images or tests)
            a, b = (np.mean(values_on_test(one, metric)) for one in (cell, random))
            rows.append(
                [
                    strategy,
                    str(cell["labels"]),
                    f"{100 * b:.1f} %",
                    f"{100 * a:.1f} %",
                    f"{100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})",
                    saved[i],
                ]
            )
    note = (
        f"Linear probe on {cells[0]['init']}, {metric.name} on {tests} test images, mean over the paired seeds; gain "
        "with its 95 % interval. Each seed chooses from its own part of the labeled images; random is a plain draw "
        "that may miss a class, unlike the subsets of the other tables. Labels saved: how many more random needs for "
        "the same, with a 95 % interval by the bootstrap over the seeds. Trainings of networks may gain less."
    )
    table = Table(["strategy", "labels", "at random", "chosen", "gain", "labels saved"], rows, note)
    return Section(TITLE, " ".join(chosen_sentences(cells, metric, tests, images)), None, table)


def _strategies(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(cell["strategy"] for cell in cells) if name != RANDOM]


def _pairs(cells: Sequence[Mapping[str, Any]], strategy: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return (cell of the strategy, cell of random) at each number of labels, ascending."""
    random = {cell["labels"]: cell for cell in cells if cell["strategy"] == RANDOM}
    own = sorted((cell for cell in cells if cell["strategy"] == strategy), key=lambda cell: cell["labels"])
    return [(cell, random[cell["labels"]]) for cell in own]


def _interval(a: Mapping[str, Any], b: Mapping[str, Any], metric: Metric, images: int) -> Interval:
    return paired_interval(values_on_test(a, metric), values_on_test(b, metric), images)


def _saved(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: Metric) -> list[str]:
    """Return the labels saved at each number of labels in words; "-" where too little was measured."""
    fewest = min((len(cell["values"]) for cell, _ in pairs), default=0)
    if len(pairs) < 2 or fewest < 2:
        return ["-"] * len(pairs)
    counts = [cell["labels"] for cell, _ in pairs]
    own, random = (np.array([values_on_test(pair[i], metric)[:fewest] for pair in pairs]).T for i in (0, 1))
    words = []
    for count, (mean, low, high) in zip(counts, labels_saved(counts, random, own)):
        bound = "at least " if count + mean > counts[-1] - 0.5 else ""
        words.append("-" if count == counts[-1] else f"{bound}{round(mean)} ({round(low)} to {round(high)})")
    return words
