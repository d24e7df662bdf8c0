"""albumentations pipelines by name, re-keyed for every sample, so that no worker and no epoch repeats another's crops.

Left alone, albumentations 2.0.8 draws from a generator that forked workers share: the same crops in every worker and epoch; and
`A.Compose(seed=...)` makes all its transforms draw alike. So the state is set from the sample's key before each call.
Imported lazily and with NO_ALBUMENTATIONS_UPDATE=1: it asks a server at import otherwise, and costs seconds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cached_property

import numpy as np

from lit_vision.data.views.decode import decode
from lit_vision.data.views.keyed_rng import derive_seed
from lit_vision.errors import UserError

_DOMAIN = 0x616C6275  # "albu": keeps these draws apart from other uses of one seed


def albumentations():
    """The module, imported without its question to a server."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    return A


def mild(size: int):
    """Crop and flip: what `train` does, by another library."""
    A = albumentations()
    return A.Compose([A.RandomResizedCrop((size, size), scale=(0.08, 1.0)), A.HorizontalFlip(p=0.5)])


def photometric(size: int):
    """Crop, flip, then colour, noise and blur: for photographs under changing light."""
    A = albumentations()
    return A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            A.OneOf([A.GaussNoise(), A.GaussianBlur(), A.ImageCompression(quality_range=(40, 95))], p=0.5),
        ]
    )


def geometric(size: int):
    """Crop, all eight symmetries, any rotation and mild bending: for aerial, medical and microscope images, which have no up."""
    A = albumentations()
    return A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
            A.D4(p=1.0),
            A.Affine(rotate=(-180, 180), shear=(-10, 10), p=0.8),
            A.ElasticTransform(alpha=20, sigma=5, p=0.3),
        ]
    )


PIPELINES: dict[str, Callable] = {"light": mild, "photometric": photometric, "geometric": geometric}


def register_pipeline(name: str, build: Callable) -> None:
    """Add one's own pipeline: `build(size) -> A.Compose` that takes image=(H, W, 3) and gives (size, size, 3) uint8. Then `albumentations:<name>`.

    `build` must be a module's function, not a lambda, if workers are spawned.
    """
    PIPELINES[name] = build


def rekey(pipeline, *key: int) -> None:
    """Give a pipeline the random state of a key: every transform inside it draws from its own part of one fresh stream.

    Args:
        pipeline: an `A.Compose`.
        key: whole numbers, e.g. (seed, epoch, index, copy).
    """
    seed = derive_seed(_DOMAIN, *key)
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))


class AlbumentationsViews:
    """One view per image by a named pipeline; same call as `views.Views`.

    Args:
        name: a key of PIPELINES.
        size: side of the result, pixels.
        seed: in [0, 2**64).
        options: none: such a pipeline is changed in its own code.

    Raises:
        UserError: no such pipeline, or options for it.
    """

    views = 1

    def __init__(self, name: str, size: int, seed: int, **options):
        options = {key: value for key, value in options.items() if value is not None}
        if name not in PIPELINES:
            raise UserError(
                f"view albumentations:{name}: there is none; choose from {', '.join(PIPELINES)}, or register one"
            )
        if options:
            raise UserError(
                f"view option {next(iter(options))}: albumentations:{name} takes none; change the pipeline or register one"
            )
        self.name, self.size, self.seed, self._build = name, size, seed, PIPELINES[name]

    @cached_property
    def pipeline(self):
        """Made at the first call in each process."""
        return self._build(self.size)

    def __call__(self, image_bytes: bytes, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """The view of one file under one key: uint8 (1, size, size, 3)."""
        return self.of_pixels(decode(image_bytes), epoch, index, copy)

    def of_pixels(self, image: np.ndarray, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """The same for pixels: image (H, W, 3) uint8."""
        rekey(self.pipeline, self.seed, epoch, index, copy)
        return np.ascontiguousarray(self.pipeline(image=image)["image"])[None]

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "pipeline"}
