"""Columnar table of annotations: the boxes of all images in flat arrays, checked once, small enough to fork.

Letters: N images, M boxes over all of them, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import Paths, check_within_root
from lit_vision.errors import UserError

log = logging.getLogger(__name__)

# pixels that a box may reach over the edge without a warning: COCO's boxes do so by rounding; they are cut at the edge
EDGE_TOLERANCE = 1.0


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


def _is_encodable(text: str, errors: str) -> bool:
    """True unless a text holds half of a character (a lone surrogate); "surrogateescape" allows names of any bytes."""
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


class AnnotationTableBuilder:
    """Collect images and boxes of a split, and check each of them.

    Args:
        root: folder that the paths start from.
        class_names: K names.
        on_bad_box: "error": the first invalid box raises; "fix" (or "mend", its older name): boxes are cut at the edge,
            those without area dropped, and the counts logged.
        excluded: relative paths of images to leave out with their annotations (data.quarantine).
        faults: None: the first fault raises. A list: (path of the image, message) of each image with a fault is added
            to it, and the image left out, so that a check can name all of them.
    """

    def __init__(
        self,
        root: Path,
        class_names: list[str],
        on_bad_box: str = "error",
        excluded: Set[str] = frozenset(),
        faults: list[tuple[str, str]] | None = None,
    ):
        if len(class_names) != len(set(class_names)) or not class_names:
            twice = next((name for name in class_names if class_names.count(name) > 1), None)
            problem = f"class {twice!r} is listed twice" if twice else "no class is named"
            raise AnnotationError(f"{root}: {problem}; give each class its own name")
        if wrong := [name for name in class_names if not _is_encodable(name, "strict")]:
            raise AnnotationError(f"{root}: class name {wrong[0][:60]!r} is not text; correct it")
        self.root, self.class_names, self.fix = Path(root), class_names, on_bad_box != "error"
        self.category_ids: list[int] = []  # set by the reader if the format has ids
        self.paths: list[str] = []
        self.masks: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.counts: list[int] = []
        self.columns: dict[str, list[Any]] = {name: [] for name in ("boxes", "labels", "crowd", "area", "segment")}
        self.excluded, self.faults = {os.path.normpath(path) for path in excluded}, faults
        self._seen: set[str] = set()
        self.cut, self.dropped = 0, Counter[int]()

    def is_excluded(self, path: str) -> bool:
        """True if an image is to be left out."""
        return os.path.normpath(path) in self.excluded

    @contextmanager
    def entry(self, path: str) -> Iterator[None]:
        """Enclose the reading of one image: a UserError in it goes to `faults` if that is a list, and the image goes.

        Args:
            path: of the image, relative to the root.
        """
        if self.faults is None:
            yield
            return
        images, boxes, cut, dropped = len(self.paths), len(self.columns["boxes"]), self.cut, self.dropped.copy()
        try:
            yield
        except UserError as error:
            self.faults.append((path, str(error)))
            for column in (self.paths, self.sizes, self.counts):
                del column[images:]
            del self.masks[images:]
            for values in self.columns.values():
                del values[boxes:]
            self.cut, self.dropped = cut, dropped

    def drop(self, label: int) -> None:
        """Count an object of a class that is left out."""
        self.dropped[label] += 1

    def image(self, path: str, size: tuple[int, int] = (0, 0), mask: str | None = None) -> None:
        """Add an image: relative path, (height, width) if known, relative path of its semantic mask.

        Raises:
            UserError: a path leads out of the root. AnnotationError: the image was added before; its boxes would be in
                two entries.
        """
        plain = os.path.normpath(check_within_root(path))
        if not _is_encodable(path, "surrogateescape"):
            raise AnnotationError(f"{self.root}: {path!r} is no name of a file; correct the file that lists it")
        if plain in self._seen:
            raise AnnotationError(
                f"{self.root / path}: the split names this image twice; keep one entry with all its boxes"
            )
        self._seen.add(plain)
        self.paths.append(path)
        self.sizes.append(size)
        self.counts.append(0)
        if mask is not None:
            self.masks.append(check_within_root(mask))

    def box(
        self,
        where: str,
        box: tuple[float, float, float, float],
        label: int,
        crowd: bool = False,
        area: float | None = None,
        segmentation: Any = None,
    ) -> None:
        """Add a box to the image that was added last.

        Args:
            where: names file and annotation, for messages.
            box: x1, y1, x2, y2 in pixels.
            label: class number, checked by the reader.
            crowd: see AnnotationTable.
            area: pixels; None takes the area of the box.
            segmentation: in COCO's form, or None.

        Raises:
            AnnotationError: the box is not finite, without area, or outside the image.
        """
        height, width = self.sizes[-1]
        x1, y1, x2, y2 = (float(v) for v in box)
        shown, image = f"{where}: box {[round(v, 2) for v in (x1, y1, x2, y2)]} (x1, y1, x2, y2)", self.paths[-1]
        if not np.isfinite([x1, y1, x2, y2]).all():
            raise AnnotationError(f"{shown} is not finite; correct or remove it")
        over = max(-x1, -y1, x2 - width, y2 - height)
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if x2 <= x1 or y2 <= y1 or inside[2] <= inside[0] or inside[3] <= inside[1]:
            if not self.fix:
                problem = "has no area" if x2 <= x1 or y2 <= y1 else f"lies outside {image} ({width} x {height})"
                raise AnnotationError(f"{shown} {problem}; correct or remove it, or set data.on_bad_box to fix")
            self.drop(label)
            return
        if over > EDGE_TOLERANCE:
            if not self.fix:
                raise AnnotationError(
                    f"{shown} reaches {over:.1f} pixels out of {image} ({width} x {height}); correct it, "
                    "or set data.on_bad_box to fix"
                )
            self.cut += 1
        self.counts[-1] += 1
        columns = self.columns
        columns["boxes"].append(inside)
        columns["labels"].append(label)
        columns["crowd"].append(bool(crowd))
        columns["area"].append((inside[2] - inside[0]) * (inside[3] - inside[1]) if area is None else float(area))
        columns["segment"].append(
            b"" if segmentation is None else json.dumps(segmentation, separators=(",", ":")).encode()
        )

    def table(self) -> AnnotationTable:
        """Return the table of all images; logs in one warning how many boxes were cut or dropped.

        Raises:
            AnnotationError: there is no image.
        """
        if not self.paths:
            raise AnnotationError(f"{self.root}: no image in the annotations; check the paths")
        if self.cut or self.dropped:
            log.warning(
                "%s: %d boxes cut at the edge, %d without area or usable mask dropped (data.on_bad_box: fix)",
                self.root,
                self.cut,
                self.dropped.total(),
            )
        columns = self.columns
        return AnnotationTable(
            self.root,
            Paths(self.paths),
            np.array(self.sizes, np.int32).reshape(-1, 2),
            np.cumsum([0, *self.counts]),
            np.array(columns["boxes"], np.float32).reshape(-1, 4),
            np.array(columns["labels"], np.int64),
            np.array(columns["crowd"], bool),
            np.array(columns["area"], np.float32),
            self.class_names,
            b"".join(columns["segment"]),
            np.cumsum([0, *map(len, columns["segment"])]),
            Paths(self.masks) if self.masks else None,
            self.category_ids,
            dropped=self.dropped,
        )
