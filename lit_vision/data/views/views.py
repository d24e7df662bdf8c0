"""Image bytes to views: pixels are a pure function of (seed, key, view), whatever the worker, the batch or the rank.

Steps, each one function: header (decode.py), parameters (params.py), the decoding scale that they allow, decode once for all views, cut by
slicing, resize once, colour (color.py), blur if drawn, flip last, timm's augmentations (timm_augment.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from lit_vision.data.views.color import color_matrix, sequential_color_jitter
from lit_vision.data.views.decode import SCALES, ImageHeader, decode, decode_scaled, read_header
from lit_vision.data.views.params import ViewParams, ViewParamSampler, ViewSpec, make_view_spec
from lit_vision.data.views.timm_augment import TimmAugment

FAST_RESIZE_ABOVE = 96  # up to this side every resize is Pillow's filter, as for sets in memory (batch_views.py); above, see `resize_fast`
MIN_VISIBLE_SIGMA = (
    0.28  # a blur of a smaller sigma has every tap but the middle one under 1/512, which is none at all in 8 bits
)
ImageViews = Callable[..., np.ndarray]  # (image_bytes, epoch, index, copy=0) -> uint8 (V, H, W, 3)


def make_views(name: str, size: int, seed: int, **options) -> ImageViews:
    """The named views of one image: `simclr` (V = 2), `mae`, `train`, `eval`, or `albumentations:<name>` (V = 1 each).

    Args:
        name: see `params.make_view_spec`; `albumentations:<name>` takes a pipeline of albumentations_views.py.
        size: side of the result in pixels.
        seed: in [0, 2**64).
        options: of the view, see `params.ViewSpec`; None means its default.

    Returns:
        A callable (image_bytes, epoch, index, copy=0) -> uint8 (V, size, size, 3); it can be sent to a spawned worker.
        It raises ImageDecodeError if the bytes are no whole image.

    Raises:
        UserError: no such view or option, or a value outside its range.
    """
    if name.startswith("albumentations:"):
        from lit_vision.data.views.albumentations_views import AlbumentationsViews

        return AlbumentationsViews(name.partition(":")[2], size, seed, **options)
    return Views(make_view_spec(name, size, **options), seed)


class Views:
    """Views of one image under a law; see `make_views`.

    Training views of a JPEG are decoded at 1/2, 1/4 or 1/8 where every crop keeps at least its target size; a crop then lies on the grid of
    the decoded pixels, so that slicing cuts it exactly. Evaluation never decodes at a scale, nor does a law without `quick`. A view that is turned or zoomed is sampled
    bilinearly, after an antialiased shrink to the scale of the result.

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

    def __call__(self, image_bytes: bytes, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """The views of one file under one key: uint8 (V, size, size, 3)."""
        if self.spec.name == "eval" or not self.spec.quick:
            return self.of_pixels(decode(image_bytes), epoch, index, copy)
        header = read_header(image_bytes)
        if not header.scalable:
            return self.of_pixels(decode_scaled(image_bytes, header)[0], epoch, index, copy)
        draws = self.draws(header.height, header.width, epoch, index, copy)
        image, scale = decode_scaled(image_bytes, header, self.scale_of(header, draws))
        return self._render_all(
            image, draws if scale == 1 else [snap_to_decoded_grid(d, scale) for d in draws], epoch, index, copy
        )

    def of_pixels(self, image: np.ndarray, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """The same for pixels: image (H, W, 3) uint8."""
        if self.spec.name == "eval":
            return resize_and_crop(image, self.spec.size, self.spec.crop_pct)[None]
        draws = self.draws(*image.shape[:2], epoch, index, copy)
        return self._render_all(image, draws, epoch, index, copy)

    def draws(self, height: int, width: int, epoch: int, index: int, copy: int) -> list[ViewParams]:
        """The parameters of the V views of one key, for a source of this size."""
        return [self.draw(epoch, index, copy, view, height, width) for view in range(self.spec.views)]

    def scale_of(self, header: ImageHeader, draws: Sequence[ViewParams]) -> int:
        """The largest decoding scale, 1 to 8, that leaves every crop at its target size or larger."""
        spare = min(min(d.width, d.height) / max(1.0, d.zoom) for d in draws) / self.spec.size
        for scale in SCALES:
            # a mirrored image's grid starts at its other edge, which fits only if the sides are whole multiples
            if spare >= scale and (header.orientation == 1 or not (header.width % scale or header.height % scale)):
                return scale
        return 1

    def _render_all(self, image: np.ndarray, draws: list[ViewParams], epoch: int, index: int, copy: int) -> np.ndarray:
        out = np.empty((len(draws), self.spec.size, self.spec.size, 3), np.uint8)
        for view, drawn in enumerate(draws):
            self.render(image, drawn, out[view])
            if self.augment:
                out[view] = self.augment(out[view], epoch, index, copy, view)
        return out

    def render(self, image: np.ndarray, drawn: ViewParams, out: np.ndarray | None = None) -> np.ndarray:
        """One view's pixels: image (H, W, 3) uint8 -> (size, size, 3) uint8, in `out` if it is given."""
        size = self.spec.size
        out = np.empty((size, size, 3), np.uint8) if out is None else out
        if drawn.angle == 0 and drawn.zoom == 1:
            view = image[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
            view = resize_fast(view, size) if self.spec.quick and size > FAST_RESIZE_ABOVE else resize(view, size, size)
        else:
            view = rotate(image, drawn, size)
        color, sigma = drawn.has_color, drawn.sigma if drawn.sigma >= MIN_VISIBLE_SIGMA else 0.0
        if color and self.spec.exact:
            view = sequential_color_jitter(view, drawn)
        elif color:
            mean = cv2.mean(view) if drawn.contrast != 1 else ()
            last = None if sigma or drawn.flip else out  # the last step writes where the view is wanted
            view = cv2.transform(view, np.array(color_matrix(drawn, mean)), dst=last)  # rounds and clips to uint8
        if sigma:
            view = blur(view, sigma, None if drawn.flip else out)
        if drawn.flip:
            cv2.flip(view, 1, dst=out)
        elif view is not out:
            out[:] = view
        return out


def snap_to_decoded_grid(drawn: ViewParams, scale: int) -> ViewParams:
    """The crop in pixels of an image decoded at 1 / scale, moved to whole ones (by at most scale / 2 source pixels)."""
    left, top = drawn.left // scale, drawn.top // scale
    return drawn._replace(left=left, top=top, width=drawn.width // scale, height=drawn.height // scale)


def resize_fast(image: np.ndarray, size: int) -> np.ndarray:
    """A crop to (size, size, 3) uint8, by the fastest filter that keeps 37 dB against Pillow's antialiased bicubic (data/README.md).

    Up to a shrink of 1.25 cv2's bicubic (51 dB in the median); up to 2, bilinear, whose two taps still reach every source pixel (46 dB); up to 3.6, the
    same after a 3 x 3 mean (45 dB); beyond, Pillow's own filter. cv2's INTER_AREA has 49 dB, but takes four times as long.
    """
    height, width = image.shape[:2]
    shrink = max(height, width) / size
    if shrink > 3.6:
        return resize(image, size, size)
    if shrink > 2:
        image = cv2.blur(image, (3, 3))
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC if shrink <= 1.25 else cv2.INTER_LINEAR)


def blur(image: np.ndarray, sigma: float, out: np.ndarray | None = None) -> np.ndarray:
    """Gaussian blur, mirrored at the edges: (S, S, 3) uint8 -> the same, within one level of the paper's whole kernel (`blur_kernel_size`).

    Taps beyond 3 sigma are left out (0.3 % of the weight): 7 instead of 23 at sigma 1. `out` may take the result, never the image itself.
    """
    reach = min(blur_kernel_size(len(image)) // 2, math.ceil(3 * sigma))
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma)
    return cv2.sepFilter2D(image, -1, kernel, kernel, dst=out, borderType=cv2.BORDER_REFLECT_101)


def blur_kernel_size(size: int) -> int:
    """Side of the blur's kernel, odd: 23 for 224 pixels. Source: Chen et al. 2020, App. A (10 % of the image)."""
    return 2 * (size // 10 // 2) + 1


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic, antialiased where it shrinks (a = -0.5 and the support of Pillow): (H, W, 3) uint8 -> (height, width, 3) uint8."""
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[
        None
    ]  # channels last in memory: torch's fast way
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())


def resize_and_crop(image: np.ndarray, size: int, crop_pct: float) -> np.ndarray:
    """Evaluation's view: short side to floor(size / crop_pct), central square of side `size`. A fitting image stays as it is.

    Args:
        image: (H, W, 3) uint8.
        size: side of the result, pixels.
        crop_pct: in (0, 1].
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    short = max(size, int(size / crop_pct))
    if height <= width:
        height, width = short, max(short, int(short * width / height))
    else:
        height, width = max(short, int(short * height / width)), short
    image = resize(image, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def rotate(image: np.ndarray, drawn: ViewParams, size: int) -> np.ndarray:
    """The drawn window turned about its centre and zoomed: (H, W, 3) uint8 -> (size, size, 3) uint8, black outside the image."""
    height, width = image.shape[:2]
    (a, b, x), (c, d, y) = window_matrix(drawn)  # result in [-1, 1] -> source, edge coordinates
    reach_x, reach_y = abs(a) + abs(b) + 2, abs(c) + abs(d) + 2
    left, right = max(0, int(x - reach_x)), min(width, int(x + reach_x) + 1)
    top, bottom = max(0, int(y - reach_y)), min(height, int(y + reach_y) + 1)
    part = image[top:bottom, left:right]
    shrink = min(1.0, size * drawn.zoom / (drawn.width * drawn.height) ** 0.5)
    if shrink < 1:
        part = resize(part, max(1, round(part.shape[0] * shrink)), max(1, round(part.shape[1] * shrink)))
    kx, ky = part.shape[1] / (right - left), part.shape[0] / (bottom - top)
    # to pixel centres on both sides: result pixel i sits at (2 i + 1) / size - 1
    a, b, c, d = a * kx * 2 / size, b * kx * 2 / size, c * ky * 2 / size, d * ky * 2 / size
    x = (x - left) * kx + (a + b) * (0.5 - size / 2) - 0.5
    y = (y - top) * ky + (c + d) * (0.5 - size / 2) - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(np.ascontiguousarray(part), np.array([[a, b, x], [c, d, y]]), (size, size), flags=flags)


def window_matrix(drawn: ViewParams) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """2 x 3 matrix from the result's frame ([-1, 1] each way, y down, before the flip) to the source's pixels (edge coordinates)."""
    turned = np.deg2rad(drawn.angle)
    cos, sin = float(np.cos(turned)), float(np.sin(turned))
    w, h = drawn.width / 2 / drawn.zoom, drawn.height / 2 / drawn.zoom
    return (cos * w, -sin * h, drawn.left + drawn.width / 2), (sin * w, cos * h, drawn.top + drawn.height / 2)
