"""Open images with the data settings that a run was trained with, for commands after training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_vision.data.folder import Folder
from lit_vision.data.labeled_folder import label_options, open_labeled
from lit_vision.data.open_images import is_packed, open_images
from lit_vision.data.splits import read_list

_LABEL_SETTINGS = ("path_column", "label_column", "label_columns", "label_separator", "split_column", "group_by")


def open_as_trained(root: str | Path, settings: Mapping[str, Any]) -> tuple[Folder, str, tuple[str, ...]]:
    """Open a root with a run's split names and the list of images that it left out.

    The run's own root also has its label table, its groups and the splits that it drew, so that no image that was
    trained on is measured. Another data set, without the run's training split, has the usual names.

    Args:
        root: see `open_images`.
        settings: arguments of the run's ImageFolderDataModule; {} for the usual ones.

    Returns:
        The folder, the name of its training split, and those of the splits to measure on that it has, test first.

    Raises:
        UserError: as `open_labeled`; the list does not exist.
    """
    train, val, test = (str(settings.get(f"{role}_split") or role) for role in ("train", "val", "test"))
    own = bool(settings.get("root")) and os.path.realpath(root) == os.path.realpath(settings["root"])
    if own:
        named = {name: settings.get(name) for name in _LABEL_SETTINGS}
        fractions = {role: float(settings.get(f"{role}_fraction") or 0) for role in ("val", "test")}
        seed = int(settings.get("label_seed") or 0)
        options = label_options(settings.get("label_file"), **named, fractions=fractions, seed=seed)
        folder = open_labeled(root, {"train": train, "val": val, "test": test}, options)
    else:
        if not is_packed(root) and not (Path(root) / train).is_dir():
            train, val, test = "train", "val", "test"
        folder = open_images(root, train, val, test)
    if train not in folder.splits:  # shards and packs have their own names
        train, val, test = "train", "val", "test"
    if listed := settings.get("quarantine"):
        folder.exclude(read_list(listed))
    return folder, train, tuple(name for name in (test, val) if name in folder.splits)
