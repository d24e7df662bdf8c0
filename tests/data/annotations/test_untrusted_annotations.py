"""Any content of an annotation file gives a table or one line that names the file, never another exception."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_annotations import NAMES, H, W, write_coco, write_voc, write_yolo

from lit_vision.data.annotations.coco import read_coco
from lit_vision.data.annotations.colors import read_colors
from lit_vision.data.annotations.table import AnnotationTable
from lit_vision.data.annotations.voc import read_voc
from lit_vision.data.annotations.yolo import read_yolo
from lit_vision.data.annotations.yolo_yaml import keypoint_numbers, yolo_split
from lit_vision.errors import UserError

FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
NUMBERS = st.sampled_from([0, 1, -1, 7, 90, 2.5, 1e9, 10**400, float("nan"), float("inf"), True, 30, 40])
VALUES = st.recursive(
    st.none() | NUMBERS | st.sampled_from(["", "7", "1", "a.jpg", "../x", "\\x", "http://[", "\0", "cat", "é\ud800"]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner),
    max_leaves=8,
)
FIELDS = ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "file_name", "width", "height"]
FIELDS += ["name", "supercategory"]


def _outcome(read: Callable[[], Any], named: str) -> Any:
    """Return what is read, or None if it is refused in one line that names the file."""
    refused = ""
    try:
        return read()
    except UserError as error:
        refused = str(error)
    assert named in refused
    assert "\n" not in refused
    return None


def _table_or_line(read: Callable[[], AnnotationTable], named: str) -> None:
    """Read; a table must keep its promises."""
    table = _outcome(read, named)
    if table is None:
        return
    assert len(table.digest()) == 32
    assert table.offsets[-1] == len(table.boxes) == len(table.labels) == len(table.crowd)
    sizes = np.repeat(table.sizes, np.diff(table.offsets), axis=0)
    assert np.isfinite(table.boxes).all()
    assert (table.boxes[:, :2] >= 0).all()
    assert (table.boxes[:, 2:] > table.boxes[:, :2]).all()
    assert (table.boxes[:, 2:] <= sizes[:, ::-1]).all()
    assert ((table.labels >= 0) & (table.labels < len(table.class_names))).all()


@pytest.fixture(scope="module")
def roots() -> dict[str, Path]:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: Path(folder, name) for name in ("coco", "yolo", "voc")}
        write_coco(found["coco"])
        write_yolo(found["yolo"])
        write_voc(found["voc"])
        yield found


@FEW
@given(
    where=st.sampled_from(["images", "annotations", "categories"]),
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3),
    masks=st.booleans(),
    on_bad_box=st.sampled_from(["error", "fix"]),
    collect=st.booleans(),
)
def test_coco_with_any_fields(roots, where, changes, masks, on_bad_box, collect) -> None:
    root = roots["coco"]
    content = json.loads((root / "a.json").read_text())
    content[where][0].update(changes)
    (root / "bad.json").write_text(json.dumps(content))
    faults: list[tuple[str, str]] | None = [] if collect else None
    _table_or_line(
        lambda: read_coco(root, "bad.json", "images", with_masks=masks, on_bad_box=on_bad_box, faults=faults),
        str(root),
    )
    assert all("\n" not in message for _, message in faults or [])


@FEW
@given(content=st.binary(max_size=60) | VALUES.map(lambda v: json.dumps(v).encode()), at=st.integers(0, 400))
def test_coco_of_any_bytes(roots, content: bytes, at: int) -> None:
    root = roots["coco"]
    good = (root / "a.json").read_bytes()
    for text in (content, good[:at] + content + good[at:], good[:at]):
        (root / "bad.json").write_bytes(text)
        _table_or_line(lambda: read_coco(root, "bad.json", "images", with_masks=True), str(root))


LINE = st.lists(
    st.sampled_from(["0", "1", "1.0", "2", "-1", ".5", "0.1", "1e400", "nan", "x", "2", "1_0", "٣", "é"]), max_size=12
)


@FEW
@given(
    text=st.lists(LINE.map(" ".join), max_size=3).map("\n".join).map(str.encode) | st.binary(max_size=40),
    keypoints=st.sampled_from([None, [2, 3], [1, 2], 3, [0, 3], ["a", 2]]),
    on_bad_box=st.sampled_from(["error", "fix"]),
)
def test_yolo_of_any_text(roots, text: bytes, keypoints: object, on_bad_box: str) -> None:
    root = roots["yolo"]
    (root / "labels/train/a.txt").write_bytes(text)
    (root / "data.yaml").write_text(json.dumps({"names": NAMES, "kpt_shape": keypoints}))
    _table_or_line(lambda: read_yolo(root, "labels/train", "images/train", on_bad_box=on_bad_box), str(root))


@FEW
@given(
    content=VALUES.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=40),
    key=st.sampled_from(["train", "names", "nc", "path", "kpt_shape"]),
)
def test_yaml_files_of_yolo(roots, content: bytes, key: str) -> None:
    root = roots["yolo"]
    (root / "labels/train/a.txt").write_text("")
    (root / "data.yaml").write_bytes(b"names: [cat, dog]\ntrain: images/train\n" + key.encode() + b": " + content)
    _table_or_line(lambda: read_yolo(root, "labels/train", "images/train"), str(root))
    _outcome(lambda: yolo_split(root, ["train"]), "data.yaml: ")
    _outcome(lambda: keypoint_numbers(root), "data.yaml: ")


TEXTS = st.sampled_from(["cat", "dog", "lion", "", "0", "1", "9", "-5", "39.5", "nan", "1e999", "x" * 300, "٣", "40 "])


@FEW
@given(
    size=st.lists(TEXTS, min_size=2, max_size=2),
    objects=st.lists(st.lists(TEXTS, min_size=6, max_size=6), max_size=2),
    cut=st.integers(0, 400),
    on_bad_box=st.sampled_from(["error", "fix"]),
)
def test_voc_of_any_values(roots, size, objects, cut: int, on_bad_box: str) -> None:
    root = roots["voc"]
    tags = ("xmin", "ymin", "xmax", "ymax")
    things = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox>"
        + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, corners))
        + "</bndbox></object>"
        for name, hard, *corners in objects
    )
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{things}</annotation>"
    for content in (text, text[:cut], text.replace("<size>", "", 1)):
        (root / "Annotations/a.xml").write_text(content, encoding="utf-8")
        _table_or_line(
            lambda: read_voc(root, "Annotations", "JPEGImages", class_names=NAMES, on_bad_box=on_bad_box), str(root)
        )


@FEW
@given(text=st.text(alphabet="cup 0129,:;#\n-.é\t", max_size=40))
def test_files_of_colors(roots, text: str) -> None:
    file = roots["yolo"] / "colors.txt"
    file.write_text(text, encoding="utf-8")
    colors = _outcome(lambda: read_colors(file), "colors.txt: ")
    assert colors is None or (colors and all(0 <= c <= 255 for color in colors.values() for c in color))


def test_the_toys_are_read(roots) -> None:
    assert (H, W) == (30, 40)
    assert len(read_coco(roots["coco"], "a.json", "images", with_masks=True)) == 3
