"""Differentiable augmentation of real and made images alike, so that the discriminator learns few images less by heart.

Zhao et al. 2020, arXiv:2006.10738, section 3 and its color, translation and cutout. B images, C channels, H W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("color", "translation", "cutout")
NUMBERS = 7  # uniform random numbers that an image takes: 3 for color, 2 for translation, 2 for cutout


def augment(images: Tensor, uniform: Tensor, kinds: tuple[str, ...] = KINDS) -> Tensor:
    """Return the images changed by random amounts, differentiable in the images.

    Color: brightness by -0.5 to 0.5, saturation by a factor 0 to 2 (no effect on one channel), contrast by a factor 0.5
    to 1.5. Translation: by up to an eighth of the side, zeros come in. Cutout: a square of half the side becomes zero.

    Args:
        images: (B, C, H, W) float, in [-1, 1].
        uniform: (B, 7) in [0, 1), one row an image.
        kinds: some of KINDS.
    """
    u = uniform.to(images.dtype)[:, :, None, None, None]  # (B, 7, 1, 1, 1)
    if "color" in kinds:
        images = images + (u[:, 0] - 0.5)
        gray = images.mean(1, keepdim=True)
        images = gray + (images - gray) * (2 * u[:, 1])
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (0.5 + u[:, 2])
    if "translation" in kinds:
        images = _translate(images, uniform[:, 3:5])
    if "cutout" in kinds:
        images = images * _cutout_mask(images, uniform[:, 5:7])
    return images


def _translate(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift each image by whole pixels, up to an eighth of the side either way."""
    reach_y, reach_x = (side // 8 for side in images.shape[2:])
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    y, x = (
        (uniform[:, i, None] * (2 * reach + 1)).long() + torch.arange(side, device=images.device)
        for i, (reach, side) in enumerate(zip((reach_y, reach_x), images.shape[2:]))
    )  # (B, H) and (B, W)
    return padded.permute(0, 2, 3, 1)[batch, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _cutout_mask(images: Tensor, uniform: Tensor) -> Tensor:
    """Return (B, 1, H, W), 0 in a square of half the side around a random pixel, else 1."""
    inside = []
    for i, side in enumerate(images.shape[2:]):
        center = (uniform[:, i, None] * side).long()
        distance = torch.arange(side, device=images.device) - center
        inside.append((distance >= -(side // 4)) & (distance < side // 2 - side // 4))
    return 1 - (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images.dtype)
