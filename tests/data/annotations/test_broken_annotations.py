"""Annotations as a broken tool, a cut-off copy or a slip of the hand leaves them: one line that names the place and the mend, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_annotations import NAMES, H, W, write_coco, write_semantic, write_voc, write_yolo

from lit_vision.data.annotations.coco import read_coco
from lit_vision.data.annotations.masks import read_masks
from lit_vision.data.annotations.voc import read_voc
from lit_vision.data.annotations.yolo import read_yolo
from lit_vision.errors import UserError

BINARY = bytes(range(255, 100, -1))


def _says(says: str, read: Callable) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    assert len(message) < 500


def _without(where: str, key: str) -> Callable:
    return lambda c: c[where][0].pop(key)


def _with(where: str, **fields) -> Callable:
    return lambda c: c[where][0].update(fields)


def _mask(**fields) -> Callable:
    return lambda c: c["annotations"][0].update(segmentation={"size": [H, W], "counts": [H * W - 9, 9], **fields})


COCO = [
    (_without("images", "width"), "image 10: width is missing"),
    (_with("images", height="tall"), "image 10: height is 'tall', it must be a number"),
    (_with("images", height=None), "image 10: height is missing"),
    (_with("images", height=True), "image 10: height is True"),
    (_with("images", height=0), "image 10: height 0 is no number of pixels"),
    (_with("images", width=2.5), "image 10: width 2.5 is no number of pixels"),
    (_with("images", width=float("nan")), "image 10: width nan"),
    (_with("images", width=10**12), "image 10: width 1000000000000"),
    (_without("images", "file_name"), "image 10: file_name is missing"),
    (_with("images", file_name=7), "image 10: file_name is 7, it must be a text"),
    (_with("images", file_name="../../secret.jpg"), "leads out of data.root"),
    (_without("images", "id"), "image 0 of the list: id is missing"),
    (_with("images", id=[1]), r"image 0 of the list: id is \[1\]"),
    (lambda c: c["images"].append(3), "image 3 of the list: is 3, not an object"),
    (lambda c: c["images"].append({**c["images"][0], "id": 99}), "a.jpg: the split names this image twice"),
    (lambda c: c["images"].append({**c["images"][0], "id": 99, "file_name": "./a.jpg"}), "names this image twice"),
    (_without("annotations", "image_id"), "annotation 1: image_id is missing"),
    (_without("annotations", "category_id"), "annotation 1: category_id is missing"),
    (_with("annotations", category_id=[7]), r"annotation 1: category_id is \[7\]"),
    (lambda c: c["annotations"].insert(0, [1]), r"annotation 0 of the list: is \[1\], not an object"),
    (_without("annotations", "bbox"), "annotation 1: bbox is None"),
    (_with("annotations", bbox="a"), "annotation 1: bbox is 'a'"),
    (_with("annotations", bbox=["a", 1, 2, 3]), r"annotation 1: bbox is \['a', 1, 2, 3\]"),
    (_with("annotations", bbox=[None, 1, 2, 3]), r"annotation 1: bbox is \[None"),
    (_with("annotations", bbox=[10**400, 1, 2, 3]), r"annotation 1: bbox is \[1000"),
    (_with("annotations", area="x"), "annotation 1: area is 'x', it must be a number"),
    (_with("annotations", area=-1), "annotation 1: area -1 is no number of pixels"),
    (_with("annotations", area=float("inf")), "annotation 1: area inf"),
    (_with("annotations", iscrowd="no"), "annotation 1: iscrowd is 'no', not 0 or 1"),
    (_mask(counts=[5, 500_000]), "annotation 1: the mask's counts add up to 500005"),
    (_mask(counts=[H * W]), "annotation 1: its mask has no pixel in the image"),
    (_mask(counts=None), "annotation 1: the mask's counts are missing"),
    (_mask(size=None), "annotation 1: the mask is None"),
    (_mask(size=["a"]), "annotation 1: the mask is"),
    (_with("annotations", segmentation=[1, 2, 3, 4, 5, 6]), "annotation 1: no usable segmentation"),
    (_with("annotations", segmentation=[["a"] * 6]), "annotation 1: no usable segmentation"),
    (_with("annotations", segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "annotation 1: no usable segmentation"),
    (_with("annotations", segmentation=[[10**400, 2.5, 3, 4, 5, 6]]), "annotation 1: no usable segmentation"),
    (_with("annotations", segmentation=[[500, 500, 600, 500, 600, 600]]), "annotation 1: its mask has no pixel"),
    (_with("annotations", segmentation=[[-9, 5, -1, 5, -1, 9]]), "annotation 1: its mask has no pixel"),
    (_without("categories", "name"), "category 7: name is missing"),
    (_without("categories", "id"), "category 0 of the list: id is missing"),
    (_with("categories", id=90), "category 90: its id is that of 'cat' too"),
    (_with("categories", id="cat"), "some category ids are numbers, some are texts"),
    (lambda c: c.update(categories=["a", "b"]), "category 0 of the list: is 'a', not an object"),
    (lambda c: c.update(images={}), "no list 'images'"),
]


@pytest.mark.parametrize(("change", "says"), COCO)
def test_coco(change: Callable, says: str, tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    change(content)
    (tmp_path / "bad.json").write_text(json.dumps(content))
    _says(says, lambda: read_coco(tmp_path, "bad.json", "images", masks=True))


@pytest.mark.parametrize("content", [BINARY, b"", b"[1]", b"{", b"[" * 100_000, b'{"images": [' + b"9" * 5000 + b"]}"])
def test_coco_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    _says("bad.json: (cannot be read as JSON|holds no object)", lambda: read_coco(tmp_path, "bad.json", "images"))


def test_empty_masks_can_be_mended_and_what_coco_allows_stays_allowed(tmp_path: Path, caplog) -> None:
    content = write_coco(tmp_path)
    _mask(counts=[H * W])(content)
    content["annotations"][1].update(iscrowd=True, area=None, category_id=90.0)
    content["annotations"][2].update(segmentation=[[500, 500, 600, 500, 600, 600], [-3, -3, 8, 0, 8, 8]], id="last")
    content["images"][0].update(height=30.0)
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = read_coco(tmp_path, "a.json", "images", masks=True, on_bad_box="mend")
    assert table.offsets.tolist() == [0, 1, 1, 2]
    assert table.crowd.tolist() == [True, False]
    assert table.area.tolist() == [30 * 25, 50]
    assert "1 without area dropped" in caplog.text


YOLO = [
    ("labels/train/a.txt", BINARY, r"a.txt: holds no text \(byte 0 is not UTF-8\); replace it"),
    ("labels/train/a.txt", b"0 .5 .5 .1 .1\n\xff\xfe", "a.txt: holds no text"),
    ("labels/train/a.txt", b"\0\0\0\0", "a.txt:1: .* something else than numbers"),
    ("labels/train/a.txt", b"0.5 .5 .5 .1 .1", "a.txt:1: .* something else than numbers"),
    ("labels/train/a.txt", b"0 nan .5 .1 .1", "a.txt:1: box .* is not finite"),
    ("labels/train/a.txt", b"0 .5 .5 inf .1", "a.txt:1: box .* is not finite"),
    ("labels/train/a.txt", b"0 20 15 10 10", "a.txt:1: box .* lies outside"),
    ("labels/train/a.txt", b"-1 .5 .5 .1 .1", "a.txt:1: class -1 is unknown"),
    ("labels/train/a.txt", b"0", "a.txt:1: 0 numbers after the class"),
    ("labels/train/a.txt", b"9" * 5000 + b" .5 .5 .1 .1", "a.txt:1: .* something else than numbers"),
    ("images/train/a.jpg", BINARY, "a.jpg: cannot be read as an image"),
    ("images/train/a.jpg", b"", "a.jpg: cannot be read as an image"),
    ("data.yaml", BINARY, "data.yaml: holds no text"),
    ("data.yaml", b"\0\x01", "data.yaml: no YAML mapping"),
    ("data.yaml", b"names: [cat", "data.yaml: no YAML mapping"),
    ("data.yaml", b"- cat", "data.yaml: no YAML mapping"),
    ("data.yaml", b"made: 2020-13-45\nnames: [cat, dog]", "data.yaml: no YAML mapping"),
    ("data.yaml", b"[" * 5000, "data.yaml: no YAML mapping"),
    ("data.yaml", b"names: {0: cat, dog: 1}", "'names' must number the classes from 0"),
    ("data.yaml", b"names: {1: cat, 2: dog}", "'names' must number the classes from 0"),
    ("data.yaml", b"names: {0: cat, 1: null}", "class name 'None' in 'names' is no text"),
    ("data.yaml", b"names: [yes, no]", "class name 'True' in 'names' is no text; put it in quotes"),
    ("data.yaml", b"names: [[cat], dog]", "is no text"),
    ("data.yaml", b"names: cat", "no list 'names'"),
    ("data.yaml", b"names: [cat, cat]", "class 'cat' is there twice"),
]


@pytest.mark.parametrize(("file", "content", "says"), YOLO)
def test_yolo(file: str, content: bytes, says: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / file).write_bytes(content)
    _says(says, lambda: read_yolo(tmp_path, "labels/train", "images/train"))


def test_yolo_classes_that_are_no_text(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_bytes(BINARY)
    _says("classes.txt: holds no text", lambda: read_yolo(tmp_path, "labels/train", "images/train"))


def _voc(size: bytes = b"<size><width>40</width><height>30</height></size>", rest: bytes = b"") -> bytes:
    return b"<annotation>" + size + rest + b"</annotation>"


def _thing(name: bytes = b"<name>cat</name>", corners: str = "1 1 9 9", more: bytes = b"") -> bytes:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners.split()))
    return _voc(rest=b"<object>" + name + more + b"<bndbox>" + sides.encode() + b"</bndbox></object>")


VOC = [
    (b"", "no VOC annotation"),
    (BINARY, "no VOC annotation"),
    (b"<annotation><size>", "no VOC annotation"),
    (b"<html/>", "no VOC annotation with a size"),
    (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "no VOC annotation"),
    (b'<?xml version="1.0" encoding="utf-8"?><annotation>\xff</annotation>', "no VOC annotation"),
    (_voc(b"<size><width>40</width></size>"), "no VOC annotation with a size"),
    (_voc(b"<size><width>forty</width><height>30</height></size>"), "no VOC annotation with a size"),
    (_voc(b"<size><width>0</width><height>0</height></size>"), r"no VOC annotation with a size \(0 x 0\)"),
    (_voc(b"<size><width>99999999999</width><height>30</height></size>"), "no VOC annotation with a size"),
    (_voc(rest=b"<object/>"), "object 1: class '' is unknown"),
    (_voc(rest=b"<object><name>cat</name></object>"), "object 1: no bndbox with four numbers"),
    (_thing(corners="1 1 9"), "object 1: no bndbox with four numbers"),
    (_thing(corners="1 1 9 nine"), "object 1: no bndbox with four numbers"),
    (_thing(corners="1 1 9 nan"), "object 1: box .* is not finite"),
    (_thing(corners="1 1 1e400 9"), "object 1: box .* is not finite"),
    (_thing(corners="9 9 1 1"), "object 1: box .* has no area"),
    (_thing(corners="100 100 120 120"), "object 1: box .* lies outside"),
    (_thing(name=b""), "object 1: class '' is unknown"),
    (_thing(more=b"<difficult>maybe</difficult>"), "object 1: difficult is 'maybe', not 0 or 1"),
]


@pytest.mark.parametrize(("content", "says"), VOC)
def test_voc(content: bytes, says: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations/a.xml").write_bytes(content)
    _says(f"a.xml: {says}", lambda: read_voc(tmp_path, "Annotations", "JPEGImages", None, class_names=NAMES))


LISTS = [
    (BINARY, "train.txt: holds no text"),
    (b"", "train.txt: the list is empty"),
    (b"# nothing\n", "train.txt: the list is empty"),
    (b"a\nb\na\n", "a.jpg: the split names this image twice"),
    (b"a\nz\n", "z: no image of this name"),
    (b"a\0\n", "leads out of data.root"),
    (b"x" * 400, "no image of this name"),
    (b"../images/a\n", "leads out of data.root"),
]


@pytest.mark.parametrize(("content", "says"), LISTS)
def test_lists_of_a_split(content: bytes, says: str, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    write_semantic(tmp_path / "semantic")
    (tmp_path / "voc/ImageSets/train.txt").write_bytes(content)
    (tmp_path / "semantic/train.txt").write_bytes(content)
    words = ("Annotations", "JPEGImages", "ImageSets/train.txt")
    _says(says, lambda: read_voc(tmp_path / "voc", *words, class_names=NAMES))
    _says(says, lambda: read_masks(tmp_path / "semantic", "masks", "images", "train.txt", None))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("classes.txt", BINARY, "classes.txt: holds no text"),
        ("classes.txt", b"", "no class; give every class one name"),
        ("classes.txt", b"cat\ncat\n", "class 'cat' is there twice"),
        ("classes.txt", "\n".join(map(str, range(300))).encode(), "300 classes, at most 255 fit"),
    ],
)
def test_classes_of_semantic_masks(file: str, content: bytes, says: str, tmp_path: Path) -> None:
    write_semantic(tmp_path)
    (tmp_path / file).write_bytes(content)
    _says(says, lambda: read_masks(tmp_path, "masks", "images", None, None))
