"""Broken annotations end in one line that names file, entry and field, and no traceback."""

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


def _assert_refused(named: str, read: Callable) -> None:
    with pytest.raises(UserError, match=named) as caught:
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
    (_without("images", "width"), "image 10: width"),
    (_with("images", height="tall"), "image 10: height is 'tall'"),
    (_with("images", height=None), "image 10: height"),
    (_with("images", height=True), "image 10: height is True"),
    (_with("images", height=0), "image 10: height 0"),
    (_with("images", width=2.5), "image 10: width 2.5"),
    (_with("images", width=float("nan")), "image 10: width nan"),
    (_with("images", width=10**12), "image 10: width 1000000000000"),
    (_without("images", "file_name"), "image 10: file_name"),
    (_with("images", file_name=7), "image 10: file_name is 7"),
    (_with("images", file_name="../../secret.jpg"), "data.root"),
    (_with("images", file_name="\ud800.jpg"), "no name of a file"),
    (_with("categories", name="\ud800"), "class name "),
    (_without("images", "id"), "image 0 of the list: id"),
    (_with("images", id=[1]), r"image 0 of the list: id is \[1\]"),
    (lambda c: c["images"].append(3), "image 3 of the list: "),
    (lambda c: c["images"].append({**c["images"][0], "id": 99}), "a.jpg: .*twice"),
    (lambda c: c["images"].append({**c["images"][0], "id": 99, "file_name": "./a.jpg"}), "a.jpg: .*twice"),
    (_without("annotations", "image_id"), "annotation 1: image_id"),
    (_without("annotations", "category_id"), "annotation 1: category_id"),
    (_with("annotations", category_id=[7]), r"annotation 1: category_id is \[7\]"),
    (lambda c: c["annotations"].insert(0, [1]), r"annotation 0 of the list: is \[1\]"),
    (_without("annotations", "bbox"), "annotation 1: bbox is None"),
    (_with("annotations", bbox="a"), "annotation 1: bbox is 'a'"),
    (_with("annotations", bbox=["a", 1, 2, 3]), r"annotation 1: bbox is \['a', 1, 2, 3\]"),
    (_with("annotations", bbox=[None, 1, 2, 3]), r"annotation 1: bbox is \[None"),
    (_with("annotations", bbox=[10**400, 1, 2, 3]), r"annotation 1: bbox is \[1000"),
    (_with("annotations", area="x"), "annotation 1: area is 'x'"),
    (_with("annotations", area=-1), "annotation 1: area -1"),
    (_with("annotations", area=float("inf")), "annotation 1: area inf"),
    (_with("annotations", iscrowd="no"), "annotation 1: iscrowd is 'no'"),
    (_mask(counts=[5, 500_000]), "annotation 1: the mask's counts .* 500005"),
    (_mask(counts=[H * W]), "annotation 1: its mask"),
    (_mask(counts=None), "annotation 1: the mask's counts"),
    (_mask(size=None), "annotation 1: the mask is None"),
    (_mask(size=["a"]), "annotation 1: the mask is"),
    (_with("annotations", segmentation=[1, 2, 3, 4, 5, 6]), "annotation 1: .*data.with_masks"),
    (_with("annotations", segmentation=[["a"] * 6]), "annotation 1: .*data.with_masks"),
    (_with("annotations", segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "annotation 1: .*data.with_masks"),
    (_with("annotations", segmentation=[[10**400, 2.5, 3, 4, 5, 6]]), "annotation 1: .*data.with_masks"),
    (_with("annotations", segmentation=[[500, 500, 600, 500, 600, 600]]), "annotation 1: its mask"),
    (_with("annotations", segmentation=[[-9, 5, -1, 5, -1, 9]]), "annotation 1: its mask"),
    (_without("categories", "name"), "category 7: name"),
    (_without("categories", "id"), "category 0 of the list: id"),
    (_with("categories", id=90), "category 90: .*'cat'"),
    (_with("categories", id="cat"), "bad.json: .*category ids"),
    (lambda c: c.update(categories=["a", "b"]), "category 0 of the list: is 'a'"),
    (lambda c: c.update(images={}), "bad.json: .*'images'"),
]


@pytest.mark.parametrize(("change", "named"), COCO)
def test_coco(change: Callable, named: str, tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    change(content)
    (tmp_path / "bad.json").write_text(json.dumps(content))
    _assert_refused(named, lambda: read_coco(tmp_path, "bad.json", "images", with_masks=True))


@pytest.mark.parametrize("content", [BINARY, b"", b"[1]", b"{", b"[" * 100_000, b'{"images": [' + b"9" * 5000 + b"]}"])
def test_files_that_are_not_coco(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    _assert_refused("bad.json: ", lambda: read_coco(tmp_path, "bad.json", "images"))


def test_empty_masks_can_be_dropped_and_valid_variants_are_read(tmp_path: Path, caplog) -> None:
    content = write_coco(tmp_path)
    _mask(counts=[H * W])(content)
    content["annotations"][1].update(iscrowd=True, area=None, category_id=90.0)
    content["annotations"][2].update(segmentation=[[500, 500, 600, 500, 600, 600], [-3, -3, 8, 0, 8, 8]], id="last")
    content["images"][0].update(height=30.0)
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = read_coco(tmp_path, "a.json", "images", with_masks=True, on_bad_box="fix")
    assert table.offsets.tolist() == [0, 1, 1, 2]
    assert table.crowd.tolist() == [True, False]
    assert table.area.tolist() == [30 * 25, 50]
    assert "1 without area" in caplog.text


YOLO = [
    ("labels/train/a.txt", BINARY, "a.txt: .*byte 0"),
    ("labels/train/a.txt", b"0 .5 .5 .1 .1\n\xff\xfe", "a.txt: .*byte"),
    ("labels/train/a.txt", b"\0\0\0\0", "a.txt:1: "),
    ("labels/train/a.txt", b"0.5 .5 .5 .1 .1", "a.txt:1: "),
    ("labels/train/a.txt", b"0 nan .5 .1 .1", "a.txt:1: box .*(nan|inf)"),
    ("labels/train/a.txt", b"0 .5 .5 inf .1", "a.txt:1: box .*(nan|inf)"),
    ("labels/train/a.txt", b"0 20 15 10 10", "a.txt:1: box "),
    ("labels/train/a.txt", b"-1 .5 .5 .1 .1", "a.txt:1: class -1"),
    ("labels/train/a.txt", b"0", "a.txt:1: 0 numbers"),
    ("labels/train/a.txt", b"9" * 5000 + b" .5 .5 .1 .1", "a.txt:1: "),
    ("images/train/a.jpg", BINARY, "a.jpg: "),
    ("images/train/a.jpg", b"", "a.jpg: "),
    ("data.yaml", BINARY, "data.yaml: .*byte"),
    ("data.yaml", b"\0\x01", "data.yaml: "),
    ("data.yaml", b"names: [cat", "data.yaml: "),
    ("data.yaml", b"- cat", "data.yaml: "),
    ("data.yaml", b"made: 2020-13-45\nnames: [cat, dog]", "data.yaml: "),
    ("data.yaml", b"[" * 5000, "data.yaml: "),
    ("data.yaml", b"names: {0: cat, dog: 1}", "data.yaml: 'names'"),
    ("data.yaml", b"names: {1: cat, 2: dog}", "data.yaml: 'names'"),
    ("data.yaml", b"names: {0: cat, 1: null}", "'None' in 'names'"),
    ("data.yaml", b"names: [yes, no]", "'True' in 'names'"),
    ("data.yaml", b"names: [[cat], dog]", "'names'"),
    ("data.yaml", b"names: cat", "data.yaml: .*'names'"),
    ("data.yaml", b"names: [cat, cat]", "class 'cat'"),
]


@pytest.mark.parametrize(("file", "content", "named"), YOLO)
def test_yolo(file: str, content: bytes, named: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / file).write_bytes(content)
    _assert_refused(named, lambda: read_yolo(tmp_path, "labels/train", "images/train"))


def test_yolo_classes_that_are_not_text(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_bytes(BINARY)
    _assert_refused("classes.txt: .*byte", lambda: read_yolo(tmp_path, "labels/train", "images/train"))


def _voc(size: bytes = b"<size><width>40</width><height>30</height></size>", rest: bytes = b"") -> bytes:
    return b"<annotation>" + size + rest + b"</annotation>"


def _thing(name: bytes = b"<name>cat</name>", corners: str = "1 1 9 9", more: bytes = b"") -> bytes:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners.split()))
    return _voc(rest=b"<object>" + name + more + b"<bndbox>" + sides.encode() + b"</bndbox></object>")


VOC = [
    (b"", ""),
    (BINARY, ""),
    (b"<annotation><size>", ""),
    (b"<html/>", ""),
    (b'<?xml version="1.0" encoding="klingon"?><annotation/>', ""),
    (b'<?xml version="1.0" encoding="utf-8"?><annotation>\xff</annotation>', ""),
    (_voc(b"<size><width>40</width></size>"), ""),
    (_voc(b"<size><width>forty</width><height>30</height></size>"), ""),
    (_voc(b"<size><width>0</width><height>0</height></size>"), r".*\(0 x 0\)"),
    (_voc(b"<size><width>99999999999</width><height>30</height></size>"), ""),
    (_voc(rest=b"<object/>"), "object 1: class ''"),
    (_voc(rest=b"<object><name>cat</name></object>"), "object 1: .*bndbox"),
    (_thing(corners="1 1 9"), "object 1: .*bndbox"),
    (_thing(corners="1 1 9 nine"), "object 1: .*bndbox"),
    (_thing(corners="1 1 9 nan"), "object 1: box .*(nan|inf)"),
    (_thing(corners="1 1 1e400 9"), "object 1: box .*(nan|inf)"),
    (_thing(corners="9 9 1 1"), "object 1: box "),
    (_thing(corners="100 100 120 120"), "object 1: box "),
    (_thing(name=b""), "object 1: class ''"),
    (_thing(more=b"<difficult>maybe</difficult>"), "object 1: difficult is 'maybe'"),
]


@pytest.mark.parametrize(("content", "named"), VOC)
def test_voc(content: bytes, named: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations/a.xml").write_bytes(content)
    _assert_refused(f"a.xml: {named}", lambda: read_voc(tmp_path, "Annotations", "JPEGImages", class_names=NAMES))


LISTS = [
    (BINARY, "train.txt: .*byte"),
    (b"", "train.txt: "),
    (b"# nothing\n", "train.txt: "),
    (b"a\nb\na\n", "a.jpg: .*twice"),
    (b"a\nz\n", "z: "),
    (b"a\0\n", "data.root"),
    (b"x" * 400, "xxx: "),
    (b"../images/a\n", "data.root"),
]


@pytest.mark.parametrize(("content", "named"), LISTS)
def test_lists_of_a_split(content: bytes, named: str, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    write_semantic(tmp_path / "semantic")
    (tmp_path / "voc/ImageSets/train.txt").write_bytes(content)
    (tmp_path / "semantic/train.txt").write_bytes(content)
    split_list = "ImageSets/train.txt"
    _assert_refused(
        named,
        lambda: read_voc(tmp_path / "voc", "Annotations", "JPEGImages", split_list=split_list, class_names=NAMES),
    )
    _assert_refused(named, lambda: read_masks(tmp_path / "semantic", "masks", "images", split_list="train.txt"))


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("classes.txt", BINARY, "classes.txt: .*byte"),
        ("classes.txt", b"", "class"),
        ("classes.txt", b"cat\ncat\n", "class 'cat'"),
        ("classes.txt", "\n".join(map(str, range(300))).encode(), "data.class_names: 300 .*255"),
    ],
)
def test_classes_of_semantic_masks(file: str, content: bytes, named: str, tmp_path: Path) -> None:
    write_semantic(tmp_path)
    (tmp_path / file).write_bytes(content)
    _assert_refused(named, lambda: read_masks(tmp_path, "masks", "images"))
