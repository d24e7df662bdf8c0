"""Check one image file: errors, unusual properties, and a 16 x 16 thumbnail for finding copies."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from lit_vision.data.folder import Folder
from lit_vision.data.views.decode import ImageDecodeError, ImageHeader, decode, decode_values, read_header
from lit_vision.data.views.pixel_values import PixelFormat, ValueRange, is_deep, lost_levels, to_8bit

CLIPPED_SHARE = 0.001  # of an image's values
TINY, HUGE = 32, 25_000_000  # pixels of a side; pixels of an image
THUMB = 16  # side of a thumbnail, pixels
_SUFFIXES = {
    "JPEG": {"jpg", "jpeg", "jpe", "jfif", "mpo"}, "MPO": {"mpo", "jpg", "jpeg"}, "PNG": {"png", "apng"},
    "WEBP": {"webp"}, "TIFF": {"tif", "tiff"}, "BMP": {"bmp"}, "DIB": {"dib"}, "GIF": {"gif"},
    "PPM": {"ppm", "pgm", "pbm", "pnm"},
    "JPEG2000": {"jp2", "j2k", "j2c", "jpc", "jpf", "jpx"}, "AVIF": {"avif", "avifs"}, "TGA": {"tga"}, "QOI": {"qoi"},
    "PCX": {"pcx"}, "SGI": {"sgi"}, "SUN": {"ras"}, "DDS": {"dds"}, "HEIF": {"heic", "heif", "hif"}, "JXL": {"jxl"},
}  # fmt: skip


class ImageReport(NamedTuple):
    """Result of checking one file.

    Attributes:
        error: the reason why the file cannot be read; "" if it can.
        kind: kind of the error: empty, forged header, truncated, no image, unreadable; "" without one.
        notes: unusual properties of a readable file: wrong extension, damaged, cmyk, 16-bit (and other deep ones),
            few levels, clipped, grayscale, alpha, exif-rotated, animated, several pages, tiny, huge.
        width, height: pixels after EXIF's orientation; 0 if unknown.
        digest: blake2b of the file's bytes, 16 bytes.
        thumb: the image as 16 x 16 gray bytes; b"" if it cannot be read.
    """

    error: str
    kind: str
    notes: tuple[str, ...]
    width: int
    height: int
    digest: bytes
    thumb: bytes


class ImageCheck:
    """Check images of a folder: `ImageCheck(folder)(path)` returns an ImageReport and raises for no file content.

    Args:
        folder: the scanned folder, shards or a pack.
        value_range: values of images deeper than 8 bits that become 0 and 255; None if no sampled image is deeper.
    """

    def __init__(self, folder: Folder, value_range: ValueRange | None = None):
        self.folder, self.value_range = folder, value_range

    def __call__(self, path: str) -> ImageReport:
        try:
            data = self.folder.read(path)
        except OSError as error:
            return ImageReport(f"{error.strerror}", "unreadable", (), 0, 0, b"", b"")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        width = height = 0
        try:
            header = read_header(data)
            width, height = header.width, header.height
            notes = [*_format_notes(data, header), *_size_notes(width, height)]
            gray, damaged = _gray(data, header, PixelFormat(self.value_range))
            if self.value_range is not None and "16-bit" in notes:
                notes += _range_notes(data, self.value_range)
        except ImageDecodeError as error:
            return ImageReport(str(error), _kind(data, error), (), width, height, digest, b"")
        if damaged:
            notes.append("damaged")
        repacked = self.folder.packed  # lit-vision pack stores PNGs as JPEG and keeps their paths
        if not repacked and path.rpartition(".")[2].lower() not in _SUFFIXES.get(_format(data, header), ()):
            notes.append("wrong extension")
        thumb = cv2.resize(gray, (THUMB, THUMB), interpolation=cv2.INTER_AREA).tobytes()
        return ImageReport("", "", tuple(notes), width, height, digest, thumb)


def _gray(data: bytes, header: ImageHeader, pixel_format: PixelFormat) -> tuple[np.ndarray, bool]:
    """Return (h, w) gray pixels, and True if only the second decoder could read them.

    A large JPEG is decoded at 1/8: all its bytes are read, most of the arithmetic is not done.
    """
    if header.scalable:
        stored = (header.width, header.height) if header.orientation < 5 else (header.height, header.width)
        scale = 8 if min(stored) >= 8 * THUMB else 1
        try:
            small = simplejpeg.decode_jpeg(
                data, "GRAY", min_height=-(-stored[1] // scale), min_width=-(-stored[0] // scale)
            )
            return np.ascontiguousarray(small[..., 0]), False
        except ValueError:
            pass
    return cv2.cvtColor(decode(data, pixel_format), cv2.COLOR_RGB2GRAY), header.scalable


def _range_notes(data: bytes, value_range: ValueRange) -> list[str]:
    """Return what an image deeper than 8 bits loses when it is mapped to 8 bits: few levels, clipped."""
    values = decode_values(data)
    if values is None:
        return []
    outside = np.count_nonzero((values < value_range[0]) | (values > value_range[1]))
    notes = ["clipped"] if outside > CLIPPED_SHARE * values.size else []
    return [*notes, "few levels"] if lost_levels(values, to_8bit(values, value_range)) is not None else notes


def _format(data: bytes, header: ImageHeader) -> str:
    return "JPEG" if header.image is None else header.image.format or ""


def _format_notes(data: bytes, header: ImageHeader) -> list[str]:
    notes = ["exif-rotated"] if header.orientation != 1 else []
    if header.image is None:
        return [*notes, "grayscale"] if simplejpeg.decode_jpeg_header(data)[2] == "Gray" else notes
    image = header.image
    mode = image.mode
    if is_deep(image):
        notes.append("16-bit")
    if mode == "CMYK":
        notes.append("cmyk")
    if mode in ("L", "1", "LA", "F") or mode.startswith("I"):
        notes.append("grayscale")
    if mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        notes.append("alpha")
    if getattr(image, "is_animated", False):
        notes.append("several pages" if image.format == "TIFF" else "animated")
    return notes


def _size_notes(width: int, height: int) -> list[str]:
    return ["tiny"] if min(width, height) < TINY else ["huge"] if width * height > HUGE else []


def _kind(data: bytes, error: ImageDecodeError) -> str:
    if not data:
        return "empty"
    return error.kind or ("truncated" if _is_truncated(data) else "unreadable")


def _is_truncated(data: bytes) -> bool:
    """True if the end of the file is missing, by the end mark of its format."""
    if data[:3] == b"\xff\xd8\xff":
        return b"\xff\xd9" not in data[-64:]
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data[-64:]
    if data[:4] == b"GIF8":
        return data[-1:] != b";"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data)).verify()
    except Exception:
        return True
    return False
