"""Agreement of a model and its data on the pixels: channels, range of values of deep images, and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_vision.data.views.image_size import plain_size
from lit_vision.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def channel_values(name: str, given: Sequence[float] | None, default: Sequence[float], channels: int) -> list[float]:
    """Return mean or std with one value per channel.

    Args:
        name: "mean" or "std", for the error.
        given: by the user; None takes the default.
        default: of RGB; a model of one channel gets the mean of the three.
        channels: of the backbone's input.

    Raises:
        UserError: other than `channels` values, and they cannot be derived.
    """
    values = [float(v) for v in (given or default)]
    if len(values) == channels:
        return values
    if given is None and channels == 1:
        return [sum(values) / len(values)]
    has = f"{len(values)} values" if given else "no value"
    raise UserError(
        f"model.{name}: {has} for in_chans {channels} of backbone_args; give {channels} numbers, one a channel "
        "(images of a folder have 1 or 3 channels; others need one's own data set)"
    )


def check_channels(module: LightningModule, stage: str = "") -> None:
    """Refuse data with another number of channels than the backbone's input, before any step.

    A hook of Lightning: a method that checks nothing else has it as `setup`.

    Raises:
        UserError: names both numbers.
    """
    ours = module.backbone.config["in_chans"]
    theirs = getattr(getattr(module.trainer, "datamodule", None), "channels", ours)
    if ours != theirs:
        advice = f"set data.channels: {ours}" if ours in (1, 3) else "such images need one's own data set"
        raise UserError(f"model.backbone_args.in_chans: {ours}, the data has {theirs} channel(s); {advice}")


def match_value_range(module: LightningModule) -> None:
    """Let the data convert deep images (16-bit, float) as `module.metadata` says, when a trained model is run on it.

    Raises:
        UserError: the data declares another range.
    """
    data = getattr(module.trainer, "datamodule", None)
    if module.metadata is not None and data is not None and hasattr(data, "use_range_of"):
        data.use_range_of(module.metadata.get("value_range"))


def store_image_format(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Add the data's image size and range of values to a checkpoint of a self-supervised method, for embed and export.

    A CNN's weights show no size: without it, features would be those of images of timm's default, mostly 224 pixels.

    A hook of Lightning: a method has it as `on_save_checkpoint`.
    """
    data = getattr(module.trainer, "datamodule", None)
    size, value_range = getattr(data, "img_size", None), getattr(data, "value_range", None)
    found: dict[str, Any] = {"size": plain_size(size)} if size else {}
    if value_range is not None:
        found["value_range"] = list(value_range)
    if found:
        checkpoint["card"] = found
