"""Files of images and masks, for the readers."""

from __future__ import annotations

import os
from pathlib import Path

from lit_vision.data.annotations.table import AnnotationError
from lit_vision.data.folder import EXTENSIONS, check_within_root
from lit_vision.data.views.decode import PIXEL_CAP
from lit_vision.errors import UserError

IMAGE_SUFFIXES = tuple(f".{ending}" for ending in sorted(EXTENSIONS))


def image_files(root: Path, folder: str) -> list[str]:
    """Images below root/folder, sorted, relative to root.

    Raises:
        UserError: no such folder, or no image in it.
    """
    place = root / folder
    if not place.is_dir():
        raise UserError(f"{place}: no such folder of images; check data.root and data.images")
    found = [
        p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    if not found:
        raise UserError(f"{place}: no image in it; check data.root and data.images")
    return sorted(p.relative_to(root).as_posix() for p in found)


def read_text(path: Path, what: str) -> str:
    """A text file.

    Args:
        path: the file.
        what: what it should be ("labels"), and what to do if it is not there, for messages: "list of images; check data.split_list".

    Raises:
        UserError: it is missing or cannot be read. AnnotationError: it holds no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: holds no text (byte {error.start} is not UTF-8); replace it") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); replace it") from None


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that hold something, stripped; errors as `read_text` has them."""
    return [line.strip() for line in read_text(path, what).splitlines() if line.strip()]


def read_split_list(root: Path, file: str) -> list[str]:
    """First words of the lines of a list of images (VOC's ImageSets, Pet's trainval.txt); lines that begin with # are comments."""
    path = root / file
    lines = read_lines(path, "list of images; check data.root and data.split_list")
    names = [line.split()[0] for line in lines if not line.startswith("#")]
    if not names:
        raise UserError(f"{path}: the list is empty; give one with an image per line")
    return names


def with_suffix(root: Path, folder: str, name: str) -> str:
    """The image root/folder/name with whatever image suffix it has, relative to root."""
    check_within_root(f"{folder}/{name}")
    for suffix in (".jpg", ".png", *IMAGE_SUFFIXES):
        if os.path.isfile(f"{root}/{folder}/{name}{suffix}"):  # pathlib's raises for a name that is too long
            return f"{folder}/{name}{suffix}"
    raise UserError(f"{root / folder / name[:100]}: no image of this name; it is in the list of the split")


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) from the header, as the pixels will be after EXIF's orientation.

    Raises:
        AnnotationError: no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except Exception as error:  # damaged headers raise whatever they like
        raise AnnotationError(
            f"{path}: cannot be read as an image ({type(error).__name__}); replace or remove it"
        ) from None
    if width * height > PIXEL_CAP:
        raise AnnotationError(
            f"{path}: its header claims {width} x {height} pixels, over the cap of {PIXEL_CAP}; remove it"
        )
    return (width, height) if turned else (height, width)
