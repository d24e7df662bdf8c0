"""Load a folder's images for a study: all in memory at one small size, split into a training pool and a test split.

N pool images, M test images, S side in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_vision.data.batch import Batch
from lit_vision.data.datasets import BAD_SHARE, InMemoryDataset
from lit_vision.data.folder import Folder
from lit_vision.data.labeled_folder import LabelOptions, open_labeled
from lit_vision.data.loader import identity_collate
from lit_vision.data.open_images import open_images
from lit_vision.data.sampler import EvalBatches, TrainBatches
from lit_vision.data.splits import evenly_spaced, sample_stratified
from lit_vision.data.value_range import measure_folder_range, require_range
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.decode import ImageDecodeError, decode, read_header
from lit_vision.data.views.params import make_view_spec
from lit_vision.data.views.pixel_values import PixelFormat, ValueRange
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.io.processes import cores
from lit_vision.predict.feature_cache import read_batches

HELD_OUT = 0.25  # share of the labeled images that becomes the test split if the folder has none
MARGIN = 1.25  # images larger than the networks' input are stored this much larger than it, so that crops can differ
SAMPLE = 101  # images whose headers give the typical size


@dataclass(frozen=True)
class ImageFiles:
    """Folder or pack of a study's images, and the conversion of their values to 8 bits."""

    folder: Folder
    pixel_format: PixelFormat


@dataclass
class StudyImages:
    """Training and test images of a study, with labels, class names and fingerprint.

    Attributes:
        pool: (N, S, S, C) uint8, C = 1 if every image is gray, else 3: the training images, labeled ones first.
            They are made as `test` is, so that the same file has the same features in both.
        labels: (N,) int64, -1 without one.
        paths: relative path of each pool image.
        test: like `pool`, for the test split; evaluated once per cell, at its end.
        test_labels: (M,) int64.
        test_paths: relative path of each test image.
        classes: names.
        fingerprint: of the folder.
        size: side of the networks' input, pixels.
        notes: sentences about decisions and left-out images, for progress and report.
        large: `pool` at MARGIN times its size, from which training crops are cut; None: cut them from `pool`.
        value_range: values of images deeper than 8 bits that became 0 and 255; None if there are none.
        files: where `paths` and `test_paths` lie; None: the arrays are all there is.
    """

    pool: np.ndarray
    labels: np.ndarray
    paths: list[str]
    test: np.ndarray
    test_labels: np.ndarray
    test_paths: list[str]
    classes: list[str]
    fingerprint: str
    size: int
    notes: list[str] = field(default_factory=list)
    large: np.ndarray | None = None
    value_range: ValueRange | None = None
    files: ImageFiles | None = None
    _test_views: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def crop_pct(self, size: int) -> float:
        """Return the share of the resized short side that the evaluation view of this size keeps.

        At the study's own size it is the complete short side, as `test` has it.
        """
        return 1.0 if size == self.size else make_view_spec("eval", size).crop_pct

    def test_view(self, size: int) -> np.ndarray:
        """Return the test split under the evaluation view of a size, (M, size, size, C), from its files if known."""
        if size == self.size:  # made from the files in the same way
            return self.test
        if size not in self._test_views:
            if self.files is None:
                parts = [batch["images"][:, 0].numpy() for batch in eval_batches(self.test, self.test_labels, size)]
            else:
                folder, crop_pct = self.files.folder, self.crop_pct(size)
                read = read_batches(folder, self.test_paths, size, crop_pct, self.files.pixel_format)
                parts = [batch.pixels for batch in read if batch.pixels is not None]
            self._test_views[size] = np.concatenate(parts)
        return self._test_views[size]

    @property
    def per_class(self) -> list[int]:
        """Number of labeled pool images of each class."""
        return [int(n) for n in np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))]

    def subset(self, count: int, seed: int) -> np.ndarray:
        """Return rows of `count` labeled pool images, stratified; nested in count, different for every seed."""
        return sample_stratified(self.labels, count, seed)


def read_images(
    root: str | Path,
    size: int | Callable[[int], int] | None = None,
    seed: int = 0,
    labels: LabelOptions | None = None,
) -> StudyImages:
    """Scan, split and decode a folder.

    The test split is the folder's own; without one, a quarter of the labeled images is held out (at least one of each
    class).
    A validation split is not used: a study's choices come from a fixed recipe or from inside the labels.

    Args:
        root: see `lit_vision.data.open_images.open_images`.
        size: side of the networks' input, or a function that returns it for the median short side of the images; None:
            that side up to 64 pixels, else 64.
        seed: of the held-out quarter.
        labels: a table of labels and groups, or None for labels from folders' names; whole groups are held out.

    Raises:
        UserError: several labels an image, fewer than two labeled classes, a class with one image and no test split, or
            more than 1 % unreadable images.
    """
    folder, notes = _open(root, labels, seed)
    folder.require_classes("a study")
    train = folder.require_labels("train", "a study")
    if train.labels.ndim == 2:
        raise UserError(f"{root}: a study takes one label an image; train a MultiLabelClassifier with lit-vision fit")
    keep = np.arange(len(train))
    if "test" in folder.splits:
        test = folder.require_labels("test", "a study, which measures on it,")
        tests = np.flatnonzero(test.labels >= 0)
    else:
        test, tests = train, _held_out(train.labels, folder, seed)
        keep = np.setdiff1d(keep, tests)
        notes.append(
            f"The folder has no test split: {len(tests)} of its {int((train.labels >= 0).sum())} labeled images were "
            "held out as one."
        )
    if "val" in folder.splits:
        notes.append(f"The validation split ({len(folder.splits['val'])} images) was not used.")
    notes += _scan_notes(folder)
    pixel_format = _pixel_format(folder, notes)
    keep = np.concatenate([keep[train.labels[keep] >= 0], keep[train.labels[keep] < 0]])  # labeled ones come first
    pool_paths = [train.paths[int(i)] for i in keep] + list(folder.unlabeled.paths)
    side = typical_side(folder, pool_paths)
    if callable(size):
        size = size(side)
    elif size is None:
        size = max(16, -(-side // 4) * 4) if side <= 64 else 64
    pool_labels = np.concatenate([train.labels[keep], folder.unlabeled.labels])
    test_paths = [test.paths[int(i)] for i in tests]
    (pool, *large), good = _read_all(folder, pool_paths, _stored_sides(side, size), notes, pixel_format)
    (test_pixels,), test_good = _read_all(folder, test_paths, [size], notes, pixel_format)
    if all((pixels[..., :1] == pixels).all() for pixels in (pool, test_pixels, *large)):
        pool, test_pixels, *large = (np.ascontiguousarray(part[..., :1]) for part in (pool, test_pixels, *large))
    images = StudyImages(
        pool,
        pool_labels[good],
        [pool_paths[i] for i in good],
        test_pixels,
        test.labels[tests][test_good],
        [test_paths[i] for i in test_good],
        folder.classes,
        folder.fingerprint(),
        size,
        notes,
        large[0] if large else None,
        pixel_format.value_range,
        ImageFiles(folder, pixel_format),
    )
    empty = [name for name, count in zip(images.classes, images.per_class) if not count]
    if empty:
        raise UserError(f"{root}: no training image is left for class {empty[0]!r}; add some or remove the class")
    return images


def read_unlabeled(root: str | Path, size: int) -> StudyImages:
    """Read all images of a folder to pre-train on, without labels and without its test split.

    Args:
        root: see `lit_vision.data.open_images.open_images`; classes are not needed.
        size: side of the networks' input.

    Raises:
        UserError: no image, or more than 1 % unreadable ones.
    """
    folder = open_images(root)
    train = folder.require_split("train", "pre-training")
    notes = _scan_notes(folder)
    paths = [*train.paths, *folder.unlabeled.paths]
    pixel_format = _pixel_format(folder, notes)
    sides = _stored_sides(typical_side(folder, paths), size)[-1:]  # it is only trained on
    (pool,), good = _read_all(folder, paths, sides, notes, pixel_format)
    if (pool[..., :1] == pool).all():
        pool = np.ascontiguousarray(pool[..., :1])
    labels = np.full(len(good), -1)
    paths, files = [paths[i] for i in good], ImageFiles(folder, pixel_format)
    return StudyImages(
        pool, labels, paths, pool[:0], labels[:0], [], [], folder.fingerprint(), size, notes, files=files
    )


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


def _held_out(labels: np.ndarray, folder: Folder, seed: int) -> np.ndarray:
    counts = np.bincount(labels[labels >= 0], minlength=len(folder.classes))
    if counts.min() < 2:
        few = folder.classes[int(counts.argmin())]
        raise UserError(f"{folder.root}: class {few!r} has one image and there is no test split; give it two or more")
    return sample_stratified(labels, max(len(counts), round(HELD_OUT * counts.sum())), seed)


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
        notes.append(measured.describe().capitalize() + ".")
    return PixelFormat(value_range)


def _read(folder: Folder, path: str, pixel_format: PixelFormat) -> np.ndarray:
    try:
        return decode(folder.read(path), pixel_format)
    except OSError as error:
        raise ImageDecodeError(f"{folder.root / path}: {error.strerror}; repair or remove it") from None
    except ImageDecodeError as error:
        raise ImageDecodeError(f"{folder.root / path}: {error}") from None


def _stored_sides(side: int, size: int) -> list[int]:
    """Return the sides that the pool is stored at: of the networks' input and, of larger images, one for crops."""
    return [size] if side <= size else [size, round(size * MARGIN)]


def _read_all(
    folder: Folder, paths: list[str], sides: Sequence[int], notes: list[str], pixel_format: PixelFormat
) -> tuple[list[np.ndarray], list[int]]:
    """Return pixels (n, side, side, 3) at each side of the images that can be read, and their rows in `paths`."""
    pixels = [np.empty((len(paths), side, side, 3), np.uint8) for side in sides]

    def read_into(i: int) -> str | None:
        try:
            image = _read(folder, paths[i], pixel_format)
        except ImageDecodeError as error:
            return str(error)
        for stored, side in zip(pixels, sides):
            stored[i] = resize_and_crop(image, side, 1.0)
        return None

    with ThreadPoolExecutor(cores()) as threads:
        errors = list(threads.map(read_into, range(len(paths)), chunksize=64))
    good = [i for i, error in enumerate(errors) if error is None]
    bad = [error for error in errors if error]
    if len(bad) > max(1, BAD_SHARE * len(paths)):
        raise UserError(f"{bad[0]} ({len(bad)} of {len(paths)} images cannot be read, more than {BAD_SHARE:.0%})")
    if bad:
        notes.append(f"{len(bad)} unreadable image(s) were left out, the first: {os.path.relpath(bad[0], folder.root)}")
    return ([stored[good] for stored in pixels] if bad else pixels), good


class StudyData(LightningDataModule):
    """Data module of some rows of a study's pool; the order and the pixels are pure functions of `seed`.

    Args:
        images: the study's images.
        rows: (n,) pool rows to train on.
        view: name of the training view.
        options: of the view.
        batch_size: at most; a smaller set is cut into equal batches.
        seed: of order and pixels.
        size: side of the views, pixels; None: the study's.
    """

    planned_steps: int | None = None  # of the training, where it ends inside an epoch; see `optim.training_length`

    def __init__(
        self,
        images: StudyImages,
        rows: np.ndarray,
        view: str,
        options: dict[str, Any],
        batch_size: int,
        seed: int,
        size: int | None = None,
    ):
        super().__init__()
        self.images, self.rows, self.seed = images, np.asarray(rows), seed
        self.batch_size = len(rows) // -(-len(rows) // batch_size)
        self.batches = TrainBatches(len(rows), self.batch_size, 0, 1, 1, seed)
        self.views = make_batch_views(view, size or images.size, seed, **options)
        self.num_classes, self.class_names = len(images.classes), images.classes

    @property
    def batches_per_epoch(self) -> int:
        """Batches, hence steps, of one epoch."""
        return len(self.batches)

    @property
    def global_batch_size(self) -> int:
        """Images of one step, as methods ask for it."""
        return self.batch_size

    def train_dataloader(self) -> DataLoader:
        """Return batches in the order of the epoch; views are rendered in batches in this process."""
        pixels = self.images.pool if self.images.large is None else self.images.large
        rows = InMemoryDataset(pixels[self.rows], self.images.labels[self.rows], self.views)
        return DataLoader(rows, batch_sampler=self.batches, collate_fn=identity_collate, num_workers=0)


def eval_batches(pixels: np.ndarray, labels: np.ndarray, size: int, batch_size: int = 500) -> Iterator[Batch]:
    """Yield batches of the evaluation view of an array, in order, each image once."""
    rows = InMemoryDataset(pixels, labels, make_batch_views("eval", size, 0))
    for keys in EvalBatches(len(rows), batch_size):
        yield rows.__getitems__(keys)
