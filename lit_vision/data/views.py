"""Image bytes to views: pixels are a pure function of (seed, key, view), whatever the worker, the batch or the rank.

Steps, each one function: decode (decode.py), parameters (laws.py), cut and resize, colour, blur, flip, timm's augmentations.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from lit_vision.data.augment import Augment
from lit_vision.data.colour import colour_matrices
from lit_vision.data.decode import decode
from lit_vision.data.laws import Draw, Drawer, Law, make_law

ImageViews = Callable[..., np.ndarray]  # (image_bytes, epoch, index, copy=0) -> uint8 (V, H, W, 3)


def make_views(name: str, size: int, seed: int, **options) -> ImageViews:
    """The named views of one image: `simclr` (V = 2), `mae`, `train`, `eval`, or `albumentations:<name>` (V = 1 each).

    Args:
        name: see `laws.make_law`; `albumentations:<name>` takes a pipeline of transforms.py.
        size: side of the result in pixels.
        seed: in [0, 2**64).
        options: of the view, see `laws.Law`; None means its default.

    Returns:
        A callable (image_bytes, epoch, index, copy=0) -> uint8 (V, size, size, 3); it can be sent to a spawned worker.
        It raises BadImage if the bytes are no whole image.

    Raises:
        UserError: no such view or option, or a value outside its range.
    """
    if name.startswith("albumentations:"):
        from lit_vision.data.transforms import AlbumentationsViews

        return AlbumentationsViews(name.partition(":")[2], size, seed, **options)
    return Views(make_law(name, size, **options), seed)


class Views:
    """Views of one image under a law; see `make_views`.

    Crops are cut by slicing and resized once, bicubic with antialias where they shrink (Pillow's filter, in torch). A view that is turned
    or zoomed is sampled bilinearly, after an antialiased shrink to the scale of the result.

    Args:
        law: from `make_law`.
        seed: in [0, 2**64).
    """

    def __init__(self, law: Law, seed: int):
        self.law, self.seed = law, seed
        self.draw, self.augment = Drawer(law, seed), Augment(law, seed)

    @property
    def views(self) -> int:
        """V."""
        return self.law.views

    def __call__(self, image_bytes: bytes, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """The views of one file under one key: uint8 (V, size, size, 3)."""
        return self.of_pixels(decode(image_bytes), epoch, index, copy)

    def of_pixels(self, image: np.ndarray, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """The same for pixels: image (H, W, 3) uint8."""
        if self.law.name == "eval":
            return resize_and_crop(image, self.law.size, self.law.crop_pct)[None]
        height, width = image.shape[:2]
        views = []
        for view in range(self.law.views):
            drawn = self.draw(epoch, index, copy, view, height, width)
            pixels = self.render(image, drawn)
            views.append(self.augment(pixels, epoch, index, copy, view) if self.augment else pixels)
        return np.stack(views)

    def render(self, image: np.ndarray, drawn: Draw) -> np.ndarray:
        """One view's pixels: image (H, W, 3) uint8 -> (size, size, 3) uint8."""
        size = self.law.size
        if drawn.angle == 0 and drawn.zoom == 1:
            crop = image[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
            view = resize(crop, size, size)
        else:
            view = turn(image, drawn, size)
        if self.law.has_colour:
            matrix, shift = colour_matrices([drawn], np.array([cv2.mean(view)[:3]]))
            view = cv2.transform(view, np.column_stack([matrix[0], shift[0]]))  # rounds and clips to uint8
        if drawn.sigma:
            side = blur_side(size)
            view = cv2.GaussianBlur(view, (side, side), drawn.sigma, borderType=cv2.BORDER_REFLECT_101)
        return np.ascontiguousarray(view[:, ::-1]) if drawn.flip else view


def blur_side(size: int) -> int:
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


def turn(image: np.ndarray, drawn: Draw, size: int) -> np.ndarray:
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


def window_matrix(drawn: Draw) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """2 x 3 matrix from the result's frame ([-1, 1] each way, y down, before the flip) to the source's pixels (edge coordinates)."""
    turned = np.deg2rad(drawn.angle)
    cos, sin = float(np.cos(turned)), float(np.sin(turned))
    w, h = drawn.width / 2 / drawn.zoom, drawn.height / 2 / drawn.zoom
    return (cos * w, -sin * h, drawn.left + drawn.width / 2), (sin * w, cos * h, drawn.top + drawn.height / 2)
