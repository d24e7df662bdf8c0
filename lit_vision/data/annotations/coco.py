"""COCO JSON: boxes, polygons, run lengths, crowd regions. Format: https://cocodataset.org/#format-data"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_vision.data.annotations.segmentation import check_segmentation
from lit_vision.data.annotations.table import BadAnnotation, Builder, Table
from lit_vision.errors import UserError


def read_coco(
    root: Path,
    file: str,
    images: str,
    *,
    class_names: list[str] | None = None,
    masks: bool = False,
    on_bad_box: str = "error",
) -> Table:
    """One COCO annotation file.

    Classes are the file's categories by id; gaps in the ids (COCO has 80 between 1 and 90) are closed. Images without a box are kept.

    Args:
        root: folder of the set.
        file: the JSON file, relative to it.
        images: folder of the images, relative to it.
        class_names: those of the training split, which this one must have too; None takes the file's own.
        masks: keep the segmentations; each object then needs one.
        on_bad_box: see Builder.

    Raises:
        UserError: the file is missing or no COCO JSON. BadAnnotation: an annotation cannot be right; names its id.
    """
    path = root / file
    content = _parsed(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: no list '{key}', so it is not COCO's instances format; give another file")
    categories = sorted(content["categories"], key=lambda c: c["id"])
    own = [str(category["name"]) for category in categories]
    builder = Builder(root, class_names or own, on_bad_box)
    number = {name: i for i, name in enumerate(builder.class_names)}
    if missing := [name for name in own if name not in number]:
        raise BadAnnotation(
            f"{path}: category {missing[0]!r} is unknown to the training split; add it there or remove it"
        )
    label_of = {category["id"]: number[str(category["name"])] for category in categories}

    by_image: dict[Any, list[dict]] = {image["id"]: [] for image in content["images"]}
    if len(by_image) != len(content["images"]):
        raise BadAnnotation(f"{path}: two images have one id; make the ids unique")
    for annotation in content["annotations"]:
        if annotation["image_id"] not in by_image:
            raise BadAnnotation(
                f"{path}: annotation {annotation.get('id')} is of image_id {annotation['image_id']}, which is not among the images; remove it"
            )
        by_image[annotation["image_id"]].append(annotation)
    for image in sorted(content["images"], key=lambda image: image["file_name"]):
        builder.image(f"{images}/{image['file_name']}", (int(image["height"]), int(image["width"])))
        for annotation in by_image[image["id"]]:
            where = f"{path}: annotation {annotation.get('id')}"
            if annotation["category_id"] not in label_of:
                raise BadAnnotation(
                    f"{where}: category_id {annotation['category_id']} is not among the {len(own)} categories; correct or add it"
                )
            x, y, w, h = _box(annotation, where)
            segmentation = annotation.get("segmentation") if masks else None
            if masks:
                check_segmentation(segmentation, builder.sizes[-1], where)
            builder.box(
                where,
                (x, y, x + w, y + h),
                label_of[annotation["category_id"]],
                bool(annotation.get("iscrowd", 0)),
                annotation.get("area"),
                segmentation,
            )
    return builder.table()


def _parsed(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; check data.root and data.annotations") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); take another copy") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no object, so it is not COCO's instances format; give another file")
    return content


def _box(annotation: dict, where: str) -> tuple[float, float, float, float]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise BadAnnotation(f"{where}: bbox is {box!r}, not [x, y, width, height]; correct or remove it")
    return tuple(float(v) for v in box)
