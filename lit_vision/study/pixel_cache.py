"""Pixels of a study's images: decoded once into files that are mapped, so that memory holds only what is in use.

N images, S side in pixels, C channels.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lit_vision.data.datasets import BAD_SHARE
from lit_vision.data.folder import Folder
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.data.views.pixel_values import PixelFormat
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.io.processes import cores

DEFAULT_LIMIT = 8.0  # GB
_SPARE = 1 << 28  # bytes of the disk that are left for weights and results
_AT_ONCE = 1024  # images whose decoding is queued at the same time

OnImage = Callable[[int, int], None]  # called with (images done, all images)


@dataclass(frozen=True)
class ImageFiles:
    """Folder or shards of a study's images, and the conversion of their values to 8 bits."""

    folder: Folder
    pixel_format: PixelFormat

    def read(self, path: str) -> np.ndarray:
        """Return an image, (H, W, 3) uint8.

        Raises:
            ImageDecodeError: names the file.
        """
        try:
            return decode(self.folder.read(path), self.pixel_format)
        except OSError as error:
            raise ImageDecodeError(f"{self.folder.root / path}: {error.strerror}; repair or remove it") from None
        except ImageDecodeError as error:
            raise ImageDecodeError(f"{self.folder.root / path}: {error}") from None


@dataclass(frozen=True)
class StoredPixels:
    """Images under the evaluation view of one size, read like an array: (N, S, S, C) uint8.

    Some rows are kept; every other row is made from its file when it is asked for, to the same values.

    Attributes:
        files: that the images are in.
        paths: of the files, of which `rows` are the images.
        rows: (N,) indices into `paths`.
        side: S.
        crop_pct: share of the resized short side that the view keeps.
        kept: (K, S, S, 3) uint8, the pixels of the first K of `paths`.
        channels: C, 1 if all images of the study are gray, else 3.
    """

    files: ImageFiles
    paths: Sequence[str]
    rows: np.ndarray
    side: int
    crop_pct: float
    kept: np.ndarray
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (N, S, S, C)."""
        return len(self.rows), self.side, self.side, self.channels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a copy of one image, or of those of a slice, a list, an array of rows or a mask."""
        if isinstance(index, int | np.integer):
            image: np.ndarray = self._read(self.rows[[int(index)]])[0]
            return image
        return self._read(self.rows[index])

    def keep_in(self, cache: PixelCache | None) -> Pixels:
        """Return these pixels, read once and kept: as many as the cache has room for, in memory without a cache."""
        if cache is None:
            return self[:]
        kept = cache.allocate(len(self.paths), {self.side: len(self.paths)})[self.side]
        for first in range(0, len(kept), _AT_ONCE):
            rows = np.arange(first, min(first + _AT_ONCE, len(kept)))
            kept[rows] = replace(self, channels=3)._read(rows)
        return replace(self, kept=kept)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        is_kept = rows < len(self.kept)
        out[is_kept] = self.kept[rows[is_kept], ..., : self.channels]
        missing = np.flatnonzero(~is_kept)
        if len(missing):
            with ThreadPoolExecutor(min(cores(), len(missing))) as threads:
                for i, image in zip(missing, threads.map(self._from_file, rows[missing])):
                    out[i] = image
        return out

    def _from_file(self, row: int) -> np.ndarray:
        image = resize_and_crop(self.files.read(self.paths[row]), self.side, self.crop_pct)
        return image[..., : self.channels]


Pixels = np.ndarray | StoredPixels


class PixelCache:
    """Room for pixels on the disk: files without a name, which vanish with the process however it ends.

    Args:
        folder: on the disk; created when it is needed, and removed at the end if nothing else is in it.
        limit: GB (10^9 bytes) of all files together; what is above is decoded again whenever it is asked for.
        log: prints a line; the size is said before anything is written.
    """

    def __init__(self, folder: Path, limit: float = DEFAULT_LIMIT, log: Callable[[str], None] = print) -> None:
        self.folder, self.limit, self.log = folder, limit * 1e9, log
        self.used = 0

    def __enter__(self) -> PixelCache:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def allocate(self, images: int, sides: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Return arrays of zeros for images at several sides, as many rows of them as the limit allows.

        Args:
            images: number of images, for the line that is printed.
            sides: wanted number of rows, by side.

        Returns:
            (rows, side, side, 3) uint8, by side.

        Raises:
            UserError: the disk is too short, before anything is written.
        """
        wanted = sum(rows * 3 * side**2 for side, rows in sides.items())
        share = min(1.0, max(0.0, self.limit - self.used) / max(1, wanted))
        rows_of = {side: int(rows * share) for side, rows in sides.items()}
        size = sum(rows * 3 * side**2 for side, rows in rows_of.items())
        if not size:
            return {side: np.empty((0, side, side, 3), np.uint8) for side in sides}
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if size + _SPARE > free:
            raise UserError(
                f"{self.folder}: the pixels of {images} images take {_gigabytes(size)} while the study runs, and "
                f"{_gigabytes(free)} are free; make room, or give --cache_gb {max(0.0, free - 2 * _SPARE) / 1e9:.1f}"
            )
        kept = "" if share == 1 else f" for {share:.0%} of them (--cache_gb); the others are decoded whenever needed"
        self.log(f"pixels of {images} images: {_gigabytes(size)} of the disk until the end{kept}")
        self.used += size
        return {side: self._map((rows, side, side, 3)) for side, rows in rows_of.items()}

    def _map(self, shape: tuple[int, int, int, int]) -> np.ndarray:
        size = int(np.prod(shape))
        if not size:
            return np.empty(shape, np.uint8)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                # reserved now: a disk that is full later would end the process without a word
                os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
                return np.memmap(file, np.uint8, "r+", shape=shape)
        except OSError as error:
            reason = f"{_gigabytes(size)} for pixels cannot be had ({error.strerror})"
            raise UserError(f"{self.folder}: {reason}; make room, or keep fewer by --cache_gb") from error


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def read_pixels(
    files: ImageFiles,
    paths: Sequence[str],
    sides: Mapping[int, int],
    cache: PixelCache | None,
    notes: list[str],
    on_image: OnImage | None = None,
) -> tuple[dict[int, StoredPixels], np.ndarray, bool]:
    """Decode all images once, check that they can be read, and keep their pixels.

    Args:
        files: that the images are in.
        paths: N paths.
        sides: number of rows to keep, by side.
        cache: room for them; None: all are held in memory.
        notes: gets a sentence about unreadable images, which are left out.
        on_image: called after each image.

    Returns:
        The pixels by side, the rows of the images that can be read, and True if all of them are gray.

    Raises:
        UserError: more than 1 % of the images, and more than one, cannot be read; or the disk is too short.
    """
    if cache is None:
        kept = {side: np.empty((rows, side, side, 3), np.uint8) for side, rows in sides.items()}
    else:
        kept = cache.allocate(len(paths), sides)

    def read_into(i: int) -> tuple[str, bool]:
        try:
            image = files.read(paths[i])
        except ImageDecodeError as error:
            return str(error), True
        gray = True
        for side, pixels in kept.items():
            view = resize_and_crop(image, side, 1.0)
            gray = gray and bool((view[..., :1] == view).all())
            if i < len(pixels):
                pixels[i] = view
        return "", gray

    good, bad, gray = [], [], True
    with ThreadPoolExecutor(cores()) as threads:
        for first in range(0, len(paths), _AT_ONCE):
            block = range(first, min(first + _AT_ONCE, len(paths)))
            for i, (error, is_gray) in zip(block, threads.map(read_into, block)):
                bad += [error] if error else []
                good += [] if error else [i]
                gray = gray and is_gray
                if on_image:
                    on_image(i + 1, len(paths))
    root = files.folder.root
    if len(bad) > max(1, BAD_SHARE * len(paths)):
        raise UserError(f"{bad[0]} ({len(bad)} of {len(paths)} images cannot be read, more than {BAD_SHARE:.0%})")
    if bad:
        notes.append(f"{len(bad)} unreadable image(s) were left out, the first: {os.path.relpath(bad[0], root)}")
    rows = np.array(good, np.int64)
    return {side: StoredPixels(files, paths, rows, side, 1.0, pixels) for side, pixels in kept.items()}, rows, gray


def finish(pixels: StoredPixels, gray: bool, in_memory: bool) -> Pixels:
    """Return pixels with one channel if all images are gray, as an array if they are all held in memory."""
    pixels = replace(pixels, channels=1 if gray else 3)
    if not in_memory or len(pixels.kept) < len(pixels.paths):
        return pixels
    everything = len(pixels.rows) == len(pixels.kept)
    array = pixels.kept if everything else pixels.kept[pixels.rows]
    return np.ascontiguousarray(array[..., : pixels.channels])


class SelectedPixels:
    """Some rows of pixels, read like an array of their own; nothing is copied before it is asked for."""

    def __init__(self, pixels: Pixels, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a copy of the images of some rows."""
        found: np.ndarray = self.pixels[self.rows[index]]
        return found


class PixelRows:
    """The first images of `pixels` as rows of numbers in 0 to 1, (n, S * S * C) float32, converted when asked for."""

    def __init__(self, pixels: Pixels, count: int) -> None:
        self.pixels, self.shape = pixels, (count, int(np.prod(pixels.shape[1:])))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a copy of the rows of a slice, a list, an array of rows or a mask."""
        found = self.pixels[np.arange(len(self))[index]]
        rows = found.reshape(len(found), -1).astype(np.float32)
        rows /= 255  # without a second copy
        return rows


class FeaturesOfRows:
    """Features of some of n images, read by the numbers of the images, like an array of all: (n, D) float32.

    Args:
        features: (m, D).
        rows: (m,) ascending numbers of their images.
        count: n.
    """

    def __init__(self, features: np.ndarray, rows: np.ndarray, count: int) -> None:
        self.features, self.rows, self.shape = features, rows, (count, features.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a copy of the features of a list, an array of numbers or a mask.

        Raises:
            IndexError: the features of an image are not there.
        """
        wanted = np.arange(len(self))[index]
        places = np.minimum(np.searchsorted(self.rows, wanted), len(self.rows) - 1)
        if (missing := self.rows[places] != wanted).any():
            raise IndexError(f"the features of image {wanted[missing][0]} were not computed")
        return np.asarray(self.features[places])


Rows = np.ndarray | PixelRows | FeaturesOfRows  # features, or pixels in their place
