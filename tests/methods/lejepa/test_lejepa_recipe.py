"""The debug recipe of LeJEPA learns: k-NN on its features is far above chance."""

import csv
from pathlib import Path

import pytest

from lit_vision.cli.main import main

RECIPE = Path(__file__).parents[3] / "experiments" / "debug" / "lejepa.yaml"


@pytest.mark.slow
def test_lejepa__knn_on_the_debug_recipe_is_above_chance(tmp_path) -> None:
    assert main(["data", "fashion", "--out", str(tmp_path / "fashion")]) == 0
    folders = ["--data.root", str(tmp_path / "fashion"), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", str(RECIPE), *folders]) == 0
    with open(tmp_path / "run" / "metrics.csv") as file:
        values = [float(row["val/knn_top1"]) for row in csv.DictReader(file) if row.get("val/knn_top1")]
    assert values[-1] > 0.45  # ten classes: 0.1 by chance; 0.617 with two epochs
