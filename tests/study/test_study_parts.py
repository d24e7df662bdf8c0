"""The parts of a study that train nothing: labels, cells on disk, the plan's arithmetic."""

import re

import numpy as np
import pytest

from lit_vision.errors import UsageError, UserError
from lit_vision.study.cells import (
    CellKey,
    CellResult,
    CellStore,
    Measurement,
    measure_once,
    parse_labels,
    refuse_older_study,
    to_cells,
)
from lit_vision.study.presets import preset_for
from lit_vision.study.schedule import StudyPlan, plan_labels, plan_pretraining


@pytest.mark.parametrize(
    ("text", "counts"),
    [("1%,10%", [80, 800]), ("all", [8000]), ("5-shot", [50]), ("200, 200", [200]), ("0.01%", [10]), ("9999", [8000])],
)
def test_labels__are_counts_never_below_one_a_class_or_above_all(text: str, counts: list[int]) -> None:
    assert parse_labels(text, [800] * 10) == counts
    assert parse_labels("1%,10%", [4] * 12) == [12]  # 1 % of 48 labels rounds to none


@pytest.mark.parametrize("text", ["ten", "0", "-3%", "1%,,", "2-shots"])
def test_labels__a_wrong_item_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="--labels"):
        parse_labels(text, [5, 5])


def test_cell_store__gives_back_only_what_was_made_from_the_same_inputs(tmp_path) -> None:
    store, key = CellStore(tmp_path), CellKey("mae", "linear", 80, 3)
    outcome = CellResult(key, 0.25, 1.5, 10, "fixed recipe", None)
    probabilities = np.array([[0.25, 0.75]], np.float32)
    store.put(outcome, "inputs", probabilities)
    assert store.get(key, "inputs") == outcome
    np.testing.assert_array_equal(store.probabilities(key), probabilities)
    assert store.get(key, "others") is None
    store.put_losses(key, [1.0, 0.5])
    assert CellStore(tmp_path).get(key, "inputs") == outcome
    (tmp_path / f"{key.name}.json").write_text("{")  # a kill in the middle of some other writer
    assert store.get(key, "inputs") is None


def test_measure_once__measures_only_what_is_not_stored_for_these_inputs(tmp_path) -> None:
    store, key, calls = CellStore(tmp_path), CellKey("mae", "finetune", 8, 0), []
    answer = np.array([[0.2, 0.8], [0.6, 0.4]], np.float32)

    def measure() -> Measurement:
        calls.append(1)
        return Measurement(answer, steps=3, seconds=1.5)

    labels = np.array([1, 1])
    first = measure_once(store, key, "inputs", labels, measure)
    assert (first.top1, first.steps, first.seconds, first.chosen_on) == (0.5, 3, 1.5, "fixed recipe")
    assert measure_once(store, key, "inputs", labels, measure) == first
    assert len(calls) == 1
    measure_once(store, key, "other inputs", labels, measure)
    assert len(calls) == 2
    assert store.get(key, "inputs") is None


@pytest.mark.parametrize("name", ["plan.json", "weights/simclr.json", "cells/pixels-knn-8-0.json"])
def test_a_folder_of_an_older_study_is_refused(tmp_path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for text in ("[0.5]", "{"):  # losses, and a damaged file
        path.write_text(text)
        refuse_older_study(tmp_path)
    path.write_text('{"schema": 2}')
    refuse_older_study(tmp_path)
    path.write_text('{"inputs": "0"}')
    with pytest.raises(UserError, match="--run_dir") as error:
        refuse_older_study(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_cells__hold_one_value_per_seed_in_order() -> None:
    outcomes = [CellResult(CellKey("pixels", "knn", 10, seed), seed / 10, 1.0, 0, "fixed", None) for seed in (2, 0, 1)]
    (cell,) = to_cells(outcomes, {})
    assert cell["values"] == [0.0, 0.1, 0.2]
    assert cell["seeds"] == [0, 1, 2]
    assert cell["mean"] == pytest.approx(0.1)


class _Cost:
    """One second a step, nothing else."""

    setup, step = 0.0, 1.0

    def seconds(self, epochs: float, steps: int) -> float:
        return epochs * steps

    def epochs(self, seconds: float, steps: int) -> int:
        return max(1, int(seconds / steps))


def test_plan__spends_its_seconds_and_gives_scratch_its_factor() -> None:
    plan = StudyPlan([80, 800], {80: 5, 800: 3})
    costs = {(net, count): _Cost() for net in ("cnn", "vit") for count in (80, 800)}
    preset = preset_for(32)
    plan_labels(plan, costs, preset, ["mae", "simclr"], seconds=50_000)
    per_epoch = {80: 2, 800: 13}
    spent = sum(
        plan.seeds[n] * 2 * (plan.tune[n] + plan.scratch[n]) * per_epoch[n] for n in plan.labels
    )  # two networks, each from weights and from scratch
    assert spent == pytest.approx(50_000, rel=0.05)
    assert plan.scratch[80] == pytest.approx(preset.scratch_factor * plan.tune[80], abs=preset.scratch_factor)


def test_plan__pretraining_shares_its_time(tmp_path) -> None:
    class Few:
        pool = np.zeros((512, 1))

    plan = StudyPlan([80], {80: 1})
    plan_pretraining(plan, {"mae": _Cost(), "simclr": _Cost()}, Few(), preset_for(32), seconds=1000)
    assert sum(plan.pretrain.values()) * 2 == pytest.approx(1000, rel=0.02)
    plan.save(tmp_path / "plan.json", "here")
    assert StudyPlan.load(tmp_path / "plan.json", "here") == plan
    assert StudyPlan.load(tmp_path / "plan.json", "elsewhere") is None


def test_plan__too_short_a_budget_costs_seeds_of_the_costly_networks_first() -> None:
    costs = {(net, count): _Cost() for net in ("cnn", "vit") for count in (80, 800)}
    whole = 5 * 2 * (1 + 4) * (20 + 39)  # seeds, networks, tuned and scratch, fewest steps at 80 and 800
    some, half, little = (StudyPlan([80, 800], {80: 5, 800: 5}) for _ in range(3))
    plan_labels(some, costs, preset_for(32), ["mae", "simclr"], seconds=0.7 * whole)
    assert some.max_seeds == {"scratch-vit": 1, "mae": 1}
    assert some.seeds == {80: 5, 800: 5}
    plan_labels(half, costs, preset_for(32), ["mae", "simclr"], seconds=0.5 * whole)
    assert half.max_seeds == {"scratch-vit": 0, "mae": 0}
    assert half.seeds == {80: 5, 800: 5}
    plan_labels(little, costs, preset_for(32), ["mae", "simclr"], seconds=1)
    assert (little.seeds, little.trained_seeds) == (
        {80: 5, 800: 5},
        {80: 1, 800: 1},
    )  # what trains nothing keeps its seeds
    assert little.omitted == ["no training of scratch-vit, mae on labels", "one training of a kind on labels"]


def test_plan__a_pretraining_without_time_for_an_epoch_sees_some_of_the_images() -> None:
    class Many:
        pool = np.zeros((256 * 100, 1))

    plan = StudyPlan([80], {80: 1})
    plan_pretraining(plan, {"simclr": _Cost()}, Many(), preset_for(32), seconds=30)
    assert (plan.pretrain, plan.pretrain_images) == ({"simclr": 1}, {"simclr": 256 * 30})
    assert re.search(r"\b7680\b.*\b25600\b", plan.omitted[0])
