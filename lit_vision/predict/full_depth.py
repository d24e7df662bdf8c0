"""Images for restoration: read at their own depth with alpha, color profile and EXIF data, and written as PNG.

8-bit gray, RGB, palette, CMYK and their alpha; 16-bit gray and RGB. Other depths, and 16-bit images with alpha, are
refused: nothing is quietly cut to 8 bits.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lit_vision.data.views.decode import ImageDecodeError, decode, decode_values, read_header
from lit_vision.data.views.pixel_values import is_inverted
from lit_vision.io.atomic import atomic_path

_ORIENTATION = 0x0112  # EXIF tag


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
    header = read_header(data)  # refuses forged sizes before anything is decoded
    values = decode_values(data)
    if values is not None:
        return FullImage(_deep_pixels(values, data))
    pixels = decode(data)
    if header.scalable:  # a JPEG
        image = Image.open(io.BytesIO(data))
        gray = image.mode == "L"
        profile, exif = _extras(image)
        return FullImage(pixels[..., :1].copy() if gray else pixels, None, profile, exif)
    image = Image.open(io.BytesIO(data))
    profile, exif = _extras(image)
    alpha = _alpha(image, pixels.shape[:2])
    gray = image.mode in ("1", "L", "LA", "La")
    return FullImage(pixels[..., :1].copy() if gray else pixels, alpha, profile if image.mode != "CMYK" else b"", exif)


def _deep_pixels(values: np.ndarray, data: bytes) -> np.ndarray:
    """Return (H, W, 1 or 3) uint16 of an image of more than 8 bits."""
    image = Image.open(io.BytesIO(data))
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


def _extras(image: Image.Image) -> tuple[bytes, bytes]:
    """Return color profile and EXIF data without orientation; what is damaged is left out."""
    profile = image.info.get("icc_profile") or b""
    try:
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
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
            temporary.write_bytes(encoded.tobytes())
            return
        if image.alpha is None:
            picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        else:
            picture = Image.fromarray(np.dstack([pixels, image.alpha]), "RGBA" if pixels.shape[2] == 3 else "LA")
        extras = {"icc_profile": image.profile} if image.profile else {}
        picture.save(temporary, "PNG", compress_level=3, exif=image.exif or None, **extras)


def enlarged(alpha: np.ndarray, scale: int) -> np.ndarray:
    """Return alpha at the size of a result that is `scale` times larger, bicubic; itself at 1."""
    if scale == 1:
        return alpha
    larger: np.ndarray = cv2.resize(alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return larger
