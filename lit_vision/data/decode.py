"""Image bytes to RGB pixels: orientation applied, grayscale, palette, 16 bit, CMYK and alpha brought to 8-bit RGB, or a named fault."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_vision.errors import UserError

PIXEL_CAP = 178_956_970  # Pillow's own limit against decompression bombs
_ORIENTATION = 0x0112  # EXIF tag


class BadImage(UserError):
    """A file that is no readable image: empty, truncated, of an unknown format, or with a header over the pixel cap."""


def decode(data: bytes) -> np.ndarray:
    """One image file's bytes to pixels.

    JPEG goes through libjpeg-turbo (simplejpeg); everything else, and every JPEG that it refuses, through Pillow: nothing is
    called broken before both said so. Alpha is dropped (as torchvision's ImageFolder does), 16-bit gray keeps its upper 8 bits,
    the first frame of an animation counts, and an EXIF orientation is applied.

    Args:
        data: the whole file.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        BadImage: the bytes are no whole image.
    """
    if not data:
        raise BadImage("the file is empty; replace or remove it")
    try:
        with Image.open(io.BytesIO(data)) as header:  # reads the header only: no pixel is allocated yet
            width, height = header.size
            if width * height > PIXEL_CAP:
                raise BadImage(
                    f"its header claims {width} x {height} pixels, over the cap of {PIXEL_CAP}; replace or remove it"
                )
            orientation = header.getexif().get(_ORIENTATION, 1)
            if header.format == "JPEG" and header.mode in ("RGB", "L") and orientation == 1:
                try:
                    return simplejpeg.decode_jpeg(data, "RGB")
                except ValueError:
                    pass  # Pillow has the last word
            return _with_pillow(header)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("no image format that can be read here; replace or remove it") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{error}; replace or remove it") from None
    except (
        Exception
    ) as error:  # damaged bytes: Pillow's plugins let struct.error, zlib.error, KeyError and others through
        raise BadImage(f"cannot be decoded ({type(error).__name__}: {error}); replace or remove it") from None


def _with_pillow(image: Image.Image) -> np.ndarray:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # convert("RGB") would clip these at 255
        deep = np.asarray(image).astype(np.int64)
        gray = (deep >> 8 if deep.max(initial=0) > 255 or image.mode != "I" else deep).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        gray = np.nan_to_num(np.asarray(image)).clip(0, 255).round().astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))
