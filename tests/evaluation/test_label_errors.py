"""The ranking of doubtful labels against a slow loop, and labels that were changed on purpose."""

import numpy as np
import pytest

from lit_vision.evaluation.label_errors import find_label_errors, rank_labels


def slow_suspects(p, y):
    """Return the rows whose label is preferred by another class and has a tenth of its class's mean confidence."""
    confidence = {j: np.mean([row[j] for row, label in zip(p, y) if label == j]) for j in set(y)}
    return {i for i, row in enumerate(p) if row.argmax() != y[i] and row[y[i]] < 0.1 * confidence[y[i]]}


def test_suspects_and_order_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.5] * 5, 60)
    y = np.where(rng.random(60) < 0.7, p.argmax(1), rng.integers(0, 4, 60))  # no image has label 4
    ranking = rank_labels(p, y)
    suspects = {int(row) for row, wrong in zip(ranking.rows, ranking.suspects) if wrong}
    assert suspects == slow_suspects(p, y.tolist())
    assert 3 < len(suspects) < 30
    for row, given, likely, confidence, own in zip(
        ranking.rows, ranking.given, ranking.likely, ranking.confidence, ranking.self_confidence
    ):
        others = np.delete(p[row], y[row])
        assert (given, confidence) == (y[row], pytest.approx(others.max()))
        assert likely != given
        assert p[row, likely] == others.max()
        assert own == pytest.approx(p[row, y[row]], abs=1e-6)
    assert (np.diff(ranking.self_confidence) >= 0).all()
    first = ranking.first_suspects(3)
    assert first.rows.tolist() == [row for row in ranking.rows if row in suspects][:3]
    assert first.suspects.all()


def test_changed_labels_come_first_and_the_only_image_of_a_class_last() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2, 3], [40, 40, 40, 1])
    features = rng.normal(size=(121, 8)) + 6 * np.eye(8)[truth]
    labels = truth.copy()
    labels[[3, 50, 100]] = [1, 2, 0]
    ranking = find_label_errors(features, labels, 5)
    assert set(ranking.rows[:3].tolist()) == {3, 50, 100}
    assert 0 < ranking.suspects.sum() <= 3
    assert ranking.likely[:3].tolist() == truth[ranking.rows[:3]].tolist()
    assert ranking.rows[-1] == 120
    assert np.isnan(ranking.confidence[-1])
    assert not ranking.suspects[-1]


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="fit together"):
        rank_labels(np.full((2, 2), 0.5), [0, 2])
