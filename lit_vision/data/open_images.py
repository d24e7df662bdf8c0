"""Open a folder of images or a pack file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_vision.data.folder import Folder, scan
from lit_vision.data.pack import Pack
from lit_vision.data.splits import read_list


def is_pack(path: str | Path) -> bool:
    """True for a file that `lit-vision pack` wrote, by the ending of its name."""
    return Path(path).suffix == ".pack" and Path(path).is_file()


def open_images(root: str | Path, train: str = "train", val: str = "val", test: str = "test") -> Folder:
    """Return the splits, classes and paths below a root; no image is decoded.

    Args:
        root: the folder, or a file written by `lit-vision pack` (*.pack).
        train: name of the training split's folder. A pack has the split names that it was written with.
        val: name of the validation split's folder.
        test: name of the test split's folder.

    Raises:
        UserError: as `lit_vision.data.folder.scan` and `lit_vision.data.pack.Pack`.
    """
    root = Path(root)
    return Pack(root) if is_pack(root) else scan(root, train, val, test)


def open_as_trained(root: str | Path, settings: Mapping[str, Any]) -> tuple[Folder, str, tuple[str, ...]]:
    """Open a root with the data settings of a run: names of its splits, and the list of images that it left out.

    Another data set, without the run's training split, has the usual names.

    Args:
        root: see `open_images`.
        settings: arguments of the run's data module; {} for the usual ones.

    Returns:
        The folder, the name of its training split, and those of the splits to measure on that it has, test first.

    Raises:
        UserError: as `open_images`; the list does not exist.
    """
    train, val, test = (str(settings.get(f"{role}_split") or role) for role in ("train", "val", "test"))
    if not is_pack(root) and not (Path(root) / train).is_dir():
        train, val, test = "train", "val", "test"
    folder = open_images(root, train, val, test)
    if train not in folder.splits:  # a pack has its own names
        train, val, test = "train", "val", "test"
    if listed := settings.get("quarantine"):
        folder.exclude(read_list(listed))
    return folder, train, tuple(name for name in (test, val) if name in folder.splits)
