"""Count what of a split's annotations trains, per class, and refuse a split of which nothing does.

Letters: K classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from lit_vision.data.annotations.files import size_of
from lit_vision.data.annotations.masks import IGNORE, MaskValues
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.splits import evenly_spaced
from lit_vision.errors import UserError
from lit_vision.io.text import join_names

log = logging.getLogger(__name__)

SAMPLE = 64  # images of a split whose size, and masks whose values, are read at set-up
_SHOWN = 40  # classes that are printed


@dataclass(frozen=True)
class ObjectCounts:
    """Objects of a split by class, each (K,) int64.

    Attributes:
        train: objects that train, or are looked for in evaluation.
        crowd: regions that are neither object nor background.
        dropped: objects that `on_bad_box: fix` left out.
    """

    train: np.ndarray
    crowd: np.ndarray
    dropped: np.ndarray


def count_objects(table: AnnotationTable) -> ObjectCounts:
    """Return the objects of a table by class."""
    k = len(table.class_names)
    train, crowd = (np.bincount(table.labels[rows], minlength=k) for rows in (~table.crowd, table.crowd))
    return ObjectCounts(train, crowd, np.array([table.dropped[i] for i in range(k)], np.int64))


def describe_objects(table: AnnotationTable, split: str) -> str:
    """Return one line: images, objects that train, crowd and dropped, in all and by class."""
    counts = count_objects(table)
    empty = int((np.diff(table.offsets) == 0).sum())
    order = np.argsort(-counts.train, kind="stable")
    shown = [_class_text(table.class_names[i], counts, i) for i in order[:_SHOWN].tolist()]
    more = f", and {len(order) - _SHOWN} classes more" if len(order) > _SHOWN else ""
    return (
        f"{split}: {len(table)} images, {empty} without an object; {counts.train.sum()} objects, "
        f"{counts.crowd.sum()} crowd, {counts.dropped.sum()} dropped: {', '.join(shown)}{more}"
    )


def _class_text(name: str, counts: ObjectCounts, i: int) -> str:
    extra = [f"{part[i]} {word}" for word, part in (("crowd", counts.crowd), ("dropped", counts.dropped)) if part[i]]
    return f"{name} {counts.train[i]}" + (f" ({', '.join(extra)})" if extra else "")


def require_objects(table: AnnotationTable, split: str) -> None:
    """Raise a UserError if no object of a split trains, or boxes are no pixels; warn of classes without an object."""
    counts = count_objects(table)
    if not counts.train.sum():
        crowd, dropped = int(counts.crowd.sum()), int(counts.dropped.sum())
        reasons = []
        if crowd:
            reasons.append(
                f"all {crowd} are crowd (COCO's iscrowd: 1, VOC's difficult), which does not train; CVAT marks every "
                "brush mask so: set data.crowd_as_objects: true to train on them"
            )
        if dropped:
            reasons.append(f"{dropped} were dropped by data.on_bad_box: fix; correct the annotations")
        if not reasons:
            reasons.append("the annotations hold none; check data.annotations, or data.hold_out if it is set")
        raise UserError(f"{table.root}: {split}: no object of {len(table)} images can be used: {'; '.join(reasons)}")
    if table.boxes.max() <= 1:
        raise UserError(
            f"{table.root}: {split}: all boxes lie in the first pixel of their images, so they may be shares of the "
            "image (0 to 1); multiply them by its width and height, or use a format that has shares (yolo)"
        )
    if copies := _count_copies(table):
        log.warning(
            "%s: %s: %d objects are exact copies of another one in their image; remove them, or each is searched for "
            "twice", table.root, split, copies,
        )  # fmt: skip
    without = [table.class_names[i] for i in np.flatnonzero(counts.train == 0).tolist()]
    if without:
        log.warning("%s: %s: no object of %s", table.root, split, join_names(without, 10))


def _count_copies(table: AnnotationTable) -> int:
    """Return the number of objects with the image, class and box of an earlier one."""
    image = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    rows = np.column_stack([image, table.labels, table.boxes])[~table.crowd]
    return len(rows) - len(np.unique(rows, axis=0))


def require_sizes(table: AnnotationTable) -> None:
    """Raise an AnnotationError if one of the first images looked at is of another size than annotated.

    Looks at the headers of a sample; a file that cannot be read is left to the reader of images.
    """
    for i in evenly_spaced(len(table), min(SAMPLE, len(table))).tolist():
        claimed = tuple(table.sizes[i].tolist())
        try:
            size = size_of(table.root / table.paths[i])
        except AnnotationError:
            continue
        if claimed not in ((0, 0), size):
            raise AnnotationError(size_message(table, i, size))


def size_message(table: AnnotationTable, index: int, size: tuple[int, int]) -> str:
    """Return the message about image `index`, whose file has another size (height, width) than annotated."""
    claimed = table.sizes[index].tolist()
    return (
        f"{table.root / table.paths[index]}: is {size[1]} x {size[0]}, annotated as {claimed[1]} x {claimed[0]}; "
        "correct the annotations (an EXIF orientation may rotate an image)"
    )


def count_pixels(table: AnnotationTable, values: MaskValues) -> tuple[np.ndarray, int]:
    """Return the pixels of each class and of the ignored ones, (K + 1,) int64, in a sample of masks, and its size.

    Raises:
        AnnotationError: a mask cannot be read, or has another size than its image.
    """
    k = len(table.class_names)
    counts, rows = np.zeros(k + 1, np.int64), evenly_spaced(len(table), min(SAMPLE, len(table))).tolist()
    assert table.masks is not None
    for i in rows:
        try:
            size = size_of(table.root / table.paths[i])
        except AnnotationError:
            continue
        mask = values.read(table.root / table.masks[i], size, k)
        counts += np.bincount(np.where(mask == IGNORE, k, mask).ravel(), minlength=k + 1)
    return counts, len(rows)


def describe_pixels(table: AnnotationTable, counts: np.ndarray, masks: int, split: str) -> str:
    """Return one line: images, and the share of each class and of ignored pixels in a sample of masks.

    Args:
        table: of the split.
        counts, masks: from `count_pixels`.
        split: its name.
    """
    share = counts / max(1, counts.sum())
    shown = [f"{name} {value:.2%}" for name, value in zip(table.class_names[:_SHOWN], share.tolist())]
    return f"{split}: {len(table)} images; pixels of {masks} masks: {', '.join(shown)}, ignored {share[-1]:.2%}"


def require_pixels(
    table: AnnotationTable, values: MaskValues, counts: np.ndarray, masks: int, split: str, trains: bool
) -> None:
    """Raise a UserError if a sample of masks can teach nothing; warn of classes without a pixel in it.

    Args:
        table: of the split.
        values: meaning of the masks' pixels.
        counts, masks: from `count_pixels`.
        split: its name, for the message.
        trains: one class alone in all masks is refused; an evaluation split may be small.
    """
    names, seen = table.class_names, np.flatnonzero(counts[:-1])
    where = f"{table.root}: {split}: "
    if not len(seen):
        raise UserError(f"{where}all pixels of {masks} masks are ignored; correct data.ignore_values or the masks")
    without = [name for name, count in zip(names, counts.tolist()) if not count]
    if len(seen) == 1 and len(names) > 1 and counts[-1] and values.colors is None and 255 in values.ignore_values:
        lines = " and ".join(f"'{name} {v} {v} {v}'" for name, v in zip(names, (0, 255))) if len(names) == 2 else ""
        advice = f"the lines {lines}" if lines else "'name value value value' for each class"
        raise UserError(
            f"{where}in {masks} masks every pixel is {names[seen[0]]} or ignored (value 255), none is "
            f"{join_names(without, 10)}; if 255 is a class, set data.colors to a file with {advice}"
        )
    if trains and len(seen) == 1 and len(names) > 1 and masks == len(table):
        raise UserError(
            f"{where}every pixel of its {masks} masks is {names[seen[0]]}, so nothing can be learned; "
            "correct the masks, data.class_names or data.first_value"
        )
    if without:
        log.warning("%sno pixel of %s in %d masks", where, join_names(without, 10), masks)
