"""95 % intervals of the difference of two accuracies: over paired seeds, or over the images of one test split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_vision.evaluation.metrics import paired_difference

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Difference a - b of two accuracies with the ends of its 95 % interval, fractions -1 to 1, over `n` seeds."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """True if both ends have the same sign."""
        return self.low > 0 or self.high < 0

    @property
    def bound(self) -> float:
        """The larger of the two ends without its sign: with 95 % confidence the accuracies differ by less."""
        return max(abs(self.low), abs(self.high))

    @property
    def bound_in_points(self) -> float:
        """The bound in points, rounded up to one decimal so that "less than" holds; at least 0.1."""
        return max(0.1, math.ceil(round(1000 * self.bound, 6)) / 10)


def paired_interval(a: Sequence[float], b: Sequence[float], images: int) -> Interval:
    """Return the interval of a - b over paired seeds, or over the test images where the seeds do not differ.

    They do not differ where there is one seed, or every seed has all labels: an interval over them would have no width
    and claim certainty.

    Args:
        a: one accuracy per seed, 0 to 1.
        b: as many, of the same seeds in the same order.
        images: see `interval_over_images`.

    Raises:
        ValueError: different lengths, no seed, or no image.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} values: give one of each seed")
    if len({round(x - y, 9) for x, y in zip(a, b)}) > 1:
        return interval_over_seeds(a, b)
    return interval_over_images(sum(a) / len(a), sum(b) / len(b), images)


def interval_over_seeds(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Return Student's t interval of the mean of a - b over paired seeds.

    Args:
        a: one accuracy per seed, 0 to 1, at least two.
        b: as many, of the same seeds in the same order.

    Raises:
        ValueError: different lengths, or fewer than two.
    """
    from scipy.special import stdtrit

    difference = paired_difference(a, b)
    if difference.se is None:
        raise ValueError("one pair has no spread over seeds: use interval_over_images")
    half = float(stdtrit(difference.n - 1, (1 + LEVEL) / 2)) * difference.se
    return _interval(difference.mean, difference.mean - half, difference.mean + half, difference.n)


def interval_over_images(a: float, b: float, images: int) -> Interval:
    """Return an interval of the difference of two accuracies on the same test images, for models of one seed each.

    Wald's interval for matched proportions with half an image added to each of the four counts (Agresti and Min 2005,
    Statistics in Medicine 24, 729-740). Only the two accuracies are known here, not on which images the models
    disagree: the share of such images is taken at its largest, min(a, 1 - b) + min(1 - a, b), so that the interval is
    at least as wide as the one from the images themselves.

    Args:
        a, b: accuracies, 0 to 1.
        images: of the test split. Of balanced accuracies: the number of classes times the images of the smallest, at
            which the interval is again at least as wide.

    Raises:
        ValueError: no image.
    """
    from scipy.special import ndtri

    if images < 1:
        raise ValueError(f"{images} images: an accuracy needs at least one")
    disagree = images * (min(a, 1 - b) + min(1 - a, b)) + 1
    total, mean = images + 2, images * (a - b) / (images + 2)
    half = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(max(0.0, disagree / total - mean**2) / total)
    return _interval(a - b, mean - half, mean + half, 1)


def _interval(mean: float, low: float, high: float, n: int) -> Interval:
    return Interval(mean, max(-1.0, low), min(1.0, high), n)  # no difference of two fractions is larger
