"""Conversion of images deeper than 8 bits (16-bit and 32-bit integers, floats) to 8 bits, by one rule a data set.

The rule is a range of values, `data.range: [low, high]`: low becomes 0, high 255, and what lies outside is clipped.
Values of 8-bit images never change, in the same data set or not. Per format:

    gray, 9 to 16 bits, 32-bit integers, 32-bit floats    mapped by the range
    RGB, RGBA and gray with alpha of 16 bits              likewise (PNG and TIFF); alpha is dropped
    WhiteIsZero (TIFF)                                    mapped, then inverted, so that white is 255 as in 8-bit files
    PGM and PPM, JPEG 2000, AVIF                          Pillow scales them by the depth that the file states
    1-bit, palette, gray with alpha, CMYK, YCbCr, 8-bit   Pillow's RGB; alpha is dropped
    64-bit and 16-bit floats, float color, over 4 bands,
    signed 8-bit                                          refused, as are 12-bit JPEGs

The networks train on 8-bit pixels only; there is no training on float images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from lit_vision.errors import UsageError

ValueRange = tuple[float, float]
MIN_LEVELS = 32  # of 256 gray levels: an image that keeps fewer, and had more, has lost what it shows
FULL_16_BIT = (0.0, 65535.0)
_FULL_8_BIT = (0.0, 255.0)
_INTEGER_RANGES = tuple((0.0, 2.0**bits - 1) for bits in (8, 10, 12, 14, 16))
_FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), _FULL_8_BIT)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
COLOR_MODES = ("RGB", "RGBA", "RGBa", "LA")


class PixelFormat(NamedTuple):
    """Conversion of a file's values to 8-bit pixels: the same for all images of a data set, and stored with a model.

    Attributes:
        value_range: values of deep images (more than 8 bits) that become 0 and 255; an image that lies outside of it is
            refused (`is_outside`). None if it is not known: 16-bit images then keep their upper 8 bits, floats are
            taken as 0 to 255, and an image that keeps too few gray levels so is refused (`lost_levels`).
        gray: color images are converted to gray (all three channels become the luma).
    """

    value_range: ValueRange | None = None
    gray: bool = False


DEFAULT_FORMAT = PixelFormat()


def check_range(value: Any, flag: str = "data.range") -> ValueRange | None:
    """Return a declared range as two floats, None for None.

    Raises:
        UsageError: it is not two finite numbers, the lower one first.
    """
    if value is None:
        return None
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (np.isfinite([low, high]).all() and low < high):
        raise UsageError(f"{flag}: {value!r}; give two numbers, the values of black and of white, such as [0, 4095]")
    return low, high


def is_deep(image: Image.Image) -> bool:
    """True if a file has more than 8 bits a channel that Pillow would cut or clip; reads the header only."""
    if image.mode.startswith("I") or image.mode == "F":
        return True
    if image.mode not in COLOR_MODES:
        return False
    if image.format == "TIFF":
        return max(_tag(image, _BITS_PER_SAMPLE, (8,))) > 8
    return image.format == "PNG" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def deep_values(image: Image.Image, data: bytes) -> np.ndarray:
    """Return the values of a deep image: (H, W), or (H, W, 3) RGB, integers or floats; a TIFF's are upright.

    Args:
        image: of which `is_deep` is true.
        data: bytes of its file.

    Raises:
        Exception: whatever Pillow raises for damaged bytes; ValueError if OpenCV cannot read a color image.
    """
    unsigned_32 = image.format == "TIFF" and image.mode == "I" and _tag(image, _SAMPLE_FORMAT, (1,))[0] == _UNSIGNED
    unsigned_32 = unsigned_32 and max(_tag(image, _BITS_PER_SAMPLE, (8,))) == 32
    image.load()  # finds a truncated file, which OpenCV may not
    if image.mode not in COLOR_MODES:
        values = np.asarray(image)
        return values.view(np.uint32) if unsigned_32 else values
    color = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # turns TIFFs upright, as Pillow
    if color is None or color.ndim != 3 or color.dtype != np.uint16:
        raise ValueError(f"{image.format} of 16 bits a channel in an unsupported layout")
    return np.ascontiguousarray(color[..., 2::-1])


def is_inverted(image: Image.Image) -> bool:
    """True for a deep TIFF in which white is the lowest value; Pillow inverts only 8-bit ones."""
    return image.format == "TIFF" and _tag(image, _PHOTOMETRIC, (1,))[0] == _WHITE_IS_ZERO


def is_signed_8_bit(image: Image.Image) -> bool:
    """True for a TIFF of signed bytes, whose negative values Pillow takes for bright ones."""
    return image.format == "TIFF" and image.mode == "L" and _tag(image, _SAMPLE_FORMAT, (1,))[0] == _SIGNED


def to_8bit(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Map values to 0 to 255, clipped.

    Integers fall into 256 equal bins, so that [0, 65535] keeps the upper 8 bits, [0, 4095] those of 12, and [0, 255]
    changes nothing. Floats are rounded to the nearest of 256 levels, so that [0, 1] is the inverse of a division by
    255. A value that is no number becomes 0.

    Args:
        values: integers or floats, any shape.
        value_range: low and high.

    Returns:
        uint8, of the same shape.
    """
    low, high = value_range
    if values.dtype == np.uint16:  # a table is as fast as a shift of bits
        table = _integers_to_8bit(np.arange(1 << 16), low, high)
        pixels: np.ndarray = table[values]
        return pixels
    if np.issubdtype(values.dtype, np.integer):
        return _integers_to_8bit(values, low, high)
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round().astype(np.uint8)


def _integers_to_8bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if low.is_integer() and high.is_integer():
        bins = (values.astype(np.int64) - int(low)) * 256 // (int(high) - int(low) + 1)
    else:
        bins = np.floor((values - low) * 256 / (high - low))
    pixels: np.ndarray = bins.clip(0, 255).astype(np.uint8)
    return pixels


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Return the luma of RGB pixels, (H, W, 3) uint8, in three equal channels."""
    gray: np.ndarray = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return gray


def assumed_range(values: np.ndarray) -> ValueRange:
    """Return the range for an image of which nothing is known: its format's, not that of its content."""
    if np.issubdtype(values.dtype, np.floating):
        return _FULL_8_BIT
    return FULL_16_BIT if values.dtype == np.uint16 or values.max(initial=0) > 255 else _FULL_8_BIT


def conventional_range(low: float, high: float, integers: bool) -> ValueRange:
    """Return the range that images with values from low to high were probably made for.

    It is the narrowest conventional one (integers: 0 to 255, 1023, 4095, 16383, 65535; floats: 0 to 1, -1 to 1, 0 to
    255) that holds the values, if they span a quarter of it or it is that of 8-bit integers; else low to high.
    """
    for candidate in _INTEGER_RANGES if integers else _FLOAT_RANGES:
        if candidate[0] <= low and high <= candidate[1]:
            if 4 * (high - low) >= candidate[1] - candidate[0] or (integers and candidate == _FULL_8_BIT):
                return candidate
            break
    return (low, high) if high > low else (low, low + 1)


def lost_levels(values: np.ndarray, pixels: np.ndarray) -> int | None:
    """Return the number of gray levels of an image in 8 bits if it has lost too many; None if it has not.

    Args:
        values: as in the file.
        pixels: the same in 8 bits.

    Returns:
        A number below MIN_LEVELS if the file has more levels than that number.
    """
    kept = _count_levels(pixels)
    return kept if kept < MIN_LEVELS and len(np.unique(_finite(values))) > kept else None


def is_outside(values: np.ndarray, pixels: np.ndarray) -> bool:
    """True if a range does not belong to an image: of MIN_LEVELS levels or more at most two are left.

    Floats from 0 to 1 in the range of 12-bit images, for example. A dark image, whose file has few levels too, is none.
    """
    return _count_levels(pixels) <= 2 and len(np.unique(_finite(values))) >= MIN_LEVELS


def _count_levels(pixels: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(pixels.ravel(), minlength=256)))


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)] if np.issubdtype(values.dtype, np.floating) else values


def _tag(image: Image.Image, number: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value if isinstance(value, tuple) else (value,)
