"""Accuracy checks of exports: the run's own data settings, and classes by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_annotations import NAMES, write_semantic, write_yolo

from lit_vision.data import ImageFolderDataModule
from lit_vision.errors import UserError
from lit_vision.predict.accuracy import ClassificationCheck, DetectionCheck, SegmentationCheck
from lit_vision.runs.run_dir import data_settings
from lit_vision.weights.model_metadata import ModelMetadata

CONFIG = "seed_everything: 0\ndata: {class_path: lit_vision.data.ImageFolderDataModule, init_args: {root: x, %s}}\n"


def metadata(names: list[str], task: str = "classification") -> ModelMetadata:
    return ModelMetadata(task, 16, [0.5] * 3, [0.25] * 3, class_names=names, outputs=["logits"])


class Bright:
    """Stand-in for a model that knows dark from bright; its class names are in the order of its metadata."""

    def __init__(self, names: list[str]) -> None:
        self.metadata = metadata(names)

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        bright = pixels.mean((1, 2, 3)) > 100
        logits = np.zeros((len(pixels), len(self.metadata.class_names)))
        for row, name in zip(logits, np.where(bright, "day", "night")):
            row[self.metadata.class_names.index(name)] = 1
        return {"logits": logits}


def test_classification__measures_the_runs_split_by_name_without_quarantined_images(tmp_path: Path) -> None:
    for split, wrong in (("learn", 1), ("exam", 1), ("test", 3)):  # images in the other class's folder
        for name, value in (("day", 200), ("night", 20)):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.full((16, 16, 3), 220 - value if i < wrong else value, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.png")
    (tmp_path / "out.txt").write_text("exam/day/0.png\n")
    (tmp_path / "run").mkdir()
    quarantine = f"train_split: learn, test_split: exam, quarantine: {tmp_path / 'out.txt'}"
    (tmp_path / "run/config.yaml").write_text(CONFIG % quarantine)
    settings = data_settings(tmp_path / "run")
    assert settings["root"] == "x"
    for names in (["day", "night"], ["night", "dusk", "day"]):
        model = Bright(names)
        check = ClassificationCheck(str(tmp_path / "set"), model.metadata, lambda image: image, settings, False)
        assert (check.split, check.images) == ("exam", 7)
        assert check.measure(model) == pytest.approx(6 / 7)
        assert ("2 of the model's 3" in check.note) == (len(names) == 3)
        assert sum(1 for _ in check.calibration(3)) == 3
    with pytest.raises(UserError, match=r"--int8 .*night.*classes_by_number"):
        ClassificationCheck(str(tmp_path / "set"), metadata(["day", "dark"]), lambda image: image, settings, False)
    forced = ClassificationCheck(str(tmp_path / "set"), metadata(["day", "dark"]), lambda image: image, settings, True)
    assert "night as dark" in forced.note


def test_classification__of_the_runs_own_root_has_its_table_and_its_drawn_splits(tmp_path: Path, monkeypatch) -> None:
    rows = ["path,label"]
    for i in range(20):
        value, name = (20, "night") if i % 2 else (200, "day")
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(tmp_path / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,{name}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows))
    settings = {"root": str(tmp_path), "label_file": str(table), "test_fraction": 0.2, "label_seed": 3}
    data = ImageFolderDataModule(**settings, img_size=16, num_workers=0, batch_size=4)
    data.setup()
    model = Bright(["night", "day"])
    monkeypatch.chdir(tmp_path.parent)
    check = ClassificationCheck(f"{tmp_path.name}/", model.metadata, lambda image: image, settings, False)
    assert (check.split, check.images) == ("test", 4)
    assert list(check.folder.splits["test"].paths) == list(data.folder.splits["test"].paths)  # nothing trained on
    assert check.measure(model) == 1


def test_data_settings__of_other_data_modules_and_broken_files(tmp_path: Path) -> None:
    assert data_settings(None) == data_settings(tmp_path) == {}
    (tmp_path / "config.yaml").write_text((CONFIG % "a: 1").replace("lit_vision.data", "mine"))
    assert data_settings(tmp_path) == {}
    for broken in ("data: 3", "[", "data: {class_path: lit_vision.data.X, init_args: 4}"):
        (tmp_path / "config.yaml").write_text(broken)
        with pytest.raises(UserError, match=r"config.yaml"):
            data_settings(tmp_path)


def test_boxes__of_yolo_with_classes_in_another_order_become_the_models(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for settings in ({}, {"format": "yolo"}):
        check = DetectionCheck(str(tmp_path), metadata(["dog", "cow", "cat"], "detection"), None, settings, False)
        labels = [t["labels"].tolist() for b in check.data.eval_loader(check.split) for t in b["targets"]]
        assert labels == [[2, 0], [], [0]]
        assert "2 of the model's 3" in check.note
    with pytest.raises(UserError, match=r"dog.*fox"):
        DetectionCheck(str(tmp_path), metadata(["cat", "fox"], "detection"), None, {}, False)
    (tmp_path / "data.yaml").unlink()  # nothing names the numbers: they are the model's
    assert DetectionCheck(str(tmp_path), metadata(NAMES, "detection"), None, {}, False).note == ""


def test_masks__are_found_where_the_run_had_them(tmp_path: Path) -> None:
    write_semantic(tmp_path)
    settings = {"format": "masks", "images": "images", "annotations": "masks", "split_list": "{split}.txt"}
    check = SegmentationCheck(str(tmp_path), metadata(NAMES, "segmentation"), None, settings, False)
    assert (check.split, check.images) == ("train", 3)  # there is no test.txt
    usual = SegmentationCheck(str(tmp_path), metadata(NAMES, "segmentation"), None, {}, False)
    assert (usual.split, usual.images) == ("train", 3)  # images/ and masks/ are found
    (tmp_path / "masks").rename(tmp_path / "else")
    with pytest.raises(UserError, match="format masks"):
        SegmentationCheck(str(tmp_path), metadata(NAMES, "segmentation"), None, {}, False)
