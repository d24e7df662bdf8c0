"""Degradations drawn on the device from the samples' keys: noise, blur, holes, gray. Pure functions.

A list of settings in a recipe is applied in its order, such as ["gaussian_blur 0.5 1.5", "gaussian_noise 25"]; each
image's numbers follow from (seed, stream, key, position in the list) alone, on any number of processes. JPEG artifacts
and down-sampling come before them, from the data module (data/views/degraded.py). B images, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_vision.data.views.color import LUMA
from lit_vision.data.views.degraded import Degradation, parse_degradations
from lit_vision.methods.keyed_noise import TRAIN, keyed_noise

FILL = 0.5  # of a hole
RECTANGLE_SIDES, STROKE_REACH, STROKE_WIDTHS = (4.0, 24.0), 24.0, (2.0, 6.0)  # pixels
SHAPES_PER_BLOCK, BLOCK = 96, 96 * 96  # at most so many rectangles or strokes for each so many pixels
# name: lowest and highest value, None without a value
ON_DEVICE: Mapping[str, tuple[float, float] | None] = {
    "gaussian_noise": (0, 255),  # standard deviation, gray levels of 255
    "poisson_noise": (1, 500),  # photons of a white pixel
    "gaussian_blur": (0.1, 10),  # sigma, pixels
    "rectangle_holes": (0, 0.9),  # share of the pixels
    "stroke_holes": (0, 0.9),
    "gray": None,
}
HOLES = ("rectangle_holes", "stroke_holes")
Noise: TypeAlias = Callable[[int], Tensor]  # length -> (B, length) uniform numbers of the samples


def device_degradations(settings: Sequence[str]) -> list[Degradation]:
    """Return the degradations of `model.degradations`.

    Raises:
        UsageError: as `parse_degradations`.
    """
    return parse_degradations(settings, ON_DEVICE, "model.degradations")


def degrade(
    images: Tensor, keys: Tensor, degradations: Sequence[Degradation], seed: int, stream: int = TRAIN
) -> tuple[Tensor, Tensor | None]:
    """Return degraded images in 256 levels, as a file would hold them, and their holes.

    Unlike papers on denoising, which train on noise that is not clipped: the result is rounded and clipped.

    Args:
        images: (B, C, H, W) float32 in [0, 1].
        keys: (B, any) int64.
        degradations: applied in this order.
        seed: any integer.
        stream: as for `keyed_noise`.

    Returns:
        (B, C, H, W) float32 in [0, 1], holes filled with FILL; and (B, 1, H, W) float32, 1 in the holes, None if no
        degradation makes holes.
    """
    holes: Tensor | None = None
    for position, degradation in enumerate(degradations):
        numbered = torch.cat([keys, torch.full_like(keys[:, :1], position)], dim=1)
        # the last column separates the value of a degradation from its noise
        uniform = keyed_noise(torch.cat([numbered, torch.zeros_like(keys[:, :1])], 1), 1, seed, stream)[:, 0]
        value = degradation.low + uniform * (degradation.high - degradation.low)  # (B,)
        noise_keys = torch.cat([numbered, torch.ones_like(keys[:, :1])], 1)

        def noise(length: int, noise_keys: Tensor = noise_keys) -> Tensor:
            return keyed_noise(noise_keys, length, seed, stream)

        if degradation.name in HOLES:
            shape = rectangles if degradation.name == "rectangle_holes" else strokes
            made = shape(images.shape[-2:], value, noise)
            holes = made if holes is None else torch.maximum(holes, made)
        elif degradation.name == "gaussian_noise":
            images = images + gaussian_noise(images.shape, value / 255, noise)
        elif degradation.name == "poisson_noise":
            images = poisson_noise(images, value, noise)
        elif degradation.name == "gaussian_blur":
            images = gaussian_blur(images, value, degradation.high)
        else:
            images = gray(images)
    images = images.mul(255).round().clamp(0, 255).div(255)
    return (images if holes is None else torch.where(holes > 0, FILL, images)), holes


def gaussian_noise(shape: Sequence[int], sigma: Tensor, noise: Noise) -> Tensor:
    """Return (B, C, H, W) normal numbers of standard deviation sigma, (B,), by the method of Box and Muller.

    With 24 bits a number the largest is 5.8 standard deviations.
    """
    count = math.prod(shape[1:])
    u = noise(2 * count)
    normal = (-2 * (1 - u[:, :count]).log()).sqrt() * (2 * math.pi * u[:, count:]).cos()
    return (normal * sigma[:, None]).view(*shape)


def poisson_noise(images: Tensor, peak: Tensor, noise: Noise) -> Tensor:
    """Return images of which each value is a count of photons, divided by those of a white pixel.

    Counts by inversion of the distribution function, in float64.

    Args:
        images: (B, C, H, W), 0 or more.
        peak: (B,) mean number of photons of a white pixel, up to 500.
        noise: uniform numbers.
    """
    rate = (images.clamp(min=0) * peak[:, None, None, None]).double()
    u = noise(images[0].numel()).view(images.shape).double()
    term = (-rate).exp()  # probability of `count` photons
    below, counts = term.clone(), torch.zeros_like(rate)
    for count in range(1, int(peak.max() + 7 * peak.max().sqrt()) + 20 if len(peak) else 0):
        more = u >= below
        counts += more
        term = term * rate / count
        below = below + term
    return (counts / peak[:, None, None, None]).to(images.dtype)


def gaussian_blur(images: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Return blurred images, mirrored at the edges: taps up to three of the largest sigma.

    Args:
        images: (B, C, H, W), more than three times `most` pixels a side.
        sigma: (B,) pixels.
        most: the largest sigma that the recipe allows, which decides the number of taps.
    """
    reach = min(math.ceil(3 * most), min(images.shape[-2:]) - 1)
    position = torch.arange(-reach, reach + 1, device=images.device)
    taps = torch.exp(-(position**2) / (2 * sigma[:, None] ** 2))
    taps = (taps / taps.sum(1, keepdim=True))[:, :, None, None, None]  # (B, taps, 1, 1, 1)
    height, width = images.shape[-2:]
    # a sum over taps and no convolution, whose algorithm, and so its last bits, would depend on the batch
    padded = F.pad(images, (reach, reach, 0, 0), mode="reflect")
    images = torch.stack([taps[:, k] * padded[..., k : k + width] for k in range(len(position))]).sum(0)
    padded = F.pad(images, (0, 0, reach, reach), mode="reflect")
    return torch.stack([taps[:, k] * padded[:, :, k : k + height] for k in range(len(position))]).sum(0)


def gray(images: Tensor) -> Tensor:
    """Return the luma (0.299, 0.587, 0.114) of RGB images in three equal channels."""
    weights = images.new_tensor(LUMA.tolist())[:, None, None]
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def rectangles(size: Sequence[int], share: Tensor, noise: Noise) -> Tensor:
    """Return holes, (B, 1, H, W) float32: rectangles of 4 to 24 pixels a side until they cover the share.

    In images of less than 48 pixels a side they are at most half as long as the image.

    Args:
        size: (H, W).
        share: (B,) of the pixels; the last rectangle may go beyond it.
        noise: uniform numbers.
    """
    rows, columns = _grid(size, share)
    u = noise(4 * _most_shapes(size)).view(len(share), -1, 4, 1, 1)

    def inside(k: int) -> Tensor:
        height, width = (_side(u[:, k, axis], length) for axis, length in ((0, size[0]), (1, size[1])))
        top, left = u[:, k, 2] * (size[0] - height), u[:, k, 3] * (size[1] - width)
        return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)

    return _union(inside, size, share)


def strokes(size: Sequence[int], share: Tensor, noise: Noise) -> Tensor:
    """Return holes, (B, 1, H, W) float32: straight strokes of 2 to 6 pixels' width until they cover the share.

    A stroke goes up to 24 pixels to each side and has round ends; arguments as `rectangles`.
    """
    rows, columns = _grid(size, share)
    u = noise(5 * _most_shapes(size)).view(len(share), -1, 5, 1, 1)

    def inside(k: int) -> Tensor:
        y, x = u[:, k, 0] * size[0], u[:, k, 1] * size[1]
        dy, dx = ((2 * u[:, k, axis] - 1) * STROKE_REACH for axis in (2, 3))
        radius = (STROKE_WIDTHS[0] + u[:, k, 4] * (STROKE_WIDTHS[1] - STROKE_WIDTHS[0])) / 2
        along = ((rows - y) * dy + (columns - x) * dx) / (dy * dy + dx * dx).clamp(min=1e-6)
        along = along.clamp(0, 1)
        return (rows - y - along * dy) ** 2 + (columns - x - along * dx) ** 2 <= radius**2

    return _union(inside, size, share)


def _grid(size: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels' centers: rows (1, H, 1) and columns (1, 1, W)."""
    rows, columns = (torch.arange(n, device=like.device, dtype=torch.float32) + 0.5 for n in size)
    return rows[None, :, None], columns[None, None]


def _most_shapes(size: Sequence[int]) -> int:
    return SHAPES_PER_BLOCK * math.ceil(size[0] * size[1] / BLOCK)


def _side(uniform: Tensor, length: int) -> Tensor:
    low, high = (min(side, length / 2) for side in RECTANGLE_SIDES)
    return low + uniform * (high - low)


def _union(inside: Callable[[int], Tensor], size: Sequence[int], share: Tensor) -> Tensor:
    """Return the union of the first shapes of each image that cover its share, (B, 1, H, W) float32."""
    covered = torch.zeros(len(share), *size, dtype=torch.bool, device=share.device)
    for k in range(_most_shapes(size)):
        open_ = covered.sum((1, 2)) < share * (size[0] * size[1])
        if not bool(open_.any()):
            break
        covered = covered | (inside(k) & open_[:, None, None])
    return covered[:, None].float()
