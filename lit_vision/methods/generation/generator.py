"""Generator of the GAN: noise and a class to an image, by residual blocks that double the side.

After Brock et al. 2019, arXiv:1809.11096, Appendix B (noise and class as scale and shift of every norm). B images,
Z numbers of noise, D width of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_vision.methods.generation.unet import GROUPS, check_sizes


class ModulatedNorm(nn.Module):
    """Group norm whose scale and shift follow from the noise and the class; unlike batch norm it mixes no images."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm, self.modulation = nn.GroupNorm(GROUPS, width, affine=False), nn.Linear(condition, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return (B, D, H, W) of the same shape, for a condition (B, N)."""
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.norm(x) * (1 + scale) + shift
        return out


class GrowingBlock(nn.Module):
    """Two 3x3 convolutions after doubling the side (or not), beside a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, condition: int, grow: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = ModulatedNorm(inputs, condition), ModulatedNorm(outputs, condition)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)
        self.factor = 2.0 if grow else 1.0

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return (B, D_out, H', W') of (B, D_in, H, W)."""
        h = self.conv1(self._grow(F.silu(self.norm1(x, condition))))
        h = self.conv2(F.silu(self.norm2(h, condition)))
        out: Tensor = h + self._grow(self.skip(x))
        return out

    def _grow(self, x: Tensor) -> Tensor:
        return x if self.factor == 1 else F.interpolate(x, scale_factor=self.factor, mode="nearest")


class Generator(nn.Module):
    """Network of noise (B, Z) and classes (B,) to images (B, C, H, W) in [-1, 1].

    Args:
        img_size, channels, width, multipliers, patch_size: as `UNet`; the levels are passed from the last to the first.
        noise_width: Z.
        num_classes: K; 0: no classes.

    Raises:
        UserError: sizes that do not fit together.
    """

    def __init__(
        self,
        img_size: int,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        patch_size: int,
        noise_width: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        check_sizes(img_size, width, multipliers, patch_size)
        widths = [width * m for m in reversed(multipliers)]
        self.side = img_size // (patch_size * 2 ** (len(widths) - 1))
        self.classes = nn.Embedding(num_classes, noise_width) if num_classes else None
        condition = noise_width * (2 if num_classes else 1)
        self.start = nn.Linear(condition, widths[0] * self.side**2)
        pairs = list(zip([widths[0], *widths], widths))  # the first level keeps its side
        self.blocks = nn.ModuleList(GrowingBlock(a, b, condition, grow=i > 0) for i, (a, b) in enumerate(pairs))
        self.norm, self.out = (
            nn.GroupNorm(GROUPS, widths[-1]),
            nn.Conv2d(widths[-1], channels * patch_size**2, 3, padding=1),
        )
        self.patch_size = patch_size

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return images; labels (B,) int64 from 0 to K - 1, not used without classes."""
        condition = noise if self.classes is None else torch.cat((noise, self.classes(labels)), dim=1)
        h = self.start(condition).unflatten(1, (-1, self.side, self.side))
        for block in self.blocks:
            h = block(h, condition)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch_size).tanh()
