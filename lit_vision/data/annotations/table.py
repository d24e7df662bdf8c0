"""Columnar table of annotations: the boxes of all images in flat arrays, checked once, small enough to fork.

Letters: N images, M boxes over all of them, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import Paths
from lit_vision.errors import UserError


class AnnotationError(UserError):
    """An invalid box or mask: outside the image, without area, of an unknown class, of another size than the image."""


@dataclass(frozen=True)
class AnnotationTable:
    """The annotations of one split.

    Attributes:
        root: folder that the paths start from.
        paths: N relative paths of images.
        sizes: (N, 2) int32, height and width as annotated; 0 where they are not annotated.
        offsets: (N + 1,) int64: the boxes of image i are those from offsets[i] to offsets[i + 1].
        boxes: (M, 4) float32: x1, y1, x2, y2 in pixels of the image, x2 > x1, y2 > y1, inside it.
        labels: (M,) int64 class numbers, 0 to K - 1.
        crowd: (M,) bool: regions that are neither object nor background (COCO's iscrowd, VOC's difficult).
        area: (M,) float32 pixels, COCO's `area` (of the mask), else of the box.
        class_names: K names.
        segments, segment_at: the masks as JSON texts, one after another, and the offset of each (M + 1,); empty if
            there are none.
        masks: N relative paths of semantic masks, or None.
        category_ids: K ids of the classes in the files of the set (COCO's have gaps); empty where it has none.
        mask_classes: (classes in the mask files,) uint8 class number of each of them; None: they are numbered alike.
        dropped: objects that `on_bad_box: fix` left out, by class number; they are background.
    """

    root: Path
    paths: Paths
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    class_names: list[str]
    segments: bytes = b""
    segment_at: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    masks: Paths | None = None
    category_ids: list[int] = field(default_factory=list)
    mask_classes: np.ndarray | None = None
    dropped: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, index: int) -> slice:
        """Return the slice of the boxes of one image."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def segmentations(self, index: int) -> list[Any]:
        """Return the masks of one image in COCO's form: polygons or run lengths."""
        rows = self.rows(index)
        return [
            json.loads(self.segments[self.segment_at[i] : self.segment_at[i + 1]]) for i in range(rows.start, rows.stop)
        ]

    def digest(self, hash_content: bool = False) -> bytes:
        """Return the SHA-256 over the paths and sizes of all files and over all annotations.

        Args:
            hash_content: hash the bytes of the files too.
        """
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for paths in (self.paths, self.masks or ()):
            for path in sorted(paths):
                file = self.root / path
                digest.update(os.fsencode(f"{path}\0{file.stat().st_size if file.is_file() else -1}\0"))
                if hash_content and file.is_file():
                    digest.update(hashlib.sha256(file.read_bytes()).digest())
        for array in (self.offsets, self.boxes, self.labels, self.crowd):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(self.segments)
        return digest.digest()

    def renumbered(self, numbers: np.ndarray, class_names: list[str]) -> AnnotationTable:
        """Return the table with other class numbers.

        Args:
            numbers: (K,) new number of each class.
            class_names: in the order of the new numbers.
        """
        ids = dict(zip(numbers.tolist(), self.category_ids))
        complete = len(ids) == len(class_names)
        return replace(
            self,
            labels=numbers[self.labels],
            class_names=class_names,
            category_ids=[ids[i] for i in range(len(class_names))] if complete else [],
            mask_classes=numbers.astype(np.uint8),
            dropped=Counter({int(numbers[label]): count for label, count in self.dropped.items()}),
        )

    def subset(self, keep: np.ndarray) -> AnnotationTable:
        """Return the table of only these images, in this order."""
        rows = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in keep]
        row = np.concatenate(rows).astype(np.int64) if rows else np.zeros(0, np.int64)
        pieces = [self.segments[self.segment_at[r] : self.segment_at[r + 1]] for r in row] if self.segments else []
        return AnnotationTable(
            self.root,
            Paths([self.paths[i] for i in keep]),
            self.sizes[keep],
            np.cumsum([0, *map(len, rows)]),
            self.boxes[row],
            self.labels[row],
            self.crowd[row],
            self.area[row],
            self.class_names,
            b"".join(pieces),
            np.cumsum([0, *map(len, pieces)]),
            None if self.masks is None else Paths([self.masks[i] for i in keep]),
            self.category_ids,
            dropped=self.dropped,
        )
