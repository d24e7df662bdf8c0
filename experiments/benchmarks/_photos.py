"""Photographs for the data benchmark, cut at run time from real ones: never committed, never shown."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(os.environ.get("LIT_VISION_PHOTOS", "/usr/share/wallpapers"))  # Debian: plasma-workspace-wallpapers
QUALITY = 95  # about 0.3 bytes a pixel; ImageNet's files have 0.5 to 0.6
MISSING = f"no photographs (JPEG, 2000 pixels or wider) in {PHOTOS}: apt-get install plasma-workspace-wallpapers, or set LIT_VISION_PHOTOS"


def sources(limit: int = 13) -> list[Image.Image]:
    """The first few photographs in the order of their names, one of each folder."""
    found: dict[Path, Path] = {}
    for path in sorted(PHOTOS.rglob("*.jpg")):
        if not path.is_symlink() and path.stat().st_size > 200_000:
            found.setdefault(path.parent, path)
    images = []
    for path in found.values():
        image = Image.open(path)
        if image.width >= 2000 and len(images) < limit:
            images.append(image.convert("RGB"))
    return images


def cut(photos: list[Image.Image], width: int, height: int, count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of one size, each a window of a photograph at a scale that shows detail as a camera's picture of that size would."""
    rng, made = np.random.default_rng(seed), []
    for i in range(count):
        photo = photos[i % len(photos)]
        least = max(width / photo.width, height / photo.height)
        scale = least + (max(least, min(1.0, 2 * least)) - least) * rng.random()
        w, h = width / scale, height / scale
        left, top = rng.random() * (photo.width - w), rng.random() * (photo.height - h)
        window = photo.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        buffer = io.BytesIO()
        window.save(buffer, "JPEG", quality=QUALITY)
        made.append(buffer.getvalue())
    return made
