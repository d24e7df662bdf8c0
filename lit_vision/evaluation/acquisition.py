"""Choose which images to label next, from frozen features and, for some strategies, the probabilities of a classifier.

Every function returns row numbers of unlabeled images, the one to label first in front, and depends on its arguments
alone. Which strategy helps depends on the images and on how many labels there are: experiments/table_active.py; gains
may vanish where training itself is strong (Mittal et al. 2019, arXiv:1912.05361; Munjal et al. 2022, arXiv:2002.09564).

Letters: N images, D width of the features, K classes, L labeled images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_vision.errors import UserError
from lit_vision.evaluation.arrays import to_array
from lit_vision.evaluation.typical_images import probcover, typiclust

# those that change over to the margin: the strategy that they begin with
THEN_MARGIN = {"typical-then-margin": "typiclust", "probcover-then-margin": "probcover"}
RANDOM = "random"  # what the others are compared with
STRATEGIES = (RANDOM, "entropy", "margin", "badge", "k-center", "typiclust", "probcover", *THEN_MARGIN)
NEED_PROBABILITIES = ("entropy", "margin", "badge")  # choose at random while there are none
LABELS_PER_CLASS = 4  # from which those of THEN_MARGIN change over; fixed on the garments, see table_active.py
BLOCK = 1 << 22  # numbers of the features that are checked at the same time


def choose_next(
    strategy: str,
    features: Any,
    labeled: Any,
    num: int,
    probabilities: Any = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the rows to label next by a strategy.

    Args:
        strategy: one of STRATEGIES; see `strategy_now`.
        features: (N, D) tensor or array of a frozen encoder.
        labeled: rows that have a label, and others that must not be chosen; may be empty.
        num: how many to choose; all that are left if there are fewer.
        probabilities: (N, K) of a classifier that was fitted on the labeled rows.
        seed: of everything that is drawn.

    Returns:
        (num,) int64, without repeats and without `labeled`.

    Raises:
        UserError: a feature that is not finite.
        ValueError: an unknown strategy, `num` below 1, a row out of range, or shapes that differ.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, got {strategy!r}")
    x, labeled = checked_features(features), np.unique(to_array(labeled).astype(np.int64))
    if num < 1 or (len(labeled) and not 0 <= labeled[0] <= labeled[-1] < len(x)):
        raise ValueError(f"num must be at least 1 and labeled rows from 0 to {len(x) - 1}")
    p = None if probabilities is None else to_array(probabilities).astype(np.float64)
    if p is not None and (p.ndim != 2 or len(p) != len(x)):
        raise ValueError(f"probabilities {p.shape} and features {x.shape} differ in their rows")
    free = np.setdiff1d(np.arange(len(x)), labeled)
    num = min(num, len(free))
    strategy = strategy_now(strategy, len(labeled), None if p is None else p.shape[1])
    if num == len(free) or strategy == "random":
        return np.random.default_rng(seed).permutation(free)[:num]
    if p is not None and strategy == "entropy":
        return free[np.argsort(-entropy(p[free]), kind="stable")[:num]]
    if p is not None and strategy == "margin":
        return free[np.argsort(margin(p[free]), kind="stable")[:num]]
    if p is not None and strategy == "badge":
        return np.asarray(free[badge(x[free], p[free], num, seed)])
    if strategy == "k-center":
        return k_center(x, labeled, num, seed)
    if strategy == "typiclust":
        return typiclust(x, labeled, num, seed)
    return probcover(x, labeled, num, seed=seed)


def strategy_now(strategy: str, num_labeled: int, num_classes: int | None) -> str:
    """Return the strategy that is followed at a number of labels.

    Those of NEED_PROBABILITIES are "random" while there is no classifier; those of THEN_MARGIN are "margin" from
    LABELS_PER_CLASS labels a class on, and the strategy that they begin with before.

    Args:
        strategy: one of STRATEGIES.
        num_labeled: images that have a label.
        num_classes: of the classifier; None if there is none.
    """
    if strategy in THEN_MARGIN:
        enough = num_classes is not None and num_labeled >= LABELS_PER_CLASS * num_classes
        return "margin" if enough else THEN_MARGIN[strategy]
    return "random" if strategy in NEED_PROBABILITIES and num_classes is None else strategy


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of each row of (N, K) probabilities in nats, (N,): 0 where one class is certain."""
    p = np.asarray(probabilities, np.float64)
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(1))


def margin(probabilities: np.ndarray) -> np.ndarray:
    """Return the largest minus the second largest of each row of (N, K) probabilities, (N,), 0 to 1."""
    two = np.sort(np.asarray(probabilities, np.float64), axis=1)[:, -2:]
    return np.asarray(two[:, -1] - two[:, 0]) if two.shape[1] > 1 else np.ones(len(two))


def badge(features: np.ndarray, probabilities: np.ndarray, num: int, seed: int = 0) -> np.ndarray:
    """Choose by k-means++ on the gradients that the labels predicted by the classifier would give (BADGE).

    The gradient of the last layer is g = (p - onehot(argmax p)) outer f. Its distances follow from the two factors:
    |g_i - g_j|^2 = |a_i|^2 |f_i|^2 + |a_j|^2 |f_j|^2 - 2 (a_i . a_j)(f_i . f_j), so g is never made.
    Source: Ash et al. 2020, arXiv:1906.03671, Algorithm 1; k-means++: Arthur and Vassilvitskii 2007.

    Args:
        features: (N, D) of the images that may be chosen.
        probabilities: (N, K).
        num: at most N.
        seed: of the draws.

    Returns:
        (num,) int64 rows of `features`.
    """
    f, a = np.asarray(features, np.float32), np.array(probabilities, np.float32)
    a[np.arange(len(a)), a.argmax(1)] -= 1
    squares = (a * a).sum(1) * (f * f).sum(1)
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(f)))]
    nearest = np.full(len(f), np.inf)
    while len(chosen) < num:
        last = chosen[-1]
        distance = squares + squares[last] - 2 * (a @ a[last]) * (f @ f[last])
        nearest = np.minimum(nearest, np.maximum(distance, 0))
        nearest[chosen] = 0
        total = nearest.sum(dtype=np.float64)
        if total <= 0:  # all others have the gradient of a chosen one
            rest = np.setdiff1d(np.arange(len(f)), chosen)
            chosen += rng.permutation(rest)[: num - len(chosen)].tolist()
            break
        chosen.append(int(rng.choice(len(f), p=nearest.astype(np.float64) / total)))
    return np.array(chosen)


def k_center(features: np.ndarray, labeled: np.ndarray, num: int, seed: int = 0) -> np.ndarray:
    """Choose greedily the image that is farthest from all labeled and chosen ones (core-set).

    The largest distance to the nearest labeled or chosen image is at most twice that of the best choice.
    Source: Sener and Savarese 2018, arXiv:1708.00489, Algorithm 1. Features are used at their own length.

    Args:
        features: (N, D).
        labeled: (L,) rows; without any the first choice is drawn.
        num: at most N - L.
        seed: of that draw.

    Returns:
        (num,) int64 rows.
    """
    x = np.asarray(features, np.float32)
    squares = (x * x).sum(1)

    def to_row(row: int) -> np.ndarray:
        return np.asarray(np.maximum(squares + squares[row] - 2 * (x @ x[row]), 0))

    taken = np.zeros(len(x), bool)
    taken[labeled] = True
    nearest = np.full(len(x), np.inf, np.float32)
    chosen: list[int] = []
    for row in labeled:
        nearest = np.minimum(nearest, to_row(row))
    while len(chosen) < num:
        first = not chosen and not len(labeled)
        row = int(np.random.default_rng(seed).integers(len(x)) if first else np.where(taken, -1, nearest).argmax())
        chosen.append(row)
        taken[row] = True
        nearest = np.minimum(nearest, to_row(row))
    return np.array(chosen)


def checked_features(values: Any) -> np.ndarray:
    """Return features as an array (N, D), checked in blocks.

    Raises:
        UserError: a row is not finite.
        ValueError: another shape.
    """
    x = to_array(values)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"features must be (N, D) with at least one row, got {x.shape}")
    step = max(1, BLOCK // max(1, x.shape[1]))
    bad = sum(int((~np.isfinite(x[i : i + step])).any(1).sum()) for i in range(0, len(x), step))
    if bad:
        raise UserError(f"features: {bad} of {len(x)} rows are not finite")
    return x
