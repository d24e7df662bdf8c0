"""The views of many small images at once, in torch: same names, same keyed parameters as views.py, rendered as a batch.

For sets that stay in memory. Crops are resized by two small matrices per view, with the weights of Pillow's antialiased bicubic filter, so
they equal views.py within rounding. Turned or zoomed views are sampled bilinearly without antialias (no matter at 32 pixels, where
crops are enlarged; a set of much larger images belongs on the path of views.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_vision.data.views.color import color_matrices, sequential_color_jitter
from lit_vision.data.views.params import ViewParams, ViewParamSampler, ViewSpec, make_view_spec
from lit_vision.data.views.timm_augment import TimmAugment
from lit_vision.data.views.views import blur_kernel_size, resize_and_crop

BatchedViews = Callable[[Tensor, Tensor], Tensor]
_PART = 1 << 17  # floats of one step's tensors: 512 kB


def make_batch_views(name: str, size: int, seed: int, **options) -> BatchedViews:
    """The named views of a batch of equally large images; arguments as in `views.make_views`.

    Returns:
        A callable (images uint8 (B, H, W, C) with C 1 or 3, keys int64 (B, 3)) -> uint8 tensor (B, V, size, size, 3). Both arguments may be
        arrays or tensors; the result's rows depend on nothing but their own image and key.

    Raises:
        UserError: no such view or option, or a value outside its range.
    """
    if name.startswith("albumentations:"):
        from lit_vision.data.views.albumentations_views import AlbumentationsViews

        return _OneByOne(AlbumentationsViews(name.partition(":")[2], size, seed, **options))
    return BatchViews(make_view_spec(name, size, **options), seed)


class BatchViews:
    """Views of a batch of images under a law; see `make_batch_views`.

    Args:
        spec: from `make_view_spec`.
        seed: in [0, 2**64).
    """

    def __init__(self, spec: ViewSpec, seed: int):
        self.spec, self.seed = spec, seed
        self.draw, self.augment = ViewParamSampler(spec, seed), TimmAugment(spec, seed)

    @property
    def views(self) -> int:
        """V."""
        return self.spec.views

    def __call__(self, images: Tensor | np.ndarray, keys: Tensor | np.ndarray | Sequence) -> Tensor:
        images = torch.as_tensor(images)  # (B, H, W, C)
        n, _, width = images.shape[:3]
        size, views = self.spec.size, self.spec.views
        if self.spec.name == "eval":
            return self._evaluation(images)
        rows = keys.tolist() if hasattr(keys, "tolist") else keys
        out = torch.empty((n, views, size, size, 3), dtype=torch.uint8)
        part = max(1, _PART // (views * size * max(size, width)))  # few enough for the processor's cache
        for first in range(0, n, part):
            self._render(images[first : first + part], rows[first : first + part], out[first : first + part])
        if self.augment:
            for row, key in enumerate(rows):
                for view in range(views):
                    out[row, view] = torch.from_numpy(self.augment(out[row, view].numpy(), *key, view))
        return out

    def _render(self, images: Tensor, keys: Sequence, out: Tensor) -> None:
        """All but timm's part: images (B, H, W, C), B keys -> out (B, V, S, S, 3)."""
        (height, width), size, views = images.shape[1:3], self.spec.size, self.spec.views
        draws = [self.draw(*key, view, height, width) for key in keys for view in range(views)]
        pixels = images.permute(0, 3, 1, 2).float()  # (B, C, H, W)
        if views > 1:
            pixels = pixels.repeat_interleave(views, dim=0)
        if self.spec.rotation or self.spec.scale is not None:
            pixels = _sample(pixels, draws, size)
        elif self.spec.crop_scale is not None or (height, width) != (size, size):
            pixels = _resize_crops(pixels, draws, size)
        else:
            flip = torch.tensor([d.flip for d in draws])[:, None, None, None]
            pixels = torch.where(flip, pixels.flip(3), pixels)
        pixels.round_().clamp_(0, 255)  # views.py works on uint8 between the steps
        if self.spec.has_color and self.spec.exact:
            pixels = _sequential_color(pixels, draws)
        elif self.spec.has_color:
            pixels = _apply_color(pixels, draws)
        if self.spec.blur:
            pixels = _blur(pixels, [d.sigma for d in draws], blur_kernel_size(size)).round_()
        out.view(-1, size, size, 3).copy_(pixels.to(torch.uint8).permute(0, 2, 3, 1))  # gray is repeated here

    def _evaluation(self, images: Tensor) -> Tensor:
        size = self.spec.size
        if images.shape[1:3] != (size, size):
            rgb = images.expand(-1, -1, -1, 3).numpy()
            images = torch.from_numpy(np.stack([resize_and_crop(image, size, self.spec.crop_pct) for image in rgb]))
        return images.expand(-1, -1, -1, 3).contiguous()[:, None]


class _OneByOne:
    """A view of single images, applied to each of a batch."""

    def __init__(self, views):
        self.one, self.views = views, views.views

    def __call__(self, images: Tensor | np.ndarray, keys: Tensor | np.ndarray | Sequence) -> Tensor:
        rgb = np.broadcast_to(np.asarray(images), (*images.shape[:3], 3))
        rows = keys.tolist() if hasattr(keys, "tolist") else keys
        made = [self.one.of_pixels(np.ascontiguousarray(image), *key) for image, key in zip(rgb, rows)]
        return torch.from_numpy(np.stack(made))


def _sample(pixels: Tensor, draws: list[ViewParams], size: int) -> Tensor:
    """Turned, zoomed, cropped windows, bilinear, black outside: (N, C, H, W) -> (N, C, size, size)."""
    height, width = pixels.shape[2:]
    d = np.array(
        [
            (p.left + p.width / 2, p.top + p.height / 2, p.width / 2 / p.zoom, p.height / 2 / p.zoom, p.angle, p.flip)
            for p in draws
        ]
    )
    x, y, w, h, angle, flip = d.T
    cos, sin, mirror = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle)), 1 - 2 * flip
    theta = np.empty((len(draws), 2, 3), np.float32)  # as views.window_matrix, in grid_sample's units
    theta[:, 0] = np.stack([mirror * cos * w, -sin * h, x], 1) * (2 / width)
    theta[:, 1] = np.stack([mirror * sin * w, cos * h, y], 1) * (2 / height)
    theta[:, :, 2] -= 1
    grid = F.affine_grid(torch.from_numpy(theta), [len(draws), 1, size, size], align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _resize_crops(pixels: Tensor, draws: list[ViewParams], size: int) -> Tensor:
    """Crops resized to (size, size), bicubic with antialias, mirrored where drawn: (N, C, H, W) -> (N, C, size, size)."""
    box = np.array([(d.left, d.width, d.top, d.height, d.flip) for d in draws], np.float32)
    box = torch.from_numpy(box)
    across = _filter(box[:, 0], box[:, 1], pixels.shape[3], size)  # (N, S, W)
    across = torch.where(box[:, 4, None, None] > 0, across.flip(1), across)
    down = _filter(box[:, 2], box[:, 3], pixels.shape[2], size)  # (N, S, H)
    n, channels, height, width = pixels.shape
    rows = torch.bmm(pixels.reshape(n, channels * height, width), across.transpose(1, 2))  # (N, C H, S)
    return torch.matmul(down[:, None], rows.view(n, channels, height, size))


def _filter(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(N, size, source) rows of weights that resize [start, start + length) to `size`: Pillow's bicubic, a = -0.5, wider where it shrinks."""
    scale = (length / size)[:, None, None]
    wide = scale.clamp(min=1)
    center = (torch.arange(size) + 0.5)[None, :, None] * scale  # (N, S, 1), from the crop's start
    place = (torch.arange(source) + 0.5)[None, None] - start[:, None, None]  # (N, 1, source)
    u = place.sub(center).div_(wide).abs_().neg_().add_(2).clamp_(min=0)  # 2 - |t|, (N, S, source)
    # 1 <= |t| < 2: u^2 (u - 1) / 2; |t| < 1 adds s^2 (1 - 2 s) with s = 1 - |t|: the cubic with a = -0.5
    s = u.sub(1)
    weight = u.square_().mul_(s).mul_(0.5)
    s.clamp_(min=0)
    weight.addcmul_(s.square(), s.mul(-2).add_(1))
    weight.mul_((place > 0) & (place < length[:, None, None]))  # nothing from outside the crop
    return weight.div_(weight.sum(2, keepdim=True))


def _apply_color(pixels: Tensor, draws: list[ViewParams]) -> Tensor:
    """One matrix per view, rounded and clipped once: (N, C, H, W), C 1 or 3, in [0, 255]. Gray images need gain and shift only."""
    n, channels = pixels.shape[:2]
    means = pixels.mean(dim=(2, 3)).expand(n, 3).double().numpy()  # exact: whole numbers below 2^24
    matrix, shift = (torch.from_numpy(m).float() for m in color_matrices(draws, means))
    if channels == 1:  # every operation keeps gray gray: rows of the matrix have one and the same sum
        return (
            pixels.mul_(matrix[:, 0].sum(1)[:, None, None, None])
            .add_(shift[:, 0, None, None, None])
            .round_()
            .clamp_(0, 255)
        )
    out = torch.baddbmm(shift[:, :, None], matrix, pixels.flatten(2))
    return out.view_as(pixels).round_().clamp_(0, 255)


def _sequential_color(pixels: Tensor, draws: list[ViewParams]) -> Tensor:
    """`color.sequential_color_jitter` of each view: (N, C, H, W) in [0, 255] -> the same, C 3."""
    images = pixels.to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
    made = [sequential_color_jitter(image, d) if d.has_color else image for image, d in zip(images, draws)]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float()


def _blur(pixels: Tensor, sigmas: list[float], side: int) -> Tensor:
    """Gaussian blur of the views that drew one, mirrored at the edges: (N, C, H, W)."""
    rows = [i for i, sigma in enumerate(sigmas) if sigma]
    if not rows or side == 1:
        return pixels
    part, reach = pixels[rows], side // 2
    sigma = torch.tensor([sigmas[i] for i in rows], dtype=torch.float32)[:, None]
    taps = torch.exp(-((torch.arange(side) - reach) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum(1, keepdim=True))[:, :, None, None, None]  # (n, side, 1, 1, 1)
    size = part.shape[2:]
    wide = F.pad(part, (reach, reach, 0, 0), mode="reflect")
    part = sum(taps[:, k] * wide[..., k : k + size[1]] for k in range(side))
    wide = F.pad(part, (0, 0, reach, reach), mode="reflect")
    pixels[rows] = sum(taps[:, k] * wide[:, :, k : k + size[0]] for k in range(side))
    return pixels
