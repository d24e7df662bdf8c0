"""Discriminator of the GAN: an image and a class to one number, with spectral norm in every layer.

Miyato et al. 2018, arXiv:1802.05957 (spectral norm); Miyato and Koyama 2018, arXiv:1802.05637 (the class by a product).
B images, C channels, D width of a level.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from lit_vision.methods.generation.unet import check_sizes


def _conv(inputs: int, outputs: int, side: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, side, padding=side // 2))


class ShrinkingBlock(nn.Module):
    """Two 3x3 convolutions, then the mean over 2x2 (or not), beside a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, shrink: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(inputs, outputs, 3), _conv(outputs, outputs, 3)
        self.skip, self.shrink = _conv(inputs, outputs, 1), shrink

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D_out, H', W') of (B, D_in, H, W)."""
        out: Tensor = self.conv2(F.silu(self.conv1(F.silu(x)))) + self.skip(x)
        return F.avg_pool2d(out, 2) if self.shrink else out


class Discriminator(nn.Module):
    """Network of images (B, C, H, W) and classes (B,) to numbers (B,): large for images that look real.

    Args:
        img_size, channels, width, multipliers, patch_size: as `UNet`.
        num_classes: K; 0: no classes.

    Raises:
        UserError: sizes that do not fit together.
    """

    def __init__(
        self, img_size: int, channels: int, width: int, multipliers: Sequence[int], patch_size: int, num_classes: int
    ) -> None:
        super().__init__()
        check_sizes(img_size, width, multipliers, patch_size)
        widths = [width * m for m in multipliers]
        self.patch_size = patch_size
        self.stem = _conv(channels * patch_size**2, widths[0], 3)
        pairs = list(zip(widths, [*widths[1:], widths[-1]]))  # the last level keeps its side
        self.blocks = nn.ModuleList(ShrinkingBlock(a, b, i + 1 < len(pairs)) for i, (a, b) in enumerate(pairs))
        self.out = spectral_norm(nn.Linear(widths[-1], 1))
        self.classes = spectral_norm(nn.Embedding(num_classes, widths[-1])) if num_classes else None

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return (B,) numbers; labels (B,) int64 from 0 to K - 1, not used without classes."""
        h = self.stem(F.pixel_unshuffle(images, self.patch_size))
        for block in self.blocks:
            h = block(h)
        h = F.silu(h).mean((2, 3))  # (B, D): the mean, not the sum, so that the size of images does not scale it
        score: Tensor = self.out(h)[:, 0]
        return score if self.classes is None else score + (self.classes(labels) * h).sum(1)
