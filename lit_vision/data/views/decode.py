"""Decode image files to 8-bit RGB pixels, upright, or raise an error that says what is wrong with the file.

Grayscale, palette, CMYK and alpha images are converted, and images of more than 8 bits by the data set's rule
(pixel_values.py, which lists the formats). The header is read first: a file that claims more
pixels than the limit, or more than its bytes can hold, is refused before any pixel is allocated. JPEG is decoded by
libjpeg-turbo (simplejpeg), which can also decode at 1/2, 1/4 and 1/8 of the size in a fraction of the time; everything
else, and every JPEG that it refuses, by Pillow and its plug-ins. So a JPEG is reported as broken only if both refuse
it.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from lit_vision.data.views.pillow_plugins import register_plugins
from lit_vision.data.views.pixel_values import (
    COLOR_MODES,
    PixelFormat,
    ValueRange,
    assumed_range,
    deep_values,
    is_deep,
    is_inverted,
    is_outside,
    is_signed_8_bit,
    lost_levels,
    to_8bit,
    to_gray,
)
from lit_vision.errors import UserError

T = TypeVar("T")
PIXEL_CAP = 178_956_970  # Pillow's limit against decompression bombs
SCALES = (8, 4, 2)  # libjpeg-turbo has fast code for these; 6/8, 5/8 and 3/8 are slower than the full size
_ORIENTATION = 0x0112  # EXIF tag
_LARGE = 1 << 24  # pixels (48 MB); a larger file is checked for completeness before its pixels are allocated
# Most pixels that a byte can encode: a progressive JPEG spends a bit on each block of 64, deflate repeats 258 bytes in
# two bits.
_PIXELS_PER_BYTE = {"JPEG": 512, "PNG": 8 * 1032, "GIF": 4096}


register_plugins()  # at import, so that worker processes have them however they are started


class ImageDecodeError(UserError):
    """Error for a file that is no readable image: empty, truncated, of an unknown format, or over the pixel limit.

    Attributes:
        kind: "forged header", "truncated", "no image" or "unknown range"; "" for another reason.
    """

    def __init__(self, message: str, kind: str = ""):
        # DataLoader raises the error again with the worker's traceback as its message, of which the last line is enough
        if message.startswith("Caught "):
            message = message.rstrip().rpartition("\n")[2].partition(": ")[2] or message
        super().__init__(message)
        self.kind = kind


class ImageHeader(NamedTuple):
    """Size, orientation and decoder of an image file.

    Attributes:
        width: pixels of the upright image.
        height: pixels of the upright image.
        orientation: of EXIF, 1 to 8; 1 is upright.
        scalable: True if libjpeg-turbo can decode the file, at a reduced scale too.
        image: Pillow's lazy image, or None for a scalable file.
    """

    width: int
    height: int
    orientation: int
    scalable: bool
    image: Image.Image | None


def decode(data: bytes, pixel_format: PixelFormat | None = None) -> np.ndarray:
    """Decode an image file at full size.

    Alpha is dropped (as by torchvision's ImageFolder), of an animation or a file of several pages the first is used,
    and an EXIF orientation is applied.

    Args:
        data: bytes of the file.
        pixel_format: conversion of images deeper than 8 bits, and to gray. None: 16-bit images keep their upper 8
            bits and floats are taken as 0 to 255, whatever is left of them.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageDecodeError: the bytes are no complete image, or it is deeper than 8 bits and its values do not belong to
            the range, or it is not known and too few gray levels would be left.
    """
    return _pixels(data, read_header(data), 1, False, pixel_format)[0]


def from_pillow(image: Image.Image, pixel_format: PixelFormat | None = None) -> np.ndarray:
    """Return the pixels of an image that Pillow has opened, by the rules of `decode`.

    A JPEG's pixels can differ by a few levels from those of `decode`, which uses another decoder. Color images of 16
    bits a channel have lost the lower 8 when Pillow opened them.

    Args:
        image: of any mode.
        pixel_format: as for `decode`.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageDecodeError: its file is incomplete, or as `decode`.
    """
    pixels = _guarded(_pillow_pixels, b"", ImageHeader(*image.size, 1, False, image), pixel_format)
    return to_gray(pixels) if pixel_format is not None and pixel_format.gray else pixels


def decode_scaled(
    data: bytes, header: ImageHeader, scale: int = 1, pixel_format: PixelFormat | None = None
) -> tuple[np.ndarray, int]:
    """Decode an image file for training, at a reduced scale if asked.

    Like `decode`, but libjpeg's chroma upsampling is not smoothed (10 % faster).

    Args:
        data: bytes of the file.
        header: from `read_header(data)`.
        scale: 1, or one of SCALES for a `scalable` file: each pixel stands for scale x scale pixels, computed from
            fewer DCT coefficients.
        pixel_format: as for `decode`.

    Returns:
        (ceil(H / scale), ceil(W / scale), 3) uint8, RGB, contiguous; and the scale, which is 1 if only Pillow could
        decode the file.

    Raises:
        ImageDecodeError: as `decode`.
    """
    return _pixels(data, header, scale, True, pixel_format)


def decode_values(data: bytes) -> np.ndarray | None:
    """Return the values of an image deeper than 8 bits as its file has them; None for an 8-bit image.

    Args:
        data: bytes of the file.

    Returns:
        (H, W) or (H, W, 3), integers or floats; not turned upright, but for TIFFs.

    Raises:
        ImageDecodeError: the bytes are no complete image.
    """
    header = read_header(data)
    if header.image is None or not is_deep(header.image):
        return None
    return _guarded(deep_values, header.image, data)


def read_header(data: bytes) -> ImageHeader:
    """Read size, orientation and decoder of an image file; no pixel is allocated.

    Raises:
        ImageDecodeError: the file is no image, has more pixels than the limit, or fewer bytes than they need.
    """
    if not data:
        raise ImageDecodeError("the file is empty; replace or remove it")
    if data[:3] == b"\xff\xd8\xff":  # the usual case: 3 us where Pillow takes 40
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass
        else:
            _check_size("JPEG", width, height, len(data))
            if colors in ("YCbCr", "RGB", "Gray"):
                orientation = _orientation(data)
                if orientation > 4:
                    width, height = height, width
                return ImageHeader(width, height, orientation, True, None)
    return _guarded(_pillow_header, data)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (height, width) of the pixels that `decode` gives for a file, of which only the header is read.

    Raises:
        ImageDecodeError: the file is missing or no image, or has more pixels than the limit.
    """
    try:
        with open(path, "rb") as file:
            return _guarded(_size_of, file.read(4), file)
    except OSError as error:
        raise ImageDecodeError(f"{error.strerror}; bring or replace it") from None


def _pixels(
    data: bytes, header: ImageHeader, scale: int, fast: bool, pixel_format: PixelFormat | None
) -> tuple[np.ndarray, int]:
    pixels: np.ndarray | None = None
    if header.scalable:
        with contextlib.suppress(ValueError):  # try Pillow before the file is called broken
            pixels = _apply_orientation(_jpeg(data, header, scale, fast), header.orientation)
    if pixels is None:
        pixels, scale = _guarded(_pillow_pixels, data, header, pixel_format), 1
    return (to_gray(pixels) if pixel_format is not None and pixel_format.gray else pixels), scale


def _jpeg(data: bytes, header: ImageHeader, scale: int, fast: bool) -> np.ndarray:
    width, height = (header.width, header.height) if header.orientation < 5 else (header.height, header.width)
    if scale == 1 and width * height > _LARGE:  # at 1/8 it takes 1/64 of the memory and fails if a part is missing
        simplejpeg.decode_jpeg(data, "GRAY", min_height=-(-height // 8), min_width=-(-width // 8))
    pixels: np.ndarray = simplejpeg.decode_jpeg(
        data, "RGB", fastupsample=fast, min_height=-(-height // scale), min_width=-(-width // scale)
    )
    return pixels


def _apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation: (H, W, 3) as stored -> upright, contiguous."""
    if orientation == 1:
        return image
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    steps = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return np.ascontiguousarray(image[:: steps[0], :: steps[1]])


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG. Pillow's slow parser runs only on files with EXIF or XMP data."""
    end = data.find(b"\xff\xda")
    if data.find(b"Exif\0\0", 0, end) < 0 and data.find(b"Orientation", 0, end) < 0:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _exif(Image.open(io.BytesIO(data)))
    except Exception:  # no JPEG for Pillow, although it is one for libjpeg
        return 1


def _exif(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or damaged, which does not make an image unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _check_size(kind: str | None, width: int, height: int, size: int) -> None:
    pixels = width * height
    if pixels > PIXEL_CAP:
        raise ImageDecodeError(
            f"its header claims {width} x {height} pixels, over the limit of {PIXEL_CAP}; replace or remove it",
            "forged header",
        )
    if pixels > size * _PIXELS_PER_BYTE.get(kind or "", PIXEL_CAP):
        raise ImageDecodeError(
            f"truncated or forged: its header claims {width} x {height} pixels, which its {size} bytes cannot hold; "
            "replace or remove it",
            "forged header",
        )


def _pillow_header(data: bytes) -> ImageHeader:
    image = Image.open(io.BytesIO(data))  # reads the header only
    if image.format == "EPS":  # Pillow would hand it to Ghostscript, and PostScript is a program
        raise ImageDecodeError("PostScript is not read; replace or remove it", "no image")
    width, height = image.size
    _check_size(image.format, width, height, len(data))
    if is_signed_8_bit(image):
        raise ImageDecodeError("a TIFF of signed 8-bit values is not supported; save it as unsigned 8-bit or 16-bit")
    if image.format == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise ImageDecodeError("truncated: shorter than its header states; replace or remove it", "truncated")
    if image.format == "PNG" and width * height > _LARGE:
        Image.open(io.BytesIO(data)).verify()  # checksums of all its chunks, without pixels
    return ImageHeader(*_upright(image), False, image)


def _upright(image: Image.Image) -> tuple[int, int, int]:
    """Return width and height of the upright image, and the EXIF orientation; no pixel is decoded."""
    # to find EXIF data behind the pixels Pillow would decode the PNG here, and hide an error that it meets
    orientation = 1 if image.format == "PNG" and "exif" not in image.info else _exif(image)
    width, height = image.size
    if orientation > 4 and image.format != "TIFF":  # of which Pillow gives the size of the upright image
        width, height = height, width
    return width, height, orientation


def _size_of(start: bytes, file: BinaryIO) -> tuple[int, int]:
    """Return (height, width) of the upright image in a file; `start` is for `_guarded`."""
    with Image.open(file) as image:  # refuses more pixels than the limit
        width, height, _ = _upright(image)
    return height, width


def _pillow_pixels(data: bytes, header: ImageHeader, pixel_format: PixelFormat | None) -> np.ndarray:
    image = header.image or Image.open(io.BytesIO(data))
    if is_deep(image) and (data or image.mode not in COLOR_MODES):
        return _deep_pixels(image, data, pixel_format)
    image.load()
    out = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _LARGE // image.width)  # in strips, so that a large image is not in memory three times
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image if rows >= image.height else image.crop((0, top, image.width, bottom))
        out[top:bottom] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return _apply_orientation(out, _exif(image))


def _deep_pixels(image: Image.Image, data: bytes, pixel_format: PixelFormat | None) -> np.ndarray:
    """Return the 8-bit pixels, (H, W, 3), of an image of more bits, which convert("RGB") would clip at 255 or cut."""
    inverted = is_inverted(image)
    values = deep_values(image, data)
    orientation = 1 if image.format == "TIFF" else _exif(image)  # a PNG's may stand behind its pixels
    value_range = None if pixel_format is None else pixel_format.value_range
    pixels = to_8bit(values, value_range or assumed_range(values))
    if pixel_format is not None:
        _check_levels(values, pixels, value_range)
    pixels = 255 - pixels if inverted else pixels
    return _apply_orientation(
        pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2),
        orientation,
    )


def _check_levels(values: np.ndarray, pixels: np.ndarray, value_range: ValueRange | None) -> None:
    """Refuse an image of which too little is left in 8 bits."""
    if value_range is None:
        kept = lost_levels(values, pixels)
        if kept is None:
            return
        reason = f"would keep {kept} of 256 gray levels, since the range of the values is not known here"
    elif is_outside(values, pixels):
        reason = f"have nothing in common with the range of values here, {value_range[0]:g} to {value_range[1]:g}"
    else:
        return
    raise ImageDecodeError(
        f"its values from {np.nanmin(values):g} to {np.nanmax(values):g} {reason}; give those of black and white "
        "(data.range, or --range LOW HIGH)",
        "unknown range",
    )


def _guarded(function: Callable[..., T], *args: Any) -> T:
    """Call a function that uses Pillow, and turn any exception of its plugins into an ImageDecodeError of one line.

    The first argument is the file's content, or the beginning of it.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about half the pixel limit, palettes and EXIF data, none of which matters here
            warnings.simplefilter("ignore")
            return function(*args)
    except ImageDecodeError:
        raise
    except UnidentifiedImageError:
        if args[0][:4] in (b"II*\0", b"MM\0*"):
            raise ImageDecodeError(
                "damaged, or a kind of TIFF that is not supported (16-bit or 64-bit floats, float color, over 4 "
                "bands); save it as 8-bit, 16-bit or 32-bit float gray, or 8-bit or 16-bit RGB"
            ) from None
        raise ImageDecodeError("the image format is unknown; replace or remove it", "no image") from None
    except Image.DecompressionBombError as error:
        raise ImageDecodeError(f"{error}; replace or remove it", "forged header") from None
    except MemoryError:
        raise ImageDecodeError("cannot be decoded (not enough memory); replace or remove it") from None
    except Exception as error:  # damaged bytes: struct.error, zlib.error, KeyError and others
        reason = " ".join(str(error).split())
        kind = "truncated" if "truncated" in reason else ""
        message = f"cannot be decoded ({type(error).__name__}: {reason}); replace or remove it"
        raise ImageDecodeError(message, kind) from None
