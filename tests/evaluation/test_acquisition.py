"""Choices of what to label next: slow references from the papers, brute-force bounds, and what any strategy keeps."""

import itertools
import math

import numpy as np
import pytest

from lit_vision.errors import UserError
from lit_vision.evaluation import typical_images
from lit_vision.evaluation.acquisition import (
    LABELS_PER_CLASS,
    NEED_PROBABILITIES,
    STRATEGIES,
    THEN_MARGIN,
    badge,
    choose_next,
    entropy,
    k_center,
    margin,
)
from lit_vision.evaluation.typical_images import probcover, probcover_with_counts, typicality, typiclust

NONE = np.array([], np.int64)


def clusters(n: int = 60, d: int = 5, seed: int = 0) -> np.ndarray:
    """Return (n, d) features in four groups of unequal size."""
    rng = np.random.default_rng(seed)
    centers = 4 * rng.normal(size=(4, d))
    return (centers[rng.choice(4, n, p=[0.5, 0.25, 0.15, 0.1])] + rng.normal(size=(n, d))).astype(np.float32)


def normalized(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_new_seeded_and_no_more_than_there_are(strategy: str) -> None:
    x, labeled = clusters(), [3, 8, 8, 50]
    p = np.random.default_rng(1).dirichlet(np.ones(3), 60)
    for probabilities in (None, p):
        chosen = choose_next(strategy, x, labeled, 20, probabilities, seed=4)
        assert len(set(chosen.tolist()) - set(labeled)) == 20
        assert np.array_equal(chosen, choose_next(strategy, x.astype(np.float64), labeled, 20, probabilities, seed=4))
    assert sorted(choose_next(strategy, x, labeled, 100, p).tolist()) == sorted(set(range(60)) - set(labeled))
    assert len(choose_next(strategy, np.ones((9, 2)), [], 4, np.full((9, 2), 0.5))) == 4  # all alike


def test_without_a_classifier_those_that_need_one_choose_as_random_does() -> None:
    for strategy in NEED_PROBABILITIES:
        assert np.array_equal(choose_next(strategy, clusters(), [1], 5), choose_next("random", clusters(), [1], 5))


def test_entropy_and_margin_are_their_definitions_and_choose_the_least_sure() -> None:
    p = np.array([[0.5, 0.5, 0], [1, 0, 0], [0.4, 0.35, 0.25], [0.34, 0.33, 0.33]])
    slow = [-sum(q * math.log(q) for q in row if q) for row in p.tolist()]
    np.testing.assert_allclose(entropy(p), slow, atol=1e-12)
    np.testing.assert_allclose(margin(p), [0, 1, 0.05, 0.01], atol=1e-12)
    x = np.arange(8.0).reshape(4, 2)
    assert choose_next("entropy", x, [], 3, p).tolist() == [3, 2, 0]
    assert choose_next("margin", x, [0], 2, p).tolist() == [3, 2]


def test_badge_equals_k_means_plus_plus_on_the_gradients() -> None:
    x, p = clusters(40), np.random.default_rng(2).dirichlet(np.ones(4), 40)
    a = p - np.eye(4)[p.argmax(1)]
    g = np.einsum("nk,nd->nkd", a, x).reshape(40, -1)
    rng = np.random.default_rng(7)
    chosen = [int(rng.integers(40))]
    while len(chosen) < 12:
        nearest = np.array([min(((one - g[c]) ** 2).sum() for c in chosen) for one in g])
        chosen.append(int(rng.choice(40, p=nearest / nearest.sum())))
    assert badge(x, p, 12, seed=7).tolist() == chosen


def test_k_center_is_greedy_and_its_radius_at_most_twice_the_best() -> None:
    x = clusters(12, 2)

    def radius(chosen: list[int]) -> float:
        return max(min(float(np.linalg.norm(one - x[c])) for c in chosen) for one in x)

    for seed in range(3):
        found = k_center(x, np.array([5]), 3, seed).tolist()
        slow = [5]
        for _ in range(3):
            slow.append(max(range(12), key=lambda i: min(float(np.linalg.norm(x[i] - x[c])) for c in slow)))
        assert found == slow[1:]
        best = min(radius(list(some)) for some in itertools.combinations(range(12), 3))
        assert radius(k_center(x, NONE, 3, seed).tolist()) <= 2 * best + 1e-6


@pytest.mark.parametrize("labeled", [NONE, np.array([2, 9])])
def test_probcover_is_the_papers_loop_and_covers_1_minus_1_over_e_of_the_best(labeled: np.ndarray) -> None:
    x, delta = np.random.default_rng(3).normal(size=(12, 3)), 0.8
    z = normalized(x)
    near = np.linalg.norm(z[:, None] - z, axis=2) < delta
    edges = near.copy()
    for row in labeled:
        edges[:, near[row]] = False  # no edge leads to what is covered
    slow: list[int] = []
    for _ in range(3):
        degrees = np.where(np.isin(np.arange(12), [*labeled, *slow]), -1, edges.sum(1))
        assert degrees.max() > 0
        slow.append(int(degrees.argmax()))
        edges[:, near[slow[-1]]] = False
    found, counts = probcover_with_counts(x, labeled, 3, delta)
    assert probcover(x, labeled, 3, delta).tolist() == found.tolist() == slow
    covered = [near[[*labeled, *slow[:i]]].any(0).sum() for i in range(4)]
    assert counts.tolist() == np.diff(covered).tolist()
    before = near[labeled].any(0)
    gained = [(near[list(some)].any(0) & ~before).sum() for some in itertools.combinations(range(12), 3)]
    assert (near[found].any(0) & ~before).sum() >= (1 - 1 / math.e) * max(gained)


def test_typiclust_is_the_papers_loop_over_clusters() -> None:
    x, labeled = clusters(60), np.array([0, 7])
    z = normalized(x)
    distances = np.linalg.norm(z[:, None] - z, axis=2)
    typical = np.array([1 / (np.sort(np.delete(row, i))[:20].mean() + 1e-5) for i, row in enumerate(distances)])
    np.testing.assert_allclose(typicality(z), typical, rtol=1e-4)
    groups = typical_images._clusters(z, 6, seed=1)
    taken: list[int] = labeled.tolist()
    for _ in range(4):
        usable = [
            c for c in set(groups.tolist()) if (groups == c).sum() > 5 and set(np.flatnonzero(groups == c)) - set(taken)
        ]
        first = min(usable, key=lambda c: (sum(groups[t] == c for t in taken), -(groups == c).sum(), c))
        members = [i for i in np.flatnonzero(groups == first) if i not in taken]
        taken.append(int(max(members, key=lambda i: typical[i])))
    assert typiclust(x, labeled, 4, seed=1).tolist() == taken[2:]


@pytest.mark.parametrize(("strategy", "first"), THEN_MARGIN.items())
def test_a_strategy_changes_over_to_the_margin_where_the_classes_have_their_labels(strategy: str, first: str) -> None:
    x, p = clusters(), np.random.default_rng(1).dirichlet(np.ones(3), 60)
    enough = np.arange(3 * LABELS_PER_CLASS)
    for labeled, as_in in ((enough[:-1], first), (enough, "margin")):
        chosen = choose_next(strategy, x, labeled, 5, p)
        assert np.array_equal(chosen, choose_next(as_in, x, labeled, 5, p))


def test_of_very_many_images_a_sample_with_the_labeled_ones_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typical_images, "LARGEST", 30)
    labeled = np.array([1, 40])
    for strategy in ("probcover", "typiclust"):
        chosen = choose_next(strategy, clusters(), labeled, 10, seed=2)
        assert len(set(chosen.tolist()) - set(labeled.tolist())) == 10
        assert set(chosen.tolist()) <= set(typical_images._sample(60, labeled, 10, 2).tolist())
    assert len(typical_images._sample(60, labeled, 10, 2)) == 30


def test_wrong_arguments_are_refused() -> None:
    x = clusters()
    for arguments in (("best", x, [], 1), ("random", x, [], 0), ("random", x, [60], 1), ("random", x[0], [], 1)):
        with pytest.raises(ValueError, match="must be"):
            choose_next(*arguments)
    with pytest.raises(ValueError, match="differ"):
        choose_next("margin", x, [], 1, np.ones((5, 2)))
    with pytest.raises(UserError, match="1 of 60 rows"):
        choose_next("random", np.where(np.arange(300).reshape(60, 5) == 7, np.nan, x), [], 1)
