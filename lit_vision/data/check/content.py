"""List the images of a folder for its check, also those of a folder that cannot be scanned."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_vision.data.folder import Folder
from lit_vision.data.image_files import LeftOut
from lit_vision.data.labeled_folder import LabelOptions, open_labeled
from lit_vision.data.open_images import open_images
from lit_vision.errors import UserError


@dataclass
class ImageEntry:
    """An image file with its split ("" outside of the splits) and its class ("" without one)."""

    path: str
    split: str
    label: str


@dataclass
class FolderContent:
    """Images of a folder and the scanned folder.

    Attributes:
        items: all images, also those of a folder that was refused.
        folder: without splits if it was refused.
        refused: the reason why the folder cannot be scanned; "" if it can.
    """

    items: list[ImageEntry]
    folder: Folder
    refused: str


def list_items(
    root: Path, names: Sequence[str], quarantine: Set[str] = frozenset(), labels: LabelOptions | None = None
) -> FolderContent:
    """Return all images below a folder, with split and class, and the scanned folder.

    Of a folder that cannot be scanned every image file is listed, so that its files can be checked all the same.

    Args:
        root: the folder, or shards.
        names: of the training, validation and test splits.
        quarantine: paths to leave out.
        labels: a table of labels and groups, or None for labels from folders' names.

    Raises:
        UserError: the folder does not exist.
    """
    try:
        roles = dict(zip(("train", "val", "test"), names))
        folder = open_images(root, *names) if labels is None else open_labeled(root, roles, labels)
    except UserError as error:
        if not root.is_dir():
            raise
        folder = Folder(root, [], {})
        items = [item for item in _walk(root, names, folder.inventory.left_out) if item.path not in quarantine]
        return FolderContent(items, folder, str(error).removeprefix(f"{root}: "))
    folder.exclude(set(quarantine))
    items = []
    for name, split in {**folder.splits, "": folder.unlabeled}.items():
        items += [
            ImageEntry(path, name, _names_of(label, folder.classes)) for path, label in zip(split.paths, split.labels)
        ]
    return FolderContent(items, folder, "")


def _names_of(label: np.ndarray, classes: Sequence[str]) -> str:
    """Return the name of a class, or the names of several labels joined by " + "; "" without one."""
    if label.ndim == 0:
        return classes[int(label)] if label >= 0 else ""
    return " + ".join(name for name, value in zip(classes, label.tolist()) if value == 1)


def _walk(root: Path, names: Sequence[str], left_out: LeftOut) -> list[ImageEntry]:
    items = []
    for parent, folders, files in os.walk(root):  # links to folders are not followed: no loop
        folders[:] = sorted(name for name in folders if left_out.count(name, True))
        for file in sorted(files):
            path = Path(parent, file)
            if left_out.count(file, False) and (path.is_file() or not path.exists()):  # no pipe: opening one would hang
                parts = path.relative_to(root).parts
                split = parts[0] if parts[0] in names and len(parts) > 1 else ""
                label = parts[1] if split and len(parts) > 2 else ""
                items.append(ImageEntry("/".join(parts), split, label))
    return items
