"""Choose images that stand for many others, from frozen features alone: TypiClust and ProbCover.

N images, D width of the features, L labeled images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

LARGEST = 50_000  # features among which images are looked for; of more, a seeded sample
NEIGHBORS, MOST_CLUSTERS, SMALLEST_CLUSTER = 20, 500, 6  # TypiClust's: section 3.2 and appendix of the paper
CLOSE_PAIRS = 0.02  # share of all pairs that ProbCover counts as close; fixed on the garments, see table_active.py
SMALL = 5000  # images up to which k-means takes no mini-batches
BLOCK = 1 << 22  # distances in memory at the same time


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
    return probcover_with_counts(features, labeled, num, delta, seed)[0]


def probcover_with_counts(
    features: np.ndarray, labeled: np.ndarray, num: int, delta: float | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that `probcover` chooses, and for each the number of images that it covers first.

    Arguments as for `probcover`. The counts, (num,) int64, have the image itself in them, are of the sample if there is
    one, and 0 where everything was covered before.
    """
    rows = _sample(len(features), labeled, num, seed)
    x, place = _normalized(features[rows]), np.searchsorted(rows, labeled)
    delta = _quantile_of_distances(x, CLOSE_PAIRS, seed) if delta is None else delta
    near = [np.flatnonzero(line < delta).astype(np.int32) for _, block in _distance_blocks(x) for line in block]
    gain = np.array([len(one) for one in near])  # each is near itself
    uncovered, free = np.ones(len(x), bool), np.ones(len(x), bool)
    free[place] = False
    chosen: list[int] = []
    counts = np.zeros(num, np.int64)

    def cover(row: int) -> None:
        for other in near[row][uncovered[near[row]]]:
            uncovered[other] = False
            gain[near[other]] -= 1

    for row in place:
        cover(int(row))
    while len(chosen) < num and np.where(free, gain, 0).max() > 0:
        row = int(np.where(free, gain, -1).argmax())
        counts[len(chosen)] = gain[row]
        chosen.append(row)
        free[row] = False
        cover(row)
    if len(chosen) < num:
        order = np.argsort(-np.where(free, typicality(x), -1), kind="stable")
        chosen += order[: num - len(chosen)].tolist()
    return np.asarray(rows[chosen]), counts


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
