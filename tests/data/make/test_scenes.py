"""Scenes: the same bytes from the same seed, masks and boxes that agree, garments that stay in their split."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.cli import main as cli
from lit_vision.data.make.fashion import SPLIT_SIZES, embedded_fashion, stratified_splits
from lit_vision.data.make.scenes import make_scenes
from lit_vision.errors import UserError

SIZES = {"train": 12, "val": 3, "test": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    assert make_scenes(out, SIZES, seed=3) == SIZES
    return out


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_scene_is_a_function_of_seed_split_and_index(made: Path, tmp_path: Path) -> None:
    command = [
        "data",
        "scenes",
        "--out",
        str(tmp_path / "again"),
        "--seed",
        "3",
        "--train",
        "5",
        "--val",
        "3",
        "--test",
        "0",
    ]
    assert cli.main(command) == 0
    first, again = _files(made), _files(tmp_path / "again")
    shared = [k for k in again if k.endswith(".png")]
    assert len(shared) == 3 * 8
    assert all(first[k] == again[k] for k in shared)
    assert first["val/annotations.json"] == again["val/annotations.json"]
    make_scenes(tmp_path / "other", {"train": 1}, seed=4)
    assert _files(tmp_path / "other")["train/images/000000.png"] != first["train/images/000000.png"]


def test_boxes_masks_and_classes_agree(made: Path) -> None:
    from pycocotools import mask as coco_mask

    overlaps = 0
    for split in SIZES:
        note = json.loads((made / split / "annotations.json").read_text())
        for image in note["images"]:
            name = image["file_name"]
            pixels = np.asarray(Image.open(made / split / "images" / name))
            instances = np.asarray(Image.open(made / split / "instances" / name))
            semantic = np.asarray(Image.open(made / split / "semantic" / name))
            assert pixels.shape == (128, 128, 3)
            of_image = [a for a in note["annotations"] if a["image_id"] == image["id"]]
            assert len(of_image) == instances.max()
            assert ((semantic == 0) == (instances == 0)).all()
            covered = np.zeros((128, 128), int)
            for number, a in enumerate(of_image, 1):
                mask = instances == number
                decoded = coco_mask.decode(coco_mask.frPyObjects(a["segmentation"], 128, 128))
                assert (decoded == mask).all()
                assert a["area"] == mask.sum()
                rows, columns = np.nonzero(mask)
                assert a["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert (semantic[mask] == a["category_id"]).all()
                x, y, w, h = a["bbox"]
                covered[y : y + h, x : x + w] += 1
            overlaps += (covered > 1).any()
    assert overlaps > 3


def test_a_garment_stays_in_its_split(made: Path) -> None:
    _, labels = embedded_fashion()
    parts = stratified_splits(labels, SPLIT_SIZES, seed=0)
    for split in SIZES:
        for a in json.loads((made / split / "annotations.json").read_text())["annotations"]:
            assert a["item"] in parts[split]
            assert labels[a["item"]] + 1 == a["category_id"]


def test_a_folder_of_another_kind_is_left_alone(made: Path, tmp_path: Path) -> None:
    before = _files(made)
    assert make_scenes(made, SIZES, seed=3) == SIZES
    with pytest.raises(UserError, match=r"--out .*lit_vision_data.json"):
        make_scenes(made, SIZES, seed=5)
    assert _files(made) == before
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=f"--out {tmp_path}:"):
        make_scenes(tmp_path, SIZES)
    with pytest.raises(UserError, match=r"--out .*mine.txt"):
        make_scenes(tmp_path / "mine.txt", SIZES)
