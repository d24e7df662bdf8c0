"""Write images with a few words each as one HTML page that opens offline: no script, no link, images embedded."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2

from lit_vision.data.folder import Folder
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.data.views.pixel_values import PixelFormat
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.processes import cores
from lit_vision.io.text import printable
from lit_vision.results.html_page import html_page

SIDE = 192  # pixels of the longer side of an image on the page

_STYLE = """
* { box-sizing: border-box; }
body { margin: 0; color: #222; background: #fff; font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 18px 50px; }
h1 { font-size: 1.5rem; margin: 0 0 .4em; overflow-wrap: anywhere; }
p { margin: .3em 0; max-width: 60em; overflow-wrap: anywhere; }
ol { list-style: none; margin: 1.4em 0 0; padding: 0; display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
li { border: 1px solid #ddd; padding: 8px; overflow-wrap: anywhere; break-inside: avoid; }
img { display: block; width: 100%; height: 160px; object-fit: contain; background: #f4f4f4; image-rendering: auto; }
b { display: block; margin-top: 6px; font-size: .85rem; }
span { display: block; color: #555; font-size: .82rem; }
"""


@dataclass(frozen=True)
class SheetImage:
    """An image of the page: its path in the folder, and lines of text below it."""

    path: str
    lines: Sequence[str]


def write_contact_sheet(
    out: Path,
    title: str,
    paragraphs: Sequence[str],
    folder: Folder,
    pixel_format: PixelFormat,
    images: Sequence[SheetImage],
) -> None:
    """Write the page; all text, names of files among it, is escaped.

    Args:
        out: the HTML file.
        title: heading.
        paragraphs: below it.
        folder: that the images are in.
        pixel_format: conversion of their values to 8 bits.
        images: numbered from 1, in this order. One that cannot be read any more has no picture.

    Raises:
        UserError: the file cannot be written.
    """

    def item(number: int, image: SheetImage) -> str:
        picture = _picture(folder, image.path, pixel_format)
        lines = "".join(f"<span>{escape(line)}</span>" for line in image.lines)
        return f"<li>{picture}<b>{number}. {escape(image.path)}</b>{lines}</li>"

    with ThreadPoolExecutor(cores()) as threads:
        items = "\n".join(threads.map(item, range(1, len(images) + 1), images))
    text = "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    page = html_page(title, f"<h1>{escape(title)}</h1>\n{text}\n<ol>\n{items}\n</ol>", _STYLE)
    atomic_write(out, lambda file: file.write_text(printable(page), encoding="utf-8"))


def _picture(folder: Folder, path: str, pixel_format: PixelFormat) -> str:
    """Return an <img> with the image as a JPEG in it, or a text if it cannot be read."""
    try:
        pixels = decode(folder.read(path), pixel_format)
    except (ImageDecodeError, OSError, UserError) as error:
        return f"<span>cannot be read: {escape(str(error))}</span>"
    scale = SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    data = base64.b64encode(cv2.imencode(".jpg", pixels[:, :, ::-1])[1].tobytes()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'
