"""Few-shot classification on frozen features: class prototypes, logistic regression and others on the same images.

Letters: N samples, D width of the features, K classes, k labeled images per class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_vision.data.splits import sample_per_class as choose_shots
from lit_vision.errors import UserError
from lit_vision.evaluation.arrays import to_tensor
from lit_vision.evaluation.features import Features
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.evaluation.metrics import mean_sd, top_k_accuracy

FEW_SHOT_METHODS = ("prototypes", "logreg")
METRICS = ("cosine", "euclidean")
# (k labeled images of each class, test images, seed of the draw) -> scores (N, K) of the test images
Classifier = Callable[[Features, Features, int], Any]


@dataclass(frozen=True)
class Episode:
    """Result of one draw of k images per class.

    Attributes:
        method: one of FEW_SHOT_METHODS, or the name of another classifier.
        shots: k.
        seed: of the draw.
        value: accuracy on all test samples, 0 to 1.
    """

    method: str
    shots: int
    seed: int
    value: float


def class_prototypes(features: Any, labels: Any, num_classes: int | None = None, metric: str = "cosine") -> Tensor:
    """Return the mean feature of each class. Source: Snell et al. 2017, arXiv:1703.05175, Eq. 1.

    Args:
        features: (N, D), tensor or array.
        labels: (N,) integers from 0.
        num_classes: K; the largest label + 1 if None.
        metric: with "cosine" every feature is scaled to length 1 first, so that all have the same weight.

    Returns:
        (K, D) float32; a class without a sample is NaN.

    Raises:
        UserError: no sample, or one without a label.
        ValueError: an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    x, y = to_tensor(features).float(), to_tensor(labels).long()
    if len(x) == 0 or len(x) != len(y) or int(y.min()) < 0:
        raise UserError(f"prototypes: {len(x)} features, {int((y >= 0).sum())} labels; give labeled samples only")
    num_classes = int(y.max()) + 1 if num_classes is None else num_classes
    x = F.normalize(x, dim=1) if metric == "cosine" else x
    sums = torch.zeros(num_classes, x.shape[1]).index_add_(0, y, x)
    return sums / torch.bincount(y, minlength=num_classes)[:, None]


def nearest_prototype(prototypes: Tensor, features: Any, metric: str = "cosine", temperature: float = 1.0) -> Tensor:
    """Return class probabilities: softmax of the negative distance to each prototype. Source: Snell et al. 2017, Eq. 2.

    Args:
        prototypes: (K, D) of `class_prototypes` under the same metric; NaN rows are never chosen.
        features: (N, D).
        metric: "euclidean" is the squared distance, as in the paper; "cosine" is 1 - cosine.
        temperature: divides the distances; greater than 0. The order of the classes does not depend on it.

    Returns:
        (N, K) float32, rows sum to 1.

    Raises:
        UserError: widths that differ.
    """
    x = to_tensor(features).float()
    if x.shape[1] != prototypes.shape[1]:
        raise UserError(f"prototypes: {prototypes.shape[1]} wide, the features {x.shape[1]}; use one encoder")
    if metric == "cosine":
        distance = 1 - F.normalize(x, dim=1) @ F.normalize(prototypes, dim=1).T
    else:
        distance = torch.cdist(x, prototypes).square()
    return (-distance / temperature).masked_fill(distance.isnan(), -torch.inf).softmax(dim=1)


def few_shot(
    train: Features,
    test: Features,
    shots: Sequence[int] = (1, 5, 10),
    seeds: Iterable[int] = range(5),
    methods: Sequence[str] = FEW_SHOT_METHODS,
    metric: str = "cosine",
    others: Mapping[str, Classifier] | None = None,
) -> list[Episode]:
    """Measure the accuracy with k labeled images per class, for every k, seed and method.

    All methods use the same images, and those of k are among those of a larger k (of one seed). Test samples are only
    measured; nothing is chosen on them.

    Args:
        train: features to draw from; unlabeled ones are left out.
        test: features, all labeled, measured once per episode.
        shots: the numbers k.
        seeds: of the draws.
        methods: some of FEW_SHOT_METHODS.
        metric: of the prototypes.
        others: further classifiers by name, measured before `methods` in each episode.

    Raises:
        UserError: a class has fewer than k images.
        ValueError: an unknown method.
    """
    if unknown := set(methods) - set(FEW_SHOT_METHODS):
        raise ValueError(f"methods must be of {FEW_SHOT_METHODS}, got {sorted(unknown)}")
    labels = train.labels.numpy()
    num_classes = int(max(labels.max(), int(test.labels.max()))) + 1
    found = []
    for seed in seeds:
        for k in shots:
            part = train.select(choose_shots(labels, k, seed))
            for name, classifier in (others or {}).items():
                found.append(Episode(name, k, seed, top_k_accuracy(classifier(part, test, seed), test.labels)))
            for method in methods:
                if method == "prototypes":
                    prototypes = class_prototypes(part.features, part.labels, num_classes, metric)
                    scores: Any = nearest_prototype(prototypes, test.features, metric)
                else:
                    probe = logistic_regression(part.features, part.labels, test.features, num_classes, seed=seed)
                    scores = probe.probabilities
                found.append(Episode(method, k, seed, top_k_accuracy(scores, test.labels)))
    return found


def summarize_episodes(episodes: Iterable[Episode]) -> dict[tuple[str, int], tuple[float, float | None, int]]:
    """Return {(method, k): (mean, standard deviation or None, number of seeds)} of the episodes, in their order."""
    values: dict[tuple[str, int], list[float]] = {}
    for episode in episodes:
        values.setdefault((episode.method, episode.shots), []).append(episode.value)
    return {key: (*mean_sd(found), len(found)) for key, found in values.items()}
