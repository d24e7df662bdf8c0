"""Frozen features of image files: computed once in blocks, kept on the disk by content, weights and view.

N images, D width of the features, S side in pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from lit_vision.backbones.backbone import Backbone
from lit_vision.data.batch import normalize
from lit_vision.data.folder import Folder
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.evaluation.features import evaluation_mode
from lit_vision.io.atomic import rename_into_place
from lit_vision.io.hashing import state_dict_sha256
from lit_vision.io.processes import cores
from lit_vision.predict.inputs import InputBatch, Inputs, batches

OnBatch = Callable[[int, int], None]  # called with (images done, all images)
_LARGEST_BATCH, _SMALLEST_BATCH, _BATCH_PIXELS = 500, 32, 512_000


def cached_features(
    folder: Folder,
    paths: Sequence[str],
    backbone: Backbone,
    mean: Tensor,
    std: Tensor,
    size: int,
    crop_pct: float,
    cache_dir: Path | None,
    pixel_format: PixelFormat = DEFAULT_FORMAT,
    on_batch: OnBatch | None = None,
    skip_unreadable: bool = False,
) -> np.ndarray:
    """Return the features of image files under the evaluation view, as `lit-vision embed` computes them.

    They are appended to a file of `cache_dir` block by block, so that memory holds one block, and a stopped call goes
    on after its last block to the same values. The file's name is a hash of all that the features depend on, the bytes
    of the images among it: every call reads the files, only the first one decodes them.

    Args:
        folder: that the images are in.
        paths: N paths of it.
        backbone: the encoder; moved to the GPU if there is one, and left there.
        mean, std: (3,) pixel statistics of the encoder.
        size: S, side of the view.
        crop_pct: share of the resized short side that the view keeps, in (0, 1].
        cache_dir: folder for the features; None: they are returned in memory and not kept.
        pixel_format: conversion of the files' values to 8 bits.
        on_batch: called after each block.
        skip_unreadable: give an image that cannot be read a row of NaN, instead of an error.

    Returns:
        (N, D) float32, row i of path i; mapped from the file if there is a `cache_dir`; writing to it changes no file.

    Raises:
        UserError: an image cannot be read, unless it is skipped; or has a feature that is not finite; or the disk is
            full.
    """
    if not len(paths):
        return np.empty((0, backbone.width), np.float32)
    job = _Job(folder, paths, backbone, mean, std, size, crop_pct, pixel_format, skip_unreadable)
    if cache_dir is None:
        found = np.empty((len(paths), backbone.width), np.float32)
        for batch, rows in job.features():
            found[batch.start : batch.stop] = rows
            if on_batch:
                on_batch(batch.stop, len(paths))
        return found
    path = cache_dir / f"{job.digest()}.npy"
    if not path.exists():
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            _write(path, job, on_batch)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room and go on") from error
    mapped: np.ndarray = np.load(path, mmap_mode="c")  # torch warns of arrays that it cannot write to
    return mapped


def batch_size(size: int) -> int:
    """Return how many images of a side are seen at once: a bounded number of pixels, at least 32 and at most 500."""
    return min(_LARGEST_BATCH, max(_SMALLEST_BATCH, _BATCH_PIXELS // size**2))


@dataclass(frozen=True)
class _Job:
    """Images, and the encoder and view that they are seen under; attributes as the arguments of `cached_features`."""

    folder: Folder
    paths: Sequence[str]
    backbone: Backbone
    mean: Tensor
    std: Tensor
    size: int
    crop_pct: float
    pixel_format: PixelFormat
    skip_unreadable: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D) of the features."""
        return len(self.paths), self.backbone.width

    def features(self, start: int = 0) -> Iterator[tuple[InputBatch, np.ndarray]]:
        """Yield batches from row `start` on with their (B, D) features, NaN for images that were skipped.

        Raises:
            UserError: an image cannot be read, unless it is skipped; or a feature is not finite.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backbone.to(device)
        statistics = (self.mean, self.std)
        mean, std = (torch.as_tensor(values, dtype=torch.float32, device=device).flatten() for values in statistics)
        with evaluation_mode(self.backbone):
            for batch in self._batches(start):
                found = np.full((batch.stop - batch.start, self.backbone.width), np.nan, np.float32)
                if batch.pixels is None:
                    yield batch, found
                    continue
                with torch.inference_mode():
                    pixels = torch.from_numpy(batch.pixels)[:, None].to(device)
                    rows = self.backbone(normalize(pixels, mean, std)[:, 0]).float().cpu().numpy()
                if not (finite := np.isfinite(rows).all(1)).all():
                    name = batch.names[int(finite.argmin())]
                    raise UserError(f"{self.folder.root / name}: its features are not finite; check the weights")
                found[np.asarray(batch.positions) - batch.start] = rows
                yield batch, found

    def _batches(self, start: int) -> Iterator[InputBatch]:
        """Yield the evaluation view of the images in batches of `batch_size(size)`, from row `start`."""
        inputs = Inputs.of(self.folder, self.paths)
        prepare = partial(resize_and_crop, size=self.size, crop_pct=self.crop_pct)
        for batch in batches(inputs, prepare, batch_size(self.size), start, cores(), self.pixel_format):
            if batch.unreadable and not self.skip_unreadable:
                name, reason = batch.unreadable[0]
                raise UserError(f"{self.folder.root / name}: {reason}")
            yield batch

    def digest(self) -> str:
        """Return 32 hexadecimal digits over images, weights and view.

        Raises:
            UserError: a file cannot be read, unless it is skipped.
        """
        settings = {
            "weights": state_dict_sha256(self.backbone.state_dict()),
            "network": self.backbone.config,
            "statistics": [[round(float(v), 6) for v in values.flatten()] for values in (self.mean, self.std)],
            "view": [self.size, self.crop_pct, *self.pixel_format],
            "batch": batch_size(self.size),  # on which the last bit of a feature depends
        }
        if self.skip_unreadable:
            settings["unreadable"] = "NaN"
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        with ThreadPoolExecutor(cores()) as threads:
            for first in range(0, len(self.paths), 1024):
                part = [self.paths[i] for i in range(first, min(first + 1024, len(self.paths)))]
                for content in threads.map(self._digest_of_file, part):
                    digest.update(content)
        return digest.hexdigest()[:32]

    def _digest_of_file(self, path: str) -> bytes:
        try:
            return hashlib.sha256(self.folder.read(path)).digest()
        except OSError as error:
            if self.skip_unreadable:
                return b"unreadable"
            raise UserError(f"{self.folder.root / path}: {error.strerror}; bring it back") from None


def _write(path: Path, job: _Job, on_batch: OnBatch | None) -> None:
    """Write an array of NumPy's format block by block; a part that a stopped call left is continued."""
    part, block = path.with_suffix(".part"), batch_size(job.size)
    with open(part, "r+b" if part.exists() else "w+b") as file:
        begin = _begin(file, job.shape)
        row = 4 * job.shape[1]
        done = (os.fstat(file.fileno()).st_size - begin) // (block * row) * block  # whole blocks
        file.truncate(begin + done * row)
        file.seek(0, os.SEEK_END)
        for batch, rows in job.features(done):
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
            if on_batch:
                on_batch(batch.stop, job.shape[0])
    rename_into_place(part, path)


def _begin(file: BinaryIO, shape: tuple[int, int]) -> int:
    """Return where the rows begin, after writing the header if the file does not have it."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    try:
        np.lib.format.read_magic(file)
        if np.lib.format.read_array_header_1_0(file) == (shape, False, np.dtype("<f4")):
            return file.tell()
    except ValueError:  # nothing, or not all of a header
        pass
    file.seek(0)
    file.truncate()
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    return file.tell()
