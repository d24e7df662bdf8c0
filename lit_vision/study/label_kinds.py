"""One label an image or several: all that a study does differently for them, side by side.

n labeled images, M images to answer for, K classes. One label: (n,) class numbers, -1 without one. Several: (n, K), 1
applies, 0 does not, NaN unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lit_vision.data.splits import has_label, sample_stratified
from lit_vision.errors import UserError
from lit_vision.evaluation.folds import grouped_folds, stratified_folds
from lit_vision.evaluation.linear import STRENGTHS, LinearProbe, logistic_regression
from lit_vision.evaluation.metrics import classification_report, confusion_matrix, per_class_accuracy
from lit_vision.evaluation.multilabel import label_regressions, macro_average_precision
from lit_vision.study.metrics_of_cells import ACCURACY, MACRO_AP

HELD_OUT = 0.25  # share of the labeled images that becomes the test split if the folder has none


@dataclass(frozen=True)
class Scores:
    """Scores of answers, 0 to 1: `value` in the metric of the labels' kind; the others are None for several labels."""

    value: float
    balanced: float | None = None
    macro_f1: float | None = None


class OneLabel:
    """Images of one label each: accuracy, logistic regression, stratified subsets."""

    metric, task, several = ACCURACY, "classification", False
    precision = np.float16  # of stored probabilities

    @staticmethod
    def count(labels: np.ndarray, num_classes: int) -> list[int]:
        """Return the number of labeled images of each class."""
        return [int(n) for n in np.bincount(labels[labels >= 0], minlength=num_classes)]

    @staticmethod
    def sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return ascending rows of `count` labeled images, stratified; nested in count, different for every seed."""
        return sample_stratified(labels, count, seed)

    @staticmethod
    def hold_out(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """Return ascending rows of a stratified test split, HELD_OUT of the labeled images."""
        total = int((labels >= 0).sum())
        return sample_stratified(labels, max(num_classes, round(HELD_OUT * total)), seed)

    @staticmethod
    def halve(labels: np.ndarray, seed: int, groups: Any = None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return two stratified halves as ascending positions: to train on, and to judge by.

        Args:
            labels: (n,).
            seed: of the draw.
            groups: (n,) or None; whole groups stand in one half.

        Returns:
            None if a class cannot be in both.
        """
        classes, sizes = np.unique(labels, return_counts=True)
        if sizes.min() < 2:
            return None
        if groups is None:
            fit = sample_stratified(labels, -(-len(labels) // 2), seed)
            return fit, np.setdiff1d(np.arange(len(labels)), fit)
        fold = stratified_folds(labels, 2, seed, groups)
        halves = np.flatnonzero(fold == 0), np.flatnonzero(fold == 1)
        return halves if all(len(np.unique(labels[half])) == len(classes) for half in halves) else None

    @staticmethod
    def score(answer: np.ndarray, labels: np.ndarray) -> Scores:
        """Return accuracy, balanced accuracy and macro F1 of (M, K) probabilities."""
        matrix = confusion_matrix(answer.argmax(1), labels, answer.shape[1])
        present = matrix.sum(1) > 0  # of a class without test images nothing can be said
        recall = per_class_accuracy(matrix)[present]
        f1 = [entry["f1"] for entry, known in zip(classification_report(matrix)["classes"].values(), present) if known]
        accuracy = float((answer.argmax(1) == labels).mean())
        return Scores(accuracy, float(np.mean(recall)), float(np.mean(f1)))

    @staticmethod
    def fit(
        features: np.ndarray,
        labels: np.ndarray,
        queries: Any,
        num_classes: int,
        seed: int,
        groups: Any = None,
        strengths: Sequence[float] = STRENGTHS,
    ) -> LinearProbe:
        """Fit logistic regression on (n, D) features and answer for (M, D) queries."""
        return logistic_regression(
            features, labels, queries, num_classes, strengths=strengths, seed=seed, groups=groups
        )

    @staticmethod
    def to_probabilities(logits: Tensor) -> Tensor:
        """Return (M, K) probabilities of a network's logits."""
        return logits.softmax(1)

    @staticmethod
    def guess(labels: np.ndarray, num_classes: int) -> float:
        """Return what guessing gives on a test split."""
        return 1 / num_classes


class SeveralLabels:
    """Images of several labels: macro average precision, a logistic regression for each label, random subsets.

    Functions as in OneLabel.
    """

    metric, task, several = MACRO_AP, "multilabel", True
    precision = np.float32  # the order of images decides, which half precision changes

    @staticmethod
    def count(labels: np.ndarray, num_classes: int) -> list[int]:
        """Return the number of images that each label applies to."""
        return [int(n) for n in (labels == 1).sum(0)]

    @staticmethod
    def sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return ascending rows of `count` labeled images in random order, but first one image of each label.

        Without these a small subset would lack the rare labels; it has somewhat more of them than the folder.

        Raises:
            UserError: there are fewer.
        """
        known = np.flatnonzero(has_label(labels))
        if count > len(known):
            raise UserError(f"labels={count}: the training split has {len(known)} labeled images; ask for fewer")
        order = known[np.random.Generator(np.random.Philox(key=seed)).permutation(len(known))]
        members = labels[order] == 1
        first = np.unique(members.argmax(0)[members.any(0)])
        return np.sort(np.concatenate([order[first], np.delete(order, first)])[:count])

    @staticmethod
    def hold_out(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """Return ascending rows of a test split with its share of each label."""
        known = np.flatnonzero(has_label(labels))
        fold = grouped_folds(labels[known] == 1, round(1 / HELD_OUT), seed)
        return np.asarray(known[fold == 0])

    @staticmethod
    def halve(labels: np.ndarray, seed: int, groups: Any = None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return two halves with their share of each label; None if no label has images in both."""
        fold = grouped_folds(labels == 1, 2, seed, groups)
        fit, judge = np.flatnonzero(fold == 0), np.flatnonzero(fold == 1)
        both = (labels[fit] == 1).any(0) & (labels[judge] == 1).any(0)
        return (fit, judge) if both.any() else None

    @staticmethod
    def score(answer: np.ndarray, labels: np.ndarray) -> Scores:
        """Return the macro average precision, over the labels that apply to one of these images."""
        return Scores(macro_average_precision(answer, labels))

    @staticmethod
    def fit(
        features: np.ndarray,
        labels: np.ndarray,
        queries: Any,
        num_classes: int,
        seed: int,
        groups: Any = None,
        strengths: Sequence[float] = STRENGTHS,
    ) -> LinearProbe:
        """Fit a logistic regression for each label."""
        return label_regressions(features, labels, queries, strengths=strengths, seed=seed, groups=groups)

    @staticmethod
    def to_probabilities(logits: Tensor) -> Tensor:
        """Return each label's own probability."""
        return logits.sigmoid()

    @staticmethod
    def guess(labels: np.ndarray, num_classes: int) -> float:
        """Return the macro average precision of random scores, about: the mean share of the images of a label."""
        positive, known = (labels == 1).sum(0), (~np.isnan(labels)).sum(0)
        return float((positive / np.maximum(known, 1))[positive > 0].mean())


LabelKind = type[OneLabel] | type[SeveralLabels]


def kind_of(labels: np.ndarray) -> LabelKind:
    """Return the kind of an array of labels."""
    return SeveralLabels if labels.ndim == 2 else OneLabel
