"""Sampling of augmentation parameters: the distribution of each named view, and its parameters for a key.

views.py (an image at a time, from bytes) and batch_views.py (many small images at once) take the parameters from here
and differ in the rendering only. Every parameter has a fixed slot in the key's stream of uniform numbers, so switching
one option on leaves all other parameters unchanged. Plain floats and `math` take 3 us a view, where numpy's overhead on
scalars would take 30.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lit_vision.data.views.image_size import ImageSize, height_and_width
from lit_vision.data.views.keyed_rng import PhiloxStreams
from lit_vision.errors import UserError

# Tries to find a crop that fits into the image, before the central one is taken, as in torchvision (TensorFlow: 100)
CROP_TRIES = 10
NUM_SLOTS = 14 + 2 * CROP_TRIES  # uniform numbers of one view
NUM_FIRST = 16  # of them are drawn at once; the rest only if the first crop does not fit
COLOR_ORDERS = tuple(itertools.permutations(range(4)))  # of brightness 0, contrast 1, saturation 2, hue 3
_DOMAIN = 0x76696577  # "view": separates these streams from other uses of one seed


@dataclass(frozen=True)
class ViewSpec:
    """Distribution of a view's parameters. Probabilities lie in [0, 1].

    Attributes:
        name: name of the view.
        height, width: of the result, pixels. Thresholds such as "above 32 pixels" look at the shorter side.
        num_views: views of each image (V).
        crop_scale: range of the crop's area, as a share of the image's area; None takes the full image.
        crop_aspect: range of the crop's width / height, uniform in its logarithm, as a multiple of the result's, so
            that a rectangular view stretches objects by no more than a square one. (torchvision takes it as it is, and
            would stretch all objects by 2 in a view of twice the width, which the evaluation view does not.)
        flip: probability of a mirror image.
        rotation: the view's frame is rotated by U(-rotation, rotation) degrees; pixels outside the image are black.
        scale: range of the zoom, uniform in its logarithm; 2 shows objects twice as large, 0.5 half as large with
            black borders. None: 1.
        jitter: probability of the four color operations together, in random order.
        brightness, contrast, saturation: d of the factors U(max(0, 1 - d), 1 + d).
        hue: d of the shift U(-d, d) of a full turn.
        grayscale: probability of a gray view.
        blur: probability of a Gaussian blur, sigma U(0.1, 2.0) pixels, kernel size // 10 made odd.
        rand_augment: timm's string (`rand-m9-mstd0.5-inc1`), applied after crop and flip; "" for none.
        random_erasing: probability of timm's random erasing, filled with noise per pixel.
        exact: apply the color operations one after the other, each clipped, hue through HSV (color.py), instead of one
            matrix; a SimCLR view then takes 3 times as long.
        quick: training crops come from JPEGs decoded at a reduced scale and, above 96 pixels, from the fastest resize
            that keeps 37 dB (views.py). False decodes at full size and resizes with Pillow's antialiased bicubic
            filter, as the papers' code does.
        crop_pct: share of the resized short side that the evaluation view keeps; 1 for sizes up to 64.
        native: crops have the result's size in pixels of the file, so that nothing is resized; an image that is smaller
            is enlarged.
    """

    name: str
    height: int
    width: int
    num_views: int = 1
    crop_scale: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rotation: float = 0.0
    scale: tuple[float, float] | None = None
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    rand_augment: str = ""
    random_erasing: float = 0.0
    exact: bool = False
    quick: bool = True
    crop_pct: float = 1.0
    native: bool = False

    @property
    def short_side(self) -> int:
        """Shorter side of the result, pixels."""
        return min(self.height, self.width)

    @property
    def has_color(self) -> bool:
        """True if any view may change colors."""
        return self.jitter > 0 or self.grayscale > 0


class ViewParams(NamedTuple):
    """Parameters of one view. The crop is in integer source pixels, so that it can be cut by slicing."""

    left: int
    top: int
    width: int
    height: int
    flip: bool
    angle: float  # degrees, counter-clockwise as seen
    zoom: float
    order: int  # into COLOR_ORDERS
    brightness: float
    contrast: float
    saturation: float
    hue: float  # of a full turn
    gray: bool
    sigma: float  # pixels of the result; 0 without blur

    @property
    def has_color(self) -> bool:
        """True if any color operation changes this view."""
        return self.gray or self[8:12] != (1.0, 1.0, 1.0, 0.0)


_COMMON = ("crop_scale", "crop_aspect", "flip", "rotation", "scale", "quick")
OPTIONS_OF_VIEW = {  # any other option is refused, never ignored
    "simclr": (*_COMMON, "strength", "grayscale", "blur", "exact"),
    "mae": _COMMON,
    "lejepa": (*_COMMON, "strength", "grayscale", "blur", "exact", "num_views"),
    "train": (
        *_COMMON,
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "grayscale",
        "exact",
        "rand_augment",
        "random_erasing",
    ),
    "crop": ("flip", "quick"),
    "eval": ("crop_pct", "quick"),  # evaluation decodes at full size in any case; `quick: false` is accepted
}


def make_view_spec(name: str, size: ImageSize, **options: Any) -> ViewSpec:
    """Return the distribution of a named view.

    - `simclr`: two views; crop area (0.08, 1), flip 0.5, jitter with probability 0.8 at `strength` s (0.8 s, 0.8 s,
      0.8 s, 0.2 s), grayscale 0.2, blur 0.5. Above 32 pixels s is 1 and blur is on; up to 32 pixels s is 0.5 and blur
      is off, as in the paper for CIFAR. Source: Chen et al. 2020, arXiv:2002.05709, App. A and B.9; brightness
      multiplies, as in version 2 of the authors' code.
    - `lejepa`: two global views as `simclr`, with crop area (0.3, 1); `num_views` of them by option. Source for the
      crops: Balestriero and LeCun 2025, arXiv:2511.08544; the distortions are SimCLR's.
    - `mae`: crop area (0.2, 1), flip 0.5. Source: He et al. 2022, arXiv:2111.06377, App. A.1.
    - `train`: crop area (0.08, 1), flip 0.5, everything else by option.
    - `crop`: a crop in the pixels of the file, which are not resized, flip 0.5.
    - `eval`: nothing random; resized to just cover size / `crop_pct` (of a square: by the short side), then the center;
      an image of the right size is not changed.

    Args:
        name: one of the above.
        size: of the result in pixels: side of a square, or (height, width).
        options: fields of `ViewSpec` (and `strength`); None means the view's default.

    Raises:
        UserError: there is no such view, it does not have an option, or a value is out of its range.
    """
    if name not in OPTIONS_OF_VIEW:
        raise UserError(
            f"view {name!r}: no such view; choose from {', '.join(OPTIONS_OF_VIEW)} or albumentations:<name>"
        )
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in OPTIONS_OF_VIEW[name]:
            raise UserError(
                f"view option {key}: view {name!r} does not have it; choose from {', '.join(OPTIONS_OF_VIEW[name])}"
            )
    height, width = height_and_width(size, "view option size")
    short = min(height, width)
    large = short > 32
    strength = options.pop("strength", 1.0 if large else 0.5)
    if strength < 0:
        raise UserError(f"view option strength: {strength} is negative; give 0 or more")
    blur = 0.5 if large else 0.0
    base = {
        "simclr": ViewSpec(name, height, width, 2, (0.08, 1.0), flip=0.5, grayscale=0.2, blur=blur, jitter=0.8),
        "lejepa": ViewSpec(name, height, width, 2, (0.3, 1.0), flip=0.5, grayscale=0.2, blur=blur, jitter=0.8),
        "mae": ViewSpec(name, height, width, 1, (0.2, 1.0), flip=0.5),
        "train": ViewSpec(name, height, width, 1, (0.08, 1.0), flip=0.5),
        "crop": ViewSpec(name, height, width, 1, flip=0.5, native=True),
        "eval": ViewSpec(name, height, width, 1, crop_pct=0.875 if short > 64 else 1.0),
    }[name]
    if name in ("simclr", "lejepa"):
        s = 0.8 * strength
        base = replace(base, brightness=s, contrast=s, saturation=s, hue=min(0.5, 0.2 * strength))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in options.items()}
    spec = replace(base, **fields)
    if name == "train" and max(spec.brightness, spec.contrast, spec.saturation, spec.hue) > 0:
        spec = replace(spec, jitter=1.0)
    _check_ranges(spec)
    return spec


def _check_ranges(spec: ViewSpec) -> None:
    def need(valid: bool, key: str, expected: str) -> None:
        if not valid:
            raise UserError(f"view option {key}: {getattr(spec, key)} is out of range; give {expected}")

    need(spec.num_views >= 1, "num_views", "at least 1")
    for key in ("flip", "grayscale", "blur", "random_erasing"):
        need(0 <= getattr(spec, key) <= 1, key, "a probability from 0 to 1")
    for key in ("brightness", "contrast", "saturation", "rotation"):
        need(getattr(spec, key) >= 0, key, "0 or more")
    need(0 <= spec.hue <= 0.5, "hue", "0 to 0.5")
    need(0 < spec.crop_pct <= 1, "crop_pct", "more than 0 and at most 1")
    for key, top in (("crop_scale", 1.0), ("crop_aspect", math.inf), ("scale", math.inf)):
        pair = getattr(spec, key)
        valid = pair is None or (len(pair) == 2 and 0 < pair[0] <= pair[1] <= top)
        need(valid, key, f"two numbers 0 < low <= high{'' if top == math.inf else f' <= {top:g}'}")


class ViewParamSampler:
    """Sampler of view parameters, a pure function of the key.

    `ViewParamSampler(spec, seed)(epoch, index, copy, view, height, width)` returns ViewParams.

    Args:
        spec: distribution of the parameters.
        seed: in [0, 2**64).
    """

    def __init__(self, spec: ViewSpec, seed: int):
        self.spec, self.seed = spec, seed
        self.streams = PhiloxStreams(seed, _DOMAIN)
        # read once: 25 look-ups of fields would take a fifth of the time of a call
        factors = [pair for d in (spec.brightness, spec.contrast, spec.saturation) for pair in _range(d)]
        (narrow, wide), aspect = spec.crop_aspect, spec.width / spec.height
        self.crop_aspect = narrow * aspect, wide * aspect  # of source pixels; unchanged for a square view
        self._numbers = (spec.flip, spec.jitter, spec.hue, spec.grayscale, spec.blur, *factors)

    def __call__(self, epoch: int, index: int, copy: int, view: int, height: int, width: int) -> ViewParams:
        """Return the parameters of one view.

        Args:
            epoch, index, copy: the key.
            view: number of the view, in [0, V).
            height: of the source image, pixels.
            width: of the source image, pixels.
        """
        spec, u = self.spec, self.streams.uniforms(epoch, index, copy, view, NUM_FIRST)
        flip, jitter, hue_range, grayscale, blur, b_low, b_span, c_low, c_span, s_low, s_span = self._numbers
        left, top, w, h = 0, 0, width, height
        if spec.native:
            shrink = min(1.0, width / spec.width, height / spec.height)
            w, h = max(1, int(spec.width * shrink)), max(1, int(spec.height * shrink))
        elif spec.crop_scale is not None:
            w, h = self._crop_sides(spec.crop_scale, u, height, width)
        if spec.native or spec.crop_scale is not None:
            left, top = int(u[0] * (width - w + 1)), int(u[1] * (height - h + 1))
        angle = (2 * u[3] - 1) * spec.rotation if spec.rotation else 0.0
        zoom = 1.0
        if spec.scale is not None:
            low, high = spec.scale
            zoom = low * (high / low) ** u[4]
        brightness = contrast = saturation = 1.0
        hue, order = 0.0, 0
        if u[5] < jitter:
            order = int(u[6] * 24)
            brightness, contrast, saturation = b_low + u[7] * b_span, c_low + u[8] * c_span, s_low + u[9] * s_span
            hue = (2 * u[10] - 1) * hue_range
        sigma = 0.1 + 1.9 * u[13] if u[12] < blur else 0.0
        mirrored, gray = u[2] < flip, u[11] < grayscale
        return ViewParams(
            left, top, w, h, mirrored, angle, zoom, order, brightness, contrast, saturation, hue, gray, sigma
        )

    def _crop_sides(self, crop_scale: tuple[float, float], u: list[float], height: int, width: int) -> tuple[int, int]:
        """Return width and height of a crop that fits into the image; u are the stream's first NUM_FIRST numbers."""
        (low, high), (narrow, wide) = crop_scale, self.crop_aspect
        area = height * width
        for slot in range(14, NUM_SLOTS, 2):
            if slot == NUM_FIRST:
                u = u + self.streams.more(NUM_SLOTS - NUM_FIRST)
            part = area * (low + u[slot] * (high - low))
            aspect = narrow * (wide / narrow) ** u[slot + 1]
            w, h = round(math.sqrt(part * aspect)), round(math.sqrt(part / aspect))
            if 0 < w <= width and 0 < h <= height:
                return w, h
        if width < narrow * height:
            return width, max(1, min(height, round(width / narrow)))
        if width > wide * height:
            return max(1, min(width, round(height * wide))), height
        return width, height


def _range(d: float) -> tuple[float, float]:
    """Return the lower end and the length of U(max(0, 1 - d), 1 + d)."""
    low = 1 - d if d < 1 else 0.0
    return low, 1 + d - low
