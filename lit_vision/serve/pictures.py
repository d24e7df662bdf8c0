"""Images as a page gets them: encoded anew from pixels, never the bytes of a file."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np

from lit_vision.data.views.decode import ImageDecodeError, decode

PREVIEW_SIDE = 1024  # pixels
THUMBNAIL_SIDE = 256


def png(pixels: np.ndarray) -> bytes:
    """Return a PNG of (H, W, 3) RGB or (H, W) pixels, 8 or 16 bit."""
    data: bytes = cv2.imencode(".png", pixels[:, :, ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()
    return data


def jpeg(pixels: np.ndarray, side: int) -> bytes:
    """Return a JPEG of (H, W, 3) uint8 RGB pixels, made smaller where a side is longer than `side`."""
    scale = side / max(pixels.shape[:2])
    if scale < 1:
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    data: bytes = cv2.imencode(".jpg", pixels[:, :, ::-1])[1].tobytes()
    return data


def to_base64(data: bytes) -> str:
    """Return bytes as text for JSON."""
    return base64.b64encode(data).decode()


def thumbnail(root: Path, name: str) -> bytes | None:
    """Return a small JPEG of an image below a folder; None if there is no readable image of this name below it.

    Args:
        root: the folder. No name and no link leads out of it.
        name: relative to the folder.
    """
    try:
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root.resolve(strict=True)) or not path.is_file():
            return None
        return jpeg(decode(path.read_bytes()), THUMBNAIL_SIDE)
    except (OSError, ValueError, RuntimeError, ImageDecodeError):  # a loop of links, a zero byte in the name, no image
        return None
