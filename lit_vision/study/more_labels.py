"""The gain that more labels promise: a law of the error, fitted to one contender of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_vision.evaluation.label_law import FEWEST_COUNTS, LabelLaw, fit_law
from lit_vision.study.metrics_of_cells import Cell, Metric, values_on_test
from lit_vision.study.verdict import choose_frozen, contender


@dataclass(frozen=True)
class MoreLabels:
    """A contender's law of the error, and a number of further labels to ask it about.

    Attributes:
        cell: of the contender, at `labels`.
        law: fitted to its results on the test split at all numbers of labels.
        labels: the most that were measured.
        more: about as many again, a round number.
    """

    cell: Cell
    law: LabelLaw
    labels: int
    more: int

    @property
    def sentence(self) -> str:
        """The answer in words, with the contender that it was fitted to."""
        text = self.law.sentence(self.labels, self.more)
        counts = len(self.law.counts)
        return f"{text[0].upper()}{text[1:]} ({contender(self.cell)}; 95 %, fitted at {counts} numbers of labels)."


def more_labels(cells: Sequence[Cell], recommended: Cell, metric: Metric) -> MoreLabels | None:
    """Fit the law to the recommended contender or, if it was measured at too few numbers of labels, to a frozen one.

    Args:
        cells: of results.json.
        recommended: cell of the contender that the study recommends at the most labels.
        metric: of the verdict.

    Returns:
        None if no contender was measured at enough numbers of labels.
    """
    at_most = [cell for cell in cells if cell["labels"] == recommended["labels"] and cell["values"]]
    for cell in filter(None, (recommended, choose_frozen(at_most, metric))):
        line = [
            other
            for other in cells
            if (other["init"], other["protocol"]) == (cell["init"], cell["protocol"]) and other["values"]
        ]
        if len({other["labels"] for other in line}) >= FEWEST_COUNTS:
            counts, errors = _errors(line, metric)
            most = max(counts)
            return MoreLabels(cell, fit_law(counts, errors), most, round_number(most))
    return None


def _errors(line: Sequence[Cell], metric: Metric) -> tuple[list[int], np.ndarray]:
    """Return the numbers of labels of a contender's cells, and its errors (seeds, numbers), NaN where none is."""
    line = sorted(line, key=lambda cell: cell["labels"])
    errors = np.full((max(len(cell["values"]) for cell in line), len(line)), np.nan)
    for column, cell in enumerate(line):
        values = values_on_test(cell, metric)
        errors[: len(values), column] = 1 - np.asarray(values)
    return [cell["labels"] for cell in line], errors


def round_number(value: int) -> int:
    """Return a number, at least 1, rounded to one digit and zeros: 167 becomes 200."""
    unit = int(10 ** math.floor(math.log10(value)))
    return round(value / unit) * unit
