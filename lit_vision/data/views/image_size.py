"""Size of an image as people write it: the side of a square, or height and width.

Readers take `height_and_width(size)`; files and settings hold `plain_size(size)`, messages `size_text(size)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from lit_vision.errors import UsageError

ImageSize: TypeAlias = int | Sequence[int]  # side of a square, or (height, width); pixels


def height_and_width(size: ImageSize, key: str = "size") -> tuple[int, int]:
    """Return height and width in pixels.

    Args:
        size: side of a square, or two integers.
        key: of the setting, for the error.

    Raises:
        UsageError: it is neither one integer of at least 1 nor two of them.
    """
    try:
        height, width = size if isinstance(size, Sequence) else (size, size)
        if not isinstance(size, str) and min(height, width) >= 1 and (int(height), int(width)) == (height, width):
            return int(height), int(width)
    except (TypeError, ValueError):
        pass
    expected = "at least 1" if isinstance(size, int) else "one number of at least 1, or [height, width]"
    raise UsageError(f"{key}: {size}; give {expected}")


def plain_size(size: ImageSize) -> int | list[int]:
    """Return the side of a square as an integer, another size as [height, width]: the form in files and settings."""
    height, width = height_and_width(size)
    return height if height == width else [height, width]


def size_text(size: ImageSize) -> str:
    """Return "224" for a square and "64x128" for height 64 and width 128, for messages and shapes."""
    height, width = height_and_width(size)
    return str(height) if height == width else f"{height}x{width}"
