"""Load a folder's images for a study: all in memory at one small size, split into a training pool and a test split.

N pool images, M test images, S side in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_vision.data.batch import Batch
from lit_vision.data.datasets import InMemoryDataset, identity_collate
from lit_vision.data.folder import Folder
from lit_vision.data.open_images import open_images
from lit_vision.data.sampler import EvalBatches, TrainBatches
from lit_vision.data.splits import sample_stratified
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.io.processes import cores

HELD_OUT = 0.25  # share of the labeled images that becomes the test split if the folder has none
MARGIN = 1.25  # images larger than the networks' input are stored this much larger than it, so that crops can differ
MAX_UNREADABLE = 0.01  # share of unreadable images above which the study stops


@dataclass
class StudyImages:
    """Training and test images of a study, with labels, class names and fingerprint.

    Attributes:
        pool: (N, S, S, C) uint8, C = 1 if every image is gray, else 3: the training images, labeled ones first.
        labels: (N,) int64, -1 without one.
        paths: relative path of each pool image.
        test: like `pool`, for the test split; evaluated once per cell, at its end.
        test_labels: (M,) int64.
        test_paths: relative path of each test image.
        classes: names.
        fingerprint: of the folder.
        size: side of the networks' input, pixels.
        notes: sentences about decisions and left-out images, for progress and report.
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

    @property
    def per_class(self) -> list[int]:
        """Number of labeled pool images of each class."""
        return [int(n) for n in np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))]

    def subset(self, count: int, seed: int) -> np.ndarray:
        """Return rows of `count` labeled pool images, stratified; nested in count, different for every seed."""
        return sample_stratified(self.labels, count, seed)


def read_images(root: str | Path, size: int | None = None, seed: int = 0) -> StudyImages:
    """Scan, split and decode a folder.

    The test split is the folder's own; without one, a quarter of the labeled images is held out (at least one of each
    class).
    A validation split is not used: a study's choices come from a fixed recipe or from inside the labels.

    Args:
        root: see `lit_vision.data.open_images.open_images`.
        size: side of the networks' input; None: that of the images up to 64 pixels, else 64.
        seed: of the held-out quarter.

    Raises:
        UserError: fewer than two labeled classes, a class with one image and no test split, or more than 1 % unreadable
            images.
    """
    folder = open_images(root)
    folder.require_classes("a study")
    train = folder.require_split("train", "a study")
    notes: list[str] = []
    keep = np.arange(len(train))
    if "test" in folder.splits:
        test = folder.splits["test"]
        tests = np.flatnonzero(test.labels >= 0)
    else:
        test, tests = train, _held_out(train.labels, folder, seed)
        keep = np.setdiff1d(keep, tests)
        notes.append(
            f"The folder has no test split: {len(tests)} of its {len(train)} labeled images were held out as one."
        )
    if "val" in folder.splits:
        notes.append(f"The validation split ({len(folder.splits['val'])} images) was not used.")
    first = _read(folder, train.paths[int(keep[0])])
    if size is None:
        side = min(first.shape[:2])
        size = max(16, -(-side // 4) * 4) if side <= 64 else 64
    store = size if min(first.shape[:2]) <= size else round(size * MARGIN)
    pool_paths = [train.paths[int(i)] for i in keep] + list(folder.unlabeled.paths)
    labels = np.concatenate([train.labels[keep], folder.unlabeled.labels])
    test_paths = [test.paths[int(i)] for i in tests]
    pool, good = _read_all(folder, pool_paths, store, notes)
    test_pixels, test_good = _read_all(folder, test_paths, size, notes)
    if (pool[..., :1] == pool).all() and (test_pixels[..., :1] == test_pixels).all():
        pool, test_pixels = (np.ascontiguousarray(pixels[..., :1]) for pixels in (pool, test_pixels))
    images = StudyImages(
        pool,
        labels[good],
        [pool_paths[i] for i in good],
        test_pixels,
        test.labels[tests][test_good],
        [test_paths[i] for i in test_good],
        folder.classes,
        folder.fingerprint(),
        size,
        notes,
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
    notes: list[str] = []
    paths = [*train.paths, *folder.unlabeled.paths]
    first = _read(folder, paths[0])
    store = size if min(first.shape[:2]) <= size else round(size * MARGIN)
    pool, good = _read_all(folder, paths, store, notes)
    if (pool[..., :1] == pool).all():
        pool = np.ascontiguousarray(pool[..., :1])
    labels = np.full(len(good), -1)
    paths = [paths[i] for i in good]
    return StudyImages(pool, labels, paths, pool[:0], labels[:0], [], [], folder.fingerprint(), size, notes)


def _held_out(labels: np.ndarray, folder: Folder, seed: int) -> np.ndarray:
    counts = np.bincount(labels[labels >= 0], minlength=len(folder.classes))
    if counts.min() < 2:
        few = folder.classes[int(counts.argmin())]
        raise UserError(f"{folder.root}: class {few!r} has one image and there is no test split; give it two or more")
    return sample_stratified(labels, max(len(counts), round(HELD_OUT * counts.sum())), seed)


def _read(folder: Folder, path: str) -> np.ndarray:
    try:
        return decode((folder.root / path).read_bytes())
    except OSError as error:
        raise ImageDecodeError(f"{folder.root / path}: {error.strerror}; repair or remove it") from None
    except ImageDecodeError as error:
        raise ImageDecodeError(f"{folder.root / path}: {error}") from None


def _read_all(folder: Folder, paths: list[str], side: int, notes: list[str]) -> tuple[np.ndarray, list[int]]:
    """Return pixels (n, side, side, 3) of the images that can be read, and their rows in `paths`."""
    pixels = np.empty((len(paths), side, side, 3), np.uint8)

    def read_into(i: int) -> str | None:
        try:
            pixels[i] = resize_and_crop(_read(folder, paths[i]), side, 1.0)
        except ImageDecodeError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(cores()) as threads:
        errors = list(threads.map(read_into, range(len(paths)), chunksize=64))
    good = [i for i, error in enumerate(errors) if error is None]
    bad = [error for error in errors if error]
    if len(bad) > MAX_UNREADABLE * len(paths):
        raise UserError(f"{bad[0]} ({len(bad)} of {len(paths)} images cannot be read, more than {MAX_UNREADABLE:.0%})")
    if bad:
        notes.append(f"{len(bad)} unreadable image(s) were left out, the first: {os.path.relpath(bad[0], folder.root)}")
    return (pixels[good] if bad else pixels), good


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
        rows = InMemoryDataset(self.images.pool[self.rows], self.images.labels[self.rows], self.views)
        return DataLoader(rows, batch_sampler=self.batches, collate_fn=identity_collate, num_workers=0)


def eval_batches(pixels: np.ndarray, labels: np.ndarray, size: int, batch_size: int = 500) -> Iterator[Batch]:
    """Yield batches of the evaluation view of an array, in order, each image once."""
    rows = InMemoryDataset(pixels, labels, make_batch_views("eval", size, 0))
    for keys in EvalBatches(len(rows), batch_size):
        yield rows.__getitems__(keys)
