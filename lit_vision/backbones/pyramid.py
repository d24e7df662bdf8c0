"""Maps of a backbone to maps of one width at the strides that a head wants: FPN for CNNs, the simple feature pyramid for ViTs.

Letters: B images, C_i H_i W_i channels and sides of map i.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a (B, C, H, W) map, as ViTDet uses it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def map_shapes(backbone: Backbone, img_size: int) -> list[tuple[int, int]]:
    """(channels, stride) of each of `forward_maps`; a CNN's are measured on one black image of at most 256 pixels.

    Raises:
        UserError: the family gives no maps, or the backbone is built for another size.
    """
    if len(backbone.strides) == 1:  # a ViT: its size is fixed, and at 1024 pixels a forward would cost minutes on a CPU
        built = backbone.data_config["input_size"][-1]
        if built != img_size:
            raise UserError(f"model.img_size: {img_size}, the backbone is built for img_size {built}; make them equal")
        return [(backbone.model.num_features, backbone.strides[0])]
    mode, like, side = backbone.training, next(backbone.parameters()), min(img_size, 256)
    backbone.eval()
    with torch.no_grad():
        maps = backbone.forward_maps(like.new_zeros(1, backbone.config["in_chans"], side, side))
    backbone.train(mode)
    return [(m.shape[1], round(side / m.shape[2])) for m in maps]


class SimpleFeaturePyramid(nn.Module):
    """The simple feature pyramid: every level from the last map alone.

    A level finer than the map takes transposed convolutions of stride 2 that halve the channels (layer norm and GELU between two), a
    coarser one max-pooling; then a 1x1 and a 3x3 convolution, each with layer norm and without bias. Levels beyond twice the map's stride
    are the last level max-pooled (P6). Source: Li et al. 2022, arXiv:2203.16527, section 3 and its detectron2 code.

    Args:
        in_channels: D of the map.
        in_stride: its stride, a power of two times each of `strides`.
        out_channels: of every level.
        strides: of the levels, fine to coarse, each twice the one before.
    """

    def __init__(self, in_channels: int, in_stride: int, out_channels: int, strides: Sequence[int]):
        super().__init__()
        self.strides, self.out_channels = list(strides), out_channels
        self.levels = nn.ModuleList()
        for stride in strides:
            if stride > 2 * in_stride:
                break
            steps: list[nn.Module] = []
            width = in_channels
            for turn in range(max(0, round(math.log2(in_stride / stride)))):
                if turn:
                    steps += [ChannelNorm(width), nn.GELU()]
                steps.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
                width //= 2
            if stride == 2 * in_stride:
                steps.append(nn.MaxPool2d(2))
            steps += [nn.Conv2d(width, out_channels, 1, bias=False), ChannelNorm(out_channels)]
            steps += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), ChannelNorm(out_channels)]
            self.levels.append(nn.Sequential(*steps))
        self.pooled = len(strides) - len(self.levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, D, H, W)] to [(B, out_channels, H_i, W_i)], fine to coarse."""
        return _append_pooled_levels([level(maps[-1]) for level in self.levels], self.pooled)


class FPN(nn.Module):
    """torchvision's feature pyramid network on the maps at `strides`; levels coarser than the last map are the last level max-pooled.

    Source: Lin et al. 2017, arXiv:1612.03144. Unlike the paper: group norm after each convolution (32 groups, or fewer for narrow levels),
    without which small networks trained from scratch learn slowly (He et al. 2019, arXiv:1811.08883).

    Args:
        channels: of the maps used.
        places: which of `forward_maps` they are.
        out_channels: of every level.
        strides: of the levels, fine to coarse.
    """

    def __init__(self, channels: Sequence[int], places: Sequence[int], out_channels: int, strides: Sequence[int]):
        super().__init__()
        self.strides, self.out_channels, self.places = list(strides), out_channels, list(places)
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, norm_layer=group_norm)
        self.pooled = len(strides) - len(places)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`forward_maps` of the backbone to [(B, out_channels, H_i, W_i)], fine to coarse."""
        named = OrderedDict((str(i), maps[place]) for i, place in enumerate(self.places))
        return _append_pooled_levels(list(self.fpn(named).values()), self.pooled)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that computes in the plain layout: torch's CPU kernel for channels-last bfloat16 takes 15 times as long."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if x.device.type == "cpu" else x)


def group_norm(channels: int) -> GroupNorm:
    """Group norm with the most groups up to 32 that divide the channels."""
    return GroupNorm(math.gcd(32, channels), channels)


def _append_pooled_levels(levels: list[Tensor], count: int) -> list[Tensor]:
    for _ in range(count):
        levels.append(
            nn.functional.max_pool2d(levels[-1], 1, 2)
        )  # every second position, as ViTDet's and Faster R-CNN's P6
    return levels


def make_pyramid(
    backbone: Backbone, img_size: int, out_channels: int, strides: Sequence[int]
) -> SimpleFeaturePyramid | FPN:
    """The pyramid that fits a backbone.

    Args:
        backbone: any with `forward_maps`; one map gives the simple pyramid, several give FPN.
        img_size: side of the images, pixels; a multiple of the coarsest stride.
        out_channels: of every level.
        strides: of the levels, fine to coarse, each twice the one before, e.g. [4, 8, 16, 32].

    Raises:
        UserError: strides that are no such series, that do not divide the image, or of which the backbone has no map to begin with.
    """
    strides, shapes = validate_strides(backbone, img_size, strides)
    if len(shapes) == 1:
        return SimpleFeaturePyramid(*shapes[0], out_channels, strides)
    places = _map_indices(backbone, shapes, strides)
    return FPN([shapes[place][0] for place in places], places, out_channels, strides)


class SelectMaps(nn.Module):
    """Some of a backbone's maps as they are.

    Args:
        channels: of each.
        places: which of `forward_maps` they are.
    """

    def __init__(self, channels: Sequence[int], places: Sequence[int]):
        super().__init__()
        self.channels, self.places = list(channels), list(places)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`forward_maps` to the chosen ones."""
        return [maps[place] for place in self.places]


def make_feature_levels(
    backbone: Backbone, img_size: int, width: int, strides: Sequence[int] | None
) -> tuple[nn.Module, list[int]]:
    """Maps of a backbone at these strides without mixing them: a CNN's own, or a ViT's simple feature pyramid.

    Args:
        backbone: any with `forward_maps`.
        img_size: side of the images, pixels.
        width: channels of a ViT's pyramid.
        strides: fine to coarse, each twice the one before; None is the last map alone, as it is.

    Returns:
        A module from `forward_maps` to [(B, C_i, H_i, W_i)], and the C_i.

    Raises:
        UserError: as `make_pyramid`; also strides beyond a CNN's last map.
    """
    if strides is None:
        shapes = map_shapes(backbone, img_size)
        return SelectMaps([shapes[-1][0]], [len(shapes) - 1]), [shapes[-1][0]]
    strides, shapes = validate_strides(backbone, img_size, strides)
    if len(shapes) == 1:
        return SimpleFeaturePyramid(*shapes[0], width, strides), [width] * len(strides)
    places = _map_indices(backbone, shapes, strides)
    if len(places) < len(strides):
        raise UserError(
            f"model.strides: {backbone.config['name']} has no map of stride {strides[len(places)]}; leave it out"
        )
    channels = [shapes[place][0] for place in places]
    return SelectMaps(channels, places), channels


def validate_strides(
    backbone: Backbone, img_size: int, strides: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Strides that fit image and backbone, and `map_shapes`.

    Raises:
        UserError: strides that do not double, do not divide the image, or that the one map of a ViT cannot be brought to.
    """
    strides = list(strides)
    if not strides or any(b != 2 * a for a, b in itertools.pairwise(strides)) or strides[0] < 1:
        raise UserError(f"model.strides: {strides} must double from level to level, e.g. [8, 16, 32]")
    if img_size % strides[-1]:
        raise UserError(
            f"model.img_size: {img_size} is no multiple of the coarsest stride {strides[-1]}; change it or model.strides"
        )
    shapes = map_shapes(backbone, img_size)
    if len(shapes) == 1:
        channels, stride = shapes[0]
        turns = math.log2(stride / strides[0])
        if strides[0] > 2 * stride or turns != int(turns) or channels >> max(0, int(turns)) < 1:
            raise UserError(
                f"model.strides: {backbone.config['name']} has one map of stride {stride}; give strides that it doubles or halves to"
            )
    return strides, shapes


def _map_indices(backbone: Backbone, shapes: list[tuple[int, int]], strides: list[int]) -> list[int]:
    """Which maps have these strides; of several with one stride the deepest. Strides may go on beyond the last map."""
    last = {stride: place for place, (_, stride) in enumerate(shapes)}
    covered = [s for s in strides if s in last]
    if not covered or covered != strides[: len(covered)] or (strides[len(covered) :] and covered[-1] != max(last)):
        raise UserError(
            f"model.strides: {backbone.config['name']} has maps of strides {sorted(last)}; begin with one of them and leave none out"
        )
    return [last[s] for s in covered]


def freeze_unused(backbone: Backbone, pyramid: nn.Module, img_size: int) -> list[str]:
    """Stop the gradients of what the pyramid's maps do not depend on, since DDP refuses parameters without a gradient.

    In a ViT this is what comes after the last block (the final norm); in a CNN, what comes after the last map in use: a small image is
    sent forward and backward to find it.

    Args:
        backbone: what trains of it has been chosen.
        pyramid: from `make_pyramid` or `make_feature_levels`.
        img_size: side of the images, pixels.

    Returns:
        Names of the parameters frozen now.
    """
    own = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    if len(backbone.strides) == 1:
        names = [name for name in backbone.layer_groups()[-1] if name in own]
    elif own:
        mode, side = backbone.training, min(img_size, 128)
        backbone.eval()
        like = next(iter(own.values()))
        with torch.enable_grad():
            maps = backbone.forward_maps(like.new_zeros(1, backbone.config["in_chans"], side, side))
            total = sum(maps[place].sum() for place in pyramid.places)
            found = torch.autograd.grad(total, list(own.values()), allow_unused=True)
        backbone.train(mode)
        names = [name for name, gradient in zip(own, found) if gradient is None]
    else:
        names = []
    for name in names:
        own[name].requires_grad_(False)
    return names
