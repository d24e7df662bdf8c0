"""Image bytes to RGB pixels: orientation applied, grayscale, palette, 16 bit, CMYK and alpha brought to 8-bit RGB, or a named fault.

The header comes first: a file that claims more pixels than the cap, or more than its bytes can hold, is refused before any pixel is
allocated. JPEG goes through libjpeg-turbo (simplejpeg), which can also decode at 1/2, 1/4 and 1/8 of the size for a fraction of
the time; everything else, and every JPEG that it refuses, goes through Pillow: nothing is called broken before both said so.
"""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from lit_vision.errors import UserError

PIXEL_CAP = 178_956_970  # Pillow's own limit against decompression bombs
SCALES = (8, 4, 2)  # libjpeg-turbo has fast code for these; 6/8, 5/8 and 3/8 are slower than the full size
_ORIENTATION = 0x0112  # EXIF tag
_LARGE = 1 << 24  # pixels (48 MB); above, a file is proved whole before its pixels are allocated
# Pixels that one byte can stand for at most: a progressive JPEG spends a bit on each block of 64, deflate repeats 258 bytes in two bits.
_PIXELS_PER_BYTE = {"JPEG": 512, "PNG": 8 * 1032, "GIF": 4096}


class ImageDecodeError(UserError):
    """A file that is no readable image: empty, truncated, of an unknown format, or with a header over the pixel cap."""

    def __init__(self, message: str):
        if message.startswith(
            "Caught "
        ):  # DataLoader raises it again with the worker's traceback; the last line says it all
            message = message.rstrip().rpartition("\n")[2].partition(": ")[2] or message
        super().__init__(message)


class ImageHeader(NamedTuple):
    """What a file says about itself.

    Attributes:
        width: pixels as shown, so after the orientation; height likewise.
        orientation: EXIF's, 1 to 8; 1 is upright.
        scalable: libjpeg-turbo can decode it, at a scale too.
        image: Pillow's lazy image, or None for a scalable file.
    """

    width: int
    height: int
    orientation: int
    scalable: bool
    image: Image.Image | None


def decode(data: bytes) -> np.ndarray:
    """One image file's bytes to pixels, exact: no scaled decoding.

    Alpha is dropped (as torchvision's ImageFolder does), 16-bit gray keeps its upper 8 bits, the first frame of an animation
    counts, and an EXIF orientation is applied.

    Args:
        data: the whole file.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageDecodeError: the bytes are no whole image.
    """
    return _pixels(data, read_header(data), 1, fast=False)[0]


def decode_scaled(data: bytes, header: ImageHeader, scale: int = 1) -> tuple[np.ndarray, int]:
    """As `decode`, for training: libjpeg's chroma without smoothing (10 % faster), and smaller by a whole factor if asked.

    Args:
        data: the whole file.
        header: from `read_header(data)`.
        scale: 1, or of SCALES for a `scalable` file: each pixel stands for scale x scale ones, made from fewer DCT coefficients.

    Returns:
        (ceil(H / scale), ceil(W / scale), 3) uint8, RGB, contiguous; and the scale, which is 1 where only Pillow could decode it.

    Raises:
        ImageDecodeError: the bytes are no whole image.
    """
    return _pixels(data, header, scale, fast=True)


def read_header(data: bytes) -> ImageHeader:
    """Size, orientation and way of decoding; no pixel is allocated.

    Raises:
        ImageDecodeError: no image, over the pixel cap, or fewer bytes than so many pixels can be packed into.
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


def _pixels(data: bytes, header: ImageHeader, scale: int, fast: bool) -> tuple[np.ndarray, int]:
    if header.scalable:
        try:
            return _apply_orientation(_jpeg(data, header, scale, fast), header.orientation), scale
        except ValueError:
            pass  # Pillow has the last word
    return _guarded(_pillow_pixels, data, header), 1


def _jpeg(data: bytes, header: ImageHeader, scale: int, fast: bool) -> np.ndarray:
    width, height = (header.width, header.height) if header.orientation < 5 else (header.height, header.width)
    if scale == 1 and width * height > _LARGE:  # an eighth takes 1/64 of the memory and shows whether all is there
        simplejpeg.decode_jpeg(data, "GRAY", min_height=-(-height // 8), min_width=-(-width // 8))
    return simplejpeg.decode_jpeg(
        data, "RGB", fastupsample=fast, min_height=-(-height // scale), min_width=-(-width // scale)
    )


def _apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF's eight cases: (H, W, 3) as stored -> as shown, contiguous."""
    if orientation == 1:
        return image
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    turned = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return np.ascontiguousarray(image[:: turned[0], :: turned[1]])


def _orientation(data: bytes) -> int:
    """EXIF's orientation of a JPEG. Only files that have EXIF or XMP data pay for Pillow's parser."""
    end = data.find(b"\xff\xda")
    if data.find(b"Exif\0\0", 0, end) < 0 and data.find(b"Orientation", 0, end) < 0:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _exif(Image.open(io.BytesIO(data)))
    except Exception:  # Pillow sees no JPEG there, libjpeg does
        return 1


def _exif(image: Image.Image) -> int:
    """1 to 8; 1 if the file says nothing or nonsense: damaged EXIF data does not make a picture unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _check_size(kind: str, width: int, height: int, size: int) -> None:
    pixels = width * height
    if pixels > PIXEL_CAP:
        raise ImageDecodeError(
            f"its header claims {width} x {height} pixels, over the cap of {PIXEL_CAP}; replace or remove it"
        )
    if pixels > size * _PIXELS_PER_BYTE.get(kind, PIXEL_CAP):
        raise ImageDecodeError(
            f"truncated or forged: its header claims {width} x {height} pixels, its {size} bytes cannot hold them; replace or remove it"
        )


def _pillow_header(data: bytes) -> ImageHeader:
    image = Image.open(io.BytesIO(data))  # reads the header only
    width, height = image.size
    _check_size(image.format, width, height, len(data))
    if image.format == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise ImageDecodeError("truncated: shorter than its header says; replace or remove it")
    if image.format == "PNG" and width * height > _LARGE:
        Image.open(io.BytesIO(data)).verify()  # checksums of all its parts, without pixels
    # Pillow loads a PNG to look for EXIF data behind its pixels, and here would lose the fault that it meets
    orientation = 1 if image.format == "PNG" and "exif" not in image.info else _exif(image)
    if orientation > 4:
        width, height = height, width
    return ImageHeader(width, height, orientation, False, image)


def _pillow_pixels(data: bytes, header: ImageHeader) -> np.ndarray:
    image = header.image or Image.open(io.BytesIO(data))
    image.load()
    out = np.empty((image.height, image.width, 3), np.uint8)
    strip = max(1, _LARGE // image.width)  # a large image is not held three times
    for top in range(0, image.height, strip):
        bottom = min(top + strip, image.height)
        whole = strip >= image.height
        out[top:bottom] = _rgb(image if whole else image.crop((0, top, image.width, bottom)))
    return _apply_orientation(out, _exif(image))


def _rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) or (H, W, 1) of 8 bits. convert("RGB") would clip deeper modes at 255."""
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8)[:, :, None]
    if image.mode == "I":
        deep = np.asarray(image)
        return (deep >> 8 if deep.max(initial=0) > 255 else deep).clip(0, 255)[:, :, None]
    if image.mode == "F":
        return np.nan_to_num(np.asarray(image)).clip(0, 255).round()[:, :, None]
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _guarded(step, *args):
    """Call one of Pillow's steps; whatever its plugins let through becomes an ImageDecodeError in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns about half the cap, palettes and EXIF data; the outcome says enough
            return step(*args)
    except ImageDecodeError:
        raise
    except UnidentifiedImageError:
        raise ImageDecodeError("no image format that can be read here; replace or remove it") from None
    except Image.DecompressionBombError as error:
        raise ImageDecodeError(f"{error}; replace or remove it") from None
    except MemoryError:
        raise ImageDecodeError("cannot be decoded (not enough memory); replace or remove it") from None
    except Exception as error:  # damaged bytes: struct.error, zlib.error, KeyError and others
        words = " ".join(str(error).split())
        raise ImageDecodeError(f"cannot be decoded ({type(error).__name__}: {words}); replace or remove it") from None
