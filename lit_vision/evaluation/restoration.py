"""Quality of restored images: PSNR and SSIM, on RGB and on luma, which are named apart.

B images, C channels, H W pixels. All values are of 8-bit pixels from 0 to 255, computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from lit_vision.errors import UserError

SSIM_SIGMA, SSIM_REACH = 1.5, 5  # Gaussian window of 11 x 11 pixels
# torchvision's weights that LPIPS compares features of; torchmetrics has its own small weights on top of them
LPIPS_WEIGHTS: Mapping[str, str] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
MOST_DECIBELS = 100.0  # of an image without an error, so that a mean over images stays finite


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB: 10 log10(255^2 / mean squared error).

    An error of one gray level everywhere is 48.1308 dB.

    Args:
        images: (B, C, H, W), 0 to 255.
        truth: the same shape.

    Returns:
        (B,) float64; infinite where the two are equal.
    """
    error = (images.double() - truth.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / error)


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity of each image, the mean over its channels and positions.

    Source: Wang et al. 2004, "Image quality assessment": Gaussian window of 11 x 11 pixels with sigma 1.5, K1 0.01, K2
    0.03. Border rule: only positions whose window lies within the image count, so 5 pixels on each side do not. It is
    scikit-image's `structural_similarity(..., gaussian_weights=True, use_sample_covariance=False, data_range=255)`.

    Args:
        images: (B, C, H, W), 0 to 255, at least 11 pixels a side.
        truth: the same shape.

    Returns:
        (B,) float64, at most 1.

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(images.shape[-2:]) <= 2 * SSIM_REACH:
        raise ValueError(f"SSIM needs images of at least {2 * SSIM_REACH + 1} pixels a side, not {tuple(images.shape)}")
    x, y = images.double().flatten(0, 1)[:, None], truth.double().flatten(0, 1)[:, None]  # (B * C, 1, H, W)
    position = torch.arange(-SSIM_REACH, SSIM_REACH + 1, dtype=torch.float64, device=x.device)
    window = torch.exp(-0.5 * (position / SSIM_SIGMA) ** 2)
    window = window / window.sum()

    def local_mean(values: Tensor) -> Tensor:
        return conv2d(conv2d(values, window[None, None, :, None]), window[None, None, None])

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.view(len(images), -1).mean(1)


def luma(images: Tensor) -> Tensor:
    """Return Y of BT.601 in its range of 16 to 235, as papers on super-resolution measure it.

    Args:
        images: (B, 3, H, W) RGB, 0 to 255; of one channel they are returned as they are.

    Returns:
        (B, 1, H, W) float64.
    """
    if images.shape[1] == 1:
        return images.double()
    weights = images.new_tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 255
    return 16 + (images.double() * weights[:, None, None]).sum(1, keepdim=True)


def restoration_values(restored: Tensor, clean: Tensor, border: int = 0) -> dict[str, Tensor]:
    """Return PSNR and SSIM of restored images, as files of 8 bits would have them.

    Args:
        restored: (B, C, H, W) float in [0, 1]; rounded to 256 levels and clipped.
        clean: (B, C, H, W) float in [0, 1].
        border: pixels on each side that do not count: the factor in super-resolution, else 0, as is usual.

    Returns:
        {psnr_rgb, psnr_y (dB, at most 100), ssim_rgb, ssim_y}, (B,) float64 each; without SSIM if what counts is
        smaller than its window.
    """
    pixels = [_levels(x, border) for x in (restored, clean)]
    values: dict[str, Tensor] = {}
    for name, (a, b) in {"rgb": pixels, "y": [luma(x) for x in pixels]}.items():
        values[f"psnr_{name}"] = psnr(a, b).clamp(max=MOST_DECIBELS)
        if min(a.shape[-2:]) > 2 * SSIM_REACH:
            values[f"ssim_{name}"] = ssim(a, b)
    return values


def psnr_of(restored: Tensor, clean: Tensor, border: int = 0) -> Tensor:
    """Return psnr_rgb of `restoration_values` alone, (B,) float64; arguments as there."""
    return psnr(_levels(restored, border), _levels(clean, border)).clamp(max=MOST_DECIBELS)


def _levels(images: Tensor, border: int) -> Tensor:
    """Return pixels as files of 8 bits have them, 0 to 255 in float64, without the border."""
    inside = slice(border, -border or None)
    return (images.detach().double() * 255).round().clamp(0, 255)[..., inside, inside]


def open_lpips(network: str) -> nn.Module:
    """Return torchmetrics' LPIPS (Zhang et al. 2018, arXiv:1801.03924) of images in [0, 1]; nothing is downloaded.

    Args:
        network: one of LPIPS_WEIGHTS.

    Raises:
        UserError: another name, or the network's weights are not in torch's cache.
    """
    if network not in LPIPS_WEIGHTS:
        raise UserError(f"model.lpips: {network!r} is not one of {', '.join(LPIPS_WEIGHTS)}; choose one of these")
    file = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS[network]
    if not file.is_file():
        raise UserError(f"model.lpips: {network} needs {file}, which is not there; put torchvision's file there")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric: nn.Module = LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True)
    return metric.eval()
