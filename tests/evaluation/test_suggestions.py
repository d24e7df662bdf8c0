"""Suggestions of what to label: the strategies' rows, with reasons, likely classes and nearest labels of their own."""

import numpy as np
import pytest

from lit_vision.evaluation import suggestions
from lit_vision.evaluation.acquisition import LABELS_PER_CLASS, NEED_PROBABILITIES, STRATEGIES, choose_next, margin
from lit_vision.evaluation.suggestions import AUTO, LAST, fit_probabilities, nearest_labeled, suggest
from lit_vision.evaluation.typical_images import CLOSE_PAIRS, _quantile_of_distances

CLASSES = ["cat", "dog", "emu"]


def groups(n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 6) features in three groups, and the group of each."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    return (5 * np.eye(6)[truth] + rng.normal(size=(n, 6))).astype(np.float32), truth


def partly(truth: np.ndarray, rows: list[int]) -> np.ndarray:
    labels = np.full(len(truth), -1)
    labels[rows] = truth[rows]
    return labels


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_those_of_the_strategy_with_the_classifier_of_the_labels(strategy: str) -> None:
    x, truth = groups()
    labeled = list(range(3 * LABELS_PER_CLASS))
    labels = partly(truth, labeled)
    p = fit_probabilities(x, labels, 3, seed=5)
    found = suggest(strategy, x, labels, CLASSES, 7, excluded=[80, 81], seed=5)
    taken = [*labeled, 80, 81]
    assert [one.row for one in found] == choose_next(strategy, x, taken, 7, p, seed=5).tolist()
    for one in found:
        cosines = [x[one.row] @ x[i] / np.linalg.norm(x[one.row]) / np.linalg.norm(x[i]) for i in labeled]
        assert one.nearest == labeled[int(np.argmax(cosines))]
        assert one.similarity == pytest.approx(max(cosines), abs=1e-5)
        if strategy in NEED_PROBABILITIES:
            (a, first), (b, second) = one.likely
            assert (first, second) == tuple(np.sort(p[one.row])[:-3:-1])
            assert f"{CLASSES[a]} ({first:.0%}) or {CLASSES[b]} ({second:.0%})" in one.reason


def test_auto_covers_first_and_turns_to_the_margin_where_the_classes_have_their_labels() -> None:
    x, truth = groups()
    few, enough = (partly(truth, list(range(n))) for n in (3 * LABELS_PER_CLASS - 1, 3 * LABELS_PER_CLASS))
    assert [one.row for one in suggest(AUTO, x, few, CLASSES, 5)] == choose_next(
        "probcover", x, np.flatnonzero(few >= 0), 5
    ).tolist()
    p = fit_probabilities(x, enough, 3)
    rows = [one.row for one in suggest(AUTO, x, enough, CLASSES, 5)]
    assert sorted(margin(p)[rows]) == sorted(margin(p)[enough < 0])[:5]


def test_the_number_of_images_that_one_stands_for_is_that_of_a_slow_count() -> None:
    x, _ = groups()
    found = suggest("probcover", x, np.full(90, -1), [], 4, seed=3)
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.linalg.norm(z[:, None] - z, axis=2) < _quantile_of_distances(z, CLOSE_PAIRS, 3)
    covered = np.zeros(90, bool)
    for one in found:
        assert one.reason == f"stands for {(near[one.row] & ~covered).sum()} similar images without a label"
        assert (one.likely, one.nearest, one.similarity) == ((), None, None)
        covered |= near[one.row]


def test_without_two_classes_the_model_is_not_asked_and_the_last_images_are_called_so() -> None:
    x, truth = groups()
    one_class = partly(truth, [0, 3])
    for strategy, word in (("margin", "random"), ("random", "random"), ("k-center", "unlike"), ("typiclust", "group")):
        assert all(word in one.reason and not one.likely for one in suggest(strategy, x, one_class, CLASSES, 3))
    rest = suggest("margin", x, partly(truth, list(range(88))), CLASSES, 5, excluded=[88])
    assert [(one.row, one.reason) for one in rest] == [(89, LAST)]
    assert suggest("margin", x, truth, CLASSES, 5) == []


def test_nearest_labels_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = groups()
    whole = nearest_labeled(x, np.arange(90), np.arange(10, 20))
    monkeypatch.setattr(suggestions, "BLOCK", 1)
    for a, b in zip(whole, nearest_labeled(x, np.arange(90), np.arange(10, 20)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
