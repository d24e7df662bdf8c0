"""lit-vision doctor on sets with boxes and masks: the readers' own checks, a quarantine list that works, no rings."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_exports import (
    H,
    W,
    class_mask,
    coco_content,
    fiftyone_yolo,
    labelme_voc,
    pictures,
    roboflow_coco,
    roboflow_voc,
    roboflow_yolo,
    write,
    yolo_lines,
)

from lit_vision.cli.doctor import main as doctor
from lit_vision.data import AnnotatedDataModule
from lit_vision.errors import UserError


def _report(root: Path, out: Path) -> dict:
    code = doctor([str(root), "--out", str(out), "--workers", "1"])
    report = json.loads((out / "doctor.json").read_text())
    assert code == (0 if report["fit"] else 1)
    return report


def _fit_set_up(root: Path, report: dict, **more) -> AnnotatedDataModule:
    """Read what a training run reads at set-up, with the settings that doctor names."""
    (settings,) = report["settings"].values()
    data = AnnotatedDataModule(str(root), img_size=64, batch_size=1, num_workers=0, **settings, **more)
    data.table("train"), data.table("val")
    return data


def _failures(report: dict) -> str:
    return "\n".join(f"{f['what']}: {f['files']}" for f in report["findings"] if f["level"] == "FAIL")


def _wide_box(root: Path) -> str:
    write(root / "train/labels/b.txt", "0 .5 .5 2.2 .2\n")
    return "train/images/b.jpg"


def _unknown_class(root: Path) -> str:
    write(root / "train/labels/b.txt", "7 .5 .5 .2 .2\n")
    return "train/images/b.jpg"


def _broken_image_of_yolo(root: Path) -> str:
    (root / "train/images/b.jpg").write_bytes(b"nothing")
    return "train/images/b.jpg"


def _bad_xml(root: Path) -> str:
    write(root / "train/b.xml", "<annotation>")
    return "train/b.jpg"


def _missing_xml(root: Path) -> str:
    (root / "valid/d.xml").unlink()
    return "valid/d.jpg"


def _change_coco(root: Path, split: str, change) -> None:
    file = root / split / "_annotations.coco.json"
    content = json.loads(file.read_text())
    change(content)
    write(file, content)


def _coco_box_outside(root: Path) -> str:
    _change_coco(root, "train", lambda c: c["annotations"][1].update(bbox=[900, 5, 20, 20]))
    return "train/b.jpg"


def _coco_missing_images(root: Path) -> str:
    (root / "valid/d.jpg").unlink()
    return "valid/d.jpg"


def _coco_other_size(root: Path) -> str:
    _change_coco(root, "train", lambda c: c["images"][1].update(width=H, height=W))
    return "train/b.jpg"


def _unknown_value(root: Path) -> str:
    Image.fromarray(class_mask("b") * np.uint8(9)).save(root / "SegmentationClass/b.png")
    return "JPEGImages/b.jpg"


def _no_mask(root: Path) -> str:
    (root / "SegmentationClass/b.png").unlink()
    return "JPEGImages/b.jpg"


@pytest.mark.parametrize(
    ("writer", "spoil"),
    [
        (roboflow_yolo, _wide_box),
        (roboflow_yolo, _unknown_class),
        (roboflow_yolo, _broken_image_of_yolo),
        (roboflow_voc, _bad_xml),
        (roboflow_voc, _missing_xml),
        (roboflow_coco, _coco_box_outside),
        (roboflow_coco, _coco_missing_images),
        (roboflow_coco, _coco_other_size),
        (labelme_voc, _unknown_value),
        (labelme_voc, _no_mask),
    ],
)
def test_what_fit_refuses_fails_and_the_quarantine_list_mends_it(writer, spoil, tmp_path: Path, capsys) -> None:
    root = tmp_path / "set"
    root.mkdir()
    writer(root)
    spoiled = spoil(root)
    report = _report(root, tmp_path / "out")
    assert not report["fit"]
    assert Path(spoiled).stem in _failures(report)
    assert str(root) not in json.dumps(report)
    with pytest.raises(UserError) as caught:
        _fit_set_up(root, report)
    assert "\n" not in str(caught.value)
    assert spoiled in [path for path, _ in report["quarantine"]]
    list_file = tmp_path / "out/quarantine.txt"
    data = _fit_set_up(root, report, quarantine=str(list_file))
    assert spoiled not in [*data.table("train").paths, *data.table("val").paths]
    assert len(list(data.train_dataloader())) > 0


def test_boxes_that_fixing_takes_are_counted(tmp_path: Path, capsys) -> None:
    roboflow_yolo(tmp_path / "set")
    _wide_box(tmp_path / "set")
    report = _report(tmp_path / "set", tmp_path / "out")
    assert "data.on_bad_box: fix takes 1 of these images" in capsys.readouterr().out
    assert len(_fit_set_up(tmp_path / "set", report, on_bad_box="fix").table("train")) == 4


def test_a_sound_set_says_how_to_train_on_it_and_what_trains(tmp_path: Path, capsys) -> None:
    fiftyone_yolo(tmp_path / "set")
    report = _report(tmp_path / "set", tmp_path / "out")
    printed = capsys.readouterr().out
    assert report["fit"]
    assert report["settings"] == {"yolo": {"format": "yolo"}}
    assert report["objects"]["yolo"] == {"train": {"cup": 3, "pan": 3}, "val": {"cup": 2, "pan": 2}}
    assert "AnnotatedDataModule and {format: yolo}" in printed
    assert "train: 4 images, 0 without an object; 6 objects, 0 crowd, 0 dropped: cup 3, pan 3" in printed
    assert "the same picture in train" in printed  # b and d are in both splits
    assert sorted(path for path, _ in report["quarantine"]) == ["images/train/b.jpg", "images/train/d.jpg"]


def test_classes_that_may_be_one_and_copies_of_objects_are_named(tmp_path: Path, caplog) -> None:
    fiftyone_yolo(tmp_path / "set")
    names = next((tmp_path / "set").glob("*.yaml"))
    names.write_text(names.read_text().replace("pan", "Cup"))
    for labels in (tmp_path / "set/labels/train").glob("*.txt"):
        labels.write_text(labels.read_text() * 2)
    report = _report(tmp_path / "set", tmp_path / "out")
    assert ["'cup', 'Cup'"] in [f["files"] for f in report["findings"]]
    assert "train: 6 objects are exact copies" in caplog.text


def test_nothing_that_can_be_used_fails(tmp_path: Path) -> None:
    pictures(tmp_path / "set/train/images")
    write(tmp_path / "set/train/annotations.json", coco_content(iscrowd=1))
    report = _report(tmp_path / "set", tmp_path / "out")
    assert "crowd_as_objects" in _failures(report)
    with pytest.raises(UserError, match="crowd_as_objects"):
        _fit_set_up(tmp_path / "set", report)


def test_a_quarantine_list_of_another_folder_is_refused(tmp_path: Path) -> None:
    fiftyone_yolo(tmp_path / "set")
    (tmp_path / "list.txt").write_text("elsewhere/a.jpg\n")
    with pytest.raises(UserError, match=r"data\.quarantine: .*list\.txt"):
        AnnotatedDataModule(str(tmp_path / "set"), format="yolo", quarantine=str(tmp_path / "list.txt")).setup()


def test_a_folder_of_class_folders_is_no_annotated_set(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cup", "pan"):
            pictures(tmp_path / "set" / split / name)
            write(tmp_path / "set" / split / name / "notes.txt", yolo_lines("a"))
    write(tmp_path / "set/labels.json", {"cup": 0, "pan": 1})
    report = _report(tmp_path / "set", tmp_path / "out")
    assert report["fit"]
    assert "settings" not in report


def test_boxes_and_masks_of_the_same_images__either_will_do(tmp_path: Path) -> None:
    pictures(tmp_path / "set/train/images")
    write(tmp_path / "set/train/annotations.json", coco_content())
    (tmp_path / "set/train/semantic").mkdir()
    for name in "abcd":
        Image.fromarray(class_mask(name)).save(tmp_path / f"set/train/semantic/{name}.png")
    report = _report(tmp_path / "set", tmp_path / "out")  # the masks' classes have no names
    assert report["fit"]
    assert list(report["settings"]) == ["coco"]
    assert "masks: classes.txt: no such file" in "".join(f["what"] for f in report["findings"] if f["level"] == "warn")
    write(tmp_path / "set/classes.txt", "background\ncup\npan\n")
    assert list(_report(tmp_path / "set", tmp_path / "out")["settings"]) == ["coco", "masks"]
