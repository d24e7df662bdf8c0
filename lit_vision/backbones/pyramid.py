"""Feature pyramids: FPN for CNNs, the simple feature pyramid for ViTs.

Both turn a backbone's maps into maps of one width at the strides that a head needs.

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
from lit_vision.data.views.image_size import plain_size
from lit_vision.errors import UserError


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a (B, C, H, W) map, as ViTDet uses it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def map_shapes(backbone: Backbone, img_size: int) -> list[tuple[int, int]]:
    """Return (channels, stride) of each of `forward_maps`; a CNN's are measured on a black image of at most 256 pixels.

    Raises:
        UserError: the family gives no maps, or the backbone is built for another size.
    """
    if len(backbone.strides) == 1:  # a ViT: its size is fixed, and at 1024 pixels a forward would cost minutes on a CPU
        built = plain_size(backbone.data_config["input_size"][-2:])
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
    """Simple feature pyramid of ViTDet: every level comes from the last map alone.

    A level finer than the map takes transposed convolutions of stride 2 that halve the channels (layer norm and GELU
    between two), a coarser one max-pooling; then a 1x1 and a 3x3 convolution, each with layer norm and without bias.
    Levels beyond twice the map's stride are the last level max-pooled (P6). Source: Li et al. 2022, arXiv:2203.16527,
    section 3 and its detectron2 code.

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
            for step in range(max(0, round(math.log2(in_stride / stride)))):
                if step:
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
        """Turn [(B, D, H, W)] into [(B, out_channels, H_i, W_i)], fine to coarse."""
        return _append_pooled_levels([level(maps[-1]) for level in self.levels], self.pooled)


class FPN(nn.Module):
    """Feature pyramid network of torchvision on the maps at `strides`.

    Levels coarser than the last map are the last level max-pooled. Source: Lin et al. 2017, arXiv:1612.03144. Unlike
    the paper: group norm after each convolution (32 groups, or fewer for narrow levels), without which small networks
    trained from scratch learn slowly (He et al. 2019, arXiv:1811.08883).

    Args:
        channels: of the maps used.
        map_indices: of the maps used, in `forward_maps`.
        out_channels: of every level.
        strides: of the levels, fine to coarse.
    """

    def __init__(self, channels: Sequence[int], map_indices: Sequence[int], out_channels: int, strides: Sequence[int]):
        super().__init__()
        self.strides, self.out_channels, self.map_indices = list(strides), out_channels, list(map_indices)
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, norm_layer=group_norm)
        self.pooled = len(strides) - len(map_indices)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn `forward_maps` of the backbone into [(B, out_channels, H_i, W_i)], fine to coarse."""
        named = OrderedDict((str(i), maps[index]) for i, index in enumerate(self.map_indices))
        return _append_pooled_levels(list(self.fpn(named).values()), self.pooled)


class GroupNorm(nn.GroupNorm):
    """Group norm in contiguous layout: torch's CPU kernel for channels-last bfloat16 takes 15 times as long."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if x.device.type == "cpu" else x)


def group_norm(channels: int) -> GroupNorm:
    """Return group norm with the most groups up to 32 that divide the channels."""
    return GroupNorm(math.gcd(32, channels), channels)


def _append_pooled_levels(levels: list[Tensor], count: int) -> list[Tensor]:
    for _ in range(count):
        # every second position, as P6 of ViTDet and Faster R-CNN
        levels.append(nn.functional.max_pool2d(levels[-1], 1, 2))
    return levels


def make_pyramid(
    backbone: Backbone, img_size: int, out_channels: int, strides: Sequence[int]
) -> SimpleFeaturePyramid | FPN:
    """Return the feature pyramid for a backbone.

    Args:
        backbone: any with `forward_maps`; one map gives the simple pyramid, several give FPN.
        img_size: side of the images, pixels; a multiple of the coarsest stride.
        out_channels: of every level.
        strides: of the levels, fine to coarse, each twice the one before, e.g. [4, 8, 16, 32].

    Raises:
        UserError: strides that do not double, that do not divide the image, or none of which is a stride of the
            backbone's maps.
    """
    strides, shapes = validate_strides(backbone, img_size, strides)
    if len(shapes) == 1:
        return SimpleFeaturePyramid(*shapes[0], out_channels, strides)
    indices = _map_indices(backbone, shapes, strides)
    return FPN([shapes[index][0] for index in indices], indices, out_channels, strides)


class SelectMaps(nn.Module):
    """Select some of a backbone's maps and leave them unchanged.

    Args:
        channels: of each selected map.
        map_indices: of the selected maps, in `forward_maps`.
    """

    def __init__(self, channels: Sequence[int], map_indices: Sequence[int]):
        super().__init__()
        self.channels, self.map_indices = list(channels), list(map_indices)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the selected ones of `forward_maps`."""
        return [maps[index] for index in self.map_indices]


def make_feature_levels(
    backbone: Backbone, img_size: int, width: int, strides: Sequence[int] | None
) -> tuple[nn.Module, list[int]]:
    """Return a module for maps at these strides, not mixed: a CNN's maps, or a ViT's simple feature pyramid.

    Args:
        backbone: any with `forward_maps`.
        img_size: side of the images, pixels.
        width: channels of a ViT's pyramid.
        strides: fine to coarse, each twice the one before; None is the last map alone, unchanged.

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
    indices = _map_indices(backbone, shapes, strides)
    if len(indices) < len(strides):
        raise UserError(
            f"model.strides: {backbone.config['name']} has no map of stride {strides[len(indices)]}; leave it out"
        )
    channels = [shapes[index][0] for index in indices]
    return SelectMaps(channels, indices), channels


def validate_strides(
    backbone: Backbone, img_size: int, strides: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Check that strides fit image and backbone; return them as a list, and `map_shapes`.

    Raises:
        UserError: strides that do not double, that do not divide the image, or that cannot be made from the one map of
            a ViT.
    """
    strides = list(strides)
    if not strides or any(b != 2 * a for a, b in itertools.pairwise(strides)) or strides[0] < 1:
        raise UserError(f"model.strides: {strides} must double from level to level, such as [8, 16, 32]")
    if img_size % strides[-1]:
        raise UserError(
            f"model.img_size: {img_size} is not a multiple of the coarsest stride {strides[-1]}; "
            "change it or model.strides"
        )
    shapes = map_shapes(backbone, img_size)
    if len(shapes) == 1:
        channels, stride = shapes[0]
        doublings = math.log2(stride / strides[0])  # of the map's resolution
        if strides[0] > 2 * stride or doublings != int(doublings) or channels >> max(0, int(doublings)) < 1:
            raise UserError(
                f"model.strides: {backbone.config['name']} has one map of stride {stride}; "
                f"give strides that are {stride} halved or doubled, such as [{stride}, {2 * stride}]"
            )
    return strides, shapes


def _map_indices(backbone: Backbone, shapes: list[tuple[int, int]], strides: list[int]) -> list[int]:
    """Return the indices of the maps with these strides; of several with one stride the deepest.

    Strides may go on beyond the last map.
    """
    last = {stride: index for index, (_, stride) in enumerate(shapes)}
    covered = [s for s in strides if s in last]
    if not covered or covered != strides[: len(covered)] or (strides[len(covered) :] and covered[-1] != max(last)):
        raise UserError(
            f"model.strides: {backbone.config['name']} has maps of strides {sorted(last)}; "
            "begin with one of them and leave none out"
        )
    return [last[s] for s in covered]


def freeze_unused(backbone: Backbone, pyramid: nn.Module, img_size: int) -> list[str]:
    """Freeze the parameters that the pyramid's maps do not depend on: DDP refuses parameters without a gradient.

    In a ViT these are the ones after the last block (the final norm); in a CNN, the ones after the last map in use: a
    small image is sent forward and backward to find them.

    Args:
        backbone: its trainable parameters have been chosen.
        pyramid: from `make_pyramid` or `make_feature_levels`.
        img_size: side of the images, pixels.

    Returns:
        Names of the parameters that were frozen by this call.
    """
    trainable = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    if len(backbone.strides) == 1:
        names = [name for name in backbone.layer_groups()[-1] if name in trainable]
    elif trainable:
        mode, side = backbone.training, min(img_size, 128)
        backbone.eval()
        like = next(iter(trainable.values()))
        with torch.enable_grad():
            maps = backbone.forward_maps(like.new_zeros(1, backbone.config["in_chans"], side, side))
            total = sum(maps[index].sum() for index in pyramid.map_indices)
            found = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
        backbone.train(mode)
        names = [name for name, gradient in zip(trainable, found) if gradient is None]
    else:
        names = []
    for name in names:
        trainable[name].requires_grad_(False)
    return names
