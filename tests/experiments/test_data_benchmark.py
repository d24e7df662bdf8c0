"""The data section of the benchmark: every pipeline makes two views, crops are compared, photographs may be missing.

No speed is judged here.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from broken_files import picture
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from benchmarks import _photographs, _pipelines, data


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return _photographs.crop_jpegs([Image.fromarray(picture(i, 500, 700)) for i in range(2)], 320, 260, 3)


def test_cut__makes_jpegs_of_the_size_that_repeat_by_seed(photos) -> None:
    again = _photographs.crop_jpegs([Image.fromarray(picture(i, 500, 700)) for i in range(2)], 320, 260, 3)
    assert photos == again
    assert len(set(photos)) == 3


def test_pipelines__end_at_two_views(photos) -> None:
    for name, run in data.pipelines().items():
        made = run(photos[0], 0)
        if "only" not in name:
            assert tuple(made.shape) in ((2, 224, 224, 3), (2, 3, 224, 224)), name
            assert str(made.dtype).endswith("uint8"), name
            assert tuple(_pipelines.as_floats(run)(photos[0], 0).shape) == (1, 2, 3, 224, 224)


def test_rows__rates_ratios_and_psnr(photos) -> None:
    rates = data.take_turns({"a": lambda d, i: sum(range(20_000)), "b": lambda d, i: sum(range(20_000))}, photos, 2)
    assert all(len(rate) == 2 for rate in rates.values())
    assert data._ratio("x", {"a": [4.0, 6.0], "b": [2.0, 2.0]}, "a", "b", 3.0)["value"] == 2.5
    median, low = data._psnr_rows("x", photos, keys=2)
    assert median["value"] >= low["value"] > 30
    assert data.psnr(np.zeros(4, np.uint8), np.zeros(4, np.uint8)) == 99


def test_no_photographs__is_reported_and_gives_no_rows(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(_photographs, "FOLDER", tmp_path)
    assert data.measure(1) == []
    assert "plasma-workspace-wallpapers" in capsys.readouterr().out


def test_chart__is_written(tmp_path) -> None:
    data.chart({"one": {"ours": [3.0, 4.0], "b": [1.0]}, "two": {"ours": [3.0]}}, tmp_path / "deep" / "c.png")
    assert (tmp_path / "deep/c.png").stat().st_size > 1000
