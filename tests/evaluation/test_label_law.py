"""The law of the number of labels: known laws are found, and its intervals hold the truth as often as they say."""

import numpy as np
import pytest

from lit_vision.evaluation.label_law import Estimate, LabelLaw, fit_law

COUNTS = np.array([20, 40, 80, 160])


def exact(a: float, b: float, c: float) -> LabelLaw:
    """Return the law a + b * labels^-c without noise."""
    return LabelLaw(*(np.array([x]) for x in (a, b, c, 1.0)), 0.0, COUNTS, a + b * COUNTS**-c)


def test_gain_and_sentence_of_a_known_law() -> None:
    law = exact(0.1, 2.0, 0.5)  # 0.3 at 100 labels, 0.2 at 400
    assert law.predict(100).median == pytest.approx(0.3)
    assert law.gain(100, 300).median == pytest.approx(10, abs=1e-6)
    assert law.predict(np.array([[100, 400]])).median == pytest.approx(np.array([[0.3, 0.2]]))
    assert law.sentence(100, 300) == "about 300 more labels give 9 to 11 points"  # the rate may drift
    assert exact(0.1, 0.0, 0.5).sentence(100, 300) == "about 300 more labels give less than 1 point"
    assert exact(0.1, 0.2, 0.5).sentence(100, 300) == "about 300 more labels give up to 2 points"


@pytest.mark.parametrize(("a", "b", "c"), [(0.0, 2.0, 0.5), (0.1, 1.5, 0.6), (0.02, 0.8, 0.25)])
def test_errors_without_noise_are_continued(a: float, b: float, c: float) -> None:
    truth = a + b * COUNTS**-c
    law = fit_law(COUNTS, [truth, truth])
    for labels, tolerance in ((320, 0.1), (1280, 0.3)):
        found, true = law.predict(labels), a + b * labels**-c
        assert found.median == pytest.approx(true, rel=tolerance)
        assert found.low < true < found.high
    assert law.weights.sum() == pytest.approx(1)
    assert (law.a >= 0).all()
    assert (law.c > 0).all()


def test_intervals_hold_the_truth_as_often_as_they_say_and_more_seeds_narrow_them() -> None:
    rng = np.random.default_rng(0)
    held, gained, widths = 0, 0, {2: [], 20: []}
    for _ in range(25):
        a, c = rng.uniform(0, 0.1), np.exp(rng.normal(np.log(0.5), 0.4))
        b = (rng.uniform(0.3, 0.6) - a) * 20**c
        measured = {
            labels: (a + b * labels**-c) * (1 + 0.1 * rng.normal(size=20)) for labels in [*COUNTS.tolist(), 480]
        }
        for seeds in widths:
            law = fit_law(COUNTS, np.array([measured[labels][:seeds] for labels in COUNTS]).T)
            found = law.predict(480)
            widths[seeds].append(found.high - found.low)
        true = measured[480].mean()
        held += found.low <= true <= found.high
        gain = law.gain(160, 320)
        gained += gain.low <= 100 * (measured[160].mean() - true) <= gain.high
    assert held >= 23
    assert gained >= 22
    assert np.mean(widths[20]) < 0.9 * np.mean(widths[2])


def test_one_count_far_from_the_law_moves_it_little() -> None:
    counts = np.array([20, 40, 80, 160, 320])
    truth = 2.0 * counts**-0.5
    wrong = truth.copy()
    wrong[2] *= 1.5
    right, robust = (fit_law(counts, [x, x * 1.01]).predict(640).median for x in (truth, wrong))
    slope, level = np.polyfit(np.log(counts), np.log(wrong), 1)
    least_squares = np.exp(level + slope * np.log(640))
    assert abs(robust - right) < 0.6 * abs(least_squares - right)


def test_seeds_that_were_not_measured_are_left_out_and_too_little_is_refused() -> None:
    truth = 2.0 * COUNTS**-0.5
    errors = np.stack([truth, 1.1 * truth, 0.9 * truth])
    errors[2, 3] = np.nan
    law = fit_law(COUNTS, errors)
    assert law.errors[3] == pytest.approx(1.05 * truth[3])
    assert isinstance(law.gain(160, 160), Estimate)
    assert fit_law(COUNTS, np.zeros((2, 4))).sentence(160, 160).endswith("less than 1 point")
    for counts, values in ((COUNTS[:2], errors[:, :2]), (COUNTS, errors[:, :3]), (COUNTS, np.full((1, 4), np.nan))):
        with pytest.raises(ValueError, match="at least 3"):
            fit_law(counts, values)
