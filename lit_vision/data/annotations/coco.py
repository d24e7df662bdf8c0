"""Read COCO JSON: boxes, polygons, run lengths, crowd regions.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_vision.data.annotations.coco_masks import check_segmentation
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable, AnnotationTableBuilder
from lit_vision.data.views.decode import PIXEL_CAP
from lit_vision.errors import UserError

Id = int | float | str
_TYPE_NAMES = {Id: "a number or a text", float: "a number", str: "a text"}


def read_coco(
    root: Path,
    annotations: str,
    images: str,
    *,
    class_names: list[str] | None = None,
    with_masks: bool = False,
    on_bad_box: str = "error",
) -> AnnotationTable:
    """Read one COCO annotation file.

    Classes are the file's categories by id; gaps in the ids (COCO has 80 between 1 and 90) are closed, and the ids are
    stored as `category_ids` unless a class of `class_names` is not in the file. Images without a box are included.

    Args:
        root: folder of the set.
        annotations: the JSON file, relative to the root.
        images: folder of the images, relative to the root.
        class_names: classes of the training split; a category that is not among them is an error. None takes those of
            the file.
        with_masks: read the segmentations; each object then needs one.
        on_bad_box: see AnnotationTableBuilder.

    Raises:
        UserError: the file is missing or not COCO JSON. AnnotationError: an annotation is invalid; names its id.
    """
    path = root / annotations
    content = _read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: has no list '{key}', so it is not COCO's instances format; give another file")
    categories = _categories(content["categories"], path)
    builder = AnnotationTableBuilder(root, class_names or list(categories.values()), on_bad_box)
    number = {name: i for i, name in enumerate(builder.class_names)}
    if missing := [name for name in categories.values() if name not in number]:
        raise AnnotationError(
            f"{path}: category {missing[0]!r} does not occur in the training split; add it there or remove it"
        )
    id_of = {name: category for category, name in categories.items()}
    ids = [id_of.get(name) for name in builder.class_names]
    integer_ids = [i for i in ids if type(i) is int]
    builder.category_ids = integer_ids if len(integer_ids) == len(ids) else []
    label_of = {category: number[name] for category, name in categories.items()}

    by_image: dict[Id, list[int]] = {}  # image id: indices in the list of annotations
    for index, image in enumerate(content["images"]):
        by_image[_field(image, "id", Id, f"{path}: image {index} of the list")] = []
    if len(by_image) != len(content["images"]):
        raise AnnotationError(f"{path}: two images have the same id; make the ids unique")
    for index, annotation in enumerate(content["annotations"]):
        where = _describe("annotation", annotation, index, path)
        image_id = _field(annotation, "image_id", Id, where)
        if image_id not in by_image:
            raise AnnotationError(f"{where}: image_id {image_id} is not among the images; remove it")
        by_image[image_id].append(index)
    for image in content["images"]:
        _field(image, "file_name", str, f"{path}: image {image['id']}")
    for image in sorted(content["images"], key=lambda image: image["file_name"]):
        where = f"{path}: image {image['id']}"
        builder.image(f"{images}/{image['file_name']}", (_side(image, "height", where), _side(image, "width", where)))
        for index in by_image[image["id"]]:
            annotation = content["annotations"][index]
            _add(annotation, builder, label_of, with_masks, _describe("annotation", annotation, index, path))
    return builder.table()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; check data.root and data.annotations") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); take another copy") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object, so it is not COCO's instances format; give another file")
    return content


def _field(entry: Any, key: str, kind: Any, where: str) -> Any:
    """Return entry[key], which must be of this kind; an integer is also a float, true and false are not numbers."""
    if not isinstance(entry, dict):
        raise AnnotationError(f"{where}: is {_shorten(entry)}, not an object with fields; correct or remove it")
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        problem = "is missing" if value is None else f"is {_shorten(value)}"
        raise AnnotationError(f"{where}: {key} {problem}, it must be {_TYPE_NAMES[kind]}; correct it")
    return value


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(kind: str, entry: Any, index: int, path: Path) -> str:
    known = isinstance(entry, dict) and entry.get("id") is not None
    return f"{path}: {kind} {_shorten(entry['id'])}" if known else f"{path}: {kind} {index} of the list"


def _categories(categories: list[Any], path: Path) -> dict[Id, str]:
    """Return the names by id, in the order of the ids."""
    found: dict[Id, str] = {}
    for index, category in enumerate(categories):
        where = _describe("category", category, index, path)
        number, name = _field(category, "id", Id, where), _field(category, "name", Id, where)
        if number in found:
            raise AnnotationError(f"{where}: has the same id as {found[number]!r}; make the ids unique")
        found[number] = str(name)
    if len({isinstance(number, str) for number in found}) > 1:
        raise AnnotationError(f"{path}: some category ids are numbers, some are texts; make them all numbers")
    return dict(sorted(found.items()))


def _side(image: dict[str, Any], key: str, where: str) -> int:
    """Return height or width: an integer, at most the number of pixels that an image may have."""
    value = _field(image, key, float, where)
    if not 1 <= value <= PIXEL_CAP or value != int(value):
        raise AnnotationError(f"{where}: {key} {value} is not a number of pixels; correct it")
    return int(value)


def _add(
    annotation: dict[str, Any], builder: AnnotationTableBuilder, label_of: dict[Id, int], with_masks: bool, where: str
) -> None:
    category = _field(annotation, "category_id", Id, where)
    if category not in label_of:
        raise AnnotationError(
            f"{where}: category_id {category} is not among the {len(label_of)} categories; correct or add it"
        )
    x, y, w, h = _box(annotation, where)
    crowd, area = annotation.get("iscrowd", 0), annotation.get("area")
    if crowd not in (0, 1):
        raise AnnotationError(f"{where}: iscrowd is {_shorten(crowd)}, not 0 or 1; correct it")
    if area is not None and not 0 <= _field(annotation, "area", float, where) <= PIXEL_CAP:
        raise AnnotationError(f"{where}: area {_shorten(area)} is not a number of pixels; correct or remove it")
    segmentation = annotation.get("segmentation") if with_masks else None
    if with_masks and not check_segmentation(segmentation, builder.sizes[-1], where):
        if builder.fix:
            builder.dropped += 1
            return
        raise AnnotationError(
            f"{where}: its mask has no pixel in the image; correct or remove it, or set data.on_bad_box to fix"
        )
    builder.box(where, (x, y, x + w, y + h), label_of[category], bool(crowd), area, segmentation)


def _box(annotation: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float}:
        try:
            x, y, width, height = map(float, box)
            return x, y, width, height
        except OverflowError:  # an integer beyond the range of float is not a box either
            pass
    raise AnnotationError(f"{where}: bbox is {_shorten(box)}, not [x, y, width, height]; correct or remove it")
