"""The lead of the best of several equal settings that luck alone gives, from the measured spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Luck:
    """Seeming gain of the best of `arms` equal settings over their true value, in the metric's unit.

    Attributes:
        arms: settings that were compared.
        seeds: of each.
        spread: standard deviation of a setting over seeds, without what a seed does to all settings alike.
        mean: expected seeming gain.
        high: 95 % of sweeps of equal settings have a smaller one.
    """

    arms: int
    seeds: int
    spread: float
    mean: float
    high: float


def spread_over_seeds(values: Sequence[Sequence[float]] | np.ndarray) -> float | None:
    """Return the standard deviation of settings over seeds without the effects of setting and seed.

    Args:
        values: (K, N): K settings, each with the same N seeds.

    Returns:
        The root of the mean square of value - setting's mean - seed's mean + mean, with (K - 1)(N - 1) degrees of
        freedom; None with one setting or one seed.
    """
    table = np.asarray(values, float)
    if table.ndim != 2 or min(table.shape) < 2:
        return None
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return float(np.sqrt((rest**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1))))


def best_by_luck(arms: int, seeds: int, spread: float, draws: int = 20_000, seed: int = 0) -> Luck:
    """Simulate the best mean of equal settings: the largest of `arms` means of `seeds` normal values around zero.

    Args:
        arms: settings, at least 1.
        seeds: of each, at least 1.
        spread: see `Luck`.
        draws: simulated sweeps.
        seed: of the simulation.
    """
    rng = np.random.default_rng(seed)
    best = np.full(draws, -np.inf)
    for _ in range(arms):
        np.maximum(best, rng.standard_normal(draws), out=best)
    best *= spread / np.sqrt(seeds)  # the mean of n normal values is normal
    return Luck(arms, seeds, spread, float(best.mean()), float(np.quantile(best, 0.95)))
