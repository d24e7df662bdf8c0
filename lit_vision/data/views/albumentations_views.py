"""Named albumentations pipelines whose random state is set from the key of every sample.

Without that, albumentations 2.0.8 draws from a generator that forked workers share, which repeats the same crops in
every worker and epoch; and `A.Compose(seed=...)` makes all its transforms draw the same numbers. The package is
imported on first use, since that takes seconds, and with NO_ALBUMENTATIONS_UPDATE=1, since it contacts a server at
import otherwise.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_vision.data.views.decode import decode
from lit_vision.data.views.image_size import ImageSize, height_and_width
from lit_vision.data.views.keyed_rng import derive_seed
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat
from lit_vision.errors import UserError

if TYPE_CHECKING:
    import albumentations as A

_DOMAIN = 0x616C6275  # "albu": separates these seeds from other uses of one seed


def import_albumentations() -> Any:
    """Import albumentations without its version check on a server, and return the module."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    return A


def _random_crop(size: ImageSize, smallest: float) -> A.RandomResizedCrop:
    """Return a random resized crop, whose aspect is relative to the view's, as `params.ViewSpec.crop_aspect`."""
    height, width = height_and_width(size)
    ratio = 3 / 4 * (width / height), 4 / 3 * (width / height)
    return import_albumentations().RandomResizedCrop((height, width), scale=(smallest, 1.0), ratio=ratio)


def mild(size: ImageSize) -> A.Compose:
    """Return a pipeline of crop and flip, as the view `train` by default."""
    A = import_albumentations()
    return A.Compose([_random_crop(size, 0.08), A.HorizontalFlip(p=0.5)])


def photometric(size: ImageSize) -> A.Compose:
    """Return a pipeline of crop, flip, then color, noise and blur: for photographs under changing light."""
    A = import_albumentations()
    return A.Compose(
        [
            _random_crop(size, 0.2),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            A.OneOf([A.GaussNoise(), A.GaussianBlur(), A.ImageCompression(quality_range=(40, 95))], p=0.5),
        ]
    )


def geometric(size: ImageSize) -> A.Compose:
    """Return a pipeline of crop, all eight symmetries, any rotation and mild elastic distortion.

    For aerial, medical and microscope images, which have no upright orientation. A view that is not square is cut after
    the symmetry, half of which exchange height and width.
    """
    A = import_albumentations()
    crop, symmetry = _random_crop(size, 0.2), A.D4(p=1.0)
    height, width = height_and_width(size)
    return A.Compose(
        [
            *((crop, symmetry) if height == width else (symmetry, crop)),
            A.Affine(rotate=(-180, 180), shear=(-10, 10), p=0.8),
            A.ElasticTransform(alpha=20, sigma=5, p=0.3),
        ]
    )


PIPELINES: dict[str, Callable[[Any], A.Compose]] = {"light": mild, "photometric": photometric, "geometric": geometric}


def register_pipeline(name: str, build: Callable[[Any], A.Compose]) -> None:
    """Add a pipeline to PIPELINES, so that it can be used as the view `albumentations:<name>`.

    Args:
        name: its name.
        build: size of the result in pixels, an int for a square and else (height, width), to a pipeline that takes
            image=(H, W, 3) uint8 and returns (height, width, 3) uint8. It must be a function of a module, not a lambda,
            if workers are spawned.
    """
    PIPELINES[name] = build


def rekey(pipeline: A.Compose, *key: int) -> None:
    """Set a pipeline's random state from a key; all of its transforms draw one after the other from one new stream.

    Args:
        pipeline: the pipeline.
        key: integers, e.g. (seed, epoch, index, copy).
    """
    seed = derive_seed(_DOMAIN, *key)
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))


class AlbumentationsViews:
    """One view per image by a named pipeline; called like `views.Views`.

    Args:
        name: a key of PIPELINES.
        size: of the result, pixels: side of a square, or (height, width).
        seed: in [0, 2**64).
        pixel_format: conversion of the files' values to 8 bits, see `decode`.
        options: none are supported, a pipeline is changed in its code; those that are None are ignored.

    Raises:
        UserError: there is no such pipeline, or an option is given.
    """

    num_views = 1

    def __init__(
        self, name: str, size: ImageSize, seed: int, pixel_format: PixelFormat = DEFAULT_FORMAT, **options: Any
    ):
        options = {key: value for key, value in options.items() if value is not None}
        if name not in PIPELINES:
            raise UserError(
                f"view albumentations:{name}: no such pipeline; choose from {', '.join(PIPELINES)}, or register one"
            )
        if options:
            raise UserError(
                f"view option {next(iter(options))}: albumentations:{name} takes no options; "
                "change the pipeline or register one"
            )
        self.height, self.width = height_and_width(size)
        self.name, self.seed, self._build = name, seed, PIPELINES[name]
        self.pixel_format = pixel_format

    @cached_property
    def pipeline(self) -> A.Compose:
        """Pipeline, built on the first call in each process."""
        return self._build(self.height if self.height == self.width else (self.height, self.width))

    def __call__(self, image_bytes: bytes, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the view of an image file under a key: uint8 (1, height, width, 3)."""
        return self.from_array(decode(image_bytes, self.pixel_format), epoch, index, copy)

    def from_array(self, image: np.ndarray, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the view of an image, (H, W, 3) uint8, under a key: uint8 (1, height, width, 3).

        Raises:
            UserError: the pipeline made another size.
        """
        rekey(self.pipeline, self.seed, epoch, index, copy)
        view: np.ndarray = self.pipeline(image=image)["image"]
        if view.shape[:2] != (self.height, self.width):
            raise UserError(
                f"view albumentations:{self.name}: made {view.shape[0]}x{view.shape[1]} pixels instead of "
                f"{self.height}x{self.width}; end the pipeline with a crop or a resize to its size"
            )
        return np.ascontiguousarray(view)[None]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "pipeline"}
