"""Classification metrics, mean ± sd, and paired differences.

Plain NumPy, so that tables and studies can use them without loading torch. N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_vision.evaluation.arrays import to_array


def _truth(labels: Any, n: int) -> np.ndarray:
    truth = to_array(labels).astype(np.int64)
    if truth.shape != (n,) or n == 0:
        raise ValueError(f"expected one label for each of {n} predictions (at least one), got shape {truth.shape}")
    if truth.min() < 0:
        raise ValueError("a sample without a label (-1) cannot be scored; leave it out")
    return truth


def top_k_accuracy(scores: Any, labels: Any, k: int = 1) -> float:
    """Return the fraction of samples whose true class is among the k highest scores.

    Of equal scores the lower class number ranks higher, as in argmax, so that constant scores get no credit.

    Args:
        scores: (N, K) logits or probabilities. k above K counts as K.
        labels: (N,) true classes, 0 to K - 1; a class beyond K counts as a wrong prediction.
        k: at least 1.

    Returns:
        0 to 1.

    Raises:
        ValueError: shapes differ, no sample, an unlabeled sample, NaN scores, or k < 1.
    """
    scores = to_array(scores)
    labels = _truth(labels, len(scores))
    if k < 1 or np.isnan(scores).any():
        raise ValueError(f"k must be at least 1 (got {k}) and scores not NaN")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def confusion_matrix(predictions: Any, labels: Any, num_classes: int) -> np.ndarray:
    """Return (K, K) int64 counts: row = true class, column = predicted class.

    Args:
        predictions: (N,) predicted classes, 0 to K - 1.
        labels: (N,) true classes, 0 to K - 1.
        num_classes: K.

    Raises:
        ValueError: shapes differ, no sample, or a class outside 0 to K - 1.
    """
    predictions = to_array(predictions).astype(np.int64)
    labels = _truth(labels, len(predictions))
    if max(predictions.max(), labels.max()) >= num_classes or predictions.min() < 0:
        raise ValueError(f"a class is outside 0 to {num_classes - 1}")
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Return the (K,) recall of each class, NaN for a class without samples.

    Args:
        matrix: (K, K) confusion matrix, rows true.
    """
    support = matrix.sum(axis=1)
    return np.asarray(np.divide(np.diag(matrix), support, out=np.full(len(matrix), np.nan), where=support > 0))


def classification_report(matrix: np.ndarray, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return precision, recall, F1 and support of each class, their means, and the accuracy.

    As scikit-learn's classification_report over all K classes with zero_division=0: a ratio without a denominator is 0.

    Args:
        matrix: (K, K) confusion matrix, rows true.
        class_names: K names; numbers if None.

    Returns:
        {"classes": {name: {precision, recall, f1, support}}, "accuracy", "macro": {...}, "weighted": {...}}: fractions
        0 to 1, support in samples. The macro mean is over all K classes.

    Raises:
        ValueError: the number of names is not that of the classes, or a name occurs twice.
    """
    names = [str(i) for i in range(len(matrix))] if class_names is None else [str(name) for name in class_names]
    if len(names) != len(matrix) or len(set(names)) != len(names):
        raise ValueError(f"expected {len(matrix)} different class names, got {names}")
    hits, support, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    columns = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
    }
    total = int(matrix.sum())
    classes = {
        name: {key: float(column[i]) for key, column in columns.items()} | {"support": int(support[i])}
        for i, name in enumerate(names)
    }
    share = support / max(total, 1)
    return {
        "classes": classes,
        "accuracy": float(hits.sum() / max(total, 1)),
        "macro": {key: float(column.mean()) for key, column in columns.items()} | {"support": total},
        "weighted": {key: float((column * share).sum()) for key, column in columns.items()} | {"support": total},
    }


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.zeros(len(above)), where=below > 0))


def format_classification_report(report: dict[str, Any], worst_first: bool = False) -> str:
    """Format a classification report as aligned plain text, percent with one decimal.

    Args:
        report: from classification_report.
        worst_first: sort classes by F1, lowest first; else the order of the data set.
    """
    rows = list(report["classes"].items())
    if worst_first:
        rows.sort(key=lambda row: row[1]["f1"])
    rows += [("macro mean", report["macro"]), ("weighted mean", report["weighted"])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':<{width}}  precision  recall      F1  samples"]
    for name, row in rows:
        lines.append(
            f"{name:<{width}}  {100 * row['precision']:8.1f}%  {100 * row['recall']:5.1f}%  {100 * row['f1']:5.1f}%"
            f"  {row['support']:7d}"
        )
    lines.insert(-2, "")
    return "\n".join([*lines, "", f"accuracy {100 * report['accuracy']:.1f}%"])


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (n - 1); None as the deviation of a single value.

    Raises:
        ValueError: no value.
    """
    values = [float(value) for value in values]
    if not values:
        raise ValueError("no values to average")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def format_percent(mean: float, sd: float | None = None) -> str:
    """Format fractions as percent: "61.2 ± 1.4 %", or "61.2 %" without a deviation."""
    return f"{100 * mean:.1f} %" if sd is None else f"{100 * mean:.1f} ± {100 * sd:.1f} %"


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences a - b, its standard error `se` (None for one pair), and the number of pairs `n`."""

    mean: float
    se: float | None
    n: int

    @property
    def errors(self) -> float | None:
        """The mean in standard errors; infinite if all differences are equal and not 0; None for one pair."""
        if self.se is None:
            return None
        if self.se == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.se

    @property
    def supports(self) -> str:
        """At two standard errors: "a is better", "b is better", "no difference shown" or "too few pairs"."""
        if self.n < 3 or self.errors is None:
            return "too few pairs"
        if abs(self.errors) <= 2:
            return "no difference shown"
        return "a is better" if self.mean > 0 else "b is better"


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Return the mean of a - b over paired seeds with its standard error sd / sqrt(n), sd with n - 1.

    Pairing (same label subset, initialization and order in both) removes the effect of the subset on both sides. At few
    pairs two standard errors cover less than 95 %: with 5 pairs about 88 %, with 10 about 92 % (Student's t).

    Args:
        a: one value per seed.
        b: as many, of the same seeds in the same order.

    Raises:
        ValueError: different lengths, or none.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"pairs needed: got {len(a)} and {len(b)} values")
    mean, sd = mean_sd([float(x) - float(y) for x, y in zip(a, b)])
    return Difference(mean, None if sd is None else sd / math.sqrt(len(a)), len(a))
