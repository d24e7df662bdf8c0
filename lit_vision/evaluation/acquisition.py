"""Choose which images to label next, from frozen features and, for some strategies, the probabilities of a classifier.

Every function returns row numbers of unlabeled images, the one to label first in front, and depends on its arguments
alone. Which strategy helps depends on the images and on how many labels there are: experiments/table_active.py; gains
may vanish where training itself is strong (Mittal et al. 2019, arXiv:1912.05361; Munjal et al. 2022, arXiv:2002.09564).

Letters: N images, D width of the features, K classes, L labeled images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from lit_vision.errors import UserError
from lit_vision.evaluation.arrays import to_array

STRATEGIES = ("random", "entropy", "margin", "badge", "k-center", "typiclust", "probcover", "typical-then-margin")
NEED_PROBABILITIES = ("entropy", "margin", "badge")  # choose at random while there are none
LARGEST = 50_000  # features among which ProbCover and TypiClust look; of more, a seeded sample
NEIGHBORS, MOST_CLUSTERS, SMALLEST_CLUSTER = 20, 500, 6  # TypiClust's: section 3.2 and appendix of the paper
CLOSE_PAIRS = 0.02  # share of all pairs that ProbCover counts as close; fixed on the garments, see table_active.py
TYPICAL_PER_CLASS = 4  # labels a class from which "typical-then-margin" turns to the margin; likewise
SMALL = 5000  # images up to which k-means takes no mini-batches
BLOCK = 1 << 22  # distances in memory at the same time


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
        strategy: one of STRATEGIES. Those of NEED_PROBABILITIES choose at random, and "typical-then-margin" by
            typicality, while `probabilities` is None.
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
    x, labeled = _features(features), np.unique(to_array(labeled).astype(np.int64))
    if num < 1 or (len(labeled) and not 0 <= labeled[0] <= labeled[-1] < len(x)):
        raise ValueError(f"num must be at least 1 and labeled rows from 0 to {len(x) - 1}")
    p = None if probabilities is None else to_array(probabilities).astype(np.float64)
    if p is not None and (p.ndim != 2 or len(p) != len(x)):
        raise ValueError(f"probabilities {p.shape} and features {x.shape} differ in their rows")
    free = np.setdiff1d(np.arange(len(x)), labeled)
    num = min(num, len(free))
    if strategy == "typical-then-margin":
        enough = p is not None and len(labeled) >= TYPICAL_PER_CLASS * p.shape[1]
        strategy = "margin" if enough else "typiclust"
    if num == len(free) or strategy == "random" or (strategy in NEED_PROBABILITIES and p is None):
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


def typicality(features: np.ndarray, neighbors: int = NEIGHBORS) -> np.ndarray:
    """Return 1 / (mean Euclidean distance to the nearest `neighbors` others + 1e-5), (N,): high where images are dense.

    Source: Hacohen et al. 2022, arXiv:2202.02794, Eq. 2.
    """
    x = np.asarray(features, np.float32)
    k = min(neighbors, len(x) - 1)
    if k < 1:
        return np.full(len(x), 1e5)
    found = np.empty(len(x))
    for rows, distances in _distance_blocks(x):
        distances[np.arange(len(rows)), rows] = np.inf
        found[rows] = 1 / (np.partition(distances, k - 1, axis=1)[:, :k].mean(1, dtype=np.float64) + 1e-5)
    return found


def typiclust(features: np.ndarray, labeled: np.ndarray, num: int, seed: int = 0) -> np.ndarray:
    """Choose the most typical image of each of the clusters that have the fewest labels (TypiClust).

    Normalized features are split by k-means into L + num clusters, at most 500; clusters of five or fewer are left out
    while there are others. Then, `num` times: of the clusters with the fewest labeled or chosen images the largest, and
    in it the most typical image that is not labeled or chosen. Source: Hacohen et al. 2022, arXiv:2202.02794,
    section 3.2. Unlike the paper: of more than 50,000 images a seeded sample is used.

    Args:
        features: (N, D).
        labeled: (L,) rows.
        num: at most N - L.
        seed: of sample and clusters.

    Returns:
        (num,) int64 rows.
    """
    rows = _sample(len(features), labeled, num, seed)
    x, place = _normalized(features[rows]), np.searchsorted(rows, labeled)
    clusters = _clusters(x, min(len(labeled) + num, MOST_CLUSTERS, len(x)), seed)
    typical = typicality(x)
    sizes = np.bincount(clusters)
    labels = np.bincount(clusters[place], minlength=len(sizes))
    free = np.ones(len(x), bool)
    free[place] = False
    chosen: list[int] = []
    while len(chosen) < num:
        left = np.bincount(clusters[free], minlength=len(sizes))
        usable = left > 0
        if (usable & (sizes >= SMALLEST_CLUSTER)).any():
            usable &= sizes >= SMALLEST_CLUSTER
        # lexsort: the last key counts most
        cluster = next(c for c in np.lexsort((np.arange(len(sizes)), -sizes, labels)) if usable[c])
        row = int(np.where(free & (clusters == cluster), typical, -1).argmax())
        chosen.append(row)
        free[row] = False
        labels[cluster] += 1
    return np.asarray(rows[chosen])


def probcover(
    features: np.ndarray, labeled: np.ndarray, num: int, delta: float | None = None, seed: int = 0
) -> np.ndarray:
    """Choose greedily the image that has the most images near it that nothing labeled or chosen is near to (ProbCover).

    Images are near if their normalized features lie less than delta apart. The chosen images cover at least 1 - 1/e of
    what the best choice covers. If everything is covered the rest is chosen by typicality.
    Source: Yehuda et al. 2022, arXiv:2205.11320, Algorithm 1. Unlike the paper, which finds delta by clustering, delta
    is a quantile of the distances; of more than 50,000 images a seeded sample is used.

    Args:
        features: (N, D).
        labeled: (L,) rows.
        num: at most N - L.
        delta: distance, 0 to 2; None: such that CLOSE_PAIRS of all pairs are nearer.
        seed: of the sample.

    Returns:
        (num,) int64 rows.
    """
    rows = _sample(len(features), labeled, num, seed)
    x, place = _normalized(features[rows]), np.searchsorted(rows, labeled)
    delta = _quantile_of_distances(x, CLOSE_PAIRS, seed) if delta is None else delta
    near = [np.flatnonzero(line < delta).astype(np.int32) for _, block in _distance_blocks(x) for line in block]
    gain = np.array([len(one) for one in near])  # each is near itself
    uncovered, free = np.ones(len(x), bool), np.ones(len(x), bool)
    free[place] = False
    chosen: list[int] = []

    def cover(row: int) -> None:
        for other in near[row][uncovered[near[row]]]:
            uncovered[other] = False
            gain[near[other]] -= 1

    for row in place:
        cover(int(row))
    while len(chosen) < num and np.where(free, gain, 0).max() > 0:
        row = int(np.where(free, gain, -1).argmax())
        chosen.append(row)
        free[row] = False
        cover(row)
    if len(chosen) < num:
        order = np.argsort(-np.where(free, typicality(x), -1), kind="stable")
        chosen += order[: num - len(chosen)].tolist()
    return np.asarray(rows[chosen])


def _features(values: Any) -> np.ndarray:
    x = to_array(values)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"features must be (N, D) with at least one row, got {x.shape}")
    if not np.isfinite(x).all():
        raise UserError(f"features: {int((~np.isfinite(x)).any(1).sum())} of {len(x)} rows are not finite")
    return x


def _normalized(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _sample(count: int, labeled: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Return sorted rows: all, or of more than LARGEST the labeled ones and a drawn part of the others."""
    if count <= LARGEST:
        return np.arange(count)
    others = np.setdiff1d(np.arange(count), labeled)
    drawn = np.random.default_rng(seed).permutation(others)[: max(LARGEST - len(labeled), num)]
    return np.sort(np.concatenate([labeled, drawn]))


def _distance_blocks(x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows, (len(rows), N) Euclidean distances) of blocks of rows, in order."""
    squares = (x * x).sum(1)
    size = max(1, BLOCK // len(x))
    for first in range(0, len(x), size):
        rows = np.arange(first, min(first + size, len(x)))
        block = squares[rows, None] + squares - 2 * (x[rows] @ x.T)
        yield rows, np.sqrt(np.maximum(block, 0, out=block), out=block)


def _quantile_of_distances(x: np.ndarray, share: float, seed: int) -> float:
    """Return the distance below which `share` of the pairs of different rows lie, from at most 2,000 rows."""
    part = x[np.sort(np.random.default_rng(seed).permutation(len(x))[:2000])]
    if len(part) < 2:
        return 1.0
    pairs = np.concatenate([block[np.arange(len(part)) > rows[:, None]] for rows, block in _distance_blocks(part)])
    return float(np.quantile(pairs, share))


def _clusters(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the cluster of each row, (N,): k-means; of many images into more than 50 clusters in mini-batches.

    The paper takes mini-batches for any number of images; for few they are slower and find worse clusters.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    settings: dict[str, Any] = {"n_clusters": count, "n_init": 1, "random_state": seed}
    # one thread, so that rounding does not depend on the cores; equal images may leave clusters empty
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(x) < x.shape[1]:
            x = np.ascontiguousarray(x @ np.linalg.qr(x.T)[0])  # (N, N), the same distances
        if count <= 50 or len(x) <= SMALL:
            return np.asarray(KMeans(**settings).fit(x).labels_)
        return np.asarray(MiniBatchKMeans(**settings, batch_size=5000).fit(x).labels_)
