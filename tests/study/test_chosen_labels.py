"""Choosing what to label in a study: rows of a slow loop, pairs with random, found again, sentences of the report."""

import re

import numpy as np
import pytest
from scipy.stats import t
from toy_models import write_images

from lit_vision.cli.main import main
from lit_vision.evaluation.acquisition import choose_next
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.evaluation.suggestions import BEST
from lit_vision.results.schema import make_cell, read_result
from lit_vision.study import chosen_labels
from lit_vision.study.chosen_labels import (
    MOST_CHOSEN,
    RANDOM,
    ChosenLabels,
    choose_rounds,
    counts_to_choose,
    note_on_left_out,
    pool_of_seed,
)
from lit_vision.study.chosen_report import chosen_section, chosen_sentences
from lit_vision.study.metrics_of_cells import ACCURACY, BALANCED

COUNTS = [2, 5, 12]


@pytest.fixture
def features(images) -> tuple[np.ndarray, np.ndarray]:
    """Return (48, 8) and (16, 8) features that show the class of the images with noise."""
    rng = np.random.default_rng(1)
    return tuple(
        (2 * np.eye(8)[labels] + rng.normal(size=(len(labels), 8))).astype(np.float32)
        for labels in (images.labels, images.test_labels)
    )


@pytest.mark.parametrize("strategy", ["random", "margin", BEST])
def test_rounds_are_those_of_a_slow_loop_over_bought_labels(images, features, strategy) -> None:
    pool, labels = features[0], images.labels
    part = np.sort(np.random.default_rng([3, 48]).permutation(48)[:38])
    assert pool_of_seed(48, 3).tolist() == part.tolist()
    bought: list[int] = []  # positions in the part
    for count, rows in zip(COUNTS, choose_rounds(strategy, pool, labels, images.classes, COUNTS, 3), strict=True):
        seen = labels[part[bought]] if bought else np.array([])
        p = None
        if len(set(seen.tolist())) == 2:
            p = logistic_regression(pool[part[bought]], seen, pool[part], 2, seed=3).probabilities
        bought += choose_next(strategy, pool[part], bought, count - len(bought), p, seed=3).tolist()
        assert rows.tolist() == part[bought].tolist()


def test_every_strategy_is_paired_with_random_on_the_same_part_and_found_again(images, features, tmp_path) -> None:
    def measure(data_hash: str = "a") -> list[dict]:
        counts = [*COUNTS, 30]
        study = ChosenLabels(
            "toy", "", *features, images, counts, lambda count: 2 if count < 12 else 1, tmp_path, data_hash
        )
        return study.measure(["margin", RANDOM])

    cells = measure()
    assert [(cell["strategy"], cell["labels"], len(cell["values"])) for cell in cells] == [
        (strategy, count, seeds) for strategy in (RANDOM, "margin") for count, seeds in zip(COUNTS, (2, 2, 1))
    ]  # 30 of 38 leave no choice
    for cell in cells:
        for seed, value in zip(cell["seeds"], cell["values"]):
            *_, rows = choose_rounds(
                cell["strategy"],
                features[0],
                images.labels,
                images.classes,
                [c for c in COUNTS if c <= cell["labels"]],
                seed,
            )
            seen = images.labels[rows]
            wanted = np.full(16, seen[0])
            if len(set(seen.tolist())) == 2:
                wanted = logistic_regression(features[0][rows], seen, features[1], 2, seed=seed).predictions
            assert value == (wanted == images.test_labels).mean()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chosen_labels, "suggest", None)
        assert measure() == cells
        with pytest.raises(TypeError):
            measure("b")  # other images


def test_numbers_of_labels_that_leave_no_choice_are_left_out() -> None:
    assert counts_to_choose([10, 40, 41, 80], 100) == [10, 40]
    assert counts_to_choose([2501], 10**6) == []
    assert MOST_CHOSEN * len(pool_of_seed(10**6, 0)) == 2500
    assert "not measured with 41, 80 labels: a seed chooses from 80 of the 100" in note_on_left_out(
        [10, 40, 41, 80], 100
    )
    assert note_on_left_out([10, 40], 100) == ""


def test_the_report_says_better_worse_or_how_little_with_students_interval() -> None:
    random = [0.5, 0.52, 0.55]
    cells = [make_cell("e", "linear", n, random, strategy=RANDOM, balanced_values=random) for n in (10, 20, 40, 80, 99)]
    for count, gaps in (
        (10, [0.1, 0.12, 0.11]),
        (20, [-0.1, -0.12, -0.11]),
        (40, [0.1, -0.1, 0]),
        (80, [0.0] * 3),
        (99, [0.01] * 3),
    ):
        values = [a + b for a, b in zip(random, gaps)]
        cells.append(make_cell("e", "linear", count, values, strategy="margin", balanced_values=values))
    better, worse, little, same, constant = chosen_sentences(cells, ACCURACY, 200)
    half = t.ppf(0.975, 2) * 0.01 / 3**0.5
    assert "10 labels: chosen by margin, they are better than drawn at random by 11.0 points" in better
    assert f"(95 % interval {100 * (0.11 - half):.1f} to {100 * (0.11 + half):.1f}, 3 seeds)" in better
    assert "worse than drawn at random by 11.0 points" in worse
    assert f"less than {100 * t.ppf(0.975, 2) * 0.1 / 3**0.5 + 0.05:.1f} points" in little
    assert same == "With 80 labels: margin chooses no better and no worse than random."
    assert "over 200 test images" in constant
    few = [float(re.search(r"less than (\S+)", chosen_sentences(cells, BALANCED, 200, n)[4])[1]) for n in (None, 2)]
    assert few[1] > 5 * few[0] > 0  # one image of the smaller class is half of it
    section = chosen_section(cells, ACCURACY, 200)
    assert section.table.rows[0][:4] == ["margin", "10", "52.3 %", "63.3 %"]
    assert section.table.rows[4][5] == "-"  # random has no curve above it


@pytest.mark.slow
def test_a_study_measures_choosing_and_a_replay_repeats_it(tmp_path, capsys) -> None:
    for seed, (split, n) in enumerate((("train", 40), ("test", 12))):
        write_images(tmp_path / "set" / split, n, seed, size=16)
    fixed = [
        "--labels",
        "6,12",
        "--seeds",
        "2",
        "--epochs",
        "6=1,12=1",
        "--inits",
        "scratch-cnn",
        "--pretrained",
        "off",
    ]
    words = ["study", str(tmp_path / "set"), *fixed, "--keep_weights", "0"]
    assert main([*words, "--choose", "auto", "--run_dir", str(tmp_path / "a")]) == 0
    found = read_result(tmp_path / "a/results.json")
    assert {cell["strategy"] for cell in found["chosen"]} == {RANDOM, BEST}
    assert {cell["init"] for cell in found["chosen"]} == {"pixels"}
    assert "## Choosing what to label" in (tmp_path / "a/report.md").read_text()
    assert (
        main([*words, "--choose", BEST, "--run_dir", str(tmp_path / "b"), "--plan", str(tmp_path / "a/plan.jsonl")])
        == 0
    )
    again = read_result(tmp_path / "b/results.json")

    def numbers(result: dict) -> list:
        return [(cell["strategy"], cell["labels"], cell["values"]) for cell in result["chosen"]]

    assert numbers(again) == numbers(found)
    capsys.readouterr()
    assert main([*words, "--choose", "best", "--run_dir", str(tmp_path / "c")]) == 2
    assert "--choose: 'best' is not one of auto" in capsys.readouterr().err
