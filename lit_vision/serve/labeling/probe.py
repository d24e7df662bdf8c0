"""The model that learns along: logistic regression on frozen features, of one label or of several labels an image.

n images, D width of the features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lit_vision.evaluation.linear import STRENGTHS, logistic_regression

_ROWS = 4096  # features in memory at the same time


@dataclass(frozen=True, eq=False)
class ProbeModel:
    """A fitted model.

    Attributes:
        classes: K names, those that the labels show.
        weight: (K, D) float32 on unscaled features.
        bias: (K,) float32.
        images: number of images that it learned from.
        multiple: each class is a question of its own (a sigmoid); else they exclude each other (softmax).
        strengths: of L2, by class name where `multiple`, else under "".
    """

    classes: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    images: int
    multiple: bool
    strengths: Mapping[str, float]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return (n, K) float32 for (n, D) features; rows of NaN give NaN."""
        parts = [features[first : first + _ROWS] @ self.weight.T for first in range(0, len(features), _ROWS)]
        logits = np.concatenate([*parts, np.empty((0, len(self.classes)), np.float32)]) + self.bias
        if self.multiple:
            return np.asarray(1 / (1 + np.exp(-np.clip(logits, -80, 80))))
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))

    def labels_of(self, probabilities: np.ndarray) -> list[str]:
        """Return the labels that (K,) probabilities give: the most probable class, or all from a half on."""
        if self.multiple:
            return [name for name, p in zip(self.classes, probabilities) if p >= 0.5]
        return [self.classes[int(probabilities.argmax())]]

    def propose(self, feature: np.ndarray) -> dict[str, Any]:
        """Return {"labels", "confidence"} for one image's feature, (D,).

        The confidence is the probability of the class; with several labels an image, that of the least sure decision.
        """
        p = self.probabilities(feature[None])[0]
        confidence = np.maximum(p, 1 - p).min() if self.multiple else p.max()
        return {"labels": self.labels_of(p), "confidence": round(float(confidence), 4)}

    def renamed(self, name: str, to: str) -> ProbeModel | None:
        """Return the model with a class's new name; None if that is already another class's."""
        if name in self.classes and to in self.classes:
            return None
        strengths = {to if key == name else key: value for key, value in self.strengths.items()}
        return replace(self, classes=tuple(to if one == name else one for one in self.classes), strengths=strengths)


def fit_probe_model(
    features: np.ndarray,
    labels: Sequence[Sequence[str]],
    multiple: bool,
    strengths: Mapping[str, float] | None = None,
) -> ProbeModel | None:
    """Fit the model; None while the labels show no two classes, or with several labels an image none that differs.

    Args:
        features: (n, D).
        labels: names of each image's labels; one each unless `multiple`.
        multiple: see `ProbeModel`.
        strengths: of an earlier model, which save the search for them; None searches.
    """
    given = strengths or {}
    classes = list(dict.fromkeys(name for names in labels for name in names))
    if not multiple:
        if len(classes) < 2:
            return None
        codes = np.array([classes.index(names[0]) for names in labels])
        weight, bias, strength = _fit(features, codes, len(classes), given.get(""))
        return ProbeModel(tuple(classes), weight, bias, len(labels), False, {"": strength})
    weights, biases, found = [], [], {}
    for name in classes:
        codes = np.array([int(name in names) for names in labels])
        if codes.min() == codes.max():  # all images have it: nothing to learn from but that
            weights.append(np.zeros(features.shape[1], np.float32))
            biases.append(np.float32(np.log(2 * len(labels) + 1)))
            continue
        weight, bias, found[name] = _fit(features, codes, 2, given.get(name))
        weights.append(weight[1] - weight[0])
        biases.append(bias[1] - bias[0])
    if not found:
        return None
    return ProbeModel(tuple(classes), np.stack(weights), np.array(biases, np.float32), len(labels), True, found)


def _fit(
    features: np.ndarray, codes: np.ndarray, num_classes: int, strength: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    strengths = STRENGTHS if strength is None else [strength]
    fitted = logistic_regression(features, codes, features[:1], num_classes, strengths=strengths)
    return fitted.weight, fitted.bias, fitted.strength
