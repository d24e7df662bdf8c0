"""Measure once the range of values of a data set's images that are deeper than 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lit_vision.data.folder import Folder, Paths
from lit_vision.data.splits import evenly_spaced
from lit_vision.data.views.decode import ImageDecodeError, decode_values
from lit_vision.data.views.pixel_values import MIN_LEVELS, ValueRange, conventional_range, lost_levels, to_8bit
from lit_vision.errors import UserError

SAMPLE = 64  # images, evenly spaced over the training split
_PIXELS = 1 << 16  # of an image that are kept to count gray levels
_EIGHT_BIT = ("jpg", "jpeg", "jpe", "webp", "gif", "bmp", "pbm")  # endings of formats that hold no deeper images


class MeasuredRange(NamedTuple):
    """Range of values found in a sample of a data set.

    Attributes:
        value_range: becomes 0 to 255; None if no sampled image is deeper than 8 bits.
        low, high: lowest and highest value in the sample.
        images: deep images in the sample.
        problem: "", or a sentence that says why no range fits the images, and what to declare; `value_range` is then
            what it proposes.
    """

    value_range: ValueRange | None
    low: float = 0.0
    high: float = 0.0
    images: int = 0
    problem: str = ""

    def describe(self, setting: str = "data.range") -> str:
        """Return the line that says which range was taken; "" without a deep image in the sample.

        Args:
            setting: by which the user declares another one; "" if there is none.
        """
        if self.value_range is None or not self.images:
            return ""
        other = f"; {setting} declares another range" if setting else ""
        return (
            f"images deeper than 8 bits: [{self.value_range[0]:g}, {self.value_range[1]:g}] becomes 0 to 255 (values "
            f"from {self.low:g} to {self.high:g} in a sample of {self.images}{other})"
        )


def measure_range(read: Callable[[str], bytes], paths: Sequence[str]) -> MeasuredRange:
    """Measure the range of values in a sample of images; it depends on nothing but the sample.

    Args:
        read: bytes of an image's file.
        paths: of the images to choose from; broken files count as none.
    """
    parts: list[np.ndarray] = []
    limits: list[tuple[float, float]] = []
    for row in evenly_spaced(len(paths), SAMPLE):
        path = paths[int(row)]
        if path.rpartition(".")[2].lower() in _EIGHT_BIT:
            continue
        try:
            values = decode_values(read(path))
        except (ImageDecodeError, OSError):
            continue
        if values is None:
            continue
        flat = values.ravel()
        flat = flat[np.isfinite(flat)] if np.issubdtype(flat.dtype, np.floating) else flat
        if flat.size:
            limits.append((float(flat.min()), float(flat.max())))
            parts.append(flat[:: -(-flat.size // _PIXELS)].copy())
    if not parts:
        return MeasuredRange(None)
    low, high = min(limit[0] for limit in limits), max(limit[1] for limit in limits)
    integers = all(np.issubdtype(part.dtype, np.integer) for part in parts)
    value_range = conventional_range(low, high, integers)
    lost = _count_lost(parts, value_range)
    problem = ""
    if 2 * lost > len(parts):
        problem = (
            f"values lie from {low:g} to {high:g}, and {lost} of {len(parts)} sampled images would keep fewer than "
            f"{MIN_LEVELS} of 256 gray levels; declare the range that matters as data.range"
        )
        values = np.concatenate(parts)
        for share in (0.1, 1, 5):  # of the values, in percent, that are outliers at each end
            black, white = np.percentile(values, (share, 100 - share))
            proposed = conventional_range(float(black), float(white), integers)
            if 2 * _count_lost(parts, proposed) <= len(parts):
                value_range = proposed
                problem += f", such as [{value_range[0]:g}, {value_range[1]:g}]"
                break
    return MeasuredRange(value_range, low, high, len(parts), problem)


def _count_lost(parts: Sequence[np.ndarray], value_range: ValueRange) -> int:
    """Return how many images would keep too few gray levels."""
    return sum(lost_levels(part, to_8bit(part, value_range)) is not None for part in parts)


def measure_folder_range(folder: Folder, train_split: str) -> MeasuredRange:
    """Measure the range of values of a folder: of its training split, else its unlabeled images, else all of it.

    Shards of deep images that were converted have the range that was used then.
    """
    if (stored := getattr(folder, "value_range", None)) is not None:
        return MeasuredRange((float(stored[0]), float(stored[1])))
    paths: Sequence[str] = folder.splits[train_split].paths if train_split in folder.splits else folder.unlabeled.paths
    if not len(paths):
        paths = Paths(path for split in folder.splits.values() for path in split.paths)
    return measure_range(folder.read, paths)


def require_range(measured: MeasuredRange, where: str) -> ValueRange | None:
    """Return the measured range.

    Args:
        measured: from `measure_range`.
        where: names the data in the error message.

    Raises:
        UserError: no range fits the images.
    """
    if measured.problem:
        raise UserError(f"{where}: {measured.problem}")
    return measured.value_range
