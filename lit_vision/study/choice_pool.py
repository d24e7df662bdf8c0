"""Find the images that could be labeled next, and the labels that there are: from a table or from class folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lit_vision.data.find_listed import find_listed
from lit_vision.data.folder import Folder
from lit_vision.data.label_table import read_label_table
from lit_vision.data.labeled_folder import LabelOptions
from lit_vision.data.layout import role_of
from lit_vision.data.open_images import is_packed, open_images
from lit_vision.data.splits import has_label
from lit_vision.errors import UserError
from lit_vision.predict.inputs import find_images

HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class ChoicePool:
    """Images to choose from.

    Attributes:
        folder: that they are in.
        paths: N relative paths, sorted; labels that are added later do not change them, so their features are found.
        labels: (N,) class numbers, -1 without a label; with several labels an image 0 for those that have any.
        classes: names; with several labels an image one name for all.
        texts: label of each image in words, "" without one.
        several: True if images may have several labels.
        notes: sentences about what was left out.
    """

    folder: Folder
    paths: Sequence[str]
    labels: np.ndarray
    classes: list[str]
    texts: list[str]
    several: bool = False
    notes: list[str] = field(default_factory=list)

    def select(self, rows: np.ndarray) -> ChoicePool:
        """Return the pool with only these rows, ascending; the classes stay."""
        paths, texts = ([values[row] for row in rows] for values in (self.paths, self.texts))
        return replace(self, paths=paths, labels=self.labels[rows], texts=texts)


def read_choice_pool(root: str | Path, options: LabelOptions, ignore_folders: bool = False) -> ChoicePool:
    """Return the images of a folder or shards that may be labeled next; no image is opened.

    Images of a validation or test split are left out: what is measured on must not be chosen.

    Args:
        root: folder with its subfolders, or shards.
        options: the table of labels; without one, the names of class folders are labels, and only images that are in
            none (in unlabeled/, or in a flat folder) have no label.
        ignore_folders: without a table, no image has a label.

    Raises:
        UserError: no image, a table that does not fit the images, or a folder that would be misread.
    """
    if options.file is None and not ignore_folders:
        return _from_folders(root)
    if is_packed(root):
        folder = open_images(root)
        held_out = {path for name in HELD_OUT if name in folder.splits for path in folder.splits[name].paths}
        everything = sorted(path for split in (*folder.splits.values(), folder.unlabeled) for path in split.paths)
        notes: list[str] = []
    else:
        if not Path(root).is_dir():
            raise UserError(f"{root}: {'is a file' if Path(root).exists() else 'no such folder'}; name a folder")
        found = find_images([str(root)])
        folder, everything = Folder(Path(root), [], {}), list(found.names)
        notes = [f"Left out: {'; '.join(found.left_out.phrases())}."] if found.left_out.phrases() else []
        held_out = _in_split_folders(everything)
    texts: dict[str, str] = {}
    several = False
    if options.file is not None:
        table = read_label_table(options.file, options.columns)
        several = table.several
        paths = find_listed(Path(root), table, options.file, dict.fromkeys(everything, 0))
        held_out |= {path for path, split in zip(paths, table.splits or ()) if split in HELD_OUT}
        texts = {path: "; ".join(labels) or "none" for path, labels in zip(paths, table.labels) if labels is not None}
    if held_out:
        notes.append(f"{len(held_out)} images to validate or test with are not chosen.")
    kept = [path for path in everything if path not in held_out]
    if not kept:
        raise UserError(f"{root}: all its images are of a validation or test split; there is none to choose")
    names = [texts.get(path, "") for path in kept]
    classes = sorted({name for name in names if name})
    number = {name: 0 if several else i for i, name in enumerate(classes)}
    labels = np.array([number.get(name, -1) for name in names], np.int64)
    return ChoicePool(folder, kept, labels, classes[:1] if several else classes, names, several, notes)


def _from_folders(root: str | Path) -> ChoicePool:
    folder = open_images(root)
    splits = [folder.splits[name] for name in folder.splits if name not in HELD_OUT] + [folder.unlabeled]
    rows = sorted(
        (path, int(label) if known else -1)
        for split in splits
        for path, label, known in zip(split.paths, split.labels, has_label(split.labels))
    )
    notes = [f"Left out: {'; '.join(folder.inventory.phrases())}."] if folder.inventory.phrases() else []
    if held_out := sum(len(folder.splits[name]) for name in HELD_OUT if name in folder.splits):
        notes.append(f"{held_out} images to validate or test with are not chosen.")
    if not rows:
        raise UserError(f"{root}: all its images are of a validation or test split; there is none to choose")
    labels = np.array([label for _, label in rows], np.int64)
    classes = folder.classes
    return ChoicePool(
        folder,
        [path for path, _ in rows],
        labels,
        classes,
        [classes[i] if i >= 0 else "" for i in labels],
        False,
        notes,
    )


def _in_split_folders(paths: Sequence[str]) -> set[str]:
    """Return the images in folders such as val/ and test/ at the top, if a folder such as train/ stands beside them."""
    tops = {path.split("/", 1)[0] for path in paths if "/" in path}
    roles = {top: role_of(top) for top in tops}
    if "train" not in roles.values():
        return set()
    return {path for path in paths if roles.get(path.split("/", 1)[0]) in HELD_OUT}
