"""Photographs for the data benchmark, cropped at run time from installed ones; they are not committed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(os.environ.get("LIT_VISION_PHOTOS", "/usr/share/wallpapers"))  # Debian: plasma-workspace-wallpapers
QUALITY = 95  # about 0.3 bytes a pixel; ImageNet's files have 0.5 to 0.6
MISSING = (
    f"no photographs (JPEG, 2000 pixels or wider) in {FOLDER}: apt-get install plasma-workspace-wallpapers, "
    "or set LIT_VISION_PHOTOS"
)


def load_photographs(limit: int = 13) -> list[Image.Image]:
    """Return the first photographs in the order of their names, one of each folder, at most `limit`."""
    found: dict[Path, Path] = {}
    for path in sorted(FOLDER.rglob("*.jpg")):
        if not path.is_symlink() and path.stat().st_size > 200_000:
            found.setdefault(path.parent, path)
    images = []
    for path in found.values():
        image = Image.open(path)
        if image.width >= 2000 and len(images) < limit:
            images.append(image.convert("RGB"))
    return images


def crop_jpegs(photographs: list[Image.Image], width: int, height: int, count: int, seed: int = 0) -> list[bytes]:
    """Return `count` JPEGs of one size, each a window of a photograph.

    The window's scale is drawn so that it shows as much detail as a camera's photograph of that size.
    """
    rng, jpegs = np.random.default_rng(seed), []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        least = max(width / photograph.width, height / photograph.height)
        scale = least + (max(least, min(1.0, 2 * least)) - least) * rng.random()
        w, h = width / scale, height / scale
        left, top = rng.random() * (photograph.width - w), rng.random() * (photograph.height - h)
        window = photograph.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        buffer = io.BytesIO()
        window.save(buffer, "JPEG", quality=QUALITY)
        jpegs.append(buffer.getvalue())
    return jpegs
