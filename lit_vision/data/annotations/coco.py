"""COCO JSON: boxes, polygons, run lengths, crowd regions. Format: https://cocodataset.org/#format-data"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

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

    Classes are the file's categories by id; gaps in the ids (COCO has 80 between 1 and 90) are closed, and
    the ids kept as `category_ids` unless a class of `class_names` is not in the file. Images without a box are kept.

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
    id_of = {str(category["name"]): category["id"] for category in categories}
    ids = [id_of.get(name) for name in builder.class_names]
    builder.category_ids = ids if all(type(i) is int for i in ids) else []
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
                _check_segmentation(segmentation, builder.sizes[-1], where)
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


def _check_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> None:
    if isinstance(segmentation, dict):
        claimed = tuple(segmentation.get("size", ()))
        if claimed != size:
            raise BadAnnotation(
                f"{where}: the mask is {claimed} (height, width), the image {size}; correct it, masks must have the size of their image"
            )
    elif not isinstance(segmentation, list) or not segmentation or any(len(p) < 6 or len(p) % 2 for p in segmentation):
        raise BadAnnotation(
            f"{where}: no usable segmentation (run lengths, or polygons of three points or more); add one, or set data.with_masks to false"
        )


def decode_masks(segmentations: list[Any], height: int, width: int) -> np.ndarray:
    """COCO's segmentations as pixels.

    Args:
        segmentations: polygons [[x1, y1, x2, y2, ...], ...], run lengths {"size", "counts"} with counts as list or packed text.
        height, width: of the image.

    Returns:
        (n, height, width) uint8 of 0 and 1, as pycocotools rasters them.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        raise UserError("data.with_masks: needs pycocotools; pip install 'lit-vision[detection]'") from None
    found = np.zeros((len(segmentations), height, width), np.uint8)
    for place, segmentation in enumerate(segmentations):
        if isinstance(segmentation, list):
            packed = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            packed = coco_mask.frPyObjects(segmentation, height, width)
        else:
            packed = {**segmentation, "counts": segmentation["counts"].encode()}
        found[place] = coco_mask.decode(packed)
    return found
