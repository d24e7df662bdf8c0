"""U-Net of flow matching: residual blocks with group norm, told the time and the class; attention at the lowest level.

After Ho et al. 2020, arXiv:2006.11239, Appendix B, and Dhariwal and Nichol 2021, arXiv:2105.05233, section 3 (scale and
shift by the embedding). B images, C channels, H W pixels, D width of a level, E width of the embedding.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_vision.errors import UserError

GROUPS = 8  # of group norm: every width is a multiple of it


def time_features(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines of times in [0, 1] at `width` / 2 frequencies from 1 to 1000 radians, (B, width)."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, device=times.device, dtype=times.dtype))
    angles = times[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the embedding as scale and shift between them; the last one starts at zero."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return (B, D_out, H, W) of (B, D_in, H, W) and the embedding (B, E), after an activation."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        out: Tensor = self.skip(x) + h
        return out


class SelfAttention(nn.Module):
    """Attention of every pixel to every other, one head, added to the input; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D, H, W) of the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (B, H*W, D)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        out: Tensor = x + self.out(attended)
        return out


class UNet(nn.Module):
    """Network of images, times and classes to images of the same shape; it gives zeros before training.

    Args:
        img_size: side of the square images, a multiple of patch_size x 2^(levels - 1).
        channels: C.
        width: D of the first level, a multiple of 8.
        multipliers: of `width`, one a level; each level has half the side of the one before.
        blocks: residual blocks a level on the way down, and as many on the way up.
        patch_size: pixels that the first level sees as one place (their values are its channels), for less compute.
        attention: attention to all places at the lowest level.
        num_classes: K; classes are 0 to K - 1, and K stands for "any"; 0: no classes.

    Raises:
        UserError: sizes that do not fit together.
    """

    def __init__(
        self,
        img_size: int,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        patch_size: int,
        attention: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        check_sizes(img_size, width, multipliers, patch_size)
        if blocks < 1:
            raise UserError(f"model.blocks: {blocks}; give 1 or more")
        widths = [width * m for m in multipliers]
        self.patch_size, self.width, embedding = patch_size, width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.classes = nn.Embedding(num_classes + 1, embedding) if num_classes else None
        self.stem = nn.Conv2d(channels * patch_size**2, width, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        before = width
        for i, d in enumerate(widths):
            sizes = [before, *[d] * blocks]
            self.down.append(nn.ModuleList(ResidualBlock(a, b, embedding) for a, b in pairwise(sizes)))
            if i + 1 < len(widths):
                self.shrink.append(nn.Conv2d(d, d, 3, stride=2, padding=1))
            before = d
        self.middle = nn.ModuleList(ResidualBlock(before, before, embedding) for _ in range(2))
        self.attention = SelfAttention(before) if attention else nn.Identity()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, d in reversed(list(enumerate(widths))):
            sizes = [before + d, *[d + d] * (blocks - 1)]
            self.up.append(nn.ModuleList(ResidualBlock(a, d, embedding) for a in sizes))
            if i:
                self.grow.append(nn.Conv2d(d, widths[i - 1], 3, padding=1))
            before = widths[i - 1] if i else d
        self.norm, self.out = (
            nn.GroupNorm(GROUPS, width * multipliers[0]),
            _zero_conv(width * multipliers[0], channels, patch_size),
        )

    def forward(self, x: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return (B, C, H, W).

        Args:
            x: (B, C, H, W).
            times: (B,), in [0, 1].
            labels: (B,) int64 from 0 to K; None is "any" for all. Not used without classes.
        """
        embedding = self.time(time_features(times.to(x.dtype), self.width))
        if self.classes is not None:
            any_class = self.classes.num_embeddings - 1
            embedding = embedding + self.classes(
                times.new_full((len(x),), any_class).long() if labels is None else labels
            )
        embedding = F.silu(embedding)
        h, skips = self.stem(F.pixel_unshuffle(x, self.patch_size)), []
        for i, level in enumerate(self.down):
            for block in level:
                h = block(h, embedding)
                skips.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        h = self.middle[1](self.attention(self.middle[0](h, embedding)), embedding)
        for i, level in enumerate(self.up):
            for block in level:
                h = block(torch.cat((h, skips.pop()), dim=1), embedding)
            if i < len(self.grow):
                h = self.grow[i](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch_size)


def check_sizes(img_size: int, width: int, multipliers: Sequence[int], patch_size: int) -> None:
    """Refuse sizes that do not fit together; of the U-Net and of the GAN's networks.

    Raises:
        UserError: names the setting and what to give.
    """
    if width < GROUPS or width % GROUPS:
        raise UserError(f"model.width: {width} is not a multiple of {GROUPS}; change it")
    if not multipliers or min(multipliers) < 1:
        raise UserError(f"model.multipliers: {list(multipliers)}; give a number of 1 or more for each level")
    if patch_size < 1:
        raise UserError(f"model.patch_size: {patch_size}; give 1 or more")
    factor = patch_size * 2 ** (len(multipliers) - 1)
    if img_size < factor or img_size % factor:
        raise UserError(
            f"model.img_size: {img_size} is not a multiple of {factor}, patch_size x 2 for each level after the first; "
            "change one of img_size, patch_size and multipliers"
        )


def _zero_conv(width: int, channels: int, patch_size: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, channels * patch_size**2, 3, padding=1)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
