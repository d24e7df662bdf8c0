"""Batch: the fields that data sets give and methods take, their check, and pixel normalization.

B images, V views, T frames, C channels, H W pixels, K labels, S tokens. Pixels travel as uint8; conversion to float and
normalization happen once, on the device, in `on_after_batch_transfer`. A method ignores the fields that it does not
need, and passes them on unchanged.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from lit_vision.errors import UserError

PIXEL_FIELDS = ("images", "local_images", "degraded")
_INT64, _FLOAT, _BOOL, _BYTE = torch.int64, torch.float32, torch.bool, torch.uint8
# field: allowed (dtype, dimensions)
_LAYOUTS: dict[str, tuple[tuple[torch.dtype, int], ...]] = {
    "images": ((_BYTE, 5), (_BYTE, 6)),
    "local_images": ((_BYTE, 5), (_BYTE, 6)),
    "degraded": ((_BYTE, 5),),
    "label": ((_INT64, 1), (_FLOAT, 2)),
    "key": ((_INT64, 2),),
    "tokens": ((_INT64, 2),),
    "token_mask": ((_BOOL, 2),),
    "mask": ((_BYTE, 3),),
}


class _EveryBatch(TypedDict):
    images: Tensor
    label: Tensor
    key: Tensor


class Batch(_EveryBatch, total=False):
    """Batch of B samples: the first three fields always, each other one if the data has it.

    Attributes:
        images: (B, V, H, W, C) uint8, or (B, V, T, H, W, C) for clips; C is 3 (RGB, gray is repeated) unless the
            data module says otherwise. After `normalize_batch` (B, V, C, H, W) float, or (B, V, T, C, H, W).
        label: (B,) int64, the class, -1 without one; or (B, K) float32 with 1 for each label that applies, 0 for each
            that does not, NaN for unknown ones.
        key: (B, 3) int64, the columns being (epoch, index, copy).
        local_images: views of another size, (B, V_local, h, w, C) uint8 (`data.local_views`).
        degraded: worse versions of the views of `images`, (B, V, h, w, C) uint8, for restoration; only what the device
            cannot draw from the key itself, such as JPEG artifacts.
        tokens: (B, S) int64, the caption of each image in the tokenizer's numbers.
        token_mask: (B, S) bool, True for the tokens of the caption, False for padding.
        mask: (B, H, W) uint8, the class of each pixel of the first view.
        targets: B dicts of boxes (N, 4), labels (N,) and further arrays, in pixels of the first view.
    """

    local_images: Tensor
    degraded: Tensor
    tokens: Tensor
    token_mask: Tensor
    mask: Tensor
    targets: list[dict[str, Tensor]]


def check_batch(batch: Batch) -> None:
    """Check dtypes, dimensions and lengths of the fields that `Batch` names; other fields may hold anything.

    Raises:
        ValueError: a required field is missing, or one has another layout than `Batch` says.
    """
    if missing := [name for name in ("images", "label", "key") if name not in batch]:
        raise ValueError(f"the batch has no {missing[0]}; it needs images, label and key")
    length = len(batch["images"])
    for name, layouts in _LAYOUTS.items():
        if name not in batch:
            continue
        value = cast("dict[str, Tensor]", batch)[name]
        if (value.dtype, value.dim()) not in layouts:
            wanted = " or ".join(f"{dtype} with {dims} dimensions" for dtype, dims in layouts)
            raise ValueError(f"{name} of the batch must be {wanted}, not {value.dtype} {tuple(value.shape)}")
        if len(value) != length:
            raise ValueError(f"the batch has {length} images and {len(value)} {name}")
    if "targets" in batch and len(batch["targets"]) != length:
        raise ValueError(f"the batch has {length} images and {len(batch['targets'])} targets")
    if batch["key"].shape[1] != 3:
        raise ValueError(f"key of the batch must be (B, 3), not {tuple(batch['key'].shape)}")
    if ("tokens" in batch) != ("token_mask" in batch) or (
        "tokens" in batch and batch["tokens"].shape != batch["token_mask"].shape
    ):
        raise ValueError("tokens and token_mask of the batch belong together and have one shape, (B, S)")


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert uint8 pixels to normalized floats, channels first: (images / 255 - mean) / std.

    Args:
        images: (B, V, H, W, C) or (B, V, T, H, W, C) uint8.
        mean: (C,) float, in [0, 1], on the device of the images.
        std: (C,) float, greater than 0.

    Returns:
        (B, V, C, H, W) or (B, V, T, C, H, W) float32, contiguous. With mean 0 and std 1 they lie in [0, 1], as in
        SimCLR's official code.

    Raises:
        ValueError: images are not uint8, or have other channels than the mean.
    """
    if images.dtype != torch.uint8 or images.dim() not in (5, 6) or images.shape[-1] != len(mean):
        raise ValueError(
            f"images must be uint8 (B, V, H, W, {len(mean)}) or (B, V, T, H, W, {len(mean)}), "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    scale, shift = 1 / (255 * std.float()), mean.float() / std.float()
    # one pass over the pixels: contiguous() moves bytes, not floats
    channels_first = images.movedim(-1, -3).contiguous().float()  # (B, V, C, H, W)
    return channels_first.mul_(scale[:, None, None]).sub_(shift[:, None, None])


def normalize_batch(batch: Batch, mean: Tensor, std: Tensor, clips: bool = False) -> Batch:
    """Return the batch with its pixels (`PIXEL_FIELDS`) normalized, in the dtype of `mean`; arguments as `normalize`.

    Args:
        batch: as the data gives it.
        mean, std: see `normalize`.
        clips: the method takes clips of frames, not images.

    Raises:
        UserError: clips for a method of images, or images for one of clips.
        ValueError: the batch has another layout than `Batch` says, or other channels than the mean.
    """
    check_batch(batch)
    if (batch["images"].dim() == 6) != clips:
        given, advice = ("images", "data.class_path VideoFolderDataModule") if clips else ("clips", "a VideoClassifier")
        raise UserError(f"data: gives {given}, this method takes {'clips' if clips else 'images'}; use {advice}")
    fields: dict[str, Any] = dict(batch)
    pixels = {name: normalize(fields[name], mean, std).to(mean.dtype) for name in PIXEL_FIELDS if name in fields}
    return cast(Batch, {**fields, **pixels})
