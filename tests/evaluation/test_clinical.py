"""Clinical measures: against loops, scikit-learn, and a closed form; intervals cover what they should."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from lit_vision.evaluation.clinical import (
    auroc,
    calibration,
    class_weights,
    clinical_report,
    format_clinical_report,
    operating_point,
    threshold_for,
    wilson_interval,
)


def _data(seed: int, n: int = 60, ties: bool = True):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    scores = 1 / (1 + np.exp(-(rng.normal(0, 1, n) + 1.2 * labels - 0.6)))
    return (scores.round(1) if ties else scores), labels.astype(int)


@pytest.mark.parametrize("ties", [True, False])
def test_auroc_is_the_share_of_ordered_pairs_and_delong_its_error(ties: bool) -> None:
    scores, labels = _data(0, ties=ties)
    found, absent = scores[labels == 1], scores[labels == 0]
    pairs = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in absent] for a in found])
    area, low, high = auroc(scores, labels)
    assert area == pytest.approx(pairs.mean(), abs=1e-12)
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    error = math.sqrt(pairs.mean(1).var(ddof=1) / len(found) + pairs.mean(0).var(ddof=1) / len(absent))
    assert high - low == pytest.approx(2 * 1.959963984540054 * error, abs=1e-9)


def test_the_interval_of_the_area_covers_the_truth_at_its_confidence() -> None:
    truth = 0.5 * (1 + math.erf(1.0 / 2))  # two normal distributions one apart: Phi(1 / sqrt 2)
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        labels = np.repeat([1, 0], [40, 60])
        scores = rng.normal(labels.astype(float))
        _, low, high = auroc(scores, labels)
        hits += low <= truth <= high
    assert 0.91 < hits / 400 < 0.98


def test_odd_areas() -> None:
    assert auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == (1.0, 1.0, 1.0)
    assert auroc([0.5] * 4, [0, 1, 0, 1])[0] == 0.5
    assert auroc([0.9, 0.1, 0.2], [0, 1, 1]) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="both classes"):
        auroc([0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        auroc([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="one score and one label"):
        auroc([], [])


def test_wilson_is_where_the_score_test_turns() -> None:
    for hits, n in ((3, 10), (0, 20), (20, 20), (7, 9)):
        low, high = wilson_interval(hits, n)
        for edge in (low, high):
            if 0 < edge < 1:
                assert abs(hits / n - edge) / math.sqrt(edge * (1 - edge) / n) == pytest.approx(
                    1.959963984540054, abs=1e-9
                )
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 20)[0] == 0
    assert 0.1 < wilson_interval(0, 20)[1] < 0.2


def test_the_operating_point_is_a_count() -> None:
    point = operating_point([0.9, 0.6, 0.5, 0.4, 0.2, 0.1], [1, 0, 1, 1, 0, 0], 0.5)
    assert [point[k] for k in ("true_positive", "false_positive", "true_negative", "false_negative")] == [2, 1, 2, 1]
    assert point["sensitivity"]["value"] == point["specificity"]["value"] == pytest.approx(2 / 3)
    assert point["ppv"]["of"] == 3
    assert point["balanced_accuracy"] == pytest.approx(2 / 3)
    nothing = operating_point([0.1, 0.2], [0, 0], 0.5)
    assert nothing["sensitivity"]["value"] is None
    assert nothing["balanced_accuracy"] is None


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.95, 1.0])
def test_a_threshold_reaches_its_sensitivity_and_a_higher_one_does_not(wanted: float) -> None:
    scores, labels = _data(2, 200, ties=False)
    threshold = threshold_for(scores, labels, wanted)
    assert operating_point(scores, labels, threshold)["sensitivity"]["value"] >= wanted
    assert operating_point(scores, labels, np.nextafter(threshold, 2))["sensitivity"]["value"] < wanted


def test_calibration_is_a_loop_over_bins() -> None:
    scores, labels = _data(3, 300)
    found = calibration(scores, labels)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, scores), abs=1e-12)
    error = 0.0
    for b in range(10):
        inside = [i for i, s in enumerate(scores) if min(int(s * 10), 9) == b]
        if inside:
            error += len(inside) / 300 * abs(np.mean(labels[inside]) - np.mean(scores[inside]))
    assert found["ece"] == pytest.approx(error, abs=1e-12)
    assert sum(row["count"] for row in found["bins"]) == 300
    assert calibration([0.0, 1.0, 1.0], [0, 1, 1])["ece"] == 0
    with pytest.raises(ValueError, match="probabilities"):
        calibration([1.2], [1])


def test_class_weights_are_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights([70, 20, 10]) == pytest.approx(expected.tolist())
    with pytest.raises(ValueError, match=r"\[3, 0\]"):
        class_weights([3, 0])


def test_the_report_is_plain_text_and_plain_values() -> None:
    import json

    report = clinical_report(*_data(4), threshold=0.4)
    json.dumps(report)
    text = format_clinical_report(report, "tumour", "healthy")
    assert "AUROC" in text
    assert f"missed {report['operating_point']['false_negative']} tumour" in text
