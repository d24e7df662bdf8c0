"""Degraded versions of views that only the CPU makes: JPEG artifacts and down-sampling, from the sample's key.

Noise, blur, holes and gray are drawn on the device instead (methods/restoration/degradations.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from lit_vision.data.views.image_size import ImageSize, height_and_width
from lit_vision.data.views.keyed_rng import PhiloxStreams
from lit_vision.data.views.views import resize
from lit_vision.errors import UsageError

_DOMAIN = 0x64656772  # "degr": separates these streams from the views'
FACTORS = (2, 3, 4)
# name: lowest and highest value
OF_VIEWS: Mapping[str, tuple[float, float]] = {"downsample": (2, 4), "jpeg": (1, 100)}


@dataclass(frozen=True)
class Degradation:
    """One setting of a list of degradations.

    Attributes:
        name: of the degradation.
        low, high: its value is drawn uniformly between them for each image; equal for a fixed one.
    """

    name: str
    low: float = 0.0
    high: float = 0.0

    def value(self, uniform: float) -> float:
        """Return the value for a uniform number in [0, 1)."""
        return self.low + uniform * (self.high - self.low)


def parse_degradations(
    settings: Sequence[str], ranges: Mapping[str, tuple[float, float] | None], flag: str
) -> list[Degradation]:
    """Return the degradations that a recipe lists, such as ["gaussian_noise 0 50", "gray"].

    Args:
        settings: each a name, then one number, or two for a range.
        ranges: {name: (lowest, highest) value, None for one without a value}.
        flag: of the recipe, for messages.

    Raises:
        UsageError: an unknown name, or numbers that are missing, too many or out of range.
    """
    found = []
    for setting in settings:
        name, *words = str(setting).split()[:4] or [""]
        if name not in ranges:
            raise UsageError(f"{flag}: {setting!r} is no degradation; choose from {', '.join(ranges)}")
        limits = ranges[name]
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = [float("nan")]
        if limits is None:
            if numbers:
                raise UsageError(f"{flag}: {setting!r}: {name} takes no number; write {name}")
            found.append(Degradation(name))
            continue
        valid = len(numbers) in (1, 2) and all(limits[0] <= n <= limits[1] for n in numbers)
        if not valid or numbers[0] > numbers[-1]:
            raise UsageError(
                f"{flag}: {setting!r}: give {name} one number from {limits[0]:g} to {limits[1]:g}, or two, the lower "
                "one first"
            )
        found.append(Degradation(name, numbers[0], numbers[-1]))
    return found


class DegradedViews:
    """Function that degrades views, in the order of its settings, as a pure function of (seed, key).

    "jpeg Q": encoded by libjpeg-turbo at quality Q, chroma at half the resolution, and decoded. "downsample F": sides
    divided by F = 2, 3 or 4 with Pillow's antialiased bicubic filter.

    Args:
        settings: the recipe's list; see `parse_degradations`.
        seed: in [0, 2**64).
        flag: of the recipe, for messages.

    Attributes:
        factor: that the sides are divided by; 1 without down-sampling.

    Raises:
        UsageError: as `parse_degradations`; a factor that is none of FACTORS, or two of them.
    """

    def __init__(self, settings: Sequence[str], seed: int, flag: str = "data.degraded"):
        self.degradations = parse_degradations(settings, OF_VIEWS, flag)
        factors = [d for d in self.degradations if d.name == "downsample"]
        if len(factors) > 1 or any(d.low != d.high or d.low not in FACTORS for d in factors):
            raise UsageError(f"{flag}: {list(settings)}: give one downsample, by 2, 3 or 4")
        self.factor = int(factors[0].low) if factors else 1
        self.streams = PhiloxStreams(seed, _DOMAIN)

    def factor_of(self, size: ImageSize) -> int:
        """Return the factor that the sides of views are divided by.

        Raises:
            UsageError: it does not divide them.
        """
        if any(side % self.factor for side in height_and_width(size)):
            raise UsageError(f"data.img_size: {size} is no multiple of the factor {self.factor} of data.degraded")
        return self.factor

    def __call__(self, views: np.ndarray, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the degraded views: (V, H, W, 3) uint8 to (V, H / factor, W / factor, 3) uint8."""
        out = []
        for number, view in enumerate(views):
            uniforms = self.streams.uniforms(epoch, index, copy, number, len(self.degradations))
            for degradation, uniform in zip(self.degradations, uniforms):
                if degradation.name == "jpeg":
                    view = jpeg_artifacts(view, round(degradation.value(uniform)))
                else:
                    view = resize(view, view.shape[0] // self.factor, view.shape[1] // self.factor)
            out.append(view)
        return np.stack(out)


def jpeg_artifacts(image: np.ndarray, quality: int) -> np.ndarray:
    """Return an image after JPEG: (H, W, 3) uint8 to the same; quality is libjpeg's, 1 to 100, chroma 4:2:0."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")
    decoded: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
    return decoded
