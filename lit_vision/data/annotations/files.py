"""List and read the files of images, masks and text for the annotation readers."""

from __future__ import annotations

import os
from pathlib import Path

from lit_vision.data.annotations.table import AnnotationError
from lit_vision.data.folder import check_within_root
from lit_vision.data.image_files import image_extensions, is_system_folder
from lit_vision.data.views.decode import ImageDecodeError, read_size
from lit_vision.errors import UserError

IMAGE_SUFFIXES = tuple(f".{ending}" for ending in sorted(image_extensions()))


def image_files(root: Path, folder: str) -> list[str]:
    """Return the images below root/folder, sorted, relative to root; without hidden ones and system folders.

    Raises:
        UserError: the folder is missing, or has no image.
    """
    path = root / folder
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of images; check data.root and data.images")
    found = []
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not (name.startswith(".") or is_system_folder(name))]
        files = (Path(parent, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != ".")
        found += [file for file in files if file.is_file()]
    if not found:
        raise UserError(f"{path}: no image in it; check data.root and data.images")
    return sorted(p.relative_to(root).as_posix() for p in found)


def join_path(folder: str, name: str) -> str:
    """Return folder/name; the folder "." is left out, so that a file has one path."""
    return name if folder in ("", ".") else f"{folder}/{name}"


def read_text(path: Path, description: str) -> str:
    """Return the text of a file, without the byte order mark that Windows' editors put first.

    Args:
        path: the file.
        description: kind of the file ("labels"), and what to do if it is missing, for messages: "list of images; check
            data.split_list".

    Raises:
        UserError: it is missing or cannot be read. AnnotationError: it is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: is not text (byte {error.start} is not UTF-8); replace it") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such {description}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); replace it") from None


def read_lines(path: Path, description: str) -> list[str]:
    """Return the lines of a text file that are not blank, stripped; raises like `read_text`."""
    return [line.strip() for line in read_text(path, description).split("\n") if line.strip()]


def read_split_list(root: Path, file: str) -> list[str]:
    """Return the first words of the lines of a list of images (VOC's ImageSets, Pet's trainval.txt).

    Lines that begin with # are comments.

    Raises:
        UserError: the list is missing or empty. AnnotationError: it is not UTF-8 text.
    """
    path = root / file
    lines = read_lines(path, "list of images; check data.root and data.split_list")
    names = [line.split()[0] for line in lines if not line.startswith("#")]
    if not names:
        raise UserError(f"{path}: the list is empty; list one image per line")
    return names


def with_suffix(root: Path, folder: str, name: str) -> str:
    """Return the image root/folder/name, completed by the image suffix that exists, relative to root.

    Raises:
        UserError: no such image, or the name leads out of the root.
    """
    check_within_root(f"{folder}/{name}")
    if name.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(f"{root}/{folder}/{name}"):
        return join_path(folder, name)  # some lists name the file
    for suffix in (".jpg", ".png", *IMAGE_SUFFIXES):
        if os.path.isfile(f"{root}/{folder}/{name}{suffix}"):  # pathlib's raises for a name that is too long
            return join_path(folder, f"{name}{suffix}")
    raise UserError(
        f"{root / folder / name[:100]}: no image of this name, but the list of the split has it; "
        "bring the image or correct the list"
    )


def size_of(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image, see `decode.read_size`.

    Raises:
        AnnotationError: the file is missing or not an image.
    """
    try:
        return read_size(path)
    except ImageDecodeError as error:
        raise AnnotationError(f"{path}: {error}, or list it in data.quarantine") from None
