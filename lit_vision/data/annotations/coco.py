"""Read COCO JSON: boxes, polygons, run lengths, crowd regions.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import logging
from collections.abc import Set
from pathlib import Path
from typing import Any

from lit_vision.data.annotations.coco_masks import check_segmentation, fix_segmentation
from lit_vision.data.annotations.files import size_of
from lit_vision.data.annotations.image_names import ImageFinder
from lit_vision.data.annotations.other_tools import describe_json
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.annotations.table_builder import AnnotationTableBuilder
from lit_vision.data.views.decode import PIXEL_CAP
from lit_vision.errors import UserError

log = logging.getLogger(__name__)

Id = int | float | str
_TYPE_NAMES = {Id: "a number or a text", float: "a number", str: "a text"}


def read_coco(
    root: Path,
    annotations: str,
    images: str,
    *,
    class_names: list[str] | None = None,
    with_masks: bool = False,
    crowd_as_objects: bool = False,
    on_bad_box: str = "error",
    excluded: Set[str] = frozenset(),
    faults: list[tuple[str, str]] | None = None,
) -> AnnotationTable:
    """Read one COCO annotation file.

    Classes are the file's categories by id; gaps in the ids (COCO has 80 between 1 and 90) are closed, and the ids are
    stored as `category_ids` unless a class of `class_names` is not in the file. Images without a box are included. Ids
    may be numbers in one list and the same numbers as texts in another. A `file_name` may have a prefix, see
    `ImageFinder`; whether the file exists is not checked.

    Args:
        root: folder of the set.
        annotations: the JSON file, relative to the root.
        images: folder of the images, relative to the root.
        class_names: classes of the training split; a category that is not among them is an error. None takes those of
            the file, without Roboflow's first category that only groups the others.
        with_masks: read the segmentations; each object then needs one.
        crowd_as_objects: take `iscrowd: 1` for an object like others: CVAT marks every brush mask so.
        on_bad_box: see AnnotationTableBuilder. "fix" also takes a size of 0 from the image file, and drops objects
            without a usable mask.
        excluded, faults: see AnnotationTableBuilder.

    Raises:
        UserError: the file is missing or not COCO JSON. AnnotationError: an annotation is invalid; names its id.
    """
    path = root / annotations
    content = _read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            other = describe_json(content)
            problem = f"is {other}" if other else f"has no list '{key}', so it is not COCO's instances format"
            raise UserError(f"{path}: {problem}; give another file" if not other else f"{path}: {problem}")
    if not content["images"]:
        raise AnnotationError(f"{path}: its list 'images' is empty; give another file")
    by_image = _annotations_by_image(content, path)
    categories = _categories(content, path)
    builder = AnnotationTableBuilder(root, class_names or list(categories.values()), on_bad_box, excluded, faults)
    number = {name: i for i, name in enumerate(builder.class_names)}
    if missing := [name for name in categories.values() if name not in number]:
        raise AnnotationError(
            f"{path}: category {missing[0]!r} does not occur in the training split; add it there or remove it"
        )
    label_of = {category: number[name] for category, name in categories.items()}
    builder.category_ids = _integer_ids(content["categories"], builder.class_names)
    find = ImageFinder(root, images)
    for image in sorted(content["images"], key=lambda image: str(image["file_name"])):
        where, file = f"{path}: image {image['id']}", find(image["file_name"])
        if builder.is_excluded(file):
            continue
        with builder.entry(file):
            builder.image(file, _size(image, builder, root / file, where))
            for index in by_image[_plain_id(image["id"])]:
                annotation = content["annotations"][index]
                place = _describe("annotation", annotation, index, path)
                _add(annotation, builder, label_of, with_masks, crowd_as_objects, place)
    find.report(path)
    return builder.table()


def _annotations_by_image(content: dict[str, Any], path: Path) -> dict[Id, list[int]]:
    """Return {id of the image: indices in the list of annotations}."""
    by_image: dict[Id, list[int]] = {}
    for index, image in enumerate(content["images"]):
        by_image[_plain_id(_field(image, "id", Id, f"{path}: image {index} of the list"))] = []
    if len(by_image) != len(content["images"]):
        raise AnnotationError(f"{path}: two images have the same id; make the ids unique")
    for index, annotation in enumerate(content["annotations"]):
        where = _describe("annotation", annotation, index, path)
        image_id = _field(annotation, "image_id", Id, where)
        if _plain_id(image_id) not in by_image:
            raise AnnotationError(f"{where}: image_id {image_id!r} is not among the images; remove it")
        by_image[_plain_id(image_id)].append(index)
    for image in content["images"]:
        _field(image, "file_name", str, f"{path}: image {image['id']}")
    return by_image


def _plain_id(value: Id) -> Id:
    """Return an id; one that is an integer's text ("7", but not "007") as the integer."""
    if (
        isinstance(value, str)
        and value.isdecimal()
        and value.isascii()
        and len(value) < 20
        and str(int(value)) == value
    ):
        return int(value)
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; check data.root and data.annotations") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); take another copy") from None
    if not isinstance(content, dict):
        other = describe_json(content)
        problem = f"is {other}" if other else "is not a JSON object, so it is not COCO's instances format"
        raise UserError(f"{path}: {problem}" + ("" if other else "; give another file"))
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


def _categories(content: dict[str, Any], path: Path) -> dict[Id, str]:
    """Return the names by id, in the order of the ids."""
    found: dict[Id, str] = {}
    for index, category in enumerate(content["categories"]):
        where = _describe("category", category, index, path)
        number, name = _plain_id(_field(category, "id", Id, where)), _field(category, "name", Id, where)
        if number in found:
            raise AnnotationError(f"{where}: has the same id as {found[number]!r}; make the ids unique")
        found[number] = str(name)
    if len({isinstance(number, str) for number in found}) > 1:
        raise AnnotationError(f"{path}: some category ids are numbers, some are texts; make them all numbers")
    root = _grouping_category(content)
    if root is not None:
        log.warning("%s: category %r (id %s) only groups the others and is no class", path, found.pop(root), root)
    id_of: dict[str, Id] = {}
    for number, name in sorted(found.items()):
        if name in id_of:
            raise AnnotationError(
                f"{path}: class {name!r} has two ids, {id_of[name]} and {number}; give each class its own name"
            )
        id_of[name] = number
    return dict(sorted(found.items()))


def _grouping_category(content: dict[str, Any]) -> Id | None:
    """Return the id of Roboflow's category 0, which has no object and is the `supercategory` of all others."""
    categories = content["categories"]
    used = {_plain_id(a["category_id"]) for a in content["annotations"] if isinstance(a.get("category_id"), Id)}
    for root in categories:
        above, others = root.get("supercategory"), [c for c in categories if c is not root]
        alone = above in (None, "", "none") and _plain_id(root["id"]) not in used
        if alone and others and all(c.get("supercategory") == str(root["name"]) for c in others):
            return _plain_id(root["id"])
    return None


def _integer_ids(categories: list[Any], class_names: list[str]) -> list[int]:
    """Return the ids of the classes; none if one of them is no integer, or not in the file."""
    id_of = {str(category["name"]): category["id"] for category in categories}
    ids = [id_of.get(name) for name in class_names]
    integers = [i for i in ids if type(i) is int]
    return integers if len(integers) == len(ids) else []


def _size(image: dict[str, Any], builder: AnnotationTableBuilder, file: Path, where: str) -> tuple[int, int]:
    """Return height and width; under `fix` those of the file where the annotations have none, or 0."""
    if builder.fix and any(image.get(side) in (None, 0) for side in ("height", "width")):
        return size_of(file)
    return _side(image, "height", where), _side(image, "width", where)


def _side(image: dict[str, Any], key: str, where: str) -> int:
    """Return height or width: an integer, at most the number of pixels that an image may have."""
    value = _field(image, key, float, where)
    if not 1 <= value <= PIXEL_CAP or value != int(value):
        hint = ", or set data.on_bad_box to fix, which takes it from the file" if value == 0 else ""
        raise AnnotationError(f"{where}: {key} {value} is not a number of pixels; correct it{hint}")
    return int(value)


def _add(
    annotation: dict[str, Any],
    builder: AnnotationTableBuilder,
    label_of: dict[Id, int],
    with_masks: bool,
    crowd_as_objects: bool,
    where: str,
) -> None:
    category = _field(annotation, "category_id", Id, where)
    label = label_of.get(_plain_id(category))
    if label is None:
        raise AnnotationError(
            f"{where}: category_id {category!r} is not among the {len(label_of)} categories; correct or add it"
        )
    x, y, w, h = _box(annotation, where)
    crowd, area = annotation.get("iscrowd") or 0, annotation.get("area")
    if crowd not in (0, 1):
        raise AnnotationError(f"{where}: iscrowd is {_shorten(crowd)}, not 0 or 1; correct it")
    if area is not None and not 0 <= _field(annotation, "area", float, where) <= PIXEL_CAP:
        raise AnnotationError(f"{where}: area {_shorten(area)} is not a number of pixels; correct or remove it")
    segmentation = annotation.get("segmentation") if with_masks else None
    if with_masks and builder.fix:
        segmentation = fix_segmentation(segmentation)
        if segmentation is None:
            builder.drop(label)
            return
    if with_masks and not check_segmentation(segmentation, builder.sizes[-1], where):
        if builder.fix:
            builder.drop(label)
            return
        raise AnnotationError(
            f"{where}: its mask has no pixel in the image; correct or remove it, or set data.on_bad_box to fix"
        )
    builder.box(where, (x, y, x + w, y + h), label, bool(crowd) and not crowd_as_objects, area, segmentation)


def _box(annotation: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float}:
        try:
            x, y, width, height = map(float, box)
            return x, y, width, height
        except OverflowError:  # an integer beyond the range of float is not a box either
            pass
    raise AnnotationError(f"{where}: bbox is {_shorten(box)}, not [x, y, width, height]; correct or remove it")
