"""Checks and records that both generators share: the data's size, channels and classes, and what later use needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lit_vision.data.views.image_size import height_and_width
from lit_vision.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from lit_vision.data.batch import Batch


def check_data_fits(module: LightningModule, stage: str = "") -> None:
    """Refuse data of another size, channels or classes than the generator's, before any step.

    A hook of Lightning: a generator has it as `setup`.

    Raises:
        UserError: names both values.
    """
    data, h = getattr(module.trainer, "datamodule", None), module.hparams
    size = getattr(data, "img_size", None)
    theirs: dict[str, Any] = {
        "img_size": list(height_and_width(size)) if size else None,
        "channels": getattr(data, "channels", None),
        "num_classes": getattr(data, "num_classes", None) if h.num_classes else None,
    }
    ours = {"img_size": [h.img_size, h.img_size], "channels": h.channels, "num_classes": h.num_classes}
    for name, value in theirs.items():
        if value is not None and value != ours[name]:
            raise UserError(f"model.{name}: {h[name]}, the data has {value}; make them equal")


def store_class_names(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Add the size of the images and the names of the classes to a checkpoint, for `lit-vision generate`.

    A hook of Lightning: a generator has it as `on_save_checkpoint`.
    """
    data, h = getattr(module.trainer, "datamodule", None), module.hparams
    names = (getattr(data, "class_names", None) or []) if h.num_classes else []
    checkpoint["card"] = {"size": h.img_size, "class_names": [str(name) for name in names]}


def one_view(batch: Batch, use: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images (B, C, H, W), labels (B,) and keys (B, 4) of a batch with one view of each image.

    Args:
        batch: normalised, on the device.
        use: number that keeps the random numbers of one use (training, validation) apart from those of another.

    Raises:
        UserError: more than one view, or several labels an image.
    """
    images, labels, keys = batch["images"], batch["label"], batch["key"]
    if images.shape[1] != 1:
        raise UserError(
            f"data.train_view: a generator needs one view of each image, got {images.shape[1]}; set it to train"
        )
    if labels.ndim != 1:
        raise UserError("data.label_columns: a generator takes one class an image; leave it out, or use label_column")
    return images[:, 0], labels, torch.cat((keys, torch.full_like(keys[:, :1], use)), dim=1)
