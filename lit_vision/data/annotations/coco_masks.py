"""Validate and decode COCO's segmentations: polygons and run lengths.

Run lengths are decoded here and not by pycocotools, which does not check them: if they do not add up to the image, the
other pixels hold whatever was in memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lit_vision.data.annotations.table import AnnotationError
from lit_vision.errors import UserError

_NUMBERS = {int, float}  # types of JSON's numbers; not bool


def decode_rle(text: str) -> np.ndarray:
    """Decode COCO's packed text to run lengths, (n,) int64.

    A length is one or more characters: 48 + five bits, the lowest first, + 32 on all but the last, whose fifth bit is
    the sign. From the fourth on it is the difference to the length two positions before.
    Source: cocoapi, common/maskApi.c, rleFrString (BSD).

    Raises:
        ValueError: not such a text; the message continues "the mask's counts".
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 32) == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(last) or last[-1] != len(codes) - 1:
        raise ValueError("are not COCO's packed text")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 7:  # over 40 bits
        raise ValueError("hold a length that no image has")
    position = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    lengths = np.add.reduceat((codes & 31) << 5 * position, first)
    lengths -= np.where(codes[last] & 16, np.int64(1) << 5 * (last - first + 1), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def rle_counts(segmentation: dict[str, Any], pixels: int) -> np.ndarray:
    """Return the run lengths of a mask of `pixels` pixels, (n,) int64: zeros and ones in turn, column by column.

    Raises:
        ValueError: `counts` is invalid; the message continues "the mask's counts".
    """
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        lengths = decode_rle(counts)
        low, total = int(lengths.min()), int(lengths.sum())
    elif isinstance(counts, list) and counts and set(map(type, counts)) == {int}:
        low, total = min(counts), sum(counts)
    else:
        raise ValueError("are missing" if counts is None else "are neither integers nor packed text")
    if low < 0:
        raise ValueError(f"hold {low}, a length below 0")
    if total != pixels:
        raise ValueError(f"add up to {total} pixels, not to the image's {pixels}")
    return np.asarray(counts, np.int64) if isinstance(counts, list) else lengths


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's uncompressed run lengths of a (H, W) mask: column by column, beginning with the count of zeros."""
    flat = np.concatenate([[0], mask.astype(np.uint8).ravel(order="F"), [0]])
    edges = np.flatnonzero(np.diff(flat))  # where runs of ones begin and end, in turn
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    if len(edges) and edges[-1] == mask.size:
        counts = counts[:-1]
    return {"size": list(mask.shape), "counts": counts.tolist()}


def check_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> bool:
    """Return True if a mask may have a pixel in its image, without drawing it.

    Args:
        segmentation: the value from the JSON file.
        size: height and width of the image.
        where: names file and annotation, for messages.

    Returns:
        False for run lengths without a one, and for polygons that all lie outside.

    Raises:
        AnnotationError: it is not a mask of an image of this size.
    """
    if isinstance(segmentation, dict):
        claimed = segmentation.get("size")
        if claimed != list(size):
            shown = tuple(claimed) if isinstance(claimed, list) else claimed
            raise AnnotationError(
                f"{where}: the mask is {shown} (height, width), the image {size}; "
                "correct it, masks must have the size of their image"
            )
        return bool(_checked_counts(segmentation, size, where)[1::2].any())
    if not isinstance(segmentation, list) or not segmentation or not all(map(_is_polygon, segmentation)):
        raise AnnotationError(
            f"{where}: no usable segmentation (run lengths, or polygons of three points or more); add one, "
            "set data.with_masks to false, or data.on_bad_box to fix, which leaves such objects out"
        )
    height, width = size
    return any(
        max(p[::2]) > 0 and min(p[::2]) < width and max(p[1::2]) > 0 and min(p[1::2]) < height for p in segmentation
    )


def fix_segmentation(segmentation: Any) -> Any:
    """Return a segmentation in COCO's form, for `on_bad_box: fix`.

    A flat list of numbers becomes a list of one polygon; polygons of fewer than three points or without area go. None
    if no polygon remains, or if there was no segmentation. Run lengths come back unchanged.
    """
    if isinstance(segmentation, dict):
        return segmentation
    if not isinstance(segmentation, list):
        return None
    if segmentation and set(map(type, segmentation)) <= _NUMBERS:
        segmentation = [segmentation]
    return [polygon for polygon in segmentation if _is_polygon(polygon) and _has_area(polygon)] or None


def _has_area(polygon: list[float]) -> bool:
    """True unless all points lie on one line (a figure eight has area, although its signed area is 0)."""
    points = np.asarray(polygon, float).reshape(-1, 2)
    return bool(np.linalg.matrix_rank(points - points[0]) == 2)


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not set(map(type, polygon)) <= _NUMBERS:
        return False
    try:
        return math.isfinite(sum(polygon))
    except OverflowError:  # an integer beyond the range of float
        return False


def _checked_counts(segmentation: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    try:
        return rle_counts(segmentation, size[0] * size[1])
    except ValueError as error:
        raise AnnotationError(f"{where}: the mask's counts {error}; correct or remove it") from None


def decode_masks(segmentations: list[Any], height: int, width: int, where: str = "segmentation") -> np.ndarray:
    """Decode COCO's segmentations to pixels.

    Args:
        segmentations: polygons [[x1, y1, x2, y2, ...], ...], run lengths {"size", "counts"} with counts as list or
            packed text.
        height, width: of the image.
        where: names the image, for messages.

    Returns:
        (n, height, width) uint8 of 0 and 1, rasterized as in pycocotools.

    Raises:
        AnnotationError: run lengths that do not add up to height x width.
    """
    found = np.zeros((len(segmentations), height, width), np.uint8)
    for index, segmentation in enumerate(segmentations):
        if isinstance(segmentation, list):
            found[index] = _rasterize(segmentation, height, width)
        else:
            lengths = _checked_counts(segmentation, (height, width), where)
            ones = (np.arange(len(lengths)) & 1).astype(np.uint8)
            found[index] = np.repeat(ones, lengths).reshape(width, height).T
    return found


def _rasterize(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        raise UserError("data.with_masks: needs pycocotools; pip install 'lit-vision[detection]'") from None
    mask: np.ndarray = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    return mask
