"""Captions of scenes: by hand, and as the masks of a made folder; the debug recipe trains on them and resumes."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))
import soak

from lit_vision.cli import main as cli
from lit_vision.data.make.fashion import GARMENT_CLASSES
from lit_vision.data.make.scene_captions import scene_captions

RECIPE = Path(__file__).parents[3] / "experiments/debug/image_text.yaml"


@pytest.mark.parametrize(
    ("names", "counts", "order"),
    [
        (("bag", "ankle-boot"), "an ankle boot and a bag", "bag, ankle boot"),
        (("dress", "t-shirt", "dress"), "two dresses and a t-shirt", "dress, t-shirt, dress"),
        (("shirt", "shirt", "shirt"), "three shirts", "shirt, shirt, shirt"),
        (("coat", "bag", "sandal", "coat"), "a bag, two coats and a sandal", "coat, bag, sandal, coat"),
    ],
)
def test_captions_by_hand(names: tuple[str, ...], counts: str, order: str) -> None:
    assert scene_captions(names) == [f"a photo of {counts}", f"from left to right: {order}"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    made = ["data", "scenes", "--captions", "--out", str(out), "--train", "16", "--val", "4", "--test", "0"]
    assert cli.main(made) == 0
    return out


def test_a_made_folder_has_captions_of_its_masks(scenes: Path) -> None:
    with open(scenes / "captions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    paths = [f"{split}/images/{i:06d}.png" for split, n in (("train", 16), ("val", 4)) for i in range(n)]
    assert [row["path"] for row in rows] == [path for path in paths for _ in range(2)]
    for row in rows[1::2]:
        listed = row["caption"].removeprefix("from left to right: ").split(", ")
        semantic = np.array(Image.open(scenes / row["path"].replace("/images/", "/semantic/")))
        seen = {GARMENT_CLASSES[value - 1].replace("-", " ") for value in np.unique(semantic) if value}
        assert {name.replace("-", " ") for name in listed} == seen


@pytest.mark.slow
def test_the_debug_recipe_trains_and_a_killed_run_goes_on_to_the_same_weights(
    scenes: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["data"]["init_args"] |= {"root": str(scenes), "batch_size": 4, "num_workers": 0, "img_size": 32}
    saves = {"class_path": "lit_vision.callbacks.checkpoint.LastCheckpoint", "init_args": {"every_n_steps": 1}}
    recipe["trainer"] |= {"accelerator": "cpu", "callbacks": [saves, {"class_path": "soak.KillAtEvent"}]}
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    fit = ["fit", "--config", "small.yaml"]
    assert cli.main([*fit, "--run_dir", "whole"]) == 0
    assert soak.launch([*fit, "--run_dir", "killed", "--trainer.devices", "1"], Path("fork.log"), "end:6") == -9
    assert cli.main([*fit, "--run_dir", "killed", "--resume", "auto"]) == 0
    killed, whole = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("killed", "whole"))
    soak.assert_same(killed["state_dict"], whole["state_dict"], "weights after a kill")
    assert killed["hyper_parameters"]["tokenizer_json"] == whole["hyper_parameters"]["tokenizer_json"]
    measured = json.loads(Path("killed/results.json").read_text())["metrics"]
    assert measured["val/text_to_image_recall10"] == 1  # four images
