"""Law of the number of labels: how the error falls, how sure that is, and what more labels give.

error = a + b * labels^-c with a >= 0, c > 0. Such laws of learning curves are in Cortes et al. 1993 ("Learning Curves:
Asymptotic Values and Rate of Convergence"), Figueroa et al. 2012 (BMC Medical Informatics and Decision Making 12:8)
and Hestness et al. 2017 (arXiv:1712.00409). Letters: S seeds, n numbers of labels, G laws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lit_vision.evaluation.arrays import to_array

LEVEL = 0.95  # of the intervals
FEWEST_COUNTS = 3  # numbers of labels: as many as the law has parameters

# Fixed on the garments, upright and turned; experiments/table_label_law.py shows the coverage on other sets.
MISFIT = 0.01  # standard deviation of the true curve from a power law, as a share of the error
DRIFT = 0.04  # standard deviation of the rate beyond the measurements: near chance a curve begins flat and then falls
TAILS = 8  # degrees of freedom of Student's t: one measurement far from the law moves it little
USUAL_RATE, RATE_SPREAD = 0.5, 0.6  # of c before anything is measured: median, and standard deviation of its logarithm
SEED_SPREAD = 0.1  # standard deviation over seeds as a share of the error, assumed if there is one seed

# The laws that are tried: share of a in the error at the middle number of labels, c, and that error relative to the
# geometric mean of the measured errors.
_SHARES, _RATES, _LEVELS = np.linspace(0, 0.98, 25), np.geomspace(0.03, 3, 32), np.linspace(0.75, 1.25, 26)
_LEAST_WEIGHT = 1e-3  # of a law that is kept, relative to the best
_NODES = np.array([-1.4652, -0.7916, -0.3661, 0.0, 0.3661, 0.7916, 1.4652])  # normal quantiles: 1/14, 3/14, ..., 13/14


class Estimate(NamedTuple):
    """Median and ends of the 95 % interval, numbers or arrays."""

    median: Any
    low: Any
    high: Any


@dataclass(frozen=True)
class LabelLaw:
    """Power laws that agree with measured errors, each with its probability; their spread is the fit's uncertainty.

    Attributes:
        a: (G,) error with unlimited labels, 0 to 1.
        b: (G,) factor of the power, at least 0.
        c: (G,) rate, above 0.
        weights: (G,) probabilities, sum 1.
        seed_noise: standard deviation of a mean over the seeds, as a share of the error.
        counts: (n,) numbers of labels of the measurements.
        errors: (n,) mean error over the seeds at `counts`.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    weights: np.ndarray
    seed_noise: float
    counts: np.ndarray
    errors: np.ndarray

    def predict(self, labels: Any) -> Estimate:
        """Return the error to be expected with a number of labels, as a mean over as many seeds as the fit had.

        Args:
            labels: a number above 0, or an array of them.

        Returns:
            Median and 95 % interval, fractions 0 to 1 in the shape of `labels`.
        """
        numbers = np.asarray(labels, np.float64)
        found = []
        for number in numbers.ravel():
            noise = np.hypot(np.hypot(self.seed_noise, MISFIT), self._drift(0, number))
            found.append(self._quantiles(self._errors(number), noise * self._errors(number)))
        return Estimate(*(np.clip(column, 0, 1).reshape(numbers.shape)[()] for column in np.transpose(found)))

    def gain(self, labels: float, more: float) -> Estimate:
        """Return by how many percentage points the error falls if `more` labels are added to `labels`.

        Returns:
            Median and 95 % interval in points, for a mean over as many seeds as the fit had.
        """
        before, after = self._errors(labels), self._errors(labels + more)
        seeds, misfit = self.seed_noise * np.hypot(before, after), MISFIT * (before - after)  # both sides are off alike
        noise = np.hypot(np.hypot(seeds, misfit), self._drift(labels, labels + more) * after)
        return Estimate(*(100 * self._quantiles(before - after, noise)))

    def sentence(self, labels: float, more: float) -> str:
        """Return `gain` as words: "about 300 more labels give 3 to 6 points"."""
        _, low, high = self.gain(labels, more)
        start = f"about {more:g} more labels give"
        if high < 1:
            return f"{start} less than 1 point"
        low, high = round(low), round(high)
        if low < 1:
            return f"{start} up to {high} point{'s' * (high > 1)}"
        return f"{start} {low} to {high} points" if low < high else f"{start} {high} point{'s' * (high > 1)}"

    def _errors(self, labels: float) -> np.ndarray:
        return np.asarray(self.a + self.b * labels**-self.c)

    def _drift(self, first: float, last: float) -> float:
        """Return the standard deviation, as a share of the error, that the rate's drift adds from `first` to `last`."""
        return DRIFT * max(0.0, float(np.log(last / max(first, self.counts.max()))))

    def _quantiles(self, values: np.ndarray, deviations: np.ndarray) -> np.ndarray:
        """Return median, lower and upper end (3,) of normal distributions around the laws' values, mixed by weight."""
        points = (values[:, None] + deviations[:, None] * _NODES).ravel()
        order = np.argsort(points, kind="stable")
        below = np.cumsum(np.repeat(self.weights / len(_NODES), len(_NODES))[order])
        places = np.searchsorted(below, [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return np.asarray(points[order][np.minimum(places, len(points) - 1)])


def fit_law(counts: Any, errors: Any) -> LabelLaw:
    """Fit a power law to errors that were measured at several numbers of labels.

    All laws of a fixed grid are weighted by how well they agree with the means over the seeds: Student's t of the
    distance in standard deviations, which come from the spread of the seeds (pooled over the numbers of labels, as a
    share of the error) and from MISFIT; c has a log-normal prior, a and b a flat one. No random number is drawn.

    Args:
        counts: (n,) numbers of labels, above 0, three or more different ones.
        errors: (S, n) errors, 0 to 1; NaN where a seed was not measured.

    Raises:
        ValueError: shapes differ, fewer than three numbers of labels, or one without a measurement.
    """
    counts, errors = to_array(counts).astype(np.float64), np.atleast_2d(to_array(errors).astype(np.float64))
    seeds = (~np.isnan(errors)).sum(0)
    if errors.shape[1:] != counts.shape or len(np.unique(counts)) < FEWEST_COUNTS or not seeds.all():
        raise ValueError(
            f"errors {errors.shape} at {counts.shape} numbers of labels: give at least {FEWEST_COUNTS} different "
            "numbers, each with a measurement"
        )
    mean = np.nanmean(errors, axis=0)
    level = np.maximum(mean, 1e-3)  # where nothing is wrong a share of the error would be no deviation
    spread, several = SEED_SPREAD, seeds > 1
    if several.any():
        spread = float(np.sqrt((np.nanvar(errors[:, several], axis=0, ddof=1) / level[several] ** 2).mean()))
    deviation = level * np.sqrt(spread**2 / seeds + MISFIT**2)

    share, c, height = (axis.ravel() for axis in np.meshgrid(_SHARES, _RATES, _LEVELS, indexing="ij"))
    middle_error, middle = height * np.exp(np.log(level).mean()), np.exp(np.log(counts).mean())
    a = share * middle_error
    b = (middle_error - a) * middle**c
    distance = (a[:, None] + b[:, None] * counts ** -c[:, None] - mean) / deviation  # (G, n)
    log_weight = -(TAILS + 1) / 2 * np.log1p(distance**2 / TAILS).sum(1)
    log_weight -= (np.log(c / USUAL_RATE) / RATE_SPREAD) ** 2 / 2
    weight = np.exp(log_weight - log_weight.max())
    keep = weight > _LEAST_WEIGHT
    weight = weight[keep] / weight[keep].sum()
    return LabelLaw(a[keep], b[keep], c[keep], weight, spread / float(np.sqrt(seeds.min())), counts, mean)
