"""Intervals of paired differences against scipy's t test, and their coverage where the truth is known."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from lit_vision.evaluation.paired_intervals import Interval, interval_over_images, interval_over_seeds, paired_interval


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_interval_over_seeds__is_that_of_a_paired_t_test(seeds: int) -> None:
    a, b = np.random.default_rng(seeds).normal(0.5, 0.02, (2, seeds))
    found, expected = interval_over_seeds(a, b), ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((max(-1, expected.low), min(1, expected.high)))
    assert found.excludes_zero == (ttest_rel(a, b).pvalue < 0.05)
    assert found.bound == pytest.approx(max(abs(found.low), abs(found.high)))


def test_interval_over_seeds__of_one_pair_or_equal_pairs() -> None:
    with pytest.raises(ValueError, match="one pair"):
        interval_over_seeds([0.5], [0.4])
    same = interval_over_seeds([0.5] * 3, [0.5] * 3)
    assert (same.low, same.high, same.excludes_zero) == (0.0, 0.0, False)
    assert interval_over_seeds([0.1, 0.9], [0.9, 0.1]).high == 1.0


@pytest.mark.parametrize(("images", "a", "b"), [(20, 0.95, 0.9), (100, 0.8, 0.7), (1000, 0.5, 0.5)])
def test_interval_over_images__covers_the_true_difference_whatever_the_overlap(images, a, b) -> None:
    """In 2,000 drawn test splits, with models that err together, apart, or independently."""
    rng = np.random.default_rng(0)
    for both in (min(a, b), a * b, max(0.0, a + b - 1)):  # share of images that both models have right
        counts = rng.multinomial(images, np.clip([both, a - both, b - both, 1 - a - b + both], 0, 1), 2000)
        first, second = (counts[:, 0] + counts[:, 1]) / images, (counts[:, 0] + counts[:, 2]) / images
        found = [interval_over_images(x, y, images) for x, y in zip(first, second)]
        covered = np.mean([one.low <= a - b <= one.high for one in found])
        assert covered > 0.935, both  # 0.95 less three standard errors of 2,000 draws


def test_interval_over_images__of_two_models_without_a_mistake_is_not_empty() -> None:
    assert interval_over_images(1.0, 1.0, 10).bound > 0.1
    with pytest.raises(ValueError, match="at least one"):
        interval_over_images(1.0, 1.0, 0)


def test_paired_interval__is_over_the_images_where_the_seeds_do_not_differ() -> None:
    assert paired_interval([0.9, 0.8], [0.5, 0.6], 10) == interval_over_seeds([0.9, 0.8], [0.5, 0.6])
    assert paired_interval([0.75, 0.75], [0.5, 0.5], 10) == interval_over_images(0.75, 0.5, 10)
    with pytest.raises(ValueError, match="seed"):
        paired_interval([], [], 10)


@pytest.mark.parametrize(("bound", "points"), [(0.0, 0.1), (0.01, 1.0), (0.0101, 1.1)])
def test_bound_in_points__is_rounded_up(bound: float, points: float) -> None:
    assert Interval(0.0, -bound, bound, 2).bound_in_points == points
