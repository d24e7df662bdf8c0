"""Metrics against scikit-learn, torchmetrics and scipy."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
from scipy import stats
from sklearn import metrics as sk

from lit_vision.evaluation.metrics import (
    classification_report,
    confusion_matrix,
    format_classification_report,
    format_percent,
    mean_sd,
    paired_difference,
    per_class_accuracy,
    top_k_accuracy,
)

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(200, 7)).astype(np.float32)
LABELS = RNG.integers(0, 6, 200)  # class 6 has no sample
MATRIX = confusion_matrix(SCORES.argmax(1), LABELS, 7)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_top_k_equals_torchmetrics_and_scikit_learn(k):
    ours = top_k_accuracy(torch.from_numpy(SCORES), LABELS, k)
    theirs = tm.accuracy(
        torch.from_numpy(SCORES), torch.from_numpy(LABELS), "multiclass", num_classes=7, top_k=k, average="micro"
    )
    assert ours == pytest.approx(float(theirs))
    assert ours == pytest.approx(sk.top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(7)) if k < 7 else 1.0)


def test_collapsed_scores_are_not_rewarded_and_bad_input_is_refused():
    assert top_k_accuracy(np.zeros((4, 4)), [0, 1, 2, 3], 1) == 0.25
    assert top_k_accuracy(np.zeros((2, 3)), [2, 7], 9) == 0.5
    for scores, labels in ((SCORES, LABELS[:5]), (SCORES, LABELS - 1), (SCORES * np.nan, LABELS), (SCORES[:0], [])):
        with pytest.raises(ValueError, match=r"label|NaN"):
            top_k_accuracy(scores, labels)
    with pytest.raises(ValueError, match="outside"):
        confusion_matrix([0, 3], [0, 1], 3)


def test_confusion_and_per_class_equal_scikit_learn():
    assert np.array_equal(MATRIX, sk.confusion_matrix(LABELS, SCORES.argmax(1), labels=range(7)))
    recall = sk.recall_score(LABELS, SCORES.argmax(1), labels=range(6), average=None)
    ours = per_class_accuracy(MATRIX)
    assert ours[:6] == pytest.approx(recall)
    assert math.isnan(ours[6])


def test_report_equals_scikit_learn():
    names = [f"class {i}" for i in range(7)]
    ours = classification_report(MATRIX, names)
    theirs = sk.classification_report(
        LABELS, SCORES.argmax(1), labels=range(7), target_names=names, output_dict=True, zero_division=0
    )
    assert ours["accuracy"] == pytest.approx((SCORES.argmax(1) == LABELS).mean())
    for row, name in [(ours["classes"][n], n) for n in names] + [
        (ours["macro"], "macro avg"),
        (ours["weighted"], "weighted avg"),
    ]:
        assert row == pytest.approx({key.replace("f1-score", "f1"): value for key, value in theirs[name].items()})
    text = format_classification_report(ours, worst_first=True)
    worst = min(names, key=lambda name: ours["classes"][name]["f1"])
    assert text.splitlines()[1].startswith(worst)
    assert f"accuracy {100 * ours['accuracy']:.1f}%" in text
    with pytest.raises(ValueError, match="different class names"):
        classification_report(MATRIX, ["same"] * 7)


def test_mean_and_sd():
    values = RNG.random(9).tolist()
    assert mean_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert mean_sd([0.5]) == (0.5, None)
    assert format_percent(0.6123, 0.0141) == "61.2 ± 1.4 %"
    with pytest.raises(ValueError, match="no values"):
        mean_sd([])


def test_paired_difference_equals_a_paired_t_test():
    a, b = RNG.random(10), RNG.random(10)
    ours = paired_difference(a, b)
    assert ours.errors == pytest.approx(stats.ttest_rel(a, b).statistic)
    assert ours.se == pytest.approx(stats.sem(a - b))
    assert ours.n == 10


def test_what_a_difference_supports():
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    assert paired_difference(0.6 + noise, [0.5] * 5).supports == "a is better"
    assert paired_difference([0.5] * 5, 0.6 + noise).supports == "b is better"
    assert paired_difference(0.5 + noise, [0.5] * 5).supports == "no difference shown"
    assert paired_difference([0.9, 0.8], [0.1, 0.1]).supports == "too few pairs"
    assert paired_difference([0.9], [0.1]).se is None
    assert paired_difference([0.5] * 3, [0.5] * 3).supports == "no difference shown"
    assert paired_difference([0.75] * 3, [0.5] * 3).errors == math.inf
    with pytest.raises(ValueError, match="pairs"):
        paired_difference([1], [1, 2])
