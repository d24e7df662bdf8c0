"""Suggest images to label next, each with the reason in plain words, its nearest labeled image and its likely classes.

N images, D width of the features, L labeled images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_vision.evaluation.acquisition import NEED_PROBABILITIES, checked_features, choose_next, strategy_now
from lit_vision.evaluation.arrays import to_array
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.evaluation.typical_images import probcover_with_counts

AUTO = "auto"  # stands for BEST
BEST = "probcover-then-margin"  # the best on the garments: experiments/results/active.md
LAST = "one of the last without a label"
BLOCK = 1 << 22  # similarities, or numbers of features, in memory at the same time


@dataclass(frozen=True)
class Suggestion:
    """An image to label.

    Attributes:
        row: of the image.
        reason: a phrase in plain words.
        likely: the two most likely classes as (class number, probability), the first one in front; () without a
            classifier.
        nearest: row of the labeled image that is most similar to it; None without a label.
        similarity: cosine of the two, -1 to 1; None likewise.
    """

    row: int
    reason: str
    likely: tuple[tuple[int, float], ...] = ()
    nearest: int | None = None
    similarity: float | None = None


def suggest(
    strategy: str,
    features: Any,
    labels: Any,
    classes: Sequence[str],
    num: int,
    *,
    excluded: Any = (),
    probabilities: Any = None,
    seed: int = 0,
) -> list[Suggestion]:
    """Return the images to label next by a strategy, the one to label first in front.

    Args:
        strategy: one of `acquisition.STRATEGIES`, or AUTO.
        features: (N, D) tensor or array of a frozen encoder.
        labels: (N,) class numbers, -1 without a label.
        classes: K names.
        num: how many to suggest; all that are left if there are fewer.
        excluded: rows that must not be suggested, such as skipped ones; they count as known, but not as labels.
        probabilities: (N, K) of a classifier that was fitted on the labels; None: `fit_probabilities` where the
            strategy needs one.
        seed: of everything that is drawn.

    Raises:
        UserError, ValueError: as `choose_next`.
    """
    labels, strategy = to_array(labels).astype(np.int64), BEST if strategy == AUTO else strategy
    labeled = np.flatnonzero(labels >= 0)
    now = strategy_now(strategy, len(labeled), len(classes) if len(np.unique(labels[labeled])) > 1 else None)
    if probabilities is None and now in NEED_PROBABILITIES:
        probabilities = fit_probabilities(features, labels, len(classes), seed)
    p = None if probabilities is None else to_array(probabilities)
    taken = np.union1d(labeled, to_array(excluded).astype(np.int64))
    left = len(labels) - len(taken)
    if not left:
        return []
    counts: np.ndarray | None = None
    if now == "probcover" and num < left:
        rows, counts = probcover_with_counts(checked_features(features), taken, num, seed=seed)
    else:
        rows = choose_next(now, features, taken, num, p if now in NEED_PROBABILITIES else None, seed)
    nearest, similarity = nearest_labeled(features, rows, labeled)
    found = []
    for i, row in enumerate(rows.tolist()):
        likely: tuple[tuple[int, float], ...] = ()
        if p is not None:
            likely = tuple((int(k), float(p[row, k])) for k in np.argsort(-p[row], kind="stable")[:2])
        reason = LAST if num >= left else _reason(now, strategy, likely, classes, None if counts is None else counts[i])
        near = (int(nearest[i]), float(similarity[i])) if len(labeled) else (None, None)
        found.append(Suggestion(row, reason, likely, *near))
    return found


def fit_probabilities(features: Any, labels: Any, num_classes: int, seed: int = 0) -> np.ndarray:
    """Return (N, K) float32 probabilities of logistic regression, fitted on the labeled rows.

    Args:
        features: (N, D) array, read in blocks.
        labels: (N,) class numbers, -1 without a label; at least two classes.
        num_classes: K.
        seed: of the folds in which its strength is chosen.

    Raises:
        UserError: fewer than two classes have a label.
    """
    labels = to_array(labels)
    rows = np.flatnonzero(labels >= 0)
    return logistic_regression(features[rows], labels[rows], features, num_classes, seed=seed).probabilities


def nearest_labeled(features: Any, rows: np.ndarray, labeled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for some rows the most similar labeled row, and the cosine similarity to it.

    Args:
        features: (N, D).
        rows: (n,).
        labeled: (L,) rows; may be empty.

    Returns:
        (n,) int64 and (n,) float32; -1 and NaN without a labeled row.
    """
    nearest, similarity = np.full(len(rows), -1), np.full(len(rows), np.nan, np.float32)
    if len(labeled):
        x, known = to_array(features), _unit_rows(features, labeled)
        step = max(1, BLOCK // max(len(labeled), x.shape[1]))
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            cosines = _unit_rows(x, rows[part]) @ known.T
            nearest[part], similarity[part] = labeled[cosines.argmax(1)], cosines.max(1)
    return nearest, similarity


def _unit_rows(features: Any, rows: np.ndarray) -> np.ndarray:
    x = np.asarray(to_array(features)[rows], np.float32)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _reason(
    now: str, strategy: str, likely: tuple[tuple[int, float], ...], classes: Sequence[str], count: int | None
) -> str:
    """Return the reason for one image in plain words.

    Args:
        now: strategy that is followed at this number of labels.
        strategy: that was asked for.
        likely: as in `Suggestion`.
        classes: names.
        count: of images that ProbCover covers by this one first.
    """
    if now in NEED_PROBABILITIES:
        unsure = " or ".join(f"{classes[k]} ({p:.0%})" for k, p in likely)
        apart = ", and unlike the others of this list" if now == "badge" else ""
        return f"the model is least sure here: {unsure}{apart}"
    if now == "probcover":
        if not count:
            return "typical, though a similar one is labeled or in this list"
        return f"stands for {count} similar images without a label" if count > 1 else "unlike all others"
    if now == "typiclust":
        return "typical of a group of similar images that has the fewest labels"
    if now == "k-center":
        return "unlike all that is labeled or above it in this list"
    if strategy in NEED_PROBABILITIES:
        return "drawn at random: with labels of fewer than two classes no model can be unsure"
    return "drawn at random"
