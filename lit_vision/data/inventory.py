"""Inventory of a folder: what a scan took as which split, and what it left out, counted by kind."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from lit_vision.data.image_files import LeftOut, has_image_extension, is_system_folder
from lit_vision.io.text import join_names

COUNT_UP_TO = 10_000  # images counted in a folder that is left out


@dataclass
class Inventory:
    """Record of what `lit_vision.data.folder.scan` took and left out.

    Attributes:
        splits: {name of a split: the folder it is read from, relative to the root}; empty if the root is the training
            split, and for shards.
        left_out: files and folders passed over while searching for images.
        beside: {folder beside the splits: number of images in it, at most COUNT_UP_TO}.
        loose: images beside the splits.
        empty: class folders without an image, relative to the root.
        unlisted: images that a table of labels does not list, at most COUNT_UP_TO.
        not_labeled: images of evaluation splits whose label in a table is empty.
    """

    splits: dict[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    beside: dict[str, int] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unlisted: int = 0
    not_labeled: int = 0

    def phrases(self) -> list[str]:
        """Return a phrase for each kind of what was left out, the gravest first."""
        found = []
        if self.beside:
            more = [f"{name}/ ({n}{'+' * (n >= COUNT_UP_TO)} images)" for name, n in self.beside.items()]
            found.append(f"{len(more)} folder{'s' * (len(more) > 1)} beside the splits: {join_names(more)}")
        if self.loose:
            what = f"image{'s' * (len(self.loose) > 1)} beside the splits"
            found.append(f"{len(self.loose)} {what}: {join_names(self.loose)}")
        if self.empty:
            what = "class folder without an image" if len(self.empty) == 1 else "class folders without an image"
            found.append(f"{len(self.empty)} {what}: {join_names(self.empty)}")
        if self.unlisted:
            found.append(f"{self.unlisted}{'+' * (self.unlisted >= COUNT_UP_TO)} images that the table does not list")
        if self.not_labeled:
            found.append(f"{self.not_labeled} to validate or test with without a label")
        return found + self.left_out.phrases()


def count_images(folder: Path) -> int:
    """Return the number of images below a folder, at most COUNT_UP_TO; what cannot be read counts as none."""
    count = 0
    for _, folders, files in os.walk(folder):  # links to folders are not followed: no loop
        folders[:] = [name for name in folders if not name.startswith(".") and not is_system_folder(name)]
        count += sum(has_image_extension(name) and not name.startswith(".") for name in files)
        if count >= COUNT_UP_TO:
            return COUNT_UP_TO
    return count
