"""The laws of the views: which parameters a view has, and how they follow from a key's uniform numbers.

The one home of both paths: views.py (an image at a time, from bytes) and batch_views.py (many small images at once) draw here and only
render differently. Every parameter has its own slot in the stream, so switching one option on leaves all other draws as they were.
Plain floats and `math`: 3 us a view, where numpy's overhead on scalars would cost 30.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from lit_vision.data.views.keyed_rng import PhiloxStreams
from lit_vision.errors import UserError

CROP_TRIES = (
    10  # of a crop that fits into the image, then the central one, as torchvision has it (TensorFlow tries 100 times)
)
SLOTS = 14 + 2 * CROP_TRIES  # uniform numbers of one view
FIRST = 16  # of them are drawn at once; the rest only if the first crop does not fit
ORDERS = tuple(itertools.permutations(range(4)))  # of brightness 0, contrast 1, saturation 2, hue 3
_DOMAIN = 0x76696577  # "view": keeps these streams apart from other uses of one seed


@dataclass(frozen=True)
class ViewSpec:
    """A view's distribution. Probabilities lie in [0, 1].

    Attributes:
        name: the view's name; size: side of the square result, pixels; views: how many views of an image (V).
        crop_scale: range of the crop's area, as a share of the image's; None takes the whole image.
        crop_aspect: range of the crop's width / height, uniform in its logarithm.
        flip: probability of a mirror image.
        rotation: the view's frame turns by U(-rotation, rotation) degrees; what lies outside the image is black.
        scale: range of the zoom, uniform in its logarithm; 2 shows things twice as large, 0.5 half, with black around. None: 1.
        jitter: probability of the four colour operations together, in random order.
        brightness, contrast, saturation: factors U(max(0, 1 - d), 1 + d); hue: shift U(-d, d) of a full turn.
        grayscale: probability of losing all colour.
        blur: probability of a Gaussian blur, sigma U(0.1, 2.0) pixels, kernel size // 10 made odd.
        rand_augment: timm's string (`rand-m9-mstd0.5-inc1`), applied after crop and flip; "" for none.
        random_erasing: probability of timm's erasing, filled with noise per pixel.
        exact: colour operations one after the other, clipped each, hue through HSV (color.py), instead of one matrix; a SimCLR view then takes 3 times as long.
        quick: training crops come from JPEGs decoded at a scale and, above 96 pixels, by the fastest resize that keeps 37 dB (views.py);
            false decodes them whole and resizes as Pillow's antialiased bicubic does, as the papers' code.
        crop_pct: share of the resized short side that evaluation keeps; 1 for sizes up to 64.
    """

    name: str
    size: int
    views: int = 1
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

    @property
    def has_color(self) -> bool:
        """Whether any view may change colours."""
        return self.jitter > 0 or self.grayscale > 0


class ViewParams(NamedTuple):
    """One view's parameters. The crop is in whole source pixels, so that it can be cut by slicing."""

    left: int
    top: int
    width: int
    height: int
    flip: bool
    angle: float  # degrees, counter-clockwise as seen
    zoom: float
    order: int  # into ORDERS
    brightness: float
    contrast: float
    saturation: float
    hue: float  # of a full turn
    gray: bool
    sigma: float  # pixels of the result; 0 without blur

    @property
    def has_color(self) -> bool:
        """Whether any colour operation changes this view."""
        return self.gray or self[8:12] != (1.0, 1.0, 1.0, 0.0)


_COMMON = ("crop_scale", "crop_aspect", "flip", "rotation", "scale", "quick")
OPTIONS = {  # what each view may be told; anything else is refused, never ignored
    "simclr": (*_COMMON, "strength", "grayscale", "blur", "exact"),
    "mae": _COMMON,
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
    "eval": ("crop_pct", "quick"),  # it decodes whole in any case; a recipe may say so
}


def make_view_spec(name: str, size: int, **options) -> ViewSpec:
    """The law of a named view.

    - `simclr`: two views; crop area (0.08, 1), flip 0.5, jitter with probability 0.8 at `strength` s (0.8 s, 0.8 s, 0.8 s, 0.2 s),
      grayscale 0.2, blur 0.5. s is 1 and blur is on above 32 pixels; up to 32 they are 0.5 and off, as the paper has them for CIFAR.
      Source: Chen et al. 2020, arXiv:2002.05709, App. A and B.9; brightness multiplies, as in version 2 of the authors' code.
    - `mae`: crop area (0.2, 1), flip 0.5. Source: He et al. 2022, arXiv:2111.06377, App. A.1.
    - `train`: crop area (0.08, 1), flip 0.5, all else by option.
    - `eval`: nothing random; short side to size / `crop_pct`, centre crop; an image that fits already is left as it is.

    Args:
        name: one of the above.
        size: side of the result in pixels, at least 1.
        options: fields of `ViewSpec` (and `strength`); None means the view's default.

    Raises:
        UserError: no such view, an option that it does not have, or a value outside its range.
    """
    if name not in OPTIONS:
        raise UserError(f"view {name!r}: there is none; choose from {', '.join(OPTIONS)} or albumentations:<name>")
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in OPTIONS[name]:
            raise UserError(f"view option {key}: view {name!r} does not have it; it has {', '.join(OPTIONS[name])}")
    large = size > 32
    strength = options.pop("strength", 1.0 if large else 0.5)
    if strength < 0:
        raise UserError(f"view option strength: {strength} is negative; give 0 or more")
    base = {
        "simclr": ViewSpec(name, size, 2, (0.08, 1.0), flip=0.5, grayscale=0.2, blur=0.5 if large else 0.0, jitter=0.8),
        "mae": ViewSpec(name, size, 1, (0.2, 1.0), flip=0.5),
        "train": ViewSpec(name, size, 1, (0.08, 1.0), flip=0.5),
        "eval": ViewSpec(name, size, 1, crop_pct=0.875 if size > 64 else 1.0),
    }[name]
    if name == "simclr":
        s = 0.8 * strength
        base = replace(base, brightness=s, contrast=s, saturation=s, hue=min(0.5, 0.2 * strength))
    spec = replace(base, **{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in options.items()})
    if name == "train" and max(spec.brightness, spec.contrast, spec.saturation, spec.hue) > 0:
        spec = replace(spec, jitter=1.0)
    _check(spec)
    return spec


def _check(spec: ViewSpec) -> None:
    def need(good: bool, key: str, mend: str) -> None:
        if not good:
            raise UserError(f"view option {key}: {getattr(spec, key)} is out of range; give {mend}")

    need(spec.size >= 1, "size", "at least 1 pixel")
    for key in ("flip", "grayscale", "blur", "random_erasing"):
        need(0 <= getattr(spec, key) <= 1, key, "a probability")
    for key in ("brightness", "contrast", "saturation", "rotation"):
        need(getattr(spec, key) >= 0, key, "0 or more")
    need(0 <= spec.hue <= 0.5, "hue", "0 to 0.5")
    need(0 < spec.crop_pct <= 1, "crop_pct", "more than 0 and at most 1")
    for key, top in (("crop_scale", 1.0), ("crop_aspect", math.inf), ("scale", math.inf)):
        pair = getattr(spec, key)
        good = pair is None or (len(pair) == 2 and 0 < pair[0] <= pair[1] <= top)
        need(good, key, f"two numbers 0 < low <= high{'' if top == math.inf else f' <= {top:g}'}")


class ViewParamSampler:
    """Draws the parameters of keys: `ViewParamSampler(spec, seed)(epoch, index, copy, view, height, width) -> ViewParams`, a pure function.

    Args:
        spec: the view's law.
        seed: in [0, 2**64).
    """

    def __init__(self, spec: ViewSpec, seed: int):
        self.spec, self.seed = spec, seed
        self.streams = PhiloxStreams(seed, _DOMAIN)
        # read once: 25 look-ups of fields would take a fifth of a draw's time
        factors = [pair for d in (spec.brightness, spec.contrast, spec.saturation) for pair in _range(d)]
        self._numbers = (spec.flip, spec.jitter, spec.hue, spec.grayscale, spec.blur, *factors)

    def __call__(self, epoch: int, index: int, copy: int, view: int, height: int, width: int) -> ViewParams:
        """One view's parameters.

        Args:
            epoch, index, copy: the key; view: in [0, V).
            height: of the source image, pixels; so is width.
        """
        spec, u = self.spec, self.streams.uniforms(epoch, index, copy, view, FIRST)
        flip, jitter, hue_range, grayscale, blur, b_low, b_span, c_low, c_span, s_low, s_span = self._numbers
        left, top, w, h = 0, 0, width, height
        if spec.crop_scale is not None:
            w, h = self._crop_sides(u, height, width)
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
        # tuple's own constructor: a named tuple's takes twice as long
        return tuple.__new__(
            ViewParams,
            (
                left,
                top,
                w,
                h,
                u[2] < flip,
                angle,
                zoom,
                order,
                brightness,
                contrast,
                saturation,
                hue,
                u[11] < grayscale,
                sigma,
            ),
        )

    def _crop_sides(self, u: list[float], height: int, width: int) -> tuple[int, int]:
        """Width and height of a crop that fits into the image; u are the first FIRST numbers of the stream."""
        (low, high), (narrow, wide) = self.spec.crop_scale, self.spec.crop_aspect
        area = height * width
        for slot in range(14, SLOTS, 2):
            if slot == FIRST:
                u = u + self.streams.more(SLOTS - FIRST)
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
    """Lower end and length of U(max(0, 1 - d), 1 + d)."""
    low = 1 - d if d < 1 else 0.0
    return low, 1 + d - low


VIEW_OPTIONS = tuple(dict.fromkeys(key for keys in OPTIONS.values() for key in keys))
