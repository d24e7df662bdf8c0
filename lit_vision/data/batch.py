"""Batch layout and pixel normalization.

A batch is a dict: `images` uint8 (B, V, H, W, 3), always RGB (gray is repeated); `label` int64 (B,), -1 for an
unlabeled image; `key` int64 (B, 3), the columns being (epoch, index, copy); with `data.local_views` also `local_images`
uint8 (B, V_local, h, w, 3), views of another size. Conversion to float and normalization
happen once, on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert uint8 pixels to normalized floats, channels first: (images / 255 - mean) / std.

    Args:
        images: (B, V, H, W, 3) uint8, RGB.
        mean: (3,) float, in [0, 1], on the device of the images.
        std: (3,) float, greater than 0.

    Returns:
        (B, V, 3, H, W) float32, contiguous. With mean 0 and std 1 they lie in [0, 1], as in SimCLR's official code.

    Raises:
        ValueError: images are not uint8 with three channels last.
    """
    if images.dtype != torch.uint8 or images.dim() != 5 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 (B, V, H, W, 3), not {images.dtype} {tuple(images.shape)}")
    scale, shift = 1 / (255 * std.float()), mean.float() / std.float()
    # one pass over the pixels: contiguous() moves bytes, not floats
    channels_first = images.permute(0, 1, 4, 2, 3).contiguous().float()  # (B, V, 3, H, W)
    return channels_first.mul_(scale[:, None, None]).sub_(shift[:, None, None])


def normalize_batch(batch: dict[str, Any], mean: Tensor, std: Tensor) -> dict[str, Any]:
    """Return the batch with images and local images normalized, in the dtype of `mean`; arguments as `normalize`."""
    names = [name for name in ("images", "local_images") if name in batch]
    return {**batch, **{name: normalize(batch[name], mean, std).to(mean.dtype) for name in names}}
