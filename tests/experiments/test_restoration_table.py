"""The table of restoration: what it degrades, its split of photographs, and its verdict."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import restoration_photographs as photographs
import table_restoration as table


def test_restoration_table__no_photograph_on_two_sides() -> None:
    splits = {name: photographs.split_of(name) for name in (*photographs.FILES, *photographs.SHOWN)}
    assert {s: list(splits.values()).count(s) for s in ("train", "val", "test")} == {"train": 23, "val": 3, "test": 17}
    assert {splits[name] for name in photographs.SHOWN} == {"test"}
    pieces = photographs._tiles(np.arange(200 * 300 * 3).reshape(200, 300, 3))
    assert len(pieces) == 6
    assert photographs._center(np.zeros((500, 700, 3))).shape == (320, 448, 3)


@pytest.mark.parametrize("task", table.TASKS)
def test_restoration_table__degrades_as_its_recipe_says(task: str) -> None:
    clean = np.random.default_rng(0).integers(60, 200, (64, 128, 3), dtype=np.uint8)
    picture, holes = table.degraded(task, clean, 3)
    again, _ = table.degraded(task, clean, 3)
    assert np.array_equal(picture, again)
    assert picture.shape == ((32, 64, 3) if task == "x2" else clean.shape)
    if task == "noise 25":
        assert abs((picture.astype(int) - clean).std() - 25) < 1
    if holes is not None:
        assert 0.23 < holes.mean() < 0.36
        assert np.array_equal(picture[~holes], clean[~holes])
    values = table.quality(task, clean, clean)
    assert values["psnr_rgb"] == 100
    recipe = (table.RECIPES / f"{table.TASKS[task]}.yaml").read_text()
    wanted = {"noise 25": "gaussian_noise 25", "JPEG 10": "jpeg 10", "x2": "downsample 2", "holes 25 %": "stroke_holes"}
    assert wanted[task] in recipe


def test_restoration_table__verdict_counts_paired_standard_errors() -> None:
    def cell(*decibels: float) -> dict:
        return {"photographs": {str(n): {"psnr_rgb": v, "ssim_rgb": v / 100} for n, v in enumerate(decibels)}}

    cells = {method: cell(20, 25, 31) for method in table.METHODS["x2"]}
    better = table.verdict("x2", {**cells, "network": cell(21.0, 26.1, 31.9)})
    assert better.count("above every") == 2
    assert "NOT" not in better
    assert "NOT above" in table.verdict("x2", {**cells, "network": cell(20.0, 24.0, 33)})
    assert table.paired({"a": cell(2, 4), "b": cell(1, 1)}, "psnr_rgb", "a", "b") == pytest.approx((2.0, 1.0))
