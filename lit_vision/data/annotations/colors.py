"""Colors of classes in masks: a file of names and colors, and the change from colors to class numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lit_vision.data.annotations.files import read_lines
from lit_vision.data.annotations.table import AnnotationError
from lit_vision.errors import UserError

_LINE = re.compile(r"^(?P<name>.+?)\s*[\s,;:]\s*(?P<r>\d+)\s*[\s,;]\s*(?P<g>\d+)\s*[\s,;]\s*(?P<b>\d+)\s*[\s,;:]*$")
_HEADERS = re.compile(r"^\W*(name|label|class)\W", re.IGNORECASE)


def read_colors(path: str | Path) -> dict[str, tuple[int, int, int]]:
    """Return the (red, green, blue) of each class, 0 to 255, in the order of the file.

    A line is `name red green blue`, separated by spaces, commas or semicolons; CVAT's labelmap.txt (`name:r,g,b::`) and
    a CSV file with a header are such files too. Lines that begin with # are comments.

    Raises:
        UserError: the file is missing, a line is none of these, or a name or color is listed twice; names the line.
    """
    path = Path(path).expanduser()
    found: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(read_lines(path, "file of colors; check data.colors"), 1):
        match = _LINE.match(line)
        if line.startswith("#") or (not match and number == 1 and _HEADERS.match(line + " ")):
            continue
        color = tuple(int(match[c]) for c in "rgb" if len(match[c]) < 4) if match else ()
        if not match or len(color) != 3 or max(color) > 255:
            raise UserError(f"{path}: {line[:60]!r} is not a name and three numbers from 0 to 255; correct the line")
        name = match["name"]
        if name in found or color in found.values():
            raise UserError(f"{path}: {line[:60]!r} has a name or color of an earlier line; give each class its own")
        found[name] = (color[0], color[1], color[2])
    if not found:
        raise UserError(f"{path}: lists no color; write one line per class: name red green blue")
    return found


def color_numbers(colors: dict[str, tuple[int, int, int]], class_names: list[str], ignored: int) -> dict[int, int]:
    """Return the class number of each color, the color as 65536 r + 256 g + b.

    Args:
        colors: from `read_colors`.
        class_names: K names; colors of other names are not classes and become `ignored`.
        ignored: the number for these.

    Raises:
        UserError: a class has no color.
    """
    if missing := [name for name in class_names if name not in colors]:
        raise UserError(
            f"data.colors: class {missing[0]!r} has no color, the file has {', '.join(colors)}; "
            "add it, or correct data.class_names"
        )
    number = {name: i for i, name in enumerate(class_names)}
    return {(r << 16) + (g << 8) + b: number.get(name, ignored) for name, (r, g, b) in colors.items()}


def numbers_of_colors(pixels: np.ndarray, numbers: dict[int, int], path: Path) -> np.ndarray:
    """Return the class number of each pixel, (H, W) uint8.

    Args:
        pixels: (H, W, 3) uint8.
        numbers: from `color_numbers`.
        path: of the mask, for the message.

    Raises:
        AnnotationError: a color is not among them.
    """
    packed = (pixels.astype(np.int32) << np.array([16, 8, 0])).sum(2)
    known = np.array(sorted(numbers))
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    wrong = known[place] != packed
    if wrong.any():
        value = int(packed[wrong][0])
        raise AnnotationError(
            f"{path}: color {(value >> 16, value >> 8 & 255, value & 255)} at {int(wrong.sum())} pixels is not in "
            "data.colors; add it, or save the mask without smoothing and not as JPEG"
        )
    table = np.array([numbers[value] for value in known.tolist()], np.uint8)
    found: np.ndarray = table[place]
    return found
