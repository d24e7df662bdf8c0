"""Space files and the points that follow from them."""

import pytest

from lit_vision.errors import UsageError
from lit_vision.sweep.space import Range, Values, grid_point, grid_size, random_point, read_space, to_arguments

GOOD = """
model.lr: {low: 1e-4, high: 0.1, log: true}
model.depth: {low: 1, high: 6}
model.drop: {low: 0.0, high: 0.3, step: 0.1}
model.optimizer: {values: [sgd, adamw, null, [0.9, 0.95], 1e-3]}
"""
BAD = {
    "": "empty",
    "- a": "no mapping",
    "model.lr: 3": "model.lr",
    "model.lr: {values: []}": "model.lr",
    "model.lr: {values: [1, 1]}": "twice",
    "model.lr: {values: [2026-01-01]}": "model.lr",
    "model.lr: {low: 0, high: 1, log: true}": "logarithm",
    "model.lr: {low: 2, high: 1}": "not below",
    "model.lr: {low: a, high: 1}": "low",
    "model.lr: {low: .nan, high: 1}": "low",
    "model.lr: {low: 1, high: .inf}": "high",
    "model.lr: {low: 0, high: 1, step: 0}": "step",
    "model.lr: {low: 0, high: 1, steps: 2}": "model.lr",
    "model.lr: {low: 1, high: 2, log: yes please}": "log",
    "lr: {values: [1]}": "dots",
    "3: {values: [1]}": "dots",
    "data.seed: {values: [1, 2]}": "--seeds",
    "a: [": "YAML",
}


def read(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path)


def test_a_space_file_is_read_as_recipes_are(tmp_path):
    space = read(tmp_path, GOOD)
    assert space["model.lr"] == Range(1e-4, 0.1, True)
    assert space["model.drop"].all() == [0.0, 0.1, 0.2, 0.3]
    assert space["model.optimizer"] == Values(("sgd", "adamw", None, [0.9, 0.95], 1e-3))
    point = {key: entry.all()[-1] for key, entry in space.items() if key in ("model.drop", "model.optimizer")}
    assert to_arguments(point) == ["--model.drop=0.3", "--model.optimizer=0.001"]


@pytest.mark.parametrize(("text", "named"), BAD.items())
def test_a_wrong_space_file_is_refused_by_file_and_key(tmp_path, text, named):
    with pytest.raises(UsageError, match=r"space\.yaml") as error:
        read(tmp_path, text)
    assert named in str(error.value)


def test_grid_has_each_point_once_in_an_order_of_the_seed(tmp_path):
    space = {"a.b": Values((1, 2, 3)), "a.c": Range(0, 1, step=1)}
    orders = [[tuple(grid_point(space, seed, n).values()) for n in range(grid_size(space))] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [(a, c) for a in (1, 2, 3) for c in (0, 1)]
    with pytest.raises(UsageError, match="step"):
        grid_size({"a.b": Range(0.0, 1.0)})


def test_random_points_follow_from_seed_and_number_and_fill_the_range():
    space = {"a.lr": Range(1e-4, 1e-1, log=True), "a.n": Range(1, 4, log=True), "a.v": Values(("x", "y"))}
    points = [random_point(space, 3, n) for n in range(300)]
    assert points[7] == random_point(space, 3, 7) != random_point(space, 4, 7)
    lr = sorted(point["a.lr"] for point in points)
    assert lr[0] >= 1e-4
    assert lr[-1] <= 1e-1
    assert 0.4 < sum(value < 10**-2.5 for value in lr) / 300 < 0.6  # even on the log scale
    assert {point["a.n"] for point in points} == {1, 2, 3, 4}
    assert all(float(f"{value:.4g}") == value for value in lr)
