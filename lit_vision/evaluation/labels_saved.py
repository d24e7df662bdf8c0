"""Count the labels that a choice of what to label saves against drawing at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000  # of the seeds, for the interval


def labels_saved(counts: Sequence[int], random: np.ndarray, other: np.ndarray) -> list[tuple[float, float, float]]:
    """Return for each number of labels how many fewer a strategy needs than random for its accuracy.

    The number that random needs is read off its mean curve, linearly in the logarithm of the labels; beyond its last
    number it counts as that number. The interval is the bootstrap's, over the paired seeds.

    Args:
        counts: numbers of labels, ascending.
        random: (seeds, numbers) accuracies of random.
        other: likewise, of the strategy.

    Returns:
        (mean, low, high) for each number of labels, 95 % interval.
    """

    def saved(rows: np.ndarray) -> np.ndarray:
        curve = np.maximum.accumulate(random[rows].mean(0))
        needed = np.exp(np.interp(other[rows].mean(0), curve, np.log(counts)))
        return np.asarray(needed - counts)

    rng = np.random.default_rng(0)
    drawn = np.array([saved(rng.integers(len(random), size=len(random))) for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return list(zip(saved(np.arange(len(random))).tolist(), low.tolist(), high.tolist()))
