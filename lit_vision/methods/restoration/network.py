"""Restoration without Lightning: the loss, DnCNN, a decoder from feature maps to pixels, and the network of both.

restorer.py beside this file trains the network. B images, C channels, H W pixels of the clean image, h w pixels of the
degraded one (H / scale, W / scale), D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone, is_vit
from lit_vision.data.views.degraded import FACTORS
from lit_vision.errors import UserError
from lit_vision.methods import tuning_modes
from lit_vision.methods.pixels import channel_values
from lit_vision.methods.restoration.degradations import HOLES, device_degradations

PARTS = frozenset({"backbone", "pixels"})  # the modules in a checkpoint of this method
MONITOR = ("val/loss", False)  # the metric that chooses best.ckpt; False: smaller is better
TRAIN_VIEW = "crop"  # pixels as they are in the file
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: Mapping[str, Any] = {
    "backbone": "dncnn",
    "backbone_args": None,
    "backbone_checkpoint": None,
    "scale": 1,
    "decoder_width": 32,
    "loss": "charbonnier",
    "mean": None,
    "std": None,
}
LOSSES = ("l1", "charbonnier", "mse")
CHARBONNIER_EPSILON = 1e-3
TILE = 128  # pixels a side of what a network without a size of its own is exported for
_LONGEST_REACH = 256  # pixels; a network that sees farther is taken to see everything


def pixel_loss(restored: Tensor, clean: Tensor, kind: str) -> Tensor:
    """Return the mean difference of pixels: |d| (l1), sqrt(d^2 + 1e-6) (charbonnier) or d^2 (mse).

    Source of the second: Charbonnier et al. 1994; epsilon 1e-3 as Lai et al. 2017, arXiv:1704.03915.

    Args:
        restored: (B, C, H, W) float in [0, 1], not clipped.
        clean: (B, C, H, W) float in [0, 1].
        kind: one of LOSSES.

    Returns:
        Scalar, at least float32. An error of 0 gives 0, 1e-3 or 0.
    """
    difference = tuning_modes.at_least_float32(restored) - clean
    if kind == "l1":
        return difference.abs().mean()
    if kind == "mse":
        return difference.square().mean()
    return (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean()


class DnCNN(nn.Module):
    """Convolutions of 3 x 3 at full resolution, each with ReLU: DnCNN without its last one, which PixelDecoder has.

    Source: Zhang et al. 2017, arXiv:1608.03981: 17 or 20 layers of 64 channels with batch norm. Unlike the paper: 8
    layers of 48 channels by default, and no batch norm unless asked for.

    Args:
        in_chans: C of the input, with the mask of holes.
        depth: convolutions, the last one counted.
        width: D.
        batch_norm: after all but the first.

    Attributes:
        model, config, strides, width, data_config, weights_from: as of a Backbone.
    """

    def __init__(self, in_chans: int = 3, depth: int = 8, width: int = 48, batch_norm: bool = False) -> None:
        super().__init__()
        if depth < 2 or width < 1:
            raise UserError(f"model.backbone_args: depth {depth}, width {width}; give a depth of 2 or more")
        layers: list[nn.Module] = []
        for number in range(depth - 1):
            normed = batch_norm and number > 0
            layers.append(nn.Conv2d(width if number else in_chans, width, 3, padding=1, bias=not normed))
            layers += [nn.BatchNorm2d(width)] if normed else []
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.config: dict[str, Any] = {"name": "dncnn", "in_chans": in_chans}
        self.strides, self.width, self.weights_from = [1], width, ""
        self.data_config = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": (in_chans, TILE, TILE)}

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features, (B, D)."""
        return self.layers(images).mean((2, 3))

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Return [(B, D, H, W)]."""
        return [self.layers(images)]


class PixelDecoder(nn.Module):
    """Feature maps and the image itself to pixels: each step doubles the sides, joins the map of that size and mixes.

    A single map at full size goes through the last convolution alone. That one begins at zero, so that an untrained
    restorer returns its input.

    Args:
        channels: of the maps, fine to coarse.
        strides: of the maps, powers of two; of maps with one stride the last is used.
        in_chans: C of the image, with the mask of holes.
        out_chans: C of the result.
        width: D of each step.

    Raises:
        UserError: a stride that is no power of two.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], in_chans: int, out_chans: int, width: int
    ) -> None:
        super().__init__()
        self.map_of_stride = {stride: number for number, stride in enumerate(strides)}
        coarsest = max(strides)
        if any(stride & (stride - 1) for stride in strides):
            raise UserError(
                f"model.backbone: its maps have strides {sorted(self.map_of_stride)}; restoration needs powers of two"
            )
        self.coarsest, self.steps = coarsest, nn.ModuleList()
        last = channels[self.map_of_stride[coarsest]]
        stride = coarsest // 2
        while stride >= 1:
            joined = channels[self.map_of_stride[stride]] if stride in self.map_of_stride else 0
            joined += in_chans if stride == 1 else 0
            step = nn.Conv2d(last + joined, width, 3, padding=1)
            nn.init.kaiming_normal_(step.weight, nonlinearity="relu")
            nn.init.zeros_(step.bias)
            self.steps.append(step)
            last, stride = width, stride // 2
        self.last = nn.Conv2d(last, out_chans, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, maps: Sequence[Tensor], images: Tensor) -> Tensor:
        """Turn maps [(B, C_i, H_i, W_i)] of images (B, C, H, W) into pixels (B, C_out, H, W)."""
        x, stride = maps[self.map_of_stride[self.coarsest]], self.coarsest
        for step in self.steps:
            stride //= 2
            parts = [F.interpolate(x, scale_factor=2.0, mode="nearest")]
            if stride in self.map_of_stride:
                parts.append(maps[self.map_of_stride[stride]])
            if stride == 1:
                parts.append(images)
            x = F.relu(step(torch.cat(parts, 1)))
        return self.last(x)


class RestorerNetwork(nn.Module):
    """Backbone with maps, or DnCNN, and a decoder that ends in pixels, which are added to the input.

    A smaller input is first enlarged by bicubic interpolation. With holes the input has one more channel, their mask;
    if holes are all that degrades the images, known pixels are returned as they are.

    Args:
        h: hyper-parameters of `lit_vision.methods.restoration.restorer.Restorer`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    method_name, parts, train_view, monitor = "Restorer", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        self.scale, self.degradations = h["scale"], device_degradations(h["degradations"])
        names = [degradation.name for degradation in self.degradations]
        self.has_holes = any(name in HOLES for name in names)
        self.keeps_known = self.has_holes and all(name in HOLES for name in names)
        if self.scale not in (1, *FACTORS) or (self.has_holes and self.scale > 1):
            raise UserError(f"model.scale: {self.scale}; give 1, 2, 3 or 4, and 1 with holes")
        if h["loss"] not in LOSSES:
            raise UserError(f"model.loss: {h['loss']!r} is not one of {', '.join(LOSSES)}; choose one of these")
        arguments = dict(h["backbone_args"] or {})
        channels = arguments.pop("in_chans", 3)
        self.channels = channels
        arguments["in_chans"] = channels + self.has_holes
        self.backbone: Any  # Backbone or DnCNN
        # of dncnn: with inputs that were all positive (mean 0) the last ReLUs died in two of three trainings
        mean, std = [0.5] * channels, [0.25] * channels
        if h["backbone"] == "dncnn":
            if h["backbone_checkpoint"]:
                raise UserError("model.backbone_checkpoint: dncnn starts without weights; leave it out")
            known = ("in_chans", "depth", "width", "batch_norm")
            if unknown := [name for name in arguments if name not in known]:
                raise UserError(f"model.backbone_args.{unknown[0]}: dncnn takes {', '.join(known[1:])}")
            self.backbone = DnCNN(**arguments)
        else:
            tuning = {**tuning_modes.TUNING_DEFAULTS, **h, "backbone_args": arguments}
            self.backbone, mean, std = tuning_modes.build_backbone(tuning)
            mean, std = mean[:channels], std[:channels]
        shapes = self._map_shapes()
        strides = [stride for _, stride in shapes]
        self.pixels = PixelDecoder(
            [count for count, _ in shapes], strides, arguments["in_chans"], channels, h["decoder_width"]
        )
        if isinstance(self.backbone, Backbone):
            used = set(self.pixels.map_of_stride.values())
            _freeze_without_gradient(self.backbone, self.fixed_size or 4 * max(strides), used)
            tuning_modes.channels_last(self.pixels, self.backbone)
        else:
            self.backbone.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))

    @property
    def fixed_size(self) -> int:
        """Side of the images that the backbone is built for, pixels; 0 if it takes any size."""
        if not is_vit(self.backbone.model):
            return 0
        side: int = self.backbone.data_config["input_size"][-1]
        return side

    def _map_shapes(self) -> list[tuple[int, int]]:
        """Return (channels, stride) of each of `forward_maps`."""
        side = self.fixed_size or 64
        mode, like = self.training, next(self.backbone.parameters())
        self.backbone.eval()
        with torch.no_grad():
            maps = self.backbone.forward_maps(like.new_zeros(1, self.backbone.config["in_chans"], side, side))
        self.backbone.train(mode)
        return [(m.shape[1], round(side / m.shape[2])) for m in maps]

    def forward(self, images: Tensor, holes: Tensor | None = None) -> Tensor:
        """Return restored images, normalized as the input, not clipped.

        Args:
            images: (B, C, h, w) float, normalized by `mean` and `std`.
            holes: (B, 1, h, w) float, 1 where a pixel is missing; only and always for a network trained with holes,
                None means that nothing is missing.

        Returns:
            (B, C, h * scale, w * scale), at least float32.
        """
        images = self.enlarged(images)
        height, width = images.shape[-2:]
        x = images
        if self.has_holes:
            holes = torch.zeros_like(images[:, :1]) if holes is None else holes
            x = torch.cat([images, holes], 1)
        below, right = -height % self.pixels.coarsest, -width % self.pixels.coarsest
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        residual = self.pixels(self.backbone.forward_maps(x), x)[..., :height, :width]
        restored = images + tuning_modes.at_least_float32(residual)
        return torch.where(holes > 0, restored, images) if self.keeps_known and holes is not None else restored

    def enlarged(self, images: Tensor) -> Tensor:
        """Return images at the size of the clean ones, (B, C, h, w) to (B, C, h * scale, w * scale), by bicubic."""
        if self.scale == 1:
            return images
        return F.interpolate(images, scale_factor=float(self.scale), mode="bicubic", align_corners=False)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo the normalization: (B, C, H, W) to values in [0, 1], where they are pixels."""
        return images * self.std[:, None, None] + self.mean[:, None, None]

    @torch.no_grad()
    def reach(self) -> int | None:
        """Return how far an output pixel sees, in pixels of the input; None if it is more than 256 or everything.

        NaN in one column of the input reaches exactly the outputs that depend on it; a column is tried at each position
        relative to the coarsest stride.
        """
        if self.fixed_size:
            return None
        mode, side = self.training, 32
        self.eval()
        try:
            while side <= _LONGEST_REACH:
                step = max(1, self.pixels.coarsest // self.scale)
                rows = max(16, self.pixels.coarsest)
                images = self.mean.new_zeros(step, self.channels, rows, 2 * side + step)
                for offset in range(step):
                    images[offset, :, :, side + offset] = float("nan")
                holes = torch.ones_like(images[:, :1]) if self.has_holes else None  # else known pixels are returned
                touched = self(images, holes).isnan().any(1).any(1)  # (step, scale * width)
                seen = [row.nonzero()[:, 0] // self.scale for row in touched]
                distances = [(columns - side - offset).abs().max() for offset, columns in enumerate(seen)]
                if not any(row[0] or row[-1] for row in touched):
                    return int(max(distances))
                side *= 2
            return None
        finally:
            self.train(mode)


def _freeze_without_gradient(backbone: Backbone, side: int, used: set[int]) -> None:
    """Freeze the parameters that the maps in use do not depend on: DDP refuses parameters without a gradient."""
    trainable = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    mode = backbone.training
    backbone.eval()
    like = next(backbone.parameters())
    with torch.enable_grad():
        maps = backbone.forward_maps(like.new_zeros(1, backbone.config["in_chans"], side, side))
        total = sum(maps[number].sum() for number in used)
        found = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
    backbone.train(mode)
    for parameter, gradient in zip(trainable.values(), found):
        if gradient is None:
            parameter.requires_grad_(False)
