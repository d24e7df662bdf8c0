"""The verdict on made-up cells: what is chosen inside the labels, and the two sentences, against scipy's t test."""

import re
from itertools import product

import numpy as np
import pytest
from scipy.stats import t

from lit_vision.evaluation.paired_intervals import interval_over_images
from lit_vision.results.schema import make_cell
from lit_vision.study.report_content import recommendation, second_choice
from lit_vision.study.verdict import choose, choose_frozen, contender, sentence, verdicts

PUBLIC = "timm:lite0"


def _cell(init: str, protocol: str, values, labels: int = 80, **more):
    return make_cell(init, protocol, labels, values, **more)


def _cells(chosen, baseline) -> list[dict]:
    """MAE is the best on the test split, but inside the labels the public weights are."""
    n = len(chosen)
    return [
        _cell("pixels", "logreg", [0.1] * n, held_out_values=[0.2] * n, seconds=1.0 * n),
        _cell("scratch-cnn", "finetune", baseline, judged_values=[0.25] * n),
        _cell(PUBLIC, "linear", chosen, held_out_values=[0.5] * n, judged_values=[0.5] * n, seconds=60.0 * n),
        _cell("mae", "linear", [0.9] * n, held_out_values=[0.4] * n),
        _cell("mae", "finetune", [0.99] * n, judged_values=[0.3] * n, pretrain_seconds=600.0),
    ]


def test_choice__never_reads_the_test_split() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cells = _cells([0.5] * 3, [0.4] * 3)
        for cell in cells:
            cell["values"] = rng.random(3).tolist()
        assert contender(choose(cells).cell) == f"{PUBLIC} + linear"


@pytest.mark.parametrize(("gap", "spread", "winner"), [(0.03, 0.02, "lite0 + fine"), (0.01, 0.04, "lite0 + lin")])
def test_choice__within_one_standard_error_the_cheaper_wins(gap: float, spread: float, winner: str) -> None:
    """The trained contender leads by `gap` with a sd of the paired differences of `spread` over four seeds."""
    noise = spread / np.std([-1, 1, -1, 1], ddof=1) * np.array([-1, 1, -1, 1])
    base = np.array([0.5, 0.7, 0.6, 0.4])  # the seeds differ by more, but in pairs that does not count
    frozen = _cell(PUBLIC, "linear", [0.5] * 4, held_out_values=base.tolist(), judged_values=base.tolist())
    tuned = _cell(PUBLIC, "finetune", [0.5] * 4, judged_values=(base + gap + noise).tolist(), seconds=0.0)
    assert (gap > spread / 2) == ("fine" in winner)
    assert winner in contender(choose([tuned, frozen]).cell)
    for cell in (frozen, tuned):  # what took less time in one run does not decide, nor what took fewer multiply-adds
        cell["multiply_adds"] = 1e9 if cell is frozen else 1.0
    assert winner in contender(choose([tuned, frozen]).cell)


def test_choice__of_equals_of_a_kind_has_the_fewest_multiply_adds() -> None:
    sizes = {"timm:large": 4e9, "timm:small": 6e7, "timm:middle": 4e8}
    cells = [_cell(name, "linear", [0.5] * 3, held_out_values=[0.5] * 3, multiply_adds=m) for name, m in sizes.items()]
    assert choose(cells).cell["init"] == "timm:small"
    cells.append(_cell("mae", "linear", [0.5] * 3, held_out_values=[0.5] * 3, multiply_adds=1.0))
    assert choose(cells).cell["init"] == "timm:small"  # pre-training here costs more than reading a file


def test_choice__frozen_ones_by_k_folds_and_then_against_trained_ones_by_the_judge() -> None:
    cells = _cells([0.5] * 3, [0.4] * 3)
    assert choose_frozen(cells)["init"] == PUBLIC
    cells[4]["judged_values"] = [0.9, 0.9, 0.9]
    choice = choose(cells)
    assert contender(choice.cell) == "mae + finetune"
    assert "one half" in choice.chosen_on
    cells[1]["judged_values"] = [0.95] * 3  # from scratch may be chosen too
    assert choose(cells).cell["init"] == "scratch-cnn"


def test_choice__without_a_judge_the_recipe_is_fixed() -> None:
    """As in the committed tables: only the mean held-out accuracy of the probes is stored."""
    cells = [
        _cell("scratch-cnn", "finetune", [0.4] * 3),
        _cell("simclr", "linear", [0.3] * 3, held_out=0.5),
        _cell("simclr", "finetune", [0.5, 0.52, 0.51]),
        _cell("mae", "linear", [0.9] * 3, held_out=0.1),
        _cell("mae", "finetune", [0.99] * 3),
    ]
    (verdict,) = verdicts(cells, 1000)
    assert contender(verdict.best) == "simclr + finetune"
    cells[2] = _cell("simclr", "finetune", [0.5])  # hardly trained: the probe stands for it, whatever its accuracy
    (verdict,) = verdicts(cells, 1000)
    assert contender(verdict.best) == "simclr + linear"
    assert sentence(verdict).startswith("With 80 labels: scratch-cnn + finetune is better than simclr + linear by 10.0")
    few = [_cell("pixels", "knn", [0.5] * 3), _cell("mae", "knn", [0.4] * 3), _cell(PUBLIC, "knn", [0.3] * 3)]
    assert choose(few).cell["init"] == PUBLIC  # one label a class: nothing to hold out


def _brute_force(a, b) -> tuple[float, float]:
    differences = [x - y for x, y in zip(a, b)]
    n, mean = len(a), sum(differences) / len(a)
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = t.ppf(0.975, n - 1) * (variance / n) ** 0.5
    return 100 * max(-1.0, mean - half), 100 * min(1.0, mean + half)


@pytest.mark.parametrize(("seeds", "gap"), product([2, 3, 5, 10], [-0.3, -0.05, -0.01, 0.0, 0.02, 0.1]))
def test_sentence__is_one_of_two_and_follows_from_the_t_interval(seeds: int, gap: float) -> None:
    rng = np.random.default_rng(round(1000 * gap) % 97 + seeds)
    baseline = rng.uniform(0.4, 0.6, seeds)
    chosen = baseline + gap + rng.normal(0, 0.02, seeds)
    (verdict,) = verdicts(_cells(chosen, baseline), 1000)
    low, high = _brute_force(chosen, baseline)
    text = sentence(verdict).removeprefix("With 80 labels: ")
    names = [f"{PUBLIC} + linear", "scratch-cnn + finetune"]
    number = r"(\d+\.\d+)"
    if low > 0 or high < 0:
        names = names if low > 0 else names[::-1]
        pattern = (
            rf"{re.escape(names[0])} is better than {re.escape(names[1])} by {number} points "
            rf"\(95 % interval {number} to {number}, {seeds} seeds\)\."
        )
        found = [float(value) for value in re.fullmatch(pattern, text).groups()]
        ends = sorted([abs(low), abs(high)])
        assert found == pytest.approx([abs(100 * np.mean(chosen - baseline)), *ends], abs=0.0501)
    else:
        pattern = rf"{re.escape(names[0])} and {re.escape(names[1])} differ by less than {number} points "
        (bound,) = re.fullmatch(rf"{pattern}\(95 %, {seeds} seeds\)\.", text).groups()
        assert 0 <= float(bound) - max(-low, high) < 0.1 + 1e-9


def test_sentence__of_seeds_that_all_give_the_same_is_over_the_test_images() -> None:
    (certain,) = verdicts(_cells([1 / 3] * 5, [0.0] * 5), 3)  # of three images one tells nothing
    assert sentence(certain).endswith("(95 %, the same in all seeds, over 3 test images).")
    assert certain.winner is None
    assert certain.interval.bound > 0.5
    (many,) = verdicts(_cells([0.9] * 5, [0.8] * 5), 1000)
    assert many.interval == interval_over_images(0.9, 0.8, 1000)
    assert "is better than scratch-cnn + finetune by 10.0 points" in sentence(many)


def test_sentence__never_says_less_than_nothing_nor_from_zero() -> None:
    equal = verdicts(_cells([0.8, 0.9, 0.7], [0.8, 0.9, 0.70003]), 100_000)
    assert "differ by less than 0.1 points" in sentence(equal[0])
    close = verdicts(_cells([0.5, 0.5, 0.5005], [0.4999, 0.4999, 0.4999]), 1000)
    close_text = sentence(close[0])
    assert "interval 0.0 " not in close_text


def test_verdict__the_other_side_is_the_best_on_the_test_split_to_its_advantage() -> None:
    cells = _cells([0.5, 0.52, 0.51], [0.4, 0.43, 0.41])
    cells.append(_cell("scratch-vit", "finetune", [0.45, 0.44, 0.46]))
    (verdict,) = verdicts(cells, 1000)
    assert verdict.other["init"] == "scratch-vit"
    cells[0]["held_out_values"] = [0.9] * 3  # now a baseline is chosen, and the best with weights is against it
    for cell in cells:
        cell.pop("judged_values", None)
    (verdict,) = verdicts(cells, 1000)
    assert (verdict.best["init"], contender(verdict.other)) == ("pixels", "mae + finetune")
    assert verdict.recommended is verdict.other
    (alone,) = verdicts([_cell("pixels", "knn", [0.5] * 3), _cell("scratch-cnn", "finetune", [0.6] * 3)], 1000)
    assert "differ" in sentence(alone) or "better" in sentence(alone)
    assert verdicts(cells[:1], 1000) == []


def test_verdict__pairs_by_seed() -> None:
    a = _cell(PUBLIC, "linear", [0.5, 0.6, 0.7, 0.8], seeds=[0, 1, 2, 3], held_out_values=[0.5] * 4)
    b = _cell("scratch-cnn", "finetune", [0.75, 0.55, 0.7], seeds=[3, 1, 2])
    (verdict,) = verdicts([a, b], 1000)
    low, high = _brute_force([0.8, 0.6, 0.7], [0.75, 0.55, 0.7])
    assert (100 * verdict.interval.low, 100 * verdict.interval.high) == pytest.approx((low, high))


def test_verdict__is_about_balanced_accuracy_where_the_labels_are_unequal() -> None:
    cells = _cells([0.9, 0.91, 0.92], [0.8, 0.81, 0.83])
    for cell in cells:
        cell["balanced_values"] = [0.5, 0.5, 0.5] if "scratch" in cell["init"] else [0.4, 0.41, 0.42]
    (equal,) = verdicts(cells, 1000, [100, 50])
    assert "lite0 + linear is better" in sentence(equal)
    (unequal,) = verdicts(cells, 1000, [101, 50])
    assert re.search(r"scratch-cnn \+ finetune is better .* by 9\.0 points of balanced accuracy", sentence(unequal))


@pytest.mark.parametrize(("per_class", "init"), [([100, 60], PUBLIC), ([100, 40], "timm:other")])
def test_choice__is_by_the_metric_of_the_verdict(per_class, init) -> None:
    """One init is right more often on the labels, the other on the mean of the classes."""
    shared = {"balanced_values": [0.5] * 3, "judged_values": [0.5] * 3, "judged_balanced_values": [0.5] * 3}
    baseline = _cell("pixels", "logreg", [0.1] * 3, held_out_values=[0.2] * 3, **shared)
    by_accuracy = _cell(PUBLIC, "linear", [0.5] * 3, held_out_values=[0.9, 0.91, 0.92], **shared)
    balanced = _cell("timm:other", "linear", [0.5] * 3, held_out_values=[0.8, 0.81, 0.82], **shared)
    for cell, value in ((baseline, 0.2), (by_accuracy, 0.6), (balanced, 0.7)):
        cell["held_out_balanced_values"] = [value] * 3
    cells = [baseline, by_accuracy, balanced]
    (verdict,) = verdicts(cells, 1000, per_class)
    assert verdict.best["init"] == init
    del baseline["held_out_balanced_values"]  # a cell of an earlier version: what all have decides
    (verdict,) = verdicts(cells, 1000, per_class)
    assert verdict.best["init"] == PUBLIC
    frozen, tuned = by_accuracy, _cell(PUBLIC, "finetune", [0.5] * 3, **shared)
    tuned |= {"judged_values": [0.4] * 3, "judged_balanced_values": [0.6] * 3}
    (verdict,) = verdicts([frozen, tuned], 1000, per_class)
    assert verdict.best["protocol"] == ("linear" if init == PUBLIC else "finetune")


def test_verdict__of_several_labels_is_about_macro_average_precision() -> None:
    cells = [cell | {"metric": "macro AP"} for cell in _cells([0.9, 0.91, 0.92], [0.8, 0.81, 0.83])]
    (verdict,) = verdicts(cells, 1000, [100, 5])
    assert "is better than" in sentence(verdict)
    assert "points of macro AP (95 % interval" in sentence(verdict)
    (one,) = verdicts([cell | {"metric": "macro AP"} for cell in _cells([0.9], [0.8])], 1000, None, [20, 30, 0])
    expected = interval_over_images(0.9, 0.8, 40)  # two classes, of which the rarest has 20 test images
    assert (one.interval.low, one.interval.high) == pytest.approx((expected.low, expected.high))


def test_verdict__few_test_images_are_noted_and_nothing_is_withheld() -> None:
    (few,) = verdicts(_cells([0.51, 0.5, 0.5], [0.4] * 3), 40)
    assert "is better than" in sentence(few)
    assert "40 images" in few.note
    assert "2.5 points" in few.note
    assert verdicts(_cells([0.51, 0.5, 0.5], [0.4] * 3), 100)[0].note == ""


def test_verdict__a_small_class_in_the_test_split_is_noted_where_classes_count_alike() -> None:
    cells = _cells([0.9, 0.88, 0.91], [0.4, 0.41, 0.4])
    for cell in cells:
        cell["balanced_values"] = cell["values"]
    (small,) = verdicts(cells, 1000, [90, 10], [999, 1])
    assert "balanced accuracy" in sentence(small)
    assert small.note.startswith("One test image of the smallest class is 50.0 points")
    assert verdicts(cells, 1000, [90, 10], [950, 50])[0].note == ""
    assert verdicts(cells, 1000, [90, 10, 5], [900, 0, 1])[0].images == 2  # nothing is said of a class without images


def test_verdict__of_one_seed_says_so_and_counts_test_images() -> None:
    (one,) = verdicts(_cells([0.9], [0.5]), 1000)
    assert re.search(r"is better than .* one seed, over 1000 test images\)", sentence(one))
    (few,) = verdicts(_cells([0.9], [0.5]), 10)
    assert re.search(r"differ by less than .* one seed, over 10 test images\)", sentence(few))
    assert few.interval.bound > one.interval.bound


def test_advice_and_second_choice() -> None:
    cells = _cells([0.50, 0.52, 0.51], [0.40, 0.43, 0.41])
    (verdict,) = verdicts(cells, 1000)
    assert recommendation([]) == "There is nothing to compare yet."
    assert recommendation([verdict]) == f"Put a linear probe on {PUBLIC}."
    assert contender(verdict.second) == "pixels + logreg"
    assert re.search(r"pixels \+ logreg, 41\.0 points lower .*; it saves 59", second_choice(verdict))
    more = [cell | {"labels": 800} for cell in cells]
    more[4]["judged_values"] = [0.9] * 3
    both = verdicts([*cells, *more], 1000)
    assert re.search(r"^With 80 labels put a linear probe .*; with 800 labels pre-train mae .*fine-tune it\.$",
                     recommendation(both))  # fmt: skip
    assert contender(both[1].second) == f"{PUBLIC} + linear"
    assert re.search(r"lower on the test split; it saves 9:00", second_choice(both[1]))
