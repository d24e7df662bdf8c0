"""Views of many small images at once, in torch: names and keyed parameters as in views.py, rendered as a batch.

For data sets held in memory. Crops are resized by two small matrices per view, with the weights of Pillow's antialiased
bicubic filter, so they equal views.py within rounding. Rotated or zoomed views are sampled bilinearly without
antialiasing. That does not matter at 32 pixels, where crops are enlarged; much larger images should use views.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_vision.data.views.color import color_matrices, sequential_color_jitter
from lit_vision.data.views.image_size import ImageSize
from lit_vision.data.views.keyed_rng import Key
from lit_vision.data.views.params import ViewParams
from lit_vision.data.views.views import ParametricViews, Views, blur_kernel_size, make_views, resize_and_crop

if TYPE_CHECKING:
    from lit_vision.data.views.albumentations_views import AlbumentationsViews

Keys: TypeAlias = Tensor | np.ndarray | Sequence[Key]
BatchViewsFunction = Callable[[Tensor | np.ndarray, Keys], Tensor]
_CHUNK = 1 << 17  # floats of one step's tensors: 512 kB


def make_batch_views(name: str, size: ImageSize, seed: int, **options: Any) -> BatchViewsFunction:
    """Return the function that computes the named views of a batch of images of one size.

    Args:
        name, size, seed, options: as in `views.make_views`.

    Returns:
        A callable (images uint8 (B, H, W, C) with C 1 or 3, keys int64 (B, 3)) -> uint8 tensor
        (B, V, height, width, 3). Both arguments may be arrays or tensors. Row i of the result depends on image i and
        key i alone.

    Raises:
        UserError: there is no such view or option, or a value is out of its range.
    """
    views = make_views(name, size, seed, **options)
    return BatchViews(views.spec, seed) if isinstance(views, Views) else _OneByOne(views)


class BatchViews(ParametricViews):
    """Views of a batch of images; see `make_batch_views` and, for the arguments, `ParametricViews`."""

    def __call__(self, images: Tensor | np.ndarray, keys: Keys) -> Tensor:
        images = torch.as_tensor(images)  # (B, H, W, C)
        n, height, width, views = len(images), self.spec.height, self.spec.width, self.spec.num_views
        if self.spec.name == "eval":
            return self._evaluation(images)
        rows = _as_list(keys)
        out = torch.empty((n, views, height, width, 3), dtype=torch.uint8)
        chunk = max(
            1, _CHUNK // (views * height * max(width, images.shape[2]))
        )  # few enough images for the processor's cache
        for first in range(0, n, chunk):
            self._render(images[first : first + chunk], rows[first : first + chunk], out[first : first + chunk])
        if self.augment:
            for row, (epoch, index, copy) in enumerate(rows):
                for view in range(views):
                    augmented = self.augment(out[row, view].numpy(), epoch, index, copy, view)
                    out[row, view] = torch.from_numpy(augmented)
        return out

    def _render(self, images: Tensor, keys: Sequence[Key], out: Tensor) -> None:
        """Write all but timm's augmentations: images (B, H, W, C), B keys -> out (B, V, *size, 3)."""
        (height, width), views = images.shape[1:3], self.spec.num_views
        size = self.spec.height, self.spec.width
        params = [
            self.sampler(epoch, index, copy, view, height, width)
            for epoch, index, copy in keys
            for view in range(views)
        ]
        pixels = images.permute(0, 3, 1, 2).float()  # (B, C, H, W)
        if views > 1:
            pixels = pixels.repeat_interleave(views, dim=0)
        if self.spec.rotation or self.spec.scale is not None:
            pixels = _sample(pixels, params, size)
        elif self.spec.crop_scale is not None or self.spec.native or (height, width) != size:
            pixels = _resize_crops(pixels, params, size)
        else:
            flip = torch.tensor([p.flip for p in params])[:, None, None, None]
            pixels = torch.where(flip, pixels.flip(3), pixels)
        pixels.round_().clamp_(0, 255)  # views.py works on uint8 between the steps
        if self.spec.has_color and self.spec.exact:
            pixels = _sequential_color(pixels, params)
        elif self.spec.has_color:
            pixels = _apply_color(pixels, params)
        if self.spec.blur:
            pixels = _blur(pixels, [p.sigma for p in params], blur_kernel_size(self.spec.short_side)).round_()
        out.view(-1, *size, 3).copy_(pixels.to(torch.uint8).permute(0, 2, 3, 1))  # gray is repeated here

    def _evaluation(self, images: Tensor) -> Tensor:
        size = self.spec.height, self.spec.width
        if images.shape[1:3] != size:
            rgb = images.expand(-1, -1, -1, 3).numpy()
            images = torch.from_numpy(np.stack([resize_and_crop(image, size, self.spec.crop_pct) for image in rgb]))
        return images.expand(-1, -1, -1, 3).contiguous()[:, None]


class _OneByOne:
    """Views of single images, applied to each image of a batch."""

    def __init__(self, views: AlbumentationsViews):
        self.views = views

    def __call__(self, images: Tensor | np.ndarray, keys: Keys) -> Tensor:
        rgb = np.broadcast_to(np.asarray(images), (*images.shape[:3], 3))
        views = [self.views.from_array(np.ascontiguousarray(image), *key) for image, key in zip(rgb, _as_list(keys))]
        return torch.from_numpy(np.stack(views))


def _as_list(keys: Keys) -> Sequence[Key]:
    rows: Sequence[Key] = keys.tolist() if isinstance(keys, Tensor | np.ndarray) else keys
    return rows


def _sample(pixels: Tensor, params: list[ViewParams], size: tuple[int, int]) -> Tensor:
    """Cut rotated and zoomed crop windows, bilinear, black outside: (N, C, H, W) -> (N, C, *size)."""
    height, width = pixels.shape[2:]
    d = np.array(
        [
            (p.left + p.width / 2, p.top + p.height / 2, p.width / 2 / p.zoom, p.height / 2 / p.zoom, p.angle, p.flip)
            for p in params
        ]
    )
    x, y, w, h, angle, flip = d.T
    cos, sin, mirror = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle)), 1 - 2 * flip
    theta = np.empty((len(params), 2, 3), np.float32)  # as views.window_matrix, in grid_sample's units
    theta[:, 0] = np.stack([mirror * cos * w, -sin * h, x], 1) * (2 / width)
    theta[:, 1] = np.stack([mirror * sin * w, cos * h, y], 1) * (2 / height)
    theta[:, :, 2] -= 1
    grid = F.affine_grid(torch.from_numpy(theta), [len(params), 1, *size], align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _resize_crops(pixels: Tensor, params: list[ViewParams], size: tuple[int, int]) -> Tensor:
    """Resize crops, bicubic with antialiasing, and mirror those with a flip: (N, C, H, W) -> (N, C, *size)."""
    box = torch.from_numpy(np.array([(p.left, p.width, p.top, p.height, p.flip) for p in params], np.float32))
    across = _filter(box[:, 0], box[:, 1], pixels.shape[3], size[1])  # (N, columns, W)
    across = torch.where(box[:, 4, None, None] > 0, across.flip(1), across)
    down = _filter(box[:, 2], box[:, 3], pixels.shape[2], size[0])  # (N, rows, H)
    n, channels, height, width = pixels.shape
    rows = torch.bmm(pixels.reshape(n, channels * height, width), across.transpose(1, 2))  # (N, C H, columns)
    return torch.matmul(down[:, None], rows.view(n, channels, height, size[1]))


def _filter(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """Return the weights of Pillow's bicubic filter (a = -0.5, wider where it shrinks).

    Args:
        start: (N,) first source pixel of each crop.
        length: (N,) source pixels of each crop.
        source: side of the source in pixels.
        size: side of the result in pixels.

    Returns:
        (N, size, source): row i of a crop's matrix holds the weights of result pixel i.
    """
    scale = (length / size)[:, None, None]
    support = scale.clamp(min=1)
    center = (torch.arange(size) + 0.5)[None, :, None] * scale  # (N, S, 1), from the crop's start
    position = (torch.arange(source) + 0.5)[None, None] - start[:, None, None]  # (N, 1, source)
    u = position.sub(center).div_(support).abs_().neg_().add_(2).clamp_(min=0)  # 2 - |t|, (N, S, source)
    # 1 <= |t| < 2: u^2 (u - 1) / 2; |t| < 1 adds s^2 (1 - 2 s) with s = 1 - |t|: the cubic with a = -0.5
    s = u.sub(1)
    weight = u.square_().mul_(s).mul_(0.5)
    s.clamp_(min=0)
    weight.addcmul_(s.square(), s.mul(-2).add_(1))
    weight.mul_((position > 0) & (position < length[:, None, None]))  # nothing from outside the crop
    return weight.div_(weight.sum(2, keepdim=True))


def _apply_color(pixels: Tensor, params: list[ViewParams]) -> Tensor:
    """Apply one color matrix per view, rounded and clipped once: (N, C, H, W) in [0, 255], C 1 or 3, to the same.

    Gray images need gain and shift only.
    """
    n, channels = pixels.shape[:2]
    means = pixels.mean(dim=(2, 3)).expand(n, 3).double().numpy()  # exact: integers below 2^24
    matrix, shift = (torch.from_numpy(m).float() for m in color_matrices(params, means))
    if channels == 1:  # every operation keeps gray gray: all rows of the matrix have the same sum
        return (
            pixels.mul_(matrix[:, 0].sum(1)[:, None, None, None])
            .add_(shift[:, 0, None, None, None])
            .round_()
            .clamp_(0, 255)
        )
    out = torch.baddbmm(shift[:, :, None], matrix, pixels.flatten(2))
    return out.view_as(pixels).round_().clamp_(0, 255)


def _sequential_color(pixels: Tensor, params: list[ViewParams]) -> Tensor:
    """Apply `sequential_color_jitter` to each view: (N, C, H, W) in [0, 255] -> (N, 3, H, W)."""
    images = pixels.to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
    jittered = [sequential_color_jitter(image, p) if p.has_color else image for image, p in zip(images, params)]
    return torch.from_numpy(np.stack(jittered)).permute(0, 3, 1, 2).float()


def _blur(pixels: Tensor, sigmas: list[float], side: int) -> Tensor:
    """Blur the views of a sigma above 0 with a Gaussian, mirrored at the edges: (N, C, H, W), modified in place."""
    rows = [i for i, sigma in enumerate(sigmas) if sigma]
    if not rows or side == 1:
        return pixels
    blurred, reach = pixels[rows], side // 2
    sigma = torch.tensor([sigmas[i] for i in rows], dtype=torch.float32)[:, None]
    taps = torch.exp(-((torch.arange(side) - reach) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum(1, keepdim=True))[:, :, None, None, None]  # (n, side, 1, 1, 1)
    height, width = blurred.shape[2:]
    padded = F.pad(blurred, (reach, reach, 0, 0), mode="reflect")
    blurred = sum(taps[:, k] * padded[..., k : k + width] for k in range(side))
    padded = F.pad(blurred, (0, 0, reach, reach), mode="reflect")
    pixels[rows] = sum(taps[:, k] * padded[:, :, k : k + height] for k in range(side))
    return pixels
