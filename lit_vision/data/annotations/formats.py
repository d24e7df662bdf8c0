"""Table of the annotation formats: reader, usual locations, and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lit_vision.data.annotations.coco import read_coco
from lit_vision.data.annotations.masks import MASK_SUFFIXES, read_masks
from lit_vision.data.annotations.table import AnnotationTable
from lit_vision.data.annotations.voc import read_voc
from lit_vision.data.annotations.yolo import read_yolo


class Location(NamedTuple):
    """Images and annotations of a split, relative to the root; in a table of formats {split} stands for its name.

    Attributes:
        images: folder.
        annotations: file or folder.
        split_list: file that names the images of the split, or None for all of the folder.
    """

    images: str
    annotations: str
    split_list: str | None = None

    def of_split(self, name: str) -> Location:
        """Return the location of a split with this name."""
        images, annotations = (text.format(split=name) for text in (self.images, self.annotations))
        return Location(images, annotations, self.split_list and self.split_list.format(split=name))


class AnnotationFormat(NamedTuple):
    """One format of annotations on disk.

    Attributes:
        read: the reader, called as read(root, annotations, images, class_names=..., **options).
        suffixes: of the files of annotations.
        options: arguments of the data module that the reader takes: on_bad_box, split_list, with_masks, colors,
            crowd_as_objects.
        locations: where splits usually stand; the first is the default of data.images and data.annotations.
        semantic: the annotations are masks of class numbers, not boxes.
    """

    read: Callable[..., AnnotationTable]
    suffixes: tuple[str, ...]
    options: tuple[str, ...]
    locations: tuple[Location, ...]
    semantic: bool = False

    @property
    def images(self) -> str:
        """Usual folder of the images below the root."""
        return self.locations[0].images

    @property
    def annotations(self) -> str:
        """Usual file or folder of the annotations below the root."""
        return self.locations[0].annotations


_COCO = (
    Location("{split}/images", "{split}/annotations.json"),
    Location("{split}", "{split}/_annotations.coco.json"),  # Roboflow
    Location("images/{split}", "annotations/instances_{split}.json"),  # CVAT
    Location("{split}", "annotations/instances_{split}.json"),  # COCO: the split train2017
    Location("images", "annotations/instances_{split}.json"),
    Location("{split}/data", "{split}/labels.json"),  # FiftyOne, a folder per split
    Location("{split}/images", "{split}/result.json"),  # Label Studio, likewise
    Location("images/default", "annotations/instances_default.json"),  # CVAT without subsets
    Location("images", "annotations/instances_default.json"),
    Location("data", "labels.json"),  # FiftyOne
    Location("images", "result.json"),  # Label Studio
    Location("images", "result_coco.json"),
    Location("JPEGImages", "annotations.json"),  # labelme2coco
    Location("images", "annotations.json"),
    Location(".", "annotations.json"),
    Location(".", "_annotations.coco.json"),
)
_YOLO = (
    Location("images/{split}", "labels/{split}"),
    Location("{split}/images", "{split}/labels"),  # Roboflow
    Location("{split}", "{split}"),
    Location("obj_{split}_data", "obj_{split}_data"),  # CVAT, YOLO 1.1
    Location("images", "labels"),  # Label Studio
    Location("obj_train_data", "obj_train_data"),
    Location(".", "."),  # labelImg
)
_VOC = (
    Location("JPEGImages", "Annotations", "ImageSets/Main/{split}.txt"),
    Location("JPEGImages/{split}", "Annotations/{split}"),
    Location("{split}/images", "{split}/annotations"),
    Location("images/{split}", "annotations/{split}"),
    Location("{split}", "{split}"),  # Roboflow
    Location("JPEGImages", "Annotations", "ImageSets/Main/default.txt"),  # CVAT without subsets
    Location("JPEGImages", "Annotations"),
    Location("images", "annotations"),
    Location("images", "Annotations"),  # Label Studio
    Location(".", "."),  # labelImg
)
_MASKS = (
    Location("{split}/images", "{split}/semantic"),
    Location("{split}/images", "{split}/masks"),
    Location("images/{split}", "masks/{split}"),
    Location("images/{split}", "annotations/{split}"),  # ADE20K
    Location("img_dir/{split}", "ann_dir/{split}"),
    Location("images/{split}", "labels/{split}"),
    Location("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/{split}.txt"),
    Location("{split}", "{split}"),  # Roboflow
    Location("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/default.txt"),  # CVAT without subsets
    Location("JPEGImages", "SegmentationClassPNG"),  # labelme2voc
    Location("JPEGImages", "SegmentationClass"),
    Location("images", "masks"),
)

FORMATS = {
    "coco": AnnotationFormat(read_coco, (".json",), ("on_bad_box", "with_masks", "crowd_as_objects"), _COCO),
    "yolo": AnnotationFormat(read_yolo, (".txt",), ("on_bad_box", "split_list"), _YOLO),
    "voc": AnnotationFormat(read_voc, (".xml",), ("on_bad_box", "split_list", "crowd_as_objects"), _VOC),
    "masks": AnnotationFormat(read_masks, MASK_SUFFIXES, ("split_list", "colors"), _MASKS, semantic=True),
}
