"""Build an AnnotationTable: collect images and boxes of a split, and check each of them."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.folder import Paths, check_within_root
from lit_vision.errors import UserError

log = logging.getLogger(__name__)

# pixels that a box may reach over the edge without a warning: COCO's boxes do so by rounding; they are cut at the edge
EDGE_TOLERANCE = 1.0


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
