"""Restoration: inference network, and models as networks of tiles. B images, C channels, S factor of enlargement."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.predict.runtimes import Model
from lit_vision.predict.tiles import TiledNetwork

DEFAULT_TILE = 256  # pixels a side, for networks that take any size


class RestorerInference(nn.Module):
    """Normalized images (B, C, H, W) -> restored pixels (B, C, S H, S W) from 0 to 1, not clipped.

    A network trained with holes has one more input channel: 1 where a pixel is missing.

    Attributes:
        mean, std: of the input's channels; 0 and 1 for the mask.
    """

    outputs = ("restored",)

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method
        extra = 1 if method.has_holes else 0
        self.mean: list[float] = [*method.mean.tolist(), *[0.0] * extra]
        self.std: list[float] = [*method.std.tolist(), *[1.0] * extra]

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the outputs (see the class)."""
        holes = None
        if self.method.has_holes:
            images, holes = images[:, :-1], images[:, -1:]
        return (self.method.to_pixels(self.method(images, holes)),)


def restorer_options(network: nn.Module) -> dict[str, Any]:
    """Return what tiling takes: scale, holes, reach (None: sees everything), stride, fixed size (0: any)."""
    coarsest, scale = network.pixels.coarsest, network.scale
    return {
        "scale": scale,
        "holes": network.has_holes,
        "keeps_known": network.keeps_known,
        "reach": network.reach(),
        "stride": coarsest // math.gcd(coarsest, scale),
        "fixed_size": network.fixed_size,
    }


def tiled_restorer(model: Model, tile: int | None = None) -> TiledNetwork:
    """Return a loaded model of restoration as a network of tiles.

    Args:
        model: from `load_model`.
        tile: side of the tiles, pixels; None: 256, or what the model takes.

    Raises:
        UserError: the model is for another task, or the tiles are too small for its reach.
    """
    metadata, options = model.metadata, model.metadata.options
    if metadata.task != "restoration":
        raise UserError(
            f"{model.path}: is for {metadata.task}, not for restoration; give a run of Restorer, or with --mask of MAE"
        )
    fixed: int = options["fixed_size"] or (metadata.side if model.runtime != "torch" else 0)
    stride: int = options["stride"]
    reach: int | None = options["reach"]
    if fixed and tile not in (None, fixed):
        raise UserError(f"--tile {tile}: {model.path} takes tiles of {fixed} pixels; leave it out")
    side = fixed or tile or max(DEFAULT_TILE, 4 * (reach or 0))
    side = side if fixed else -(-side // stride) * stride
    if reach is not None and side < 2 * reach + stride:
        reach = None  # seams would be visible: blend
    mean, std = (torch.tensor(values)[:, None, None] for values in (metadata.mean, metadata.std))
    channels = len(metadata.mean) - options["holes"]

    def run(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)  # (C, h, w)
        given = images.shape[0]
        if channels == 1 or given == 1:
            images = images[:, None].expand(-1, channels, -1, -1)  # each channel alone
        else:
            images = images[None]
        if options["holes"]:
            mask = torch.from_numpy(missing)[None, None].float().expand(len(images), -1, -1, -1)
            images = torch.cat([torch.where(mask > 0, 0.5, images), mask], 1)
        restored = torch.from_numpy(model.run((images - mean) / std)["restored"])
        if not bool(restored.isfinite().all()):
            raise UserError(f"{model.path}: its restored pixels are not finite; check its training")
        if channels > 1 and given == 1:
            restored = restored.mean(1, keepdim=True)
        pixels = restored.reshape(given, *restored.shape[-2:]).permute(1, 2, 0).numpy()
        return pixels

    return TiledNetwork(run, side, reach, stride, options["scale"], bool(fixed), bool(options["keeps_known"]))
