"""Validation on a part of the training split: nothing is in both, any seed of the run, no recipe uses test data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lit_vision.data import AnnotatedDataModule
from lit_vision.data.make.scenes import make_scenes
from lit_vision.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RECIPES = [p for p in sorted(EXPERIMENTS.rglob("*.yaml")) if "AnnotatedDataModule" in p.read_text()]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    make_scenes(out, {"train": 10, "test": 2})  # no val
    return out


def _module(root: Path, **changes) -> AnnotatedDataModule:
    return AnnotatedDataModule(str(root), **({"img_size": 32, "batch_size": 2, "num_workers": 0} | changes))


def test_what_is_held_out_is_not_trained_on(root: Path) -> None:
    data = _module(root, hold_out=0.3, with_masks=True)
    train, val = (set(data.table(role).paths) for role in ("train", "val"))
    assert len(train) == data.num_train == 7
    assert len(val) == 3
    assert not train & val
    assert train | val == set(_module(root).table("train").paths)
    paths = data.table("val").paths
    content = json.loads((root / "train/annotations.json").read_text())
    number = {f"train/images/{image['file_name']}": image["id"] for image in content["images"]}
    targets = [t for batch in data.val_dataloader() for t in batch["targets"]]
    assert len(targets) == 3
    for path, target in zip(paths, targets):  # its own boxes
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == number[path]]
        np.testing.assert_array_equal(target["original"][:, :2], np.array(boxes)[:, :2])
    assert len(list(data.test_dataloader())) == 1


def test_it_depends_on_the_label_seed_alone(root: Path) -> None:
    def held(**changes) -> list[str]:
        return list(_module(root, hold_out=0.3, **changes).table("val").paths)

    assert held() == held(seed=9) == held(labels=4)
    assert len({tuple(held(label_seed=seed)) for seed in range(5)}) > 1
    part = _module(root, hold_out=0.3, labels=4)
    assert set(part.table("train").paths) <= set(_module(root, hold_out=0.3).table("train").paths)
    assert part.fingerprint == _module(root, hold_out=0.3).fingerprint != _module(root).fingerprint


def test_another_share_is_another_run(root: Path) -> None:
    data = _module(root, hold_out=0.3)
    state = {**data.state_dict(), "samples": 2}
    _module(root, hold_out=0.3).load_state_dict(state)
    for share in (0.0, 0.2):
        with pytest.raises(UserError, match="--resume_anyway"):
            _module(root, hold_out=share).load_state_dict(state)


@pytest.mark.parametrize("share", [-0.1, 1.0, 3, float("nan"), 0.04, 0.96])
def test_shares_that_are_none(root: Path, share: float) -> None:
    with pytest.raises(UserError, match=r"data\.hold_out"):
        _module(root, hold_out=share).setup()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_no_recipe_chooses_its_checkpoint_on_a_test_split(recipe: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    val = None if settings.get("hold_out") else settings.get("val_split", "val")
    assert val != "test"


def test_the_pet_recipe_reads_its_test_list_only_to_test(tmp_path: Path) -> None:
    settings = yaml.safe_load((EXPERIMENTS / "segment/vits16_pet_20ep.yaml").read_text())["data"]["init_args"]
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations/trimaps").mkdir(parents=True)
    for i in range(24):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"images/cat_{i}.jpg")
        Image.fromarray(np.full((20, 30), 1 + i % 3, np.uint8)).save(tmp_path / f"annotations/trimaps/cat_{i}.png")
    names = [f"cat_{i} 1 1 1\n" for i in range(24)]
    (tmp_path / "annotations/trainval.txt").write_text("".join(names[:20]))
    settings |= {"root": str(tmp_path), "num_workers": 0, "batch_size": 4, "img_size": 32}
    data = AnnotatedDataModule(**settings)
    assert torch.stack([b["mask"].unique().max() for b in data.train_dataloader()]).max() == 255
    assert sum(len(b["key"]) for b in data.val_dataloader()) == 2
    with pytest.raises(UserError, match=r"annotations/test\.txt"):
        data.test_dataloader()
    (tmp_path / "annotations/test.txt").write_text("".join(names[20:]))
    assert sum(len(b["key"]) for b in data.test_dataloader()) == 4
