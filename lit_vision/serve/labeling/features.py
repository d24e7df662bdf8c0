"""Frozen features of all images of a labeling, read in the background; nothing waits for them.

N images, D width of the features.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lit_vision.data.views.pixel_values import PixelFormat
from lit_vision.errors import UserError
from lit_vision.io.processes import cores
from lit_vision.predict.feature_cache import cached_features
from lit_vision.serve.labeling.images import LabelImages
from lit_vision.study.frozen_encoder import FrozenEncoder

FIRST_BLOCK, LARGEST_BLOCK = 64, 512  # images of a file of features: small ones first, so that a model is there soon
_WEIGHTS_SECONDS = 5.0


class _StoppedError(Exception):
    """The server ends."""


class FeatureReader:
    """Reads features on a thread of its own, in blocks of images in a given order; blocks that are kept are found.

    Args:
        images: of the labeling.
        order: numbers of all images, random, so that those that are there are a sample of all.
        open_encoder: called on the thread, since weights may have to be fetched.
        cache_dir: folder for the features.
        pixel_format: conversion of the files' values to 8 bits.

    Attributes:
        encoder: None until it is open.
        rows: (N, D) float32, NaN where no feature is there (yet); None until the encoder is open.
        done: number of images that were seen, those that cannot be read too.
        problem: reason why there are no features; "" if there is none.
        on_block: called after each block.
    """

    def __init__(
        self,
        images: LabelImages,
        order: Sequence[int],
        open_encoder: Callable[[], FrozenEncoder],
        cache_dir: Path,
        pixel_format: PixelFormat,
    ) -> None:
        self.images, self.order, self.cache_dir, self.pixel_format = images, order, cache_dir, pixel_format
        self._open_encoder = open_encoder
        self.encoder: FrozenEncoder | None = None
        self.rows: np.ndarray | None = None
        self.done, self.problem = 0, ""
        self.on_block: Callable[[], None] = lambda: None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="features", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch that is read, which is kept; weights that come slowly are not waited for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(None if self.encoder else _WEIGHTS_SECONDS)

    def wait(self) -> None:
        """Wait until all images were seen."""
        self._thread.join()

    def of(self, number: int) -> np.ndarray | None:
        """Return the feature of an image, (D,); None if it is not there."""
        if self.rows is None or np.isnan(self.rows[number, 0]):
            return None
        return np.asarray(self.rows[number])

    def are_there(self) -> np.ndarray:
        """Return the numbers of the images whose features are there, ascending."""
        return np.flatnonzero(~np.isnan(self.rows[:, 0])) if self.rows is not None else np.empty(0, np.int64)

    def _run(self) -> None:
        try:
            self._read()
        except _StoppedError:
            pass
        except Exception as error:  # the labeling goes on without them
            self.problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f"no features: {self.problem}", flush=True)
            self.on_block()

    def _read(self) -> None:
        torch.set_num_threads(max(1, cores() - 1))  # of the process: a core is left for the page's requests
        encoder = self._open_encoder()
        rows = np.full((len(self.images), encoder.backbone.width), np.nan, np.float32)
        self.encoder, self.rows = encoder, rows

        def stop_if_asked(*_: int) -> None:
            if self._stopping.is_set():
                raise _StoppedError

        while self.done < len(self.order):
            stop_if_asked()
            numbers = list(self.order[self.done : self.done + min(LARGEST_BLOCK, max(FIRST_BLOCK, self.done))])
            found = cached_features(
                self.images.folder,
                [self.images.paths[number] for number in numbers],
                encoder.backbone,
                encoder.mean,
                encoder.std,
                encoder.size,
                encoder.crop_pct,
                self.cache_dir,
                self.pixel_format,
                stop_if_asked,
                skip_unreadable=True,
            )
            rows[numbers] = found
            self.done += len(numbers)
            self.on_block()
