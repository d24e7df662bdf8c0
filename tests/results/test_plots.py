"""Plots: every function writes a readable PNG, hostile names and all, and leaves no global state."""

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from lit_vision.results import plots
from lit_vision.results.plots import Curve, Series
from lit_vision.results.schema import make_cell

NAMES = ["$x_1$ & <b>", "a very long class name that goes on", "_hidden", "\\frac", "not UTF-8: \udce9", "日本"]
RNG = np.random.default_rng(0)
CELLS = [make_cell(s, p, n, [0.1, 0.3]) for s, p in (("mae", "linear"), ("pixels", "knn")) for n in (800, 80)]


def draw(path, name):
    if name == "labels":
        return plots.accuracy_against_labels(path, plots.series_from_cells(CELLS))
    if name == "labels-curve":
        curve = Curve([80, 800, 3000], [0.1, 0.3, 0.4], [0.0, 0.2, 0.3], [0.2, 0.4, 0.6])
        return plots.accuracy_against_labels(path, [Series("$a$", [80, 800], [0.1, 0.3], curve=curve)])
    if name == "labels-empty":
        return plots.accuracy_against_labels(path, [])
    if name == "curves":
        y = RNG.random(1000)
        y[500] = np.nan
        return plots.training_curves(path, [Series("$a$", range(1000), y), Series("b", [1, 2], [3, 4])], log=True)
    if name == "confusion":
        return plots.confusion_heat_map(path, RNG.integers(0, 9, (6, 6)), NAMES)
    if name == "confusion-many":
        return plots.confusion_heat_map(path, np.zeros((50, 50)), [str(i) for i in range(50)])
    if name == "grid":
        images = [RNG.integers(0, 256, s, dtype=np.uint8) for s in ((8, 8, 3), (9, 5), (300, 200, 3))]
        return plots.image_grid(path, images, NAMES[:3], columns=2, title="t")
    return plots.draw_table(path, ["a", "b"], [["$x$", "not run yet"]], title="t", note="n")


KINDS = ["labels", "labels-curve", "labels-empty", "curves", "confusion", "confusion-many", "grid", "table"]


@pytest.mark.parametrize("name", KINDS)
def test_writes_a_png_without_warnings(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = draw(tmp_path / "deep" / f"{name}.png", name)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 80
        assert np.asarray(image.convert("L")).std() > 1  # not a blank sheet


def test_no_figure_stays_open():
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_series_are_sorted_and_baselines_marked():
    mae, pixels = plots.series_from_cells([*CELLS, make_cell("simclr", "knn", 80, [])])
    assert (mae.name, mae.x, mae.baseline) == ("mae, linear", [80, 800], False)
    assert pixels.baseline
    assert mae.y == pytest.approx([0.2, 0.2])


def test_captions_must_match():
    with pytest.raises(ValueError, match="captions"):
        plots.image_grid("x.png", [np.zeros((2, 2))], ["a", "b"])
