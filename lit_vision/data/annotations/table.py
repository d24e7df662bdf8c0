"""What every annotation format is read into: one flat table of boxes over all images, checked once, small enough to fork.

Letters: N images, M boxes over all of them, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import Paths, check_within_root
from lit_vision.errors import UserError

log = logging.getLogger(__name__)

SLACK = (
    1.0  # pixels that a box may reach over the edge: COCO's own boxes do so by rounding; they are cut off in silence
)


class AnnotationError(UserError):
    """A box or mask that cannot be right: outside the image, without area, of an unknown class, of another size than the image."""


@dataclass(frozen=True)
class AnnotationTable:
    """The annotations of one split.

    Attributes:
        root: folder that the paths start from.
        paths: N relative paths of images.
        sizes: (N, 2) int32, height and width that the annotations claim; 0 where they do not say.
        offsets: (N + 1,) int64: the boxes of image i are those from offsets[i] to offsets[i + 1].
        boxes: (M, 4) float32: x1, y1, x2, y2 in pixels of the image, x2 > x1, y2 > y1, inside it.
        labels: (M,) int64 class numbers, 0 to K - 1.
        crowd: (M,) bool: regions that are neither object nor background (COCO's iscrowd, VOC's difficult).
        area: (M,) float32 pixels, COCO's `area` (of the mask), else of the box.
        class_names: K names.
        segments, segment_at: the masks as JSON texts, one after another, and where each begins (M + 1,); empty if there are none.
        masks: N relative paths of semantic masks, or None.
        category_ids: K ids of the classes in the set's own files (COCO's have gaps); empty where it has none.
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

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, index: int) -> slice:
        """Where the boxes of one image are."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def segmentations(self, index: int) -> list[Any]:
        """The masks of one image as COCO has them: polygons or run lengths."""
        rows = self.rows(index)
        return [
            json.loads(self.segments[self.segment_at[i] : self.segment_at[i + 1]]) for i in range(rows.start, rows.stop)
        ]

    def digest(self, hash_content: bool = False) -> bytes:
        """sha256 of the paths and sizes of all files and of every annotation; with `hash_content` of the files' bytes too."""
        whole = hashlib.sha256("\0".join(self.class_names).encode())
        for paths in (self.paths, self.masks or ()):
            for path in sorted(paths):
                file = self.root / path
                whole.update(f"{path}\0{file.stat().st_size if file.is_file() else -1}\0".encode())
                if hash_content and file.is_file():
                    whole.update(hashlib.sha256(file.read_bytes()).digest())
        for array in (self.offsets, self.boxes, self.labels, self.crowd):
            whole.update(np.ascontiguousarray(array).tobytes())
        whole.update(self.segments)
        return whole.digest()

    def subset(self, keep: np.ndarray) -> AnnotationTable:
        """The same with only these images, in this order."""
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
        )


class AnnotationTableBuilder:
    """Collects images and boxes, and refuses what cannot be right.

    Args:
        root: folder that the paths start from.
        class_names: K names.
        on_bad_box: "error": the first fault raises; "mend": boxes are cut at the edge, those without area dropped, and the count is said.
    """

    def __init__(self, root: Path, class_names: list[str], on_bad_box: str = "error"):
        if len(class_names) != len(set(class_names)) or not class_names:
            twice = next((name for name in class_names if class_names.count(name) > 1), None)
            what = f"class {twice!r} is there twice" if twice else "no class"
            raise AnnotationError(f"{root}: {what}; give every class one name of its own")
        self.root, self.class_names, self.mend = Path(root), class_names, on_bad_box == "mend"
        self.category_ids: list[int] = []  # a reader whose format has some sets them
        self.paths: list[str] = []
        self.masks: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.counts: list[int] = []
        self.columns: dict[str, list] = {name: [] for name in ("boxes", "labels", "crowd", "area", "segment")}
        self._seen: set[str] = set()
        self.cut = self.dropped = 0

    def image(self, path: str, size: tuple[int, int] = (0, 0), mask: str | None = None) -> None:
        """Begin an image: relative path, (height, width) if known, relative path of its semantic mask.

        Raises:
            UserError: a path leads out of the root. AnnotationError: the image is there already: its boxes would be in two places.
        """
        plain = os.path.normpath(check_within_root(path))
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
        """Add a box to the image begun last.

        Args:
            where: names file and annotation, for messages.
            box: x1, y1, x2, y2 in pixels.
            label: class number; the reader has checked it.
            crowd: see AnnotationTable.
            area: pixels; that of the box if None.
            segmentation: COCO's, or None.

        Raises:
            AnnotationError: not finite, without area, or outside the image.
        """
        height, width = self.sizes[-1]
        x1, y1, x2, y2 = (float(v) for v in box)
        shown, image = f"{where}: box {[round(v, 2) for v in (x1, y1, x2, y2)]} (x1, y1, x2, y2)", self.paths[-1]
        if not np.isfinite([x1, y1, x2, y2]).all():
            raise AnnotationError(f"{shown} is not finite; correct or remove it")
        over = max(-x1, -y1, x2 - width, y2 - height)
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if x2 <= x1 or y2 <= y1 or inside[2] <= inside[0] or inside[3] <= inside[1]:
            if not self.mend:
                what = "has no area" if x2 <= x1 or y2 <= y1 else f"lies outside {image} ({width} x {height})"
                raise AnnotationError(f"{shown} {what}; correct or remove it, or set data.on_bad_box to mend")
            self.dropped += 1
            return
        if over > SLACK:
            if not self.mend:
                raise AnnotationError(
                    f"{shown} reaches {over:.1f} pixels out of {image} ({width} x {height}); correct it, or set data.on_bad_box to mend"
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
        """All that was added; says in one warning what was mended."""
        if not self.paths:
            raise AnnotationError(f"{self.root}: no image in the annotations; check the paths")
        if self.cut or self.dropped:
            log.warning(
                "%s: %d boxes cut at the edge, %d without area dropped (on_bad_box=mend)",
                self.root,
                self.cut,
                self.dropped,
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
        )
