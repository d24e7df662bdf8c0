"""The tables on frozen features: what they change, measure and read off curves."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import table_active
import table_label_errors
import table_label_law
from frozen_sets import FrozenSet

from lit_vision.evaluation.labels_saved import labels_saved


def test_labels_are_changed_to_another_or_to_the_nearest_class() -> None:
    labels = np.repeat([0, 1, 2], 20)
    features = np.array([0.0, 1.0, 5.0])[labels][:, None] + 0.01 * np.arange(60)[:, None]
    for kind in table_label_errors.KINDS:
        changed = table_label_errors.change_labels(features, labels, 0.1, kind, seed=3)
        rows = np.flatnonzero(changed != labels)
        assert len(rows) == 6
        assert set(changed) <= {0, 1, 2}
        if kind == "similar":
            assert (changed[rows] == np.array([1, 0, 1])[labels[rows]]).all()


def test_ridge_is_least_squares_with_a_penalty() -> None:
    rng = np.random.default_rng(0)
    x, y, queries = rng.normal(size=(12, 30)), np.arange(12) % 3, rng.normal(size=(5, 30))
    centered, targets = x - x.mean(0), np.eye(3)[y]
    penalty = table_active.STRENGTH * (centered**2).sum()
    weight = np.linalg.solve(centered.T @ centered + penalty * np.eye(30), centered.T @ (targets - targets.mean(0)))
    scores = np.maximum((queries - x.mean(0)) @ weight + targets.mean(0), 1e-6)
    expected = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(table_active.ridge(x, y, queries, 3), expected, atol=1e-5)


def test_labels_saved_are_read_off_the_curve_of_random() -> None:
    counts = [10, 20, 40, 80]
    random = np.tile([0.2, 0.4, 0.6, 0.8], (6, 1))
    ahead = np.tile([0.4, 0.6, 0.7, 0.8], (6, 1))  # what random has at 20, 40, sqrt(40 * 80) and 80 labels
    found = np.array(labels_saved(counts, random, ahead))
    np.testing.assert_allclose(found, np.array([10, 20, np.sqrt(3200) - 40, 0])[:, None] * np.ones(3), atol=1e-6)
    assert table_active.numbers_of_labels(400) == [6, 12, 25, 50, 100, 200]


def test_a_toy_set_runs_through_the_measurements() -> None:
    rng = np.random.default_rng(1)
    labels, test_labels = np.arange(100) % 3, np.arange(40) % 3
    features = [
        (rng.normal(size=(len(one), 6)) + 3 * np.eye(6)[one]).astype(np.float32) for one in (labels, test_labels)
    ]
    images = FrozenSet(features[0], labels, features[1], test_labels, ["a", "b", "c"], "")
    assert table_active.accuracies(images, "typical-then-margin", 0)[-1] > 0.9
    assert table_label_errors.measure(images, 0.05, "uniform", 0)["first_precision"] >= 0.8
    counts = table_label_law.numbers_of_labels(images)
    cells = [
        {"labels": count, "values": [table_label_law.accuracy(images, "knn", count, seed) for seed in range(2)]}
        for count in counts
    ]
    rows = table_label_law.forecasts(cells)
    assert [row["factor"] for row in rows] == pytest.approx([count / counts[3] for count in counts[4:]])
    true, mean, low, high = rows[0]["error"]
    assert true == pytest.approx(100 * (1 - np.mean(cells[4]["values"])))
    assert low < mean < high
