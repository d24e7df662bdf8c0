"""COCO JSON: boxes, polygons, run lengths, crowd regions. Format: https://cocodataset.org/#format-data"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_vision.data.annotations.coco_masks import check_segmentation
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable, AnnotationTableBuilder
from lit_vision.data.views.decode import PIXEL_CAP
from lit_vision.errors import UserError

Id = int | float | str
KINDS = {Id: "a number or a text", float: "a number", str: "a text"}


def read_coco(
    root: Path,
    file: str,
    images: str,
    *,
    class_names: list[str] | None = None,
    masks: bool = False,
    on_bad_box: str = "error",
) -> AnnotationTable:
    """One COCO annotation file.

    Classes are the file's categories by id; gaps in the ids (COCO has 80 between 1 and 90) are closed, and
    the ids kept as `category_ids` unless a class of `class_names` is not in the file. Images without a box are kept.

    Args:
        root: folder of the set.
        file: the JSON file, relative to it.
        images: folder of the images, relative to it.
        class_names: those of the training split, which this one must have too; None takes the file's own.
        masks: keep the segmentations; each object then needs one.
        on_bad_box: see AnnotationTableBuilder.

    Raises:
        UserError: the file is missing or no COCO JSON. AnnotationError: an annotation cannot be right; names its id.
    """
    path = root / file
    content = _parsed(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: no list '{key}', so it is not COCO's instances format; give another file")
    own = _categories(content["categories"], path)
    builder = AnnotationTableBuilder(root, class_names or list(own.values()), on_bad_box)
    number = {name: i for i, name in enumerate(builder.class_names)}
    if missing := [name for name in own.values() if name not in number]:
        raise AnnotationError(
            f"{path}: category {missing[0]!r} is unknown to the training split; add it there or remove it"
        )
    id_of = {name: category for category, name in own.items()}
    ids = [id_of.get(name) for name in builder.class_names]
    builder.category_ids = ids if all(type(i) is int for i in ids) else []
    label_of = {category: number[name] for category, name in own.items()}

    by_image: dict[Id, list[int]] = {}  # places in the list of annotations
    for place, image in enumerate(content["images"]):
        by_image[_field(image, "id", Id, f"{path}: image {place} of the list")] = []
    if len(by_image) != len(content["images"]):
        raise AnnotationError(f"{path}: two images have one id; make the ids unique")
    for place, annotation in enumerate(content["annotations"]):
        where = _named("annotation", annotation, place, path)
        image_id = _field(annotation, "image_id", Id, where)
        if image_id not in by_image:
            raise AnnotationError(f"{where} is of image_id {image_id}, which is not among the images; remove it")
        by_image[image_id].append(place)
    for image in content["images"]:
        _field(image, "file_name", str, f"{path}: image {image['id']}")
    for image in sorted(content["images"], key=lambda image: image["file_name"]):
        where = f"{path}: image {image['id']}"
        builder.image(f"{images}/{image['file_name']}", (_side(image, "height", where), _side(image, "width", where)))
        for place in by_image[image["id"]]:
            annotation = content["annotations"][place]
            _add(annotation, builder, label_of, masks, _named("annotation", annotation, place, path))
    return builder.table()


def _parsed(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; check data.root and data.annotations") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); take another copy") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no object, so it is not COCO's instances format; give another file")
    return content


def _field(entry: Any, key: str, kind: Any, where: str) -> Any:
    """entry[key], which must be there and of this kind; a whole number is a float too, true and false are no numbers."""
    if not isinstance(entry, dict):
        raise AnnotationError(f"{where}: is {_shown(entry)}, not an object with fields; correct or remove it")
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        what = "is missing" if value is None else f"is {_shown(value)}"
        raise AnnotationError(f"{where}: {key} {what}, it must be {KINDS[kind]}; correct it")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _named(kind: str, entry: Any, place: int, path: Path) -> str:
    known = isinstance(entry, dict) and entry.get("id") is not None
    return f"{path}: {kind} {_shown(entry['id'])}" if known else f"{path}: {kind} {place} of the list"


def _categories(categories: list, path: Path) -> dict[Id, str]:
    """Names by id, in the order of the ids."""
    found: dict[Id, str] = {}
    for place, category in enumerate(categories):
        where = _named("category", category, place, path)
        number, name = _field(category, "id", Id, where), _field(category, "name", Id, where)
        if number in found:
            raise AnnotationError(f"{where}: its id is that of {found[number]!r} too; make the ids unique")
        found[number] = str(name)
    if len({isinstance(number, str) for number in found}) > 1:
        raise AnnotationError(f"{path}: some category ids are numbers, some are texts; make them all numbers")
    return dict(sorted(found.items()))


def _side(image: dict, key: str, where: str) -> int:
    """Height or width: whole, and no more than an image may have in all."""
    value = _field(image, key, float, where)
    if not 1 <= value <= PIXEL_CAP or value != int(value):
        raise AnnotationError(f"{where}: {key} {value} is no number of pixels; correct it")
    return int(value)


def _add(annotation: dict, builder: AnnotationTableBuilder, label_of: dict[Id, int], masks: bool, where: str) -> None:
    category = _field(annotation, "category_id", Id, where)
    if category not in label_of:
        raise AnnotationError(
            f"{where}: category_id {category} is not among the {len(label_of)} categories; correct or add it"
        )
    x, y, w, h = _box(annotation, where)
    crowd, area = annotation.get("iscrowd", 0), annotation.get("area")
    if crowd not in (0, 1):
        raise AnnotationError(f"{where}: iscrowd is {_shown(crowd)}, not 0 or 1; correct it")
    if area is not None and not 0 <= _field(annotation, "area", float, where) <= PIXEL_CAP:
        raise AnnotationError(f"{where}: area {_shown(area)} is no number of pixels; correct or remove it")
    segmentation = annotation.get("segmentation") if masks else None
    if masks and not check_segmentation(segmentation, builder.sizes[-1], where):
        if builder.mend:
            builder.dropped += 1
            return
        raise AnnotationError(
            f"{where}: its mask has no pixel in the image; correct or remove it, or set data.on_bad_box to mend"
        )
    builder.box(where, (x, y, x + w, y + h), label_of[category], bool(crowd), area, segmentation)


def _box(annotation: dict, where: str) -> tuple[float, float, float, float]:
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float}:
        try:
            return tuple(map(float, box))
        except OverflowError:  # a whole number beyond float: no box either
            pass
    raise AnnotationError(f"{where}: bbox is {_shown(box)}, not [x, y, width, height]; correct or remove it")
