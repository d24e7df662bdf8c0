"""Walk through a folder for its images: by class, through links, and into the folder that a zip file wraps all in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_vision.data.image_files import LeftOut, device_and_inode, list_entries
from lit_vision.data.layout import find_splits, is_unlabeled, role_of
from lit_vision.errors import UserError

FilesByClass = dict[str, list[tuple[str, int]]]  # {class: [(path, bytes)]}
_MOST_WRAPPINGS = 3  # folders around the splits


def enter_wrapping_folder(
    root: Path, names: Sequence[str], left_out: LeftOut
) -> tuple[Path, list[str], dict[str, str], list[str]]:
    """Return the folder that holds the splits, its folders, its splits (see `find_splits`) and its own images.

    It is the root; or, since a zip file often wraps all in a folder, the only folder in the root, and so on, if splits
    are found there. What stands beside the splits or around them is counted in `left_out`.
    """
    here, passed = root, LeftOut()
    at_root: tuple[list[str], list[str]] = [], []
    for _ in range(_MOST_WRAPPINGS + 1):
        entries = [(entry, _is_folder(entry)) for entry in list_entries(here)]
        taken = [(entry.name, folder) for entry, folder in entries if passed.count(entry.name, folder)]
        tops, loose = [name for name, folder in taken if folder], [name for name, folder in taken if not folder]
        if here == root:
            at_root = tops, loose
        if splits := find_splits(here, tops, names):
            left_out.add(passed)
            return here, tops, splits, sorted(loose)
        if loose or len(tops) != 1 or is_unlabeled(tops[0]):
            break
        here = here / tops[0]
    return root, at_root[0], {}, []


def enter_repeated_folder(root: Path, folder: str) -> str:
    """Return the folder of a split, entered once more if it only holds one of the same role: train/train/<class>."""
    entries = [(entry.name, _is_folder(entry)) for entry in list_entries(root / folder)]
    taken = [(name, is_folder) for name, is_folder in entries if LeftOut().count(name, is_folder)]
    if len(taken) == 1 and taken[0][1] and role_of(taken[0][0]) and role_of(taken[0][0]) == role_of(folder):
        return f"{folder}/{taken[0][0]}"
    return folder


def images_by_class(folder: Path, prefix: str, left_out: LeftOut, skip: str = "") -> FilesByClass:
    """Return {class name: [(path, bytes)]} of the folders in a folder; its own images come under the name "".

    Args:
        folder: the folder of the class folders.
        prefix: put before each path.
        left_out: counts what is passed over.
        skip: name of a folder to leave out.

    Raises:
        UserError: as `images_below`.
    """
    parents, found, outside = (device_and_inode(folder),), {}, []
    for entry in list_entries(folder):
        is_folder = _is_folder(entry)
        if (is_folder and entry.name == skip) or not left_out.count(entry.name, is_folder):
            continue
        if is_folder:
            found[entry.name] = list(images_below(entry.path, f"{prefix}{entry.name}/", parents, left_out))
        else:
            outside.append((prefix + entry.name, _size(entry)))
    return {**found, "": outside} if outside else found


def images_below(
    folder: str, prefix: str, parents: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) of all images below a folder, those behind links too.

    Args:
        folder: where to begin.
        prefix: put before each path.
        parents: device and inode of the folders above it.
        left_out: counts what is passed over.

    Raises:
        UserError: a link leads back into a folder above it, or to nothing; a folder may not be read.
    """
    this = device_and_inode(folder)
    if this in parents:
        raise UserError(f"{folder}: links back to a folder that holds it, a loop without end; remove the link")
    for entry in list_entries(folder):
        is_folder = _is_folder(entry)
        if not left_out.count(entry.name, is_folder):
            continue
        if is_folder:
            yield from images_below(entry.path, f"{prefix}{entry.name}/", (*parents, this), left_out)
        else:
            yield prefix + entry.name, _size(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        if entry.name.startswith("."):
            return False
        raise UserError(f"{entry.path}: {error.strerror}; remove or correct the link") from None


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{entry.path}: a link to a missing file; remove the link or restore the file") from None
