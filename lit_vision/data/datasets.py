"""Data sets: image files read one by one, or small images held in memory and augmented by the batch.

Both data sets take a list of keys (epoch, index, copy), as the samplers yield them, and return the finished batch (see
batch.py).
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lit_vision.data.batch import Batch
from lit_vision.data.folder import Folder
from lit_vision.data.views.batch_views import BatchViewsFunction
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.data.views.degraded import DegradedViews
from lit_vision.data.views.image_size import ImageSize, height_and_width
from lit_vision.data.views.keyed_rng import Key, derive_seed
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat
from lit_vision.data.views.views import ImageViewsFunction
from lit_vision.errors import UserError

log = logging.getLogger(__name__)

MEMORY_SIDE = 96  # pixels; larger images gain nothing from batched augmentation and lose antialiasing when rotated
MEMORY_BYTES = 1 << 30
READ_AHEAD = 64  # images that lie on another machine
BAD_SHARE = 0.01  # of an epoch's images may be broken under "skip" (and a single one never stops a run)
_TRIES = 16  # replacements tried for a broken image; that many broken ones in a row are no accident


class ImageReader:
    """Reader of the images of one split, with a rule for broken ones.

    Args:
        folder: a scanned folder, opened shards or an opened pack, or just the path that `paths` are relative to.
        paths: N paths in it.
        on_bad: "error" raises; "skip" takes another image of the list, chosen by (seed, index) alone. Each broken file
            is warned about once, and listed per epoch in `bad_images_file`. The run stops when more than one file and
            more than 1 % of the images that one process reads per epoch are broken.
        seed: in [0, 2**64).
        bad_images_file: CSV file (epoch, index, path, reason) to append to, or None.
        world_size: processes that share the list.
        pixel_format: conversion of the files' values to 8 bits, see `decode`.
    """

    def __init__(
        self,
        folder: Folder | Path,
        paths: Sequence[str],
        on_bad: str,
        seed: int,
        bad_images_file: Path | None = None,
        world_size: int = 1,
        pixel_format: PixelFormat = DEFAULT_FORMAT,
    ):
        folder = folder if isinstance(folder, Folder) else Folder(Path(folder), [], {})
        self.folder, self.paths, self.on_bad, self.seed = folder, paths, on_bad, seed
        self.bad_images_file, self.images_per_process = bad_images_file, len(paths) / world_size
        self.pixel_format = pixel_format
        # 0, or 1 + the last even (row 0) or odd (row 1) epoch in which a file was found broken. Two rows, because
        # workers begin an epoch before the previous one is counted. Shared without a lock: all write the same values.
        self.broken = torch.zeros(2, len(paths), dtype=torch.int32).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, epoch: int = 0, transform: Callable[[bytes], Any] | None = None) -> tuple[Any, int]:
        """Return what is made from a file's bytes, and the index of that file, which is another one after a skip.

        Args:
            index: in [0, N).
            epoch: for the list of broken images.
            transform: bytes of a file to the result; None: its pixels, (H, W, 3) uint8. Raises ImageDecodeError for a
                broken file.

        Raises:
            ImageDecodeError: names the file; under "skip" only if too many files are broken.
        """
        transform = transform or partial(decode, pixel_format=self.pixel_format)
        used = index
        for attempt in range(_TRIES):
            try:
                return self._transformed(used, transform), used
            except ImageDecodeError as error:
                if self.on_bad == "error":
                    raise
                self._record_broken(used, epoch, str(error))
                used = derive_seed(self.seed, index, attempt) % len(self.paths)
        raise ImageDecodeError(
            f"{self.folder.root}: {_TRIES} broken images in a row, the last {self.paths[used]}; {self._advice()}"
        )

    def prefetch(self, indices: Iterable[int]) -> None:
        """Begin to read the files of some indices, if they lie on another machine."""
        if self.folder.remote:
            self.folder.prefetch(self.paths[i] for i in indices)

    def count_broken(self, epoch: int) -> int:
        """Return the number of files that this process and its workers found broken in an epoch."""
        return int((self.broken == epoch + 1).sum())

    def _transformed(self, index: int, transform: Callable[[bytes], Any]) -> Any:
        path = self.paths[index]
        try:
            return transform(self.folder.read(path))
        except ImageDecodeError as error:
            raise ImageDecodeError(f"{self.folder.root}/{path}: {error}") from None
        except OSError as error:
            raise ImageDecodeError(
                f"{self.folder.root}/{path}: {error.strerror}; restore the file, or start again without it"
            ) from None

    def _advice(self) -> str:
        """Return what to do about many broken files."""
        return f"run lit-vision doctor {self.folder.root} and set data.quarantine to the list that it writes"

    def _record_broken(self, index: int, epoch: int, reason: str) -> None:
        """Count, log and list a broken file; ImageDecodeError if there are too many."""
        if self.broken[epoch % 2, index] == epoch + 1:
            return
        reported = bool(self.broken[:, index].any())
        self.broken[epoch % 2, index] = epoch + 1
        if not reported:
            log.warning("skipped %s", reason)
        if self.bad_images_file:
            row = io.StringIO()
            csv.writer(row, lineterminator="\n").writerow([epoch, index, self.paths[index], reason])
            _append(self.bad_images_file, row.getvalue())
        count = self.count_broken(epoch)
        if count > max(1, BAD_SHARE * self.images_per_process):
            raise ImageDecodeError(
                f"{self.folder.root}: {count} of {self.images_per_process:.0f} images of epoch {epoch} are broken, "
                f"more than {BAD_SHARE:.0%}, the last {self.paths[index]}; {self._advice()}"
            )


def _append(path: Path, line: str) -> None:
    """Append a line with a single write, so that lines of several workers do not mix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            if file.tell() == 0:
                line = "epoch,index,path,reason\n" + line
            file.write(line)
    except OSError as error:
        log.warning("%s: %s; broken images are not listed there", path, error.strerror)


class ImageFileDataset(Dataset):
    """Data set of image files; each is decoded and augmented when its key is requested.

    Args:
        files: reader of the image files.
        labels: (N,) int64, -1 without one; or (N, K) float32, see `Batch`.
        views: from `make_views`.
        local_views: likewise, of another size; None without local views.
        channels: 3, or 1 to keep the first of three equal ones.
        degraded: makes worse versions of the views, or None.
    """

    def __init__(
        self,
        files: ImageReader,
        labels: np.ndarray,
        views: ImageViewsFunction,
        local_views: ImageViewsFunction | None = None,
        channels: int = 3,
        degraded: DegradedViews | None = None,
    ):
        self.files, self.labels, self.views, self.local_views = files, labels, views, local_views
        self.channels, self.degraded = channels, degraded
        self.reads_ahead = files.folder.remote  # `make_loader` then gives KeysWithNext

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return the batch of some keys."""
        if self.reads_ahead:
            self.files.prefetch(key[1] for key in (*keys, *getattr(keys, "upcoming", ())))
        images, local_images, degraded, rows = [], [], [], []
        for key in keys:
            (views, local), used = self.files.read(key[1], key[0], partial(self._views_of, key))
            images.append(torch.from_numpy(views)[..., : self.channels])
            if local is not None:
                local_images.append(torch.from_numpy(local)[..., : self.channels])
            if self.degraded is not None:
                degraded.append(torch.from_numpy(self.degraded(views, *key))[..., : self.channels])
            rows.append(used)
        # default_collate lets a worker stack straight into shared memory, which saves a copy
        batch = _batch(default_collate(images), self.labels[rows], keys)
        if local_images:
            batch["local_images"] = default_collate(local_images)
        if degraded:
            batch["degraded"] = default_collate(degraded)
        return batch

    def _views_of(self, key: Key, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        return self.views(data, *key), None if self.local_views is None else self.local_views(data, *key)

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of one key."""
        return self.__getitems__([key])


class PixelArray(Protocol):
    """Images of one size, (N, H, W, C) uint8: an array, or what is read like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: list[int], /) -> np.ndarray:
        """Return a copy of the images of some rows."""


class InMemoryDataset(Dataset):
    """Data set of images of one size, held in memory or mapped from a file.

    Args:
        pixels: (N, H, W, C) uint8, C = 1 if all are gray, else 3.
        labels: (N,) int64, -1 without one; or (N, K) float32, see `Batch`.
        views: from `make_batch_views`.
        local_views: likewise, of another size; None without local views.
        channels: 3, or 1 to keep the first of three equal ones.
        degraded: makes worse versions of the views, or None.
    """

    def __init__(
        self,
        pixels: PixelArray,
        labels: np.ndarray,
        views: BatchViewsFunction,
        local_views: BatchViewsFunction | None = None,
        channels: int = 3,
        degraded: DegradedViews | None = None,
    ):
        self.pixels, self.labels, self.views, self.local_views = pixels, labels, views, local_views
        self.channels, self.degraded = channels, degraded

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return the batch of some keys."""
        index = [key[1] for key in keys]
        images = self.views(self.pixels[index], keys)
        batch = _batch(images[..., : self.channels], self.labels[index], keys)
        if self.local_views is not None:
            batch["local_images"] = self.local_views(self.pixels[index], keys)[..., : self.channels]
        if self.degraded is not None:
            worse = [self.degraded(views, *key) for views, key in zip(images.numpy(), keys)]
            batch["degraded"] = torch.from_numpy(np.stack(worse))[..., : self.channels]
        return batch

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of one key."""
        return self.__getitems__([key])


def _batch(images: Tensor, labels: np.ndarray, keys: list[Key]) -> Batch:
    return {"images": images, "label": torch.from_numpy(labels), "key": torch.tensor(keys, dtype=torch.int64)}


def load_into_memory(files: ImageReader, required: bool, size: ImageSize) -> tuple[np.ndarray, np.ndarray] | None:
    """Load all images into one array, if they are small and of one size.

    Args:
        files: reader of the images, with its rule for broken ones.
        required: raise an error instead of returning None.
        size: of the views in pixels; images more than twice as high or wide would alias, so they stay on disk.

    Returns:
        Pixels, (N, H, W, 1) uint8 if every image is gray, else (N, H, W, 3), and (N,) the index of the file that each
        is from (another one after a skip). None if they are too large or differ in size.

    Raises:
        UserError: they are too large or differ in size, and `required` is set.
    """
    rows, columns = height_and_width(size)
    if not len(files):
        return np.zeros((0, rows, columns, 1), np.uint8), np.zeros(0, np.int64)
    first, _ = files.read(0)
    height, width = first.shape[:2]
    reason = ""
    most_height, most_width = min(MEMORY_SIDE, 2 * rows), min(MEMORY_SIDE, 2 * columns)
    if height > most_height or width > most_width:
        most = f"{most_width} pixels a side" if most_width == most_height else f"{most_width} x {most_height} pixels"
        reason = f"images are {width} x {height}; at most {most} stay in memory"
    elif first.size * len(files) > MEMORY_BYTES:
        reason = f"{len(files)} images of {width} x {height} take more than {MEMORY_BYTES >> 30} GiB"
    if not reason:
        pixels, source = np.empty((len(files), height, width, 3), np.uint8), np.arange(len(files))
        for i in _progress_range(len(files)):
            if i % READ_AHEAD == 0:
                files.prefetch(range(i, min(i + 2 * READ_AHEAD, len(files))))
            image, used = files.read(i)
            if image.shape != first.shape:
                reason = (
                    f"{files.paths[used]} is {image.shape[1]} x {image.shape[0]}, {files.paths[0]} {width} x {height}"
                )
                break
            pixels[i], source[i] = image, used
    if reason:
        if required:
            raise UserError(f"in_memory: {files.folder.root}: {reason}; set in_memory to auto or false")
        return None
    gray = (pixels[..., :1] == pixels).all()
    return (np.ascontiguousarray(pixels[..., :1]) if gray else pixels), source


def _progress_range(n: int) -> Iterable[int]:
    """Return range(n), with a progress bar if n is large."""
    if n < 20_000:
        return range(n)
    from rich.progress import track

    return track(range(n), "reading images into memory", transient=True)
