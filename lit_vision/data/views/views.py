"""Views of single images: bytes to pixels, a pure function of (seed, key, view) for any worker, batch and rank.

Steps, each one function: header (decode.py), parameters (params.py), the decoding scale that they allow, one decode for
all views, crop by slicing, one resize, color (color.py), blur if the parameters ask for it, flip, and timm's
augmentations (timm_augment.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from lit_vision.data.views.color import color_matrix, sequential_color_jitter
from lit_vision.data.views.decode import SCALES, ImageHeader, decode, decode_scaled, read_header
from lit_vision.data.views.image_size import ImageSize
from lit_vision.data.views.params import ViewParams, ViewParamSampler, ViewSpec, make_view_spec
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat
from lit_vision.data.views.timm_augment import TimmAugment

if TYPE_CHECKING:
    from lit_vision.data.views.albumentations_views import AlbumentationsViews

# Up to this (shorter) side in pixels every resize uses Pillow's filter, as in batch_views.py; above it `resize_fast`
# does it.
FAST_RESIZE_ABOVE = 96
# A blur of a smaller sigma has every tap but the middle one under 1/512, which changes nothing in 8 bits.
MIN_VISIBLE_SIGMA = 0.28
ImageViewsFunction = Callable[..., np.ndarray]  # (image_bytes, epoch, index, copy=0) -> uint8 (V, H, W, 3)


def make_views(
    name: str, size: ImageSize, seed: int, pixel_format: PixelFormat = DEFAULT_FORMAT, **options: Any
) -> Views | AlbumentationsViews:
    """Return the function that computes the named views of one image.

    Args:
        name: `simclr`, `lejepa` (V = 2 views), `mae`, `train`, `crop`, `eval` (V = 1; see `params.make_view_spec`), or
            `albumentations:<name>` (V = 1) with the name of a pipeline of albumentations_views.py.
        size: of the result in pixels: side of a square, or (height, width).
        seed: in [0, 2**64).
        pixel_format: conversion of the files' values to 8 bits, see `decode`.
        options: of the view, see `params.ViewSpec`; None means its default.

    Returns:
        A callable (image_bytes, epoch, index, copy=0) -> uint8 (V, height, width, 3), which can be sent to a
        spawned worker. It raises ImageDecodeError if the bytes are no complete image.

    Raises:
        UserError: there is no such view or option, or a value is out of its range.
    """
    if name.startswith("albumentations:"):
        from lit_vision.data.views.albumentations_views import AlbumentationsViews

        return AlbumentationsViews(name.partition(":")[2], size, seed, pixel_format, **options)
    return Views(make_view_spec(name, size, **options), seed, pixel_format)


class ParametricViews:
    """Parameter sampler and timm's augmentations of a ViewSpec, used by `Views` and `BatchViews`.

    Args:
        spec: from `make_view_spec`.
        seed: in [0, 2**64).
        pixel_format: of the files; not used for arrays.
    """

    def __init__(self, spec: ViewSpec, seed: int, pixel_format: PixelFormat = DEFAULT_FORMAT):
        self.spec, self.seed, self.pixel_format = spec, seed, pixel_format
        self.sampler, self.augment = ViewParamSampler(spec, seed), TimmAugment(spec, seed)


class Views(ParametricViews):
    """Views of single images; see `make_views` and, for the arguments, `ParametricViews`.

    Training views of a JPEG are decoded at 1/2, 1/4 or 1/8 of the size where every crop still has at least its target
    size; a crop is then moved to the grid of the decoded pixels, so that slicing cuts it exactly. The evaluation view
    and a spec without `quick` always decode at full size. A rotated or zoomed view is sampled bilinearly, after an
    antialiased resize to the scale of the result.
    """

    def __call__(self, image_bytes: bytes, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the views of an image file under a key: uint8 (V, height, width, 3)."""
        if self.spec.name == "eval" or not self.spec.quick:
            return self.from_array(decode(image_bytes, self.pixel_format), epoch, index, copy)
        header = read_header(image_bytes)
        if not header.scalable:
            image, _ = decode_scaled(image_bytes, header, 1, self.pixel_format)
            return self.from_array(image, epoch, index, copy)
        params = self.sample_params(header.height, header.width, epoch, index, copy)
        image, scale = decode_scaled(image_bytes, header, self.decoding_scale(header, params), self.pixel_format)
        if scale > 1:
            params = [snap_to_decoded_grid(p, scale) for p in params]
        return self._render_all(image, params, epoch, index, copy)

    def from_array(self, image: np.ndarray, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the views of an image, (H, W, 3) uint8, under a key: uint8 (V, height, width, 3)."""
        if self.spec.name == "eval":
            return resize_and_crop(image, (self.spec.height, self.spec.width), self.spec.crop_pct)[None]
        params = self.sample_params(image.shape[0], image.shape[1], epoch, index, copy)
        return self._render_all(image, params, epoch, index, copy)

    def sample_params(self, height: int, width: int, epoch: int, index: int, copy: int) -> list[ViewParams]:
        """Return the parameters of the V views of one key, for an image of this size."""
        return [self.sampler(epoch, index, copy, view, height, width) for view in range(self.spec.num_views)]

    def decoding_scale(self, header: ImageHeader, params: Sequence[ViewParams]) -> int:
        """Return the largest decoding scale, 1 to 8, that leaves every crop at its target size or larger."""
        height, width = self.spec.height, self.spec.width
        zooms = [max(1.0, p.zoom) for p in params]
        largest = min(min(p.width / zoom / width, p.height / zoom / height) for p, zoom in zip(params, zooms))
        for scale in SCALES:
            # the grid of a mirrored or rotated image starts at its other edge, so its sides must be multiples
            if largest >= scale and (header.orientation == 1 or not (header.width % scale or header.height % scale)):
                return scale
        return 1

    def _render_all(self, image: np.ndarray, params: list[ViewParams], epoch: int, index: int, copy: int) -> np.ndarray:
        out = np.empty((len(params), self.spec.height, self.spec.width, 3), np.uint8)
        for view, params_of_view in enumerate(params):
            self.render(image, params_of_view, out[view])
            if self.augment:
                out[view] = self.augment(out[view], epoch, index, copy, view)
        return out

    def render(self, image: np.ndarray, params: ViewParams, out: np.ndarray | None = None) -> np.ndarray:
        """Return the pixels of one view: image (H, W, 3) uint8 to (height, width, 3) uint8, in `out` if given."""
        height, width = self.spec.height, self.spec.width
        out = np.empty((height, width, 3), np.uint8) if out is None else out
        if params.angle == 0 and params.zoom == 1:
            view = image[params.top : params.top + params.height, params.left : params.left + params.width]
            fast = self.spec.quick and self.spec.short_side > FAST_RESIZE_ABOVE
            view = resize_fast(view, height, width) if fast else resize(view, height, width)
        else:
            view = rotate(image, params, height, width)
        color, sigma = params.has_color, params.sigma if params.sigma >= MIN_VISIBLE_SIGMA else 0.0
        if color and self.spec.exact:
            view = sequential_color_jitter(view, params)
        elif color:
            mean = cv2.mean(view) if params.contrast != 1 else ()
            target = None if sigma or params.flip else out  # the last step writes into `out`
            view = cv2.transform(view, np.array(color_matrix(params, mean)), dst=target)  # rounds and clips to uint8
        if sigma:
            view = blur(view, sigma, None if params.flip else out)
        if params.flip:
            cv2.flip(view, 1, dst=out)
        elif view is not out:
            out[:] = view
        return out


def snap_to_decoded_grid(params: ViewParams, scale: int) -> ViewParams:
    """Return the parameters with the crop in integer pixels of an image decoded at 1 / scale.

    The crop moves by less than `scale` source pixels.
    """
    left, top = params.left // scale, params.top // scale
    return params._replace(left=left, top=top, width=params.width // scale, height=params.height // scale)


def resize_fast(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a crop to (height, width, 3) uint8, by the fastest filter with 37 dB against Pillow's antialiased bicubic.

    Up to a shrink factor of 1.25 it is cv2's bicubic (51 dB in the median); up to 2, bilinear, whose two taps still
    reach every source pixel (46 dB); up to 3.6, bilinear after a 3 x 3 mean (45 dB); beyond, Pillow's filter. cv2's
    INTER_AREA has 49 dB, but takes four times as long. Measured in data/README.md.
    """
    shrink = max(image.shape[0] / height, image.shape[1] / width)
    if shrink > 3.6:
        return resize(image, height, width)
    if shrink > 2:
        image = cv2.blur(image, (3, 3))
    resized: np.ndarray = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_CUBIC if shrink <= 1.25 else cv2.INTER_LINEAR
    )
    return resized


def blur(image: np.ndarray, sigma: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blur an image with a Gaussian, mirrored at the edges: (H, W, 3) uint8 -> the same.

    Taps beyond 3 sigma are left out (0.3 % of the weight): 7 instead of 23 at sigma 1. The result is within one level
    of the paper's full kernel (`blur_kernel_size`).

    Args:
        image: (H, W, 3) uint8.
        sigma: pixels, greater than 0.
        out: array for the result, not the image itself; None creates one.
    """
    reach = min(blur_kernel_size(min(image.shape[:2])) // 2, math.ceil(3 * sigma))
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma)
    blurred: np.ndarray = cv2.sepFilter2D(image, -1, kernel, kernel, dst=out, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def blur_kernel_size(size: int) -> int:
    """Return the side of the blur's kernel, odd, for an image's shorter side: 23 for 224 pixels.

    Source: Chen et al. 2020, App. A (10 % of the image).
    """
    return 2 * (size // 10 // 2) + 1


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize by a bicubic filter, antialiased when it shrinks: (H, W, 3) uint8 -> (height, width, 3) uint8.

    As Pillow's: a = -0.5, and the support grows with the shrink factor.
    """
    if image.shape[:2] == (height, width):
        return image
    # channels last in memory, for which torch is fast
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())


def resize_and_crop(image: np.ndarray, size: ImageSize, crop_pct: float) -> np.ndarray:
    """Return the evaluation view: the image resized to just cover floor(size / crop_pct), then its center.

    For a square this is: short side resized to floor(size / crop_pct). An image of that size is returned unchanged.

    Args:
        image: (H, W, 3) uint8.
        size: of the result, pixels: side of a square, or (height, width).
        crop_pct: in (0, 1].
    """
    height, width = image.shape[:2]
    rows, columns = size if isinstance(size, Sequence) else (size, size)
    if (height, width) == (rows, columns):
        return image
    least_height, least_width = max(rows, int(rows / crop_pct)), max(columns, int(columns / crop_pct))
    if least_height * width >= least_width * height:  # the image is wider than the view
        height, width = least_height, max(least_width, int(least_height * width / height))
    else:
        height, width = max(least_height, int(least_width * height / width)), least_width
    image = resize(image, height, width)
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    return np.ascontiguousarray(image[top : top + rows, left : left + columns])


def rotate(image: np.ndarray, params: ViewParams, rows: int, columns: int) -> np.ndarray:
    """Return the crop window rotated about its center and zoomed, black outside the image.

    Args:
        image: (H, W, 3) uint8.
        params: crop, angle and zoom are read.
        rows, columns: of the result, pixels.

    Returns:
        (rows, columns, 3) uint8.
    """
    height, width = image.shape[:2]
    (a, b, x), (c, d, y) = window_matrix(params)  # result in [-1, 1] -> source, edge coordinates
    reach_x, reach_y = abs(a) + abs(b) + 2, abs(c) + abs(d) + 2
    left, right = max(0, int(x - reach_x)), min(width, int(x + reach_x) + 1)
    top, bottom = max(0, int(y - reach_y)), min(height, int(y + reach_y) + 1)
    part = image[top:bottom, left:right]
    shrink = min(1.0, (rows * columns) ** 0.5 * params.zoom / (params.width * params.height) ** 0.5)
    if shrink < 1:
        part = resize(part, max(1, round(part.shape[0] * shrink)), max(1, round(part.shape[1] * shrink)))
    kx, ky = part.shape[1] / (right - left), part.shape[0] / (bottom - top)
    # to pixel centers on both sides: column i of the result sits at (2 i + 1) / columns - 1, its rows likewise
    a, b, c, d = a * kx * 2 / columns, b * kx * 2 / rows, c * ky * 2 / columns, d * ky * 2 / rows
    middle, taller = 0.5 - columns / 2, (columns - rows) / 2
    x = (x - left) * kx + (a + b) * middle + b * taller - 0.5
    y = (y - top) * ky + (c + d) * middle + d * taller - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    rotated: np.ndarray = cv2.warpAffine(
        np.ascontiguousarray(part), np.array([[a, b, x], [c, d, y]]), (columns, rows), flags=flags
    )
    return rotated


def window_matrix(params: ViewParams) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the 2 x 3 matrix from the result's frame to the source's pixels.

    The frame is [-1, 1] each way, y down, before the flip. Source pixels are edge coordinates: pixel i covers
    [i, i + 1].
    """
    radians = np.deg2rad(params.angle)
    cos, sin = float(np.cos(radians)), float(np.sin(radians))
    w, h = params.width / 2 / params.zoom, params.height / 2 / params.zoom
    return (cos * w, -sin * h, params.left + params.width / 2), (sin * w, cos * h, params.top + params.height / 2)
