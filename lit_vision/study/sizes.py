"""Sides of the images in a study: of what trains and of frozen public weights, with the reason for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_vision.errors import UsageError
from lit_vision.study.presets import PRETRAINED, SMALL, TIMM_SIDE, method_of

FROZEN_SIDE = 224  # pixels at which most public weights were trained
TRAIN_SIDE_CPU = 96  # of photographs: an image costs a sixth of the time that it costs at 224
TRAIN_SIDE_GPU = 224


@dataclass(frozen=True)
class Sizes:
    """Sides in pixels.

    Attributes:
        train: of the images that networks are trained on.
        frozen: of the images that public weights see when nothing of them is trained.
        reason: one sentence that says both and why.
    """

    train: int
    frozen: int
    reason: str


def choose_sizes(
    typical_side: int, inits: Sequence[str], gpu: bool, size: int | None = None, frozen_size: int | None = None
) -> Sizes:
    """Return the sides that a study uses.

    Images of up to 64 pixels keep their size; frozen public weights see them enlarged to 96. Of photographs, frozen
    public weights see 224 pixels, and what is trained sees 96 on a CPU and 224 on a GPU, but no more than the images
    have.

    Args:
        typical_side: median short side of the images, pixels.
        inits: their names; those with weights of their own are measured frozen.
        gpu: whether the machine has one.
        size: the user's, in place of `train`.
        frozen_size: the user's, in place of `frozen`.

    Raises:
        UsageError: the networks cannot be built for `size`.
    """
    small = typical_side <= SMALL
    train_reason = f"the images typically have {typical_side}"
    if size is not None:
        step = 4 if size <= SMALL else 16  # side of a ViT's patches
        if size % step:
            raise UsageError(f"--size: {size} is not a multiple of {step}; give {size // step * step + step}")
        train, train_reason = size, "as --size says"
    elif small:
        train = max(16, -(-typical_side // 4) * 4)
    else:
        limit, machine = (TRAIN_SIDE_GPU, "a GPU") if gpu else (TRAIN_SIDE_CPU, "a CPU")
        train = min(limit, typical_side // 16 * 16)
        if train == limit:
            train_reason = f"photographs on {machine}"
    if frozen_size is not None:
        frozen, frozen_reason = frozen_size, "as --frozen_size says"
    elif small:
        frozen, frozen_reason = max(train, TIMM_SIDE), "they were trained on larger images"
    else:
        # patches of 96 pixels too: EfficientNet-Lite0 with 10 labels a class names 85.9 % at 96 and 92.1 % at 224
        frozen, frozen_reason = max(train, FROZEN_SIDE), "as they were trained"
    reason = f"Networks are trained on images of {train} pixels ({train_reason})"
    if any(not method_of(init) and init not in PRETRAINED for init in inits):
        reason += f"; public weights, frozen, see {frozen} ({frozen_reason})"
    return Sizes(train, frozen, f"{reason}.")
