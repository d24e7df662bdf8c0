"""Repeats over seeds in pairs: which settings go on, and how often the rule gives up one that is as good as the best.

The rule is our own. Every setting gets the same seeds. After each round, the setting with the best mean leads. Another
is given up when its mean of the paired differences to the leader is below minus 3 standard errors. The standard error
is the larger of two: from the setting's own differences, and from the spread that all settings show over the seeds;
two or three differences alone would often agree by chance. (Wilcoxon's test cannot do this: with 3 pairs its p is at
least 0.125.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lit_vision.sweep.luck import spread_over_seeds

ERRORS = 3.0  # standard errors


def given_up(values: np.ndarray) -> np.ndarray:
    """Return which settings the rule gives up.

    Args:
        values: (K, N) of K settings and N seeds, the same for all; more is better.

    Returns:
        (K,) bool; the leader is False, and all are with fewer than two seeds, or where nothing varies.
    """
    settings, seeds = values.shape
    if settings < 2 or seeds < 2:
        return np.zeros(settings, bool)
    leader = int(values.mean(1).argmax())
    difference = values - values[leader]  # (K, N)
    pooled = 2 * (spread_over_seeds(values) or 0.0) ** 2  # of the difference of two settings
    error = np.sqrt(np.maximum(difference.var(1, ddof=1), pooled) / seeds)
    stopped: np.ndarray = (difference.mean(1) < -ERRORS * error) & (error > 1e-12)
    return stopped


def next_runs(
    values: Mapping[int, Mapping[int, float | None]], seeds: Sequence[int], minimize: bool
) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Return the runs of the next round, and the settings that were given up.

    Rounds do not overlap: the decisions then follow from the values alone, whichever process was faster.

    Args:
        values: {setting: {seed: value}}; None where the run has not ended well. All first runs have ended.
        seeds: of the repeats, the first runs' seed first.
        minimize: True if smaller values are better.

    Returns:
        (setting, seed) of every run of the round that is to be made now, the best setting first, those that have been
        made left out; [] if no round is left. And {setting: number of seeds after which it was given up}.
    """
    sign = -1.0 if minimize else 1.0
    alive = [setting for setting, runs in values.items() if runs.get(seeds[0]) is not None]
    stopped: dict[int, int] = {}
    for count in range(1, len(seeds) + 1):
        so_far = seeds[:count]
        missing = [setting for setting in alive if so_far[-1] not in values[setting]]
        if missing:
            before = {s: sign * math.fsum(values[s][seed] or 0.0 for seed in so_far[:-1]) for s in missing}
            return [(s, so_far[-1]) for s in sorted(missing, key=lambda s: (-before[s], s))], stopped
        alive = [setting for setting in alive if values[setting][so_far[-1]] is not None]
        if not alive:
            break
        table = np.array([[sign * (values[s][seed] or 0.0) for seed in so_far] for s in alive])
        out = given_up(table)
        stopped |= {setting: count for setting, stop in zip(alive, out) if stop}
        alive = [setting for setting, stop in zip(alive, out) if not stop]
    return [], stopped


def false_stop_rate(settings: int, seeds: int, draws: int = 1000, seed: int = 0) -> float:
    """Return the share of equally good settings that the rule gives up, simulated with normal noise.

    Choosing the leader by the same values is part of it. Neither the size of the noise nor an effect of the seed that
    all settings share matters: the rule is about differences in units of their error.

    Args:
        settings: number of equal settings, the leader included; at least 2.
        seeds: of each.
        draws: simulated sweeps, at least; more for few settings, for 5,000 settings in all.
        seed: of the simulation.
    """
    rng = np.random.default_rng(seed)
    draws = max(draws, math.ceil(5_000 / settings))
    stops = 0
    for _ in range(draws):
        values = rng.standard_normal((settings, seeds))
        for count in range(2, seeds + 1):
            stop = given_up(values[:, :count])
            stops += int(stop.sum())
            values = values[~stop]
    return stops / (draws * (settings - 1))
