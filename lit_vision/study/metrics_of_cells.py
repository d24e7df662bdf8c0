"""Metrics that a study decides by, and the keys of a cell that hold their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cell = Mapping[str, Any]

UNEQUAL = 2  # the verdict is about balanced accuracy if the largest class has more than this many times the smallest


@dataclass(frozen=True)
class Metric:
    """A metric from 0 to 1.

    Attributes:
        name: in sentences.
        on_test: key of a cell's values on the test split, one per seed.
        held_out: key of those of the cross-validation inside the labels.
        judged: key of those on one half of the labels after training on the other.
    """

    name: str
    on_test: str = "values"
    held_out: str = "held_out_values"
    judged: str = "judged_values"


ACCURACY = Metric("accuracy")
BALANCED = Metric("balanced accuracy", "balanced_values", "held_out_balanced_values", "judged_balanced_values")
MACRO_AP = Metric("macro AP")  # of several labels an image: the mean of the labels' average precision


def metric_for(cells: Sequence[Cell], per_class: Sequence[int] | None) -> Metric:
    """Return the metric of the verdict, which the labels alone decide.

    Args:
        cells: of results.json; those of several labels an image say so. If one lacks `balanced_values` it is accuracy.
        per_class: labeled training images of each class; None: taken as equal.

    Returns:
        BALANCED if the largest class has more than UNEQUAL times the images of the smallest, else ACCURACY; MACRO_AP
        with several labels an image.
    """
    if any(cell.get("metric") == MACRO_AP.name for cell in cells):
        return MACRO_AP
    unequal = per_class is not None and max(per_class) > UNEQUAL * min(per_class)
    return BALANCED if unequal and all(BALANCED.on_test in cell for cell in cells) else ACCURACY


def values_on_test(cell: Cell, metric: Metric) -> list[float]:
    """Return a cell's results on the test split, one per seed."""
    return list(cell[metric.on_test])
