"""RandAugment and random erasing of timm on uint8 pixels, keyed.

Both use the global random generators, which are seeded for each view and restored after it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps

from lit_vision.data.views.keyed_rng import derive_seed, temporary_seed
from lit_vision.data.views.params import ViewSpec
from lit_vision.errors import UserError

# Of ImageNet. RandAugment fills with the mean. The noise of random erasing is normal in pixels normalized by these, and
# clipped to the range of a pixel.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TimmAugment:
    """Augmentations of a ViewSpec that timm computes: `augment(image, epoch, index, copy, view) -> image`.

    False (see `__bool__`) if the spec has none of them.

    Args:
        spec: `rand_augment` and `random_erasing` are read.
        seed: in [0, 2**64).

    Raises:
        UserError: timm does not understand the string `rand_augment`.
    """

    def __init__(self, spec: ViewSpec, seed: int):
        self.seed = seed
        self.policy: Callable[[Image.Image], Image.Image] | None = None
        self.erase: Callable[[torch.Tensor], torch.Tensor] | None = None
        if spec.rand_augment:
            self.policy = _policy(spec.rand_augment, spec.short_side)
        if spec.random_erasing:
            from timm.data.random_erasing import RandomErasing

            self.erase = RandomErasing(spec.random_erasing, mode="pixel", device="cpu")

    def __bool__(self) -> bool:
        return self.policy is not None or self.erase is not None

    def __call__(self, image: np.ndarray, epoch: int, index: int, copy: int, view: int) -> np.ndarray:
        """Augment one view: (H, W, 3) uint8 in and out."""
        with temporary_seed(derive_seed(self.seed, epoch, index, copy, view)):
            if self.policy is not None:
                image = np.array(self.policy(Image.fromarray(image)))
            if self.erase is not None:
                mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
                pixels = torch.from_numpy(image).permute(2, 0, 1).div(255)  # (3, H, W)
                pixels = self.erase((pixels - mean) / std) * std + mean
                image = pixels.mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        return image


def _policy(text: str, size: int) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(round(255 * m) for m in _MEAN)
    try:
        if not text.startswith("rand"):
            raise ValueError("it must start with rand")
        options = {"translate_const": int(size * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        policy = rand_augment_transform(text, options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"view option rand_augment: timm cannot read {text!r} ({reason}); write it like rand-m9-mstd0.5-inc1"
        ) from None
    for op in policy.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    augment: Callable[[Image.Image], Image.Image] = policy
    return augment


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest bits of each channel; 0 bits are black, as in Pillow before 13, which refuses them."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda value: 0)
