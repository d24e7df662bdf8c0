"""Find labels that look wrong: those that a model, trained without the image, contradicts.

Letters: N labeled images, D width of the features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_vision.evaluation.arrays import to_array
from lit_vision.evaluation.linear import cross_validated_probabilities

SUSPECT = 0.1  # share of a class's mean self-confidence below which a label is a suspect; fixed on the upright garments


@dataclass(frozen=True)
class LabelRanking:
    """Labeled images, the most doubtful label first; position i of all arrays is the same image.

    Attributes:
        rows: (N,) int64 rows of the given features.
        given: (N,) int64, the label of the image.
        likely: (N,) int64, the most probable class other than `given`.
        confidence: (N,) float32, the probability of `likely`, 0 to 1; NaN for the only image of a class, which cannot
            be judged. Such images stand last.
        self_confidence: (N,) float32, the probability of `given`, ascending.
        suspects: (N,) bool, True for a label that is probably wrong, see `rank_labels`.
    """

    rows: np.ndarray
    given: np.ndarray
    likely: np.ndarray
    confidence: np.ndarray
    self_confidence: np.ndarray
    suspects: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def first_suspects(self, limit: int | None = None) -> LabelRanking:
        """Return the suspects alone, in the same order, at most `limit` of them."""
        keep = np.flatnonzero(self.suspects)[:limit]
        return LabelRanking(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def find_label_errors(
    features: Any, labels: Any, num_classes: int | None = None, seed: int = 0, groups: Any = None
) -> LabelRanking:
    """Rank labeled images by how much a cross-validated linear probe contradicts their labels.

    Args:
        features: (N, D) tensor or array of a frozen encoder.
        labels: (N,) integers from 0.
        num_classes: K; the largest label + 1 if None.
        seed: of the folds.
        groups: (N,) or None; whole groups are held out, and a class of one group is not judged.

    Raises:
        UserError: as `logistic_regression`: fewer than two classes, or a sample without a label.
    """
    return rank_labels(cross_validated_probabilities(features, labels, num_classes, seed=seed, groups=groups), labels)


def rank_labels(probabilities: Any, labels: Any) -> LabelRanking:
    """Rank labeled images by their out-of-fold probabilities.

    The order is that of the self-confidence, the probability of the given label. A label is a suspect if the model
    prefers another class and the self-confidence is below a tenth of t_j, its mean over the images labeled j: a class
    that the model predicts with little confidence everywhere needs less of it.
    Source: Northcutt et al. 2021, "Confident Learning", arXiv:1911.00068: self-confidence in section 3.2, t_j in Eq. 2.
    Unlike the paper, whose suspects are images with p[k] >= t_k for another class k: where 5 % of the labels of the
    upright garments were changed, 25 % of those suspects were changed ones (three draws of 400, by hand), and 68 % of
    these (experiments/results/label-errors.md).

    Args:
        probabilities: (N, K) of a model that has not seen the image; rows of NaN are not judged.
        labels: (N,) integers from 0 to K - 1.

    Raises:
        ValueError: shapes differ, or a label is outside 0 to K - 1.
    """
    p, y = to_array(probabilities).astype(np.float64), to_array(labels).astype(np.int64)
    if p.ndim != 2 or y.shape != (len(p),) or (len(y) and not 0 <= y.min() <= y.max() < p.shape[1]):
        raise ValueError(f"probabilities {p.shape} and labels {y.shape} from 0 do not fit together")
    every = np.arange(len(y))
    judged = np.asarray(~np.isnan(p).any(1))
    self_confidence = p[every, y]
    thresholds = np.zeros(p.shape[1])
    for label in np.unique(y[judged]):
        thresholds[label] = self_confidence[judged & (y == label)].mean()
    others = np.where(judged[:, None], p, -1.0)
    others[every, y] = -2.0
    likely = others.argmax(1)
    confidence = p[every, likely]
    suspects = judged & (self_confidence < confidence) & (self_confidence < SUSPECT * thresholds[y])
    order = np.argsort(self_confidence, kind="stable")  # NaN last
    return LabelRanking(
        order,
        y[order],
        likely[order],
        confidence[order].astype(np.float32),
        self_confidence[order].astype(np.float32),
        suspects[order],
    )
