"""Table of the annotation formats: reader, usual locations, and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lit_vision.data.annotations.coco import read_coco
from lit_vision.data.annotations.masks import read_masks
from lit_vision.data.annotations.table import AnnotationTable
from lit_vision.data.annotations.voc import read_voc
from lit_vision.data.annotations.yolo import read_yolo


@dataclass(frozen=True)
class AnnotationFormat:
    """One format of annotations on disk.

    Attributes:
        read: the reader, called as read(root, annotations, images, class_names=..., **options).
        images: usual folder of the images below the root; {split} stands for the name of the split.
        annotations: usual file or folder of the annotations, likewise.
        options: arguments of the data module that the reader takes: on_bad_box, split_list, with_masks.
        semantic: the annotations are masks of class numbers, not boxes.
    """

    read: Callable[..., AnnotationTable]
    images: str
    annotations: str
    options: tuple[str, ...]
    semantic: bool = False


FORMATS = {
    "coco": AnnotationFormat(
        read_coco, "{split}/images", "{split}/annotations.json", options=("on_bad_box", "with_masks")
    ),
    "yolo": AnnotationFormat(read_yolo, "images/{split}", "labels/{split}", options=("on_bad_box",)),
    "voc": AnnotationFormat(read_voc, "JPEGImages", "Annotations", options=("on_bad_box", "split_list")),
    "masks": AnnotationFormat(read_masks, "{split}/images", "{split}/semantic", options=("split_list",), semantic=True),
}
