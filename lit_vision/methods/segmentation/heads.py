"""Segmentation heads: linear, FCN and UPerNet, from feature maps to class scores per position.

B images, K classes, C_i H_i W_i channels and sides of map i, D width of the head. Unlike the papers: group norm instead
of synchronised batch norm, so that a score does not depend on the other images of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from lit_vision.backbones.pyramid import group_norm

POOLS = (1, 2, 3, 6)  # of the pyramid pooling module, cells a side


def conv_norm_relu(inner: int, outer: int, side: int) -> nn.Sequential:
    """Return a convolution without bias, group norm and ReLU; the size of the maps does not change."""
    return nn.Sequential(nn.Conv2d(inner, outer, side, padding=side // 2, bias=False), group_norm(outer), nn.ReLU())


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps to (H, W), bilinear, corners not aligned."""
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class LinearHead(nn.Conv2d):
    """Linear map per position of the last level. Source: Strudel et al. 2021, arXiv:2105.05633, section 3.2."""

    def __init__(self, channels: Sequence[int], width: int, num_classes: int, dropout: float):
        super().__init__(channels[-1], num_classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Turn [(B, C_i, H_i, W_i)] into scores (B, K, H, W) at the last level's size."""
        return super().forward(levels[-1])


class FCNHead(nn.Module):
    """FCN head of Long et al. 2015, arXiv:1411.4038, as mmsegmentation builds it: 3x3 convolutions, then scores.

    Args:
        channels: of the levels; the head uses the last one.
        width: D.
        num_classes: K.
        dropout: of whole channels before the scores, 0 to 1.
        convs: number of 3x3 convolutions.
    """

    def __init__(self, channels: Sequence[int], width: int, num_classes: int, dropout: float, convs: int = 2):
        super().__init__()
        widths = [channels[-1], *[width] * convs]
        self.convs = nn.Sequential(*(conv_norm_relu(a, b, 3) for a, b in zip(widths, widths[1:])))  # noqa: RUF007
        self.scores = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Turn [(B, C_i, H_i, W_i)] into scores (B, K, H, W) at the last level's size."""
        return self.scores(self.convs(levels[-1]))


class UPerHead(nn.Module):
    """UPerNet head of Xiao et al. 2018, arXiv:1807.10221.

    Pyramid pooling on the coarsest level, top-down sums, all levels concatenated at the finest.

    Args:
        channels: of the levels, fine to coarse.
        width: D.
        num_classes: K.
        dropout: of whole channels before the scores, 0 to 1.
    """

    def __init__(self, channels: Sequence[int], width: int, num_classes: int, dropout: float):
        super().__init__()
        self.pooled = nn.ModuleList(nn.Sequential(nn.Conv2d(channels[-1], width, 1), nn.ReLU()) for _ in POOLS)
        self.top = conv_norm_relu(channels[-1] + len(POOLS) * width, width, 3)
        self.laterals = nn.ModuleList(conv_norm_relu(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(conv_norm_relu(width, width, 3) for _ in channels[:-1])
        self.fuse = conv_norm_relu(len(channels) * width, width, 3)
        self.scores = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Turn [(B, C_i, H_i, W_i)], fine to coarse, into scores (B, K, H_0, W_0)."""
        last = levels[-1]
        pools = [
            upsample(conv(adaptive_avg_pool2d(last, cells)), last.shape[-2:]) for conv, cells in zip(self.pooled, POOLS)
        ]
        sums = [self.top(torch.cat([last, *pools], 1))]
        for lateral, level in zip(reversed(self.laterals), reversed(levels[:-1])):
            sums.insert(0, lateral(level) + upsample(sums[0], level.shape[-2:]))
        finest = sums[0].shape[-2:]
        joined = [smooth(x) for smooth, x in zip(self.smooth, sums[:-1])] + sums[-1:]
        return self.scores(self.fuse(torch.cat([joined[0], *(upsample(x, finest) for x in joined[1:])], 1)))


SEGMENTATION_HEADS: dict[str, type[nn.Module]] = {"linear": LinearHead, "fcn": FCNHead, "upernet": UPerHead}
