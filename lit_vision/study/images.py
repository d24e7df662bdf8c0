"""Open a folder's images for a study: a training pool and a test split, whose pixels are read when they are needed.

N pool images, M test images, S side in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median_low

import numpy as np

from lit_vision.data.batch import Batch
from lit_vision.data.datasets import InMemoryDataset
from lit_vision.data.folder import Folder
from lit_vision.data.labeled_folder import LabelOptions, open_labeled
from lit_vision.data.open_images import open_images
from lit_vision.data.sampler import EvalBatches
from lit_vision.data.splits import evenly_spaced, has_label
from lit_vision.data.value_range import measure_folder_range, require_range
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.decode import ImageDecodeError, read_header
from lit_vision.data.views.params import make_view_spec
from lit_vision.data.views.pixel_values import PixelFormat, ValueRange
from lit_vision.errors import UserError
from lit_vision.predict.feature_cache import batch_size
from lit_vision.study.label_kinds import HELD_OUT, LabelKind, kind_of
from lit_vision.study.pixel_cache import (
    ImageFiles,
    OnImage,
    PixelCache,
    PixelRows,
    Pixels,
    StoredPixels,
    finish,
    read_pixels,
)
from lit_vision.study.presets import SMALL

FLAT_SIDE = 32  # of the baseline of flat pixels in a study of larger images
MARGIN = 1.25  # images larger than the networks' input are stored this much larger than it, so that crops can differ
SAMPLE = 101  # images whose headers give the typical size


@dataclass
class StudyImages:
    """Training and test images of a study, with labels, class names and fingerprint.

    Attributes:
        pool: (N, S, S, C) uint8, C = 1 if every image is gray, else 3: the training images under the evaluation view,
            labeled ones first.
        labels: (N,) int64, -1 without one; or (N, K) float32 with several labels an image, NaN unknown.
        paths: relative path of each pool image.
        test: like `pool`, for the test split; evaluated once per cell, at its end.
        test_labels: (M,) int64, or (M, K) float32.
        test_paths: relative path of each test image.
        classes: names.
        fingerprint: of the folder, and of the test split where a table or groups choose it.
        size: side of the networks' input, pixels.
        notes: sentences about decisions and left-out images, for progress and report.
        large: `pool` at MARGIN times its size, from which training crops are cut; None: cut them from `pool`.
        value_range: values of images deeper than 8 bits that became 0 and 255; None if there are none.
        files: where `paths` and `test_paths` lie; None: the arrays are all there is.
        flat: the labeled pool and the test split at FLAT_SIDE, if the study's size is above SMALL; else None.
        cache: room for pixels on the disk; None: they are held in memory.
        groups: (N,) text: images of one group stand on one side of every split inside the labels; None: there are none.
    """

    pool: Pixels
    labels: np.ndarray
    paths: list[str]
    test: Pixels
    test_labels: np.ndarray
    test_paths: list[str]
    classes: list[str]
    fingerprint: str
    size: int
    notes: list[str] = field(default_factory=list)
    large: Pixels | None = None
    value_range: ValueRange | None = None
    files: ImageFiles | None = None
    flat: tuple[Pixels, Pixels] | None = None
    cache: PixelCache | None = None
    groups: np.ndarray | None = None
    _test_views: dict[int, Pixels] = field(default_factory=dict, init=False, repr=False)

    def crop_pct(self, size: int) -> float:
        """Return the share of the resized short side that the evaluation view of this size keeps.

        At the study's own size it is the complete short side, as `test` has it.
        """
        return 1.0 if size == self.size else make_view_spec("eval", size).crop_pct

    def test_view(self, size: int, keep: bool = True) -> Pixels:
        """Return the test split under the evaluation view of a size, (M, size, size, C).

        Args:
            size: side, pixels.
            keep: the pixels are asked for more than once.
        """
        if size == self.size:  # made from the files in the same way
            return self.test
        if self.files is None:
            views = [batch["images"][:, 0].numpy() for batch in eval_batches(self.test, self.test_labels, size)]
            return np.concatenate(views)
        if size not in self._test_views:
            paths, rows = self.test_paths, np.arange(len(self.test_paths))
            none = np.empty((0, size, size, 3), np.uint8)
            lazy = StoredPixels(self.files, paths, rows, size, self.crop_pct(size), none, self.test.shape[-1])
            if not keep:
                return lazy
            self._test_views[size] = lazy.keep_in(self.cache)
        return self._test_views[size]

    def flat_pixels(self) -> tuple[PixelRows, PixelRows]:
        """Return the n labeled pool images and the test split as rows of numbers in 0 to 1: (n, D) and (M, D)."""
        pool, test = self.flat or (self.pool, self.test)
        return PixelRows(pool, self.labeled), PixelRows(test, len(test))

    @property
    def kind(self) -> LabelKind:
        """One label an image, or several."""
        return kind_of(self.labels)

    @property
    def labeled(self) -> int:
        """Number of labeled pool images; they come first."""
        return int(has_label(self.labels).sum())

    @property
    def per_class(self) -> list[int]:
        """Number of labeled pool images of each class."""
        return self.kind.count(self.labels, len(self.classes))

    def groups_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the groups of some pool rows, if there are any."""
        return None if self.groups is None else self.groups[rows]

    def tested_on(self, rows: np.ndarray) -> StudyImages:
        """Return these images with some pool rows as the test split."""
        paths = [self.paths[int(row)] for row in rows]
        test = self.pool[rows]
        return replace(self, test=test, test_labels=self.labels[rows], test_paths=paths, cache=None)

    def subset(self, count: int, seed: int) -> np.ndarray:
        """Return rows of `count` labeled pool images, nested in count, different for every seed.

        One label an image: stratified. Several: random, see `SeveralLabels.sample`. Groups are not looked at: what is
        asked is the worth of labels, not of groups.
        """
        return self.kind.sample(self.labels, count, seed)


def read_images(
    root: str | Path,
    size: int | Callable[[int], int] | None = None,
    seed: int = 0,
    labels: LabelOptions | None = None,
    cache: PixelCache | None = None,
    on_image: OnImage | None = None,
) -> StudyImages:
    """Scan, split and decode a folder; each image is decoded once, to see that it can be read.

    The test split is the folder's own; without one, a quarter of the labeled images is held out (at least one of each
    class).
    A validation split is not used: a study's choices come from a fixed recipe or from inside the labels.

    Args:
        root: see `lit_vision.data.open_images.open_images`.
        size: side of the networks' input, or a function that returns it for the median short side of the images; None:
            that side up to 64 pixels, else 64.
        seed: of the held-out quarter.
        labels: a table of labels and groups, or None for labels from folders' names; whole groups are held out.
        cache: room for the pixels on the disk; None: they are held in memory.
        on_image: called with (images done, all images of this split).

    Raises:
        UserError: fewer than two labeled classes, a class with one image and no test split, more than 1 % unreadable
            images, or a short disk.
    """
    folder, notes = _open(root, labels, seed)
    folder.require_classes("a study")
    train = folder.require_labels("train", "a study")
    keep = np.arange(len(train))
    if "test" in folder.splits:
        test = folder.require_labels("test", "a study, which measures on it,")
        tests = np.flatnonzero(has_label(test.labels))
    else:
        test, tests = train, _held_out(train.labels, folder, seed)
        keep = np.setdiff1d(keep, tests)
        notes.append(
            f"The folder has no test split: {len(tests)} of its {has_label(train.labels).sum()} labeled images were "
            "held out as one."
        )
    if "val" in folder.splits:
        notes.append(f"The validation split ({len(folder.splits['val'])} images) was not used.")
    notes += _scan_notes(folder)
    pixel_format = _pixel_format(folder, notes)
    known = has_label(train.labels[keep])
    keep = np.concatenate([keep[known], keep[~known]])  # labeled ones come first
    pool_paths = [train.paths[int(i)] for i in keep] + list(folder.unlabeled.paths)
    side = typical_side(folder, pool_paths)
    if callable(size):
        size = size(side)
    elif size is None:
        size = max(16, -(-side // 4) * 4) if side <= SMALL else SMALL
    none = np.full((len(folder.unlabeled), *train.labels.shape[1:]), np.nan if train.labels.ndim == 2 else -1)
    pool_labels = np.concatenate([train.labels[keep], none.astype(train.labels.dtype)])
    test_paths = [test.paths[int(i)] for i in tests]
    files, crops = ImageFiles(folder, pixel_format), _side_for_crops(side, size)
    count = len(pool_paths)
    wanted = {size: count if cache is None or crops == size or size <= SMALL else 0, crops: count}
    if size > SMALL:
        wanted[FLAT_SIDE] = int(has_label(pool_labels).sum())
    pool_parts, good, pool_gray = read_pixels(files, pool_paths, wanted, cache, notes, on_image)
    wanted = {size: len(tests)} | ({FLAT_SIDE: len(tests)} if size > SMALL else {})
    test_parts, test_good, test_gray = read_pixels(files, test_paths, wanted, cache, notes, on_image)
    gray, in_memory = pool_gray and test_gray, cache is None
    pool, tested = (
        {side: finish(pixels, gray, in_memory) for side, pixels in part.items()} for part in (pool_parts, test_parts)
    )
    images = StudyImages(
        pool[size],
        pool_labels[good],
        [pool_paths[i] for i in good],
        tested[size],
        test.labels[tests][test_good],
        [test_paths[i] for i in test_good],
        folder.classes,
        folder.fingerprint() if labels is None else _fingerprint_of_split(folder, test_paths),
        size,
        notes,
        pool[crops] if crops != size else None,
        pixel_format.value_range,
        files,
        (pool[FLAT_SIDE], tested[FLAT_SIDE]) if size > SMALL else None,
        cache,
        None if folder.groups is None else np.array([folder.groups.get(pool_paths[i], "") for i in good]),
    )
    if not any(images.kind.count(images.test_labels, len(images.classes))):
        raise UserError(f"{root}: no class applies to an image of the test split; add images or correct the labels")
    empty = [name for name, count in zip(images.classes, images.per_class) if not count]
    if empty:
        raise UserError(f"{root}: no training image is left for class {empty[0]!r}; add some or remove the class")
    return images


def read_unlabeled(
    root: str | Path, size: int, cache: PixelCache | None = None, on_image: OnImage | None = None
) -> StudyImages:
    """Read all images of a folder to pre-train on, without labels and without its test split.

    Args:
        root: see `lit_vision.data.open_images.open_images`; classes are not needed.
        size: side of the networks' input.
        cache, on_image: as for `read_images`.

    Raises:
        UserError: no image, more than 1 % unreadable ones, or a short disk.
    """
    folder = open_images(root)
    train = folder.require_split("train", "pre-training")
    notes = _scan_notes(folder)
    paths = [*train.paths, *folder.unlabeled.paths]
    files = ImageFiles(folder, _pixel_format(folder, notes))
    side = _side_for_crops(typical_side(folder, paths), size)  # it is only trained on
    pixels, good, gray = read_pixels(files, paths, {side: len(paths)}, cache, notes, on_image)
    pool, labels = finish(pixels[side], gray, cache is None), np.full(len(good), -1)
    none = np.empty((0, *pool.shape[1:]), np.uint8)
    paths = [paths[i] for i in good]
    return StudyImages(pool, labels, paths, none, labels[:0], [], [], folder.fingerprint(), size, notes, files=files)


def _open(root: str | Path, labels: LabelOptions | None, seed: int) -> tuple[Folder, list[str]]:
    """Return the folder and notes; with groups but without a test split, one of whole groups is drawn."""
    if labels is None:
        return open_images(root), []
    roles = {role: role for role in ("train", "val", "test")}
    folder = open_labeled(root, roles, labels)
    if "test" in folder.splits or labels.group_by is None:
        return folder, []
    folder = open_labeled(root, roles, replace(labels, fractions={"test": HELD_OUT}, seed=seed))
    count = len(folder.splits["test"])
    return folder, [f"There is no test split: {count} images in whole groups ({labels.group_by}) were held out as one."]


def _fingerprint_of_split(folder: Folder, test_paths: Sequence[str]) -> str:
    """Return the folder's fingerprint with the test split, which a table or groups choose: no path shows it."""
    split = "\0".join([folder.fingerprint(), *sorted(test_paths)])
    return hashlib.sha256(split.encode("utf-8", "surrogateescape")).hexdigest()


def _held_out(labels: np.ndarray, folder: Folder, seed: int) -> np.ndarray:
    kind = kind_of(labels)
    counts = kind.count(labels, len(folder.classes))
    if min(counts) < 2:
        few = folder.classes[int(np.argmin(counts))]
        number = "one image" if min(counts) else "no image"
        raise UserError(f"{folder.root}: class {few!r} has {number} and there is no test split; give it two or more")
    return kind.hold_out(labels, len(counts), seed)


def _scan_notes(folder: Folder) -> list[str]:
    """Return sentences about splits of unusual names and about what the scan left out."""
    splits = folder.inventory.splits.items()
    notes = [f"The folder {place} was taken as the {name} split." for name, place in splits if place != name]
    left_out = folder.inventory.phrases()
    return notes + ([f"Left out: {'; '.join(left_out)}."] if left_out else [])


def typical_side(folder: Folder, paths: Sequence[str]) -> int:
    """Return the median short side, in pixels, of evenly spaced images; no pixel is decoded.

    No single image decides: one icon among photographs, or an empty file that sorts first, changes nothing.

    Args:
        folder: that they are in.
        paths: of one or more images. Those that cannot be read do not count; if no one of the sample can, it is 64.
    """
    sides = []
    for i in evenly_spaced(len(paths), SAMPLE).tolist():
        try:
            header = read_header(folder.read(paths[i]))
        except (ImageDecodeError, OSError):
            continue
        sides.append(min(header.width, header.height))
    return median_low(sides) if sides else 64


def _pixel_format(folder: Folder, notes: list[str]) -> PixelFormat:
    """Return the conversion of the folder's images, measured as for training, with a note if it is not the usual."""
    measured = measure_folder_range(folder, "train")
    value_range = require_range(measured, str(folder.root))
    if measured.images:
        notes.append(measured.describe("").capitalize() + ".")
    return PixelFormat(value_range)


def _side_for_crops(side: int, size: int) -> int:
    """Return the side of the pixels that training crops are cut from: larger than `size` if the images are."""
    return size if side <= size else round(size * MARGIN)


def eval_batches(pixels: Pixels, labels: np.ndarray, size: int) -> Iterator[Batch]:
    """Yield batches of the evaluation view of stored pixels, in order, each image once."""
    rows = InMemoryDataset(pixels, labels, make_batch_views("eval", size, 0))
    for keys in EvalBatches(len(rows), batch_size(size)):
        yield rows.__getitems__(keys)
