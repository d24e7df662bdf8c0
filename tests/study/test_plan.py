"""The plan's arithmetic: units, what fits the time, steps, numbers of labels."""

from itertools import pairwise

import pytest

from lit_vision.study.plan import (
    FEWEST_STEPS,
    FULL_STEPS,
    HALF,
    Cost,
    frozen_counts,
    make_plan,
    make_units,
    order,
)
from lit_vision.study.presets import preset_for

PRESET = preset_for(32)


def _units(inits, *, labels=(80, 800), seconds_per_image=0.01, **more):
    names = order(inits)
    costs = {name: Cost(0.5, seconds_per_image) for name in (*names, *(f"pretrain {name}" for name in names))}
    return make_units(inits, PRESET, labels, dict.fromkeys(labels, 5), ["finetune"], costs, 8000, **more)


def test_units__are_in_the_order_of_their_cost_and_hold_all_seeds() -> None:
    units = _units(["mae", "timm:resnet18"])
    names = ["scratch-cnn", "timm:resnet18", "mae", "scratch-vit"]
    assert list(dict.fromkeys(unit.init for unit in units)) == names
    assert [unit.labels for unit in units if unit.init == "mae"] == [0, 80, 800]  # first its pre-training
    assert {unit.seeds for unit in units if unit.labels} == {5}
    tuned, scratch = (next(u for u in units if u.init == init and u.labels == 80) for init in ("mae", "scratch-cnn"))
    assert (tuned.fewest, tuned.full) == (FEWEST_STEPS, FULL_STEPS)
    assert (scratch.fewest, scratch.full) == (4 * FEWEST_STEPS, 4 * FULL_STEPS)
    limited = _units(["mae"], max_seeds={"scratch-vit": 0, "mae": 2})
    assert {unit.init: unit.seeds for unit in limited if unit.labels} == {"scratch-cnn": 5, "mae": 2}


def test_unit__seconds_and_steps_are_each_others_inverse() -> None:
    unit = next(unit for unit in _units(["timm:resnet18"]) if unit.judged)
    assert unit.seconds(100) == pytest.approx(
        5 * (2 * 0.5 + (1 + HALF) * 100 * 40 * 0.01)
    )  # 80 labels: 2 batches of 40
    for steps in (0, 1, 250, unit.full):
        assert unit.steps(unit.seconds(steps) + 1e-6) == steps
    assert unit.steps(unit.seconds(unit.full) * 2) == unit.full
    assert unit.steps(0) == 0


@pytest.mark.parametrize("seconds", [100, 1_000, 2_500, 5_000, 10_000, 50_000, 500_000])
def test_plan__fits_its_seconds_takes_units_in_order_and_names_the_others(seconds: float) -> None:
    units = _units(["simclr", "mae", "timm:resnet18"])
    plan = make_plan(units, seconds, lambda value: f"{value:.0f} s")
    assert plan.seconds(plan.units) <= seconds + 1e-6
    assert {unit.name for unit in plan.units} | set(plan.not_tried) == {unit.name for unit in units}
    assert all(unit.fewest <= plan.steps[unit.name] <= unit.full for unit in plan.units)
    for unit in units:
        if unit.labels and unit.name in plan.steps and unit.init in ("simclr", "mae"):
            assert f"{unit.init}, pre-training" in plan.steps  # nothing is fine-tuned that was not pre-trained
    cheapest = min(unit.seconds(unit.fewest) for unit in units)
    assert bool(plan.units) == (cheapest <= seconds)
    if any(plan.steps[unit.name] < unit.full for unit in plan.units):  # all time is used
        smallest = max(unit.seconds(unit.fewest) for unit in units)
        assert plan.seconds(plan.units) > 0.95 * seconds - smallest


def test_plan__more_time_never_tries_less() -> None:
    units = _units(["simclr", "mae"])
    tried = [len(make_plan(units, 2.0**power, str).units) for power in range(6, 20)]
    assert all(few <= many for few, many in pairwise(tried))
    assert (tried[0], tried[-1]) == (0, len(units))


def test_plan__what_the_user_has_set_is_kept_whatever_it_costs() -> None:
    units = _units(["simclr"], epochs={"simclr": 3, "80": 2})
    plan = make_plan(units, 1.0, str)
    steps = {unit.name: plan.steps[unit.name] for unit in plan.units}
    per_epoch = 8000 // PRESET.simclr["batch_size"]
    assert steps == {
        "simclr, pre-training": 3 * per_epoch,
        "simclr, finetune, 80 labels": 2 * 2,
        "scratch-cnn, finetune, 80 labels": 2 * 2 * 4,
    }
    assert set(plan.not_tried) == {"scratch-cnn, finetune, 800 labels", "simclr, finetune, 800 labels"}


@pytest.mark.parametrize(
    ("labels", "fewest", "most"),
    [([80, 800], 10, 8000), ([17, 167], 2, 1668), ([500], 12, 500), ([10], 10, 10), ([12], 10, 40), ([5, 6, 7], 2, 9)],
)
def test_frozen_counts__are_at_least_four_where_there_are_as_many(labels, fewest, most) -> None:
    counts = frozen_counts(labels, fewest, most)
    assert set(labels) <= set(counts)
    assert counts == sorted(set(counts))
    low = labels[0] if len(labels) > 1 else max(fewest, labels[-1] // 8)
    assert (min(counts), max(counts)) == (low, labels[-1])
    assert len(counts) >= min(4, labels[-1] - low + 1)
    assert len(counts) <= max(4, len(labels) + 2)
