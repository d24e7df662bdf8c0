"""Annotations on disk: each format gives the same boxes, and invalid ones are refused in one line."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_annotations import BOXES, NAMES, H, W, write_coco, write_images, write_voc, write_yolo

from lit_vision.data.annotations.coco import read_coco
from lit_vision.data.annotations.coco_masks import decode_masks
from lit_vision.data.annotations.masks import IGNORE, read_mask, read_masks
from lit_vision.data.annotations.voc import read_voc
from lit_vision.data.annotations.yolo import read_yolo
from lit_vision.errors import UserError


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, dict]:
    return tmp_path, write_coco(tmp_path)


def test_three_formats_give_the_same_boxes(coco, tmp_path: Path) -> None:
    root, _ = coco
    write_yolo(tmp_path / "yolo")
    write_voc(tmp_path / "voc")
    tables = [
        read_coco(root, "a.json", "images"),
        read_yolo(tmp_path / "yolo", "labels/train", "images/train"),
        read_voc(tmp_path / "voc", "Annotations", "JPEGImages", split_list="ImageSets/train.txt", class_names=NAMES),
    ]
    expected = np.array([box[1:] for boxes in BOXES.values() for box in boxes])
    for table in tables:
        assert table.class_names == NAMES
        assert [Path(p).stem for p in table.paths] == ["a", "b", "c"]
        assert table.offsets.tolist() == [0, 2, 2, 3]
        np.testing.assert_allclose(table.boxes, expected, atol=1e-4)
        assert table.labels.tolist() == [0, 1, 1]
        assert (table.sizes == (H, W)).all()
    assert tables[0].area.tolist() == [50, 50, 50]
    assert tables[2].crowd.tolist() == [False, False, True]
    assert len({table.digest() for table in tables}) == 3
    part = tables[0].subset(np.array([2, 0]))
    assert part.boxes.tolist() == expected[[2, 0, 1]].tolist()
    assert part.offsets.tolist() == [0, 1, 3]


def test_polygons_run_lengths_and_packed_ones_are_pycocotools_own(coco) -> None:
    from pycocotools import mask as coco_mask

    root, content = coco
    pixels = np.zeros((H, W), np.uint8)
    pixels[3:9, 4:11] = 1
    packed = coco_mask.encode(np.asfortranarray(pixels))
    packed = {"size": [H, W], "counts": packed["counts"].decode()}
    plain = {"size": [H, W], "counts": [4 * H + 3, 6, 24, 6, 24, 6, 24, 6, 24, 6, 24, 6, 24, 6, (W - 11) * H + H - 9]}
    polygon = [[4.5, 3.5, 20.2, 6.1, 9.0, 25.7], [30, 3, 35, 3, 35, 9]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, H, W)))
    for a, segmentation in zip(content["annotations"], (packed, plain, polygon)):
        a["segmentation"] = segmentation
    content["annotations"][1]["iscrowd"] = 1
    (root / "a.json").write_text(json.dumps(content))
    table = read_coco(root, "a.json", "images", with_masks=True)
    assert table.crowd.tolist() == [False, True, False]
    found = decode_masks(table.segmentations(0), H, W)
    assert (found == pixels).all()
    assert (decode_masks(table.segmentations(2), H, W)[0] == expected).all()
    assert decode_masks([], H, W).shape == (0, H, W)
    assert table.subset(np.array([2])).segmentations(0) == [polygon]


def _set(key, value):
    def change(content):
        content["annotations"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("bbox", [50, 3, 10, 17]), r"annotation 1: box .*images/a.jpg \(40 x 30\)"),
        (_set("bbox", [35, 3, 10, 17]), "annotation 1: .* 5.0 pixels"),
        (_set("bbox", [2, 3, 0, 17]), "annotation 1: box .*data.on_bad_box"),
        (_set("bbox", [2, 3, float("nan"), 17]), "annotation 1: box .*nan"),
        (_set("bbox", [2, 3]), r"bbox is \[2, 3\]"),
        (_set("category_id", 8), "annotation 1: category_id 8 .* 2 categories"),
        (_set("image_id", 99), "annotation 1: image_id 99"),
        (
            _set("segmentation", {"size": [9, 9], "counts": [81]}),
            r"annotation 1: the mask is \(9, 9\) .* the image \(30, 40\)",
        ),
        (_set("segmentation", []), "annotation 1: .*data.with_masks"),
        (lambda c: c.pop("categories"), "bad.json: .*'categories'"),
        (lambda c: c["categories"].append({"id": 3, "name": "dog"}), "class 'dog'"),
    ],
)
def test_coco_faults_are_one_line_that_names_the_place(coco, change, named) -> None:
    root, content = coco
    content = copy.deepcopy(content)
    change(content)
    (root / "bad.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=named) as caught:
        read_coco(root, "bad.json", "images", with_masks=True)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def test_bad_boxes_can_be_fixed_and_rounding_is_tolerated(coco, caplog) -> None:
    root, content = coco
    content["annotations"][0]["bbox"] = [35, 3, 10, 17]
    content["annotations"][1]["bbox"] = [10, 5, 0, 25]
    content["annotations"][2]["bbox"] = [-0.6, -0.2, 8.6, 8.2]
    (root / "a.json").write_text(json.dumps(content))
    table = read_coco(root, "a.json", "images", on_bad_box="fix")
    older_name = read_coco(root, "a.json", "images", on_bad_box="mend")
    assert (older_name.boxes == table.boxes).all()
    np.testing.assert_allclose(table.boxes, [[35, 3, 40, 20], [0, 0, 8, 8]], atol=1e-5)
    assert "1 boxes cut" in caplog.text
    assert "1 without area" in caplog.text


def test_a_split_with_a_class_that_training_lacks(coco) -> None:
    with pytest.raises(UserError, match=r"a.json: category 'dog'"):
        read_coco(coco[0], "a.json", "images", class_names=["cat", "bird"])


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("2 .5 .5 .1 .1", r"a.txt:1: class 2 .* 0 to 1"),
        ("0 .5 .5 .1", "a.txt:1: 3 numbers"),
        ("0 .5 .5 .1 x", "a.txt:1: "),
        ("0 .9 .5 .4 .1", "a.txt:1: box .*pixels"),
        ("0 .5 .5 0 .1", "a.txt:1: box "),
    ],
)
def test_yolo_faults(tmp_path: Path, line: str, named: str) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(line)
    with pytest.raises(UserError, match=named):
        read_yolo(tmp_path, "labels/train", "images/train")


def test_yolo_polygons_and_stray_files(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("1 .25 .5 .75 .5 .5 1")
    table = read_yolo(tmp_path, "labels/train", "images/train")
    np.testing.assert_allclose(table.boxes[0], [10, 15, 30, 30])
    (tmp_path / "labels/train/z.txt").write_text("")
    with pytest.raises(UserError, match=r"z.txt: .* z "):
        read_yolo(tmp_path, "labels/train", "images/train")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("<name>cat</name>", "<name>lion</name>", "object 1: class 'lion'"),
        ("<xmin>3</xmin>", "<xmin>x</xmin>", "object 1: .*bndbox"),
        ("<xmin>3</xmin>", "<xmin>30</xmin>", "object 1: box "),
        ("<size>", "", "a.xml: "),
    ],
)
def test_voc_faults(tmp_path: Path, old: str, new: str, named: str) -> None:
    write_voc(tmp_path)
    file = tmp_path / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=named):
        read_voc(tmp_path, "Annotations", "JPEGImages", class_names=NAMES)


def test_masks_of_any_kind_of_png(tmp_path: Path) -> None:
    values = np.zeros((H, W), np.uint8)
    values[:5], values[5:9] = 1, 255
    gray, palette, deep = (tmp_path / f"{n}.png" for n in ("gray", "palette", "deep"))
    Image.fromarray(values).save(gray)
    colors = Image.fromarray(values, mode="P")
    colors.putpalette([7] * 768)
    colors.save(palette)
    Image.fromarray(values.astype(np.uint16) * 1).save(deep)
    for file in (gray, palette, deep):
        assert (read_mask(file, (H, W), 2, 0, [255]) == values).all()
    shifted = read_mask(gray, (H, W), 1, 1, [0, 255])
    assert (shifted == np.where(values == 1, 0, IGNORE)).all()
    with pytest.raises(UserError, match=r"gray.png: value 1 "):
        read_mask(gray, (H, W), 1, 0, [255])
    with pytest.raises(UserError, match=r"gray.png: .*40 x 30.*41 x 30"):
        read_mask(gray, (H, W + 1), 2, 0, [255])
    Image.fromarray(np.full((H, W, 3), (128, 0, 0), np.uint8)).save(gray)
    with pytest.raises(UserError, match=r"gray.png: RGB "):
        read_mask(gray, (H, W), 2, 0, [255])
    gray.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"gray.png: "):
        read_mask(gray, (H, W), 2, 0, [255])
    write_images(tmp_path / "images")
    with pytest.raises(UserError, match=r"masks/a.png: "):
        read_masks(tmp_path, "masks", "images", class_names=NAMES)
    with pytest.raises(UserError, match=r"classes.txt: "):
        read_masks(tmp_path, "masks", "images")
