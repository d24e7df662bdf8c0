"""Several labels a sample: the probe and the macro average precision against scikit-learn, votes against a loop."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from lit_vision.evaluation.folds import grouped_folds
from lit_vision.evaluation.knn import held_out_votes, weighted_knn
from lit_vision.evaluation.multilabel import label_regressions, macro_average_precision


@pytest.fixture
def samples():
    """Return features (60, 5) and labels (60, 4): the third is rare, of the second some are unknown."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    y = (x @ rng.normal(size=(5, 4)) + rng.normal(size=(60, 4)) > [0, 0.5, 4, -0.5]).astype(np.float32)
    y[[0, 20, 40, 59], 2] = 1
    y[10:20, 1] = np.nan
    return x, y


def test_macro_average_precision__is_the_mean_of_scikit_learns_over_labels_with_positives(samples) -> None:
    x, y = samples
    scores = np.round(x @ np.random.default_rng(1).normal(size=(5, 4)), 0)  # with ties
    known = ~np.isnan(y)
    expected = [average_precision_score(y[known[:, k], k], scores[known[:, k], k]) for k in range(4)]
    assert macro_average_precision(scores, y) == pytest.approx(np.mean(expected))
    y[:, 2] = 0
    assert macro_average_precision(scores, y) == pytest.approx(np.mean([expected[k] for k in (0, 1, 3)]))


@pytest.mark.parametrize("width", [5, 90])
def test_label_regressions__is_one_logistic_regression_a_label(samples, width) -> None:
    x, y = samples
    x = np.hstack([x, np.random.default_rng(2).normal(size=(60, width - 5))])
    probe = label_regressions(x, y, x[:7], strengths=[0.1])
    scaled = (x - x.mean(0)) / np.sqrt(x.var(0).mean())
    for k in range(4):
        known = ~np.isnan(y[:, k])
        model = LogisticRegression(C=1 / (0.1 * known.sum()), tol=1e-8, max_iter=5000).fit(scaled[known], y[known, k])
        np.testing.assert_allclose(probe.probabilities[:, k], model.predict_proba(scaled[:7])[:, 1], atol=2e-3)
    assert probe.converged


def test_label_regressions__strength_has_the_best_macro_average_precision_out_of_fold(samples) -> None:
    x, y = samples
    groups = np.arange(60) // 3
    probe = label_regressions(x, y, x, strengths=[10.0, 0.1], seed=1, groups=groups)
    fold = grouped_folds(y == 1, 5, 1, groups)
    for strength, value in probe.scores.items():
        scores = np.zeros(y.shape)
        for f in range(5):
            rest = fold != f
            mean, divisor = x.mean(0), np.sqrt(x.var(0).mean())
            scaled = (x - mean) / divisor
            for k in range(4):
                known = rest & ~np.isnan(y[:, k])
                model = LogisticRegression(C=1 / (strength * known.sum()), tol=1e-8, max_iter=5000)
                scores[~rest, k] = model.fit(scaled[known], y[known, k]).decision_function(scaled[~rest])
        assert macro_average_precision(scores, y) == pytest.approx(value, abs=0.01)
    assert probe.strength == max(probe.scores, key=probe.scores.get)


def test_label_regressions__a_label_that_none_or_all_have_gets_its_share(samples) -> None:
    x, y = samples
    y[:, 0], y[:, 3] = 0, 1
    probabilities = label_regressions(x, y, x[:2], strengths=[1.0]).probabilities
    np.testing.assert_allclose(probabilities[:, 0], 0.5 / 61, rtol=1e-4)
    np.testing.assert_allclose(probabilities[:, 3], 60.5 / 61, rtol=1e-4)


def test_weighted_knn__several_labels_are_weighted_shares_of_the_known(samples) -> None:
    x, y = samples
    votes = weighted_knn(x, y, x[:3] + 0.1, k=7).numpy()
    bank = x / np.linalg.norm(x, axis=1, keepdims=True)
    for query, row in zip(x[:3] + 0.1, votes):
        similarity = bank @ (query / np.linalg.norm(query))
        near = np.argsort(-similarity)[:7]
        for k in range(4):
            weights = [(np.exp(similarity[i] / 0.1), y[i, k]) for i in near if not np.isnan(y[i, k])]
            expected = sum(w for w, applies in weights if applies) / sum(w for w, _ in weights)
            assert row[k] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    held = held_out_votes(x, y, 4, groups=np.arange(60) // 6)
    assert not np.isnan(held).any()
    torch.testing.assert_close(torch.from_numpy(votes), weighted_knn(x, y, x[:3] + 0.1, k=7))
