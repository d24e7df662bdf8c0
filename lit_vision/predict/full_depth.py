"""Images for restoration: read at their own depth with alpha, color profile and EXIF data, and written as PNG.

8-bit gray, RGB, palette, CMYK and their alpha; 16-bit gray and RGB. Other depths, and 16-bit images with alpha, are
refused: nothing is quietly cut to 8 bits. A color profile of another color space than the result's is left out, as that
of CMYK is.
"""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import putchunk

from lit_vision.data.views.decode import ImageDecodeError, decode, decode_values, read_header
from lit_vision.data.views.pixel_values import is_inverted
from lit_vision.io.atomic import atomic_path

_ORIENTATION = 0x0112  # EXIF tag
# Of the tags of a TIFF, those that do not describe how its pixels are stored: description, camera, resolution,
# software, date, artist, copyright, and where the EXIF and GPS tags stand.
_TIFF_EXIF = {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825}
_PNG_HEADER_END = 33  # bytes of the signature and the chunk IHDR, behind which a color profile stands


@dataclass
class FullImage:
    """An upright image with what its file says besides colors.

    Attributes:
        pixels: (H, W, 3) RGB or (H, W, 1) gray, uint8 or uint16.
        alpha: (H, W) uint8, or None.
        profile: ICC color profile, b"" without one.
        exif: EXIF data without the orientation, b"" without any.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes = b""
    exif: bytes = b""


def read_full(data: bytes) -> FullImage:
    """Return the image of a file's bytes, turned upright.

    Raises:
        ImageDecodeError: the bytes are no complete image, or one of a depth that is not kept.
    """
    read_header(data)  # refuses forged sizes before anything is decoded
    values = decode_values(data)
    image = Image.open(io.BytesIO(data))
    if values is not None:
        pixels, alpha = _deep_pixels(values, image), None
    else:
        pixels = decode(data)
        if image.mode in ("1", "L", "LA", "La"):
            pixels = pixels[..., :1].copy()
        alpha = _alpha(image, pixels.shape[:2])
    return FullImage(pixels, alpha, *_extras(data, is_gray=pixels.shape[2] == 1))


def _deep_pixels(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return (H, W, 1 or 3) uint16 of an image of more than 8 bits."""
    if values.dtype not in (np.uint16, np.dtype(">u2")):
        raise ImageDecodeError(
            f"has {values.dtype} values; 8-bit and 16-bit images are restored: save it as one of them"
        )
    if image.mode in ("RGBA", "LA", "RGBa") or "transparency" in image.info:
        raise ImageDecodeError("has 16 bits a channel and alpha, which are not kept together; save it without alpha")
    if is_inverted(image):
        raise ImageDecodeError("is a 16-bit TIFF with white as 0; save it with black as 0")
    if image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) != 1:
        raise ImageDecodeError("has 16 bits a channel and a turned EXIF orientation; save it upright")
    pixels = values.astype(np.uint16, copy=False)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None])


def _alpha(image: Image.Image, size: tuple[int, ...]) -> np.ndarray | None:
    """Return the alpha channel, upright, None without one."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return None
    from PIL import ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = ImageOps.exif_transpose(image) or image
    alpha = np.asarray(turned.convert("RGBA"))[..., 3]
    return None if alpha.shape != size or bool((alpha == 255).all()) else np.ascontiguousarray(alpha)


def _extras(data: bytes, is_gray: bool) -> tuple[bytes, bytes]:
    """Return color profile and EXIF data without orientation; what is damaged or does not fit is left out."""
    image = Image.open(io.BytesIO(data))  # another one than the pixels': the EXIF data of this one is changed
    profile: bytes = image.info.get("icc_profile") or b""
    if profile[16:20] != (b"GRAY" if is_gray else b"RGB "):  # the color space that it is for
        profile = b""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = image.getexif()
            for tag in list(exif):
                if tag == _ORIENTATION or (image.format == "TIFF" and tag not in _TIFF_EXIF):
                    del exif[tag]
            return profile, exif.tobytes() if len(exif) else b""
    except Exception:  # of damaged EXIF data, which does not make an image unreadable
        return profile, b""


def write_full(path: Path, image: FullImage) -> None:
    """Write an image as PNG, atomically.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_path(path, fsync=False) as temporary:
        pixels = image.pixels
        if pixels.dtype == np.uint16:
            encoded = cv2.imencode(".png", pixels[..., ::-1] if pixels.shape[2] == 3 else pixels)[1]
            temporary.write_bytes(_with_extras(encoded.tobytes(), image))
            return
        if image.alpha is None:
            picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        else:
            picture = Image.fromarray(np.dstack([pixels, image.alpha]), "RGBA" if pixels.shape[2] == 3 else "LA")
        extras = {"icc_profile": image.profile} if image.profile else {}
        picture.save(temporary, "PNG", compress_level=3, exif=image.exif or None, **extras)


def _with_extras(png: bytes, image: FullImage) -> bytes:
    """Return a PNG file with an image's color profile and EXIF data, which older releases of OpenCV do not write."""
    chunks = io.BytesIO()
    if image.profile:
        putchunk(chunks, b"iCCP", b"ICC Profile\0\0", zlib.compress(image.profile))
    if image.exif:
        putchunk(chunks, b"eXIf", image.exif.removeprefix(b"Exif\0\0"))
    return png[:_PNG_HEADER_END] + chunks.getvalue() + png[_PNG_HEADER_END:]


def enlarged(alpha: np.ndarray, scale: int) -> np.ndarray:
    """Return alpha at the size of a result that is `scale` times larger, bicubic; itself at 1."""
    if scale == 1:
        return alpha
    larger: np.ndarray = cv2.resize(alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return larger
