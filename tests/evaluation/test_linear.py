"""The linear probe against scikit-learn on the plain problem, and its rules for choosing a strength."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from lit_vision.errors import UserError
from lit_vision.evaluation.folds import stratified_folds
from lit_vision.evaluation.linear import cross_validated_probabilities, logistic_regression


def blobs(n, d, classes, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, d))
    y = np.arange(n) % classes
    return (3 + centers[y] + spread * rng.normal(size=(n, d))).astype(np.float32), y


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 10, 3), (30, 80, 3), (40, 12, 2), (24, 60, 2)])
@pytest.mark.parametrize("scale", ["all", "each"])
def test_one_strength_equals_scikit_learn_without_the_rotation(n, d, classes, scale):
    (x, y), (z, _) = blobs(n, d, classes), blobs(50, d, classes, seed=1)
    probe = logistic_regression(x, y, z, strengths=[0.3], scale=scale)
    divisor = x.std(0) if scale == "each" else np.sqrt(x.var(0).mean())
    c = (2 if classes == 2 else 1) / (0.3 * n)
    reference = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(((x - x.mean(0)) / divisor).astype(float), y)
    expected = reference.predict_proba((z - x.mean(0)) / divisor)
    np.testing.assert_allclose(probe.probabilities, expected, atol=2e-3)
    np.testing.assert_allclose(softmax(z @ probe.weight.T + probe.bias, axis=1), probe.probabilities, atol=1e-6)
    assert probe.converged
    assert probe.chosen_on == "fixed recipe"


def test_two_classes_mean_the_same_strength_as_many():
    # the gradient of mean cross-entropy + strength / 2 * squares, in softmax form, is zero at the answer
    x, y = blobs(40, 5, 2)
    probe = logistic_regression(x, y, x, strengths=[0.5])
    hot = np.eye(2)[y]
    scaled = (x - x.mean(0)) / np.sqrt(x.var(0).mean())
    weight = probe.weight * np.sqrt(x.var(0).mean())
    gradient = (probe.probabilities - hot).T @ scaled / len(x) + 0.5 * weight
    np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_cross_validation_chooses_and_is_a_function_of_its_arguments():
    (x, y), (z, truth) = blobs(60, 100, 3, spread=3.0), blobs(300, 100, 3, seed=1, spread=3.0)
    first, second = logistic_regression(x, y, z), logistic_regression(x, y, z)
    assert np.array_equal(first.probabilities, second.probabilities)
    assert first.chosen_on == "5-fold cross-validation inside the 60 labels"
    assert first.scores[first.strength] == max(first.scores.values())
    assert (first.predictions == truth).mean() > 0.8
    assert all(round(score * 60, 6) == round(score * 60) for score in first.scores.values())  # each label held out once


def test_strong_noise_gets_a_stronger_penalty_than_clean_separable_data():
    x, y = blobs(200, 30, 2, spread=8.0)
    assert logistic_regression(x, y, x).strength >= 0.1
    assert logistic_regression(*blobs(200, 30, 2, spread=0.3), x).scores[0.001] == 1.0


def test_one_label_per_class_has_a_fixed_strength():
    x, y = blobs(4, 20, 4)
    probe = logistic_regression(x, y, x)
    assert probe.strength == 1.0
    assert probe.scores == {}
    assert "one label per class" in probe.chosen_on
    assert (probe.predictions == y).all()


def test_few_per_class_have_fewer_folds():
    x, y = blobs(8, 20, 4)
    assert logistic_regression(x, y, x).chosen_on.startswith("2-fold")
    y = np.array([0, 0, 0, 1, 1, 2, 3, 0])  # classes of one stay in training
    fold = stratified_folds(y, 5)
    assert (fold[5:7] == -1).all()
    for f in range(fold.max() + 1):
        assert set(y[fold != f]) == {0, 1, 2, 3}


def test_folds_are_even_and_stratified():
    y = np.repeat(np.arange(10), 8)
    fold = stratified_folds(y, 5, seed=3)
    assert set(np.bincount(fold)) == {16}
    assert all(np.ptp(np.bincount(fold[y == c], minlength=5)) <= 1 for c in range(10))


def test_classes_without_training_samples_get_zero():
    x, y = blobs(30, 5, 3)
    probe = logistic_regression(x, np.array([0, 2, 5])[y], x, 7)
    assert probe.probabilities.shape == (30, 7)
    assert probe.probabilities[:, [1, 3, 4, 6]].max() == 0
    assert probe.probabilities.sum(1) == pytest.approx(np.ones(30))
    assert not np.isnan(probe.probabilities).any()


def test_validation_split_chooses_when_given():
    (x, y), (v, w) = blobs(60, 20, 3), blobs(30, 20, 3, seed=2)
    probe = logistic_regression(x, y, v, validation=(v, w))
    assert probe.chosen_on == "validation split of 30"
    best = {s: (logistic_regression(x, y, v, strengths=[s]).predictions == w).mean() for s in probe.scores}
    assert best[probe.strength] == pytest.approx(max(best.values()), abs=1 / 30)


def test_constant_dimensions_do_no_harm():
    x, y = blobs(30, 6, 3)
    x = np.concatenate([x, np.full((30, 3), 255.0, np.float32)], axis=1)
    for scale in ("all", "each"):
        assert (logistic_regression(x, y, x, scale=scale).predictions == y).mean() > 0.9


def test_bad_input_is_refused():
    x, y = blobs(10, 4, 2)
    with pytest.raises(UserError, match="two classes"):
        logistic_regression(x, np.zeros(10), x)
    with pytest.raises(UserError, match="unlabeled"):
        logistic_regression(x, y - 1, x)
    with pytest.raises(UserError, match="wide"):
        logistic_regression(x, y, x[:, :3])
    with pytest.raises(ValueError, match="scale"):
        logistic_regression(x, y, x, scale="none")


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    """With 80 labels a rounding of 1e-7 was enough to choose another strength, and to move a baseline by 1.3 points."""
    rng = np.random.default_rng(0)
    x, y, queries = rng.normal(size=(80, 784)), np.arange(80) % 10, rng.normal(size=(50, 784))
    probes = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            probes.append(logistic_regression(x, y, queries, num_classes=10))
    assert np.array_equal(probes[0].weight, probes[1].weight)
    assert probes[0].strength == probes[1].strength


@pytest.mark.parametrize("strength", [None, 0.3])
def test_out_of_fold_probabilities_are_those_of_probes_without_the_fold(strength):
    x, y = blobs(31, 40, 3, spread=3.0)
    y[30] = 3  # the only one of its class
    probabilities = cross_validated_probabilities(x, y, 5, strength=strength, folds=4, seed=2)
    used = strength or logistic_regression(x, y, x, folds=4, seed=2).strength
    fold = stratified_folds(y, 4, 2)
    for f in range(4):
        rest = fold != f
        expected = logistic_regression(x[rest], y[rest], x[~rest], 5, strengths=[used]).probabilities
        np.testing.assert_allclose(probabilities[~rest], expected, atol=1e-6)
    assert np.isnan(probabilities[30]).all()
    assert (probabilities[:30, 4] == 0).all()  # a class without a label
    assert np.isnan(cross_validated_probabilities(x[:2], [0, 1])).all()


def test_logistic_regression__groups_are_held_out_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(60) // 6
    labels = groups * 7 % 10 % 3
    features = 0.1 * rng.normal(size=(60, 8)) + rng.normal(size=(10, 8))[groups]  # a group's images look alike
    alike = logistic_regression(features, labels, features)
    apart = logistic_regression(features, labels, features, groups=groups)
    assert max(alike.scores.values()) > 0.95  # neighbors of the same group give the answer away
    assert max(apart.scores.values()) < 0.8
    fold = stratified_folds(labels, 5, 0, groups)
    assert all(len(set(fold[groups == group])) == 1 for group in groups)


def test_logistic_regression__a_class_of_one_group_is_an_error_when_it_is_held_out() -> None:
    features, labels = np.eye(4)[np.arange(24) % 4], np.arange(24) % 4
    groups = np.where(labels == 3, "only", (np.arange(24) // 4).astype(str))
    probe = logistic_regression(features, labels, features, groups=groups)
    assert probe.scores[0.01] == pytest.approx(0.75)
    assert probe.balanced_scores[0.01] == pytest.approx(0.75)
