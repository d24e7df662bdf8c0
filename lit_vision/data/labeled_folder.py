"""Open images with labels from folders' names or from a table, and draw splits that are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lit_vision.data.find_listed import file_sizes, find_listed
from lit_vision.data.folder import Folder, Paths, Split
from lit_vision.data.holdout import check_groups, folder_groups, hold_out, leave_out_unlabeled
from lit_vision.data.inventory import count_images
from lit_vision.data.label_table import LabeledImages, TableColumns, read_label_table
from lit_vision.data.open_images import is_packed, open_images, open_packed
from lit_vision.errors import UsageError, UserError


@dataclass(frozen=True)
class LabelOptions:
    """Options of a data module about labels and splits; see `ImageFolderDataModule` for their meaning.

    Attributes:
        file: the label table, or None for labels from folders' names.
        columns: of the table.
        group_by: a column of the table, the level of a folder, or None.
        fractions: {"val", "test": share of the training images that becomes this split, 0 for none}.
        seed: of that choice.
    """

    file: str | None = None
    columns: TableColumns = field(default_factory=TableColumns)
    group_by: str | int | None = None
    fractions: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for role, fraction in self.fractions.items():
            if not 0 <= fraction < 1:
                raise UsageError(f"data.{role}_fraction: {fraction}; give 0 or a share below 1")
        if self.columns.label and self.columns.labels:
            raise UsageError("data.label_column, data.label_columns: set one of them")
        if self.file is None and (self.columns != TableColumns() or isinstance(self.group_by, str)):
            raise UsageError("data.group_by and the columns' names: belong to data.label_file; set it too")

    @property
    def given(self) -> bool:
        """True if labels, groups or splits are not those of the folders' names alone."""
        return self.file is not None or self.group_by is not None or any(self.fractions.values())


def label_options(
    file: str | Path | None = None,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    label_columns: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    split_column: str | None = None,
    group_by: str | int | None = None,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> LabelOptions:
    """Return options from their names in recipes and commands; a list, and the level of a folder, may be text.

    Args:
        file: the label table.
        path_column, label_column, split_column: its columns, if they have unusual names.
        label_columns: columns of 1 and 0 for several labels an image; as text separated by commas.
        label_separator: between several labels in one cell.
        group_by: a column, or the level of a folder, as text too.
        fractions: see `LabelOptions`.
        seed: likewise.

    Raises:
        UsageError: values that cannot work.
    """
    names = label_columns.split(",") if isinstance(label_columns, str) else label_columns or ()
    columns = TableColumns(path_column, label_column, tuple(names), label_separator, split_column)
    if isinstance(group_by, str) and group_by.lstrip("-").isdigit():
        group_by = int(group_by)
    return LabelOptions(None if file is None else str(file), columns, group_by, fractions or {}, seed)


def open_labeled(
    root: str | Path, split_names: Mapping[str, str], options: LabelOptions, cache_gb: float | None = None
) -> Folder:
    """Return the splits, classes and labels below a root, from folders' names or from a table.

    Args:
        root: as `open_images`.
        split_names: {"train", "val", "test": name of the split}.
        options: of labels, groups and splits.
        cache_gb: as for `open_images`.

    Raises:
        UserError: as `open_images`, `read_label_table`, `folder_of_table`, `check_groups` and `hold_out`.
    """
    listed = None
    if options.file is None:
        folder = open_images(root, *split_names.values(), cache_gb=cache_gb)
        paths = [path for split in folder.splits.values() for path in split.paths]
    else:
        by_column = options.group_by if isinstance(options.group_by, str) else None
        listed = read_label_table(options.file, replace(options.columns, group=by_column))
        folder = folder_of_listed(root, listed, options.file, split_names, cache_gb)
        paths, folder.label_file = listed.paths, options.file
    groups = folder.groups  # that shards were written with
    if isinstance(options.group_by, int):
        groups = dict(zip(paths, folder_groups(paths, options.group_by)))
    elif listed is not None and listed.groups is not None:
        groups = dict(zip(listed.paths, listed.groups))
    if groups is not None:
        check_groups(folder, groups)
        folder.groups = groups
    draw_splits(folder, split_names, options, groups)
    leave_out_unlabeled(folder, split_names["train"])
    return folder


def folder_of_listed(
    root: str | Path,
    listed: LabeledImages,
    file: str | Path,
    split_names: Mapping[str, str],
    cache_gb: float | None = None,
) -> Folder:
    """Return the images that a table lists as a `Folder`, with the count of those that it does not list.

    Args:
        root: the folder, or shards.
        listed: images of the table; their paths become those below the root.
        file: the table, for errors.
        split_names: {"train", "val", "test": name of the split}.
        cache_gb: as for `open_images`.

    Raises:
        UserError: as `folder_of_table`, or there is no such folder.
    """
    if is_packed(root):
        packed = open_packed(root, cache_gb)
        splits = (*packed.splits.values(), packed.unlabeled)
        sizes = {path: size for split in splits for path, size in zip(split.paths, split.sizes.tolist())}
        table = folder_of_table(root, listed, file, split_names, sizes)
        packed.classes, packed.splits, packed.unlabeled = table.classes, table.splits, table.unlabeled
        return packed
    source = Path(root)
    if not source.is_dir():
        raise UserError(f"{root}: no such folder; check data.root")
    folder = folder_of_table(source, listed, file, split_names, file_sizes(source, listed.paths))
    folder.inventory.unlisted = max(0, count_images(source) - folder.count())
    return folder


def draw_splits(
    folder: Folder, split_names: Mapping[str, str], options: LabelOptions, groups: Mapping[str, str] | None = None
) -> None:
    """Move the shares of the training images that `options.fractions` names into new splits.

    Args:
        folder: is changed.
        split_names: {"train", "val", "test": name of the split}.
        options: its fractions and seed are used.
        groups: of each path, or None; whole groups move.

    Raises:
        UserError: as `hold_out`.
    """
    fractions = {split_names[role]: fraction for role, fraction in options.fractions.items() if fraction}
    if fractions:
        hold_out(folder, split_names["train"], fractions, options.seed, groups)


def folder_of_table(
    root: str | Path, images: LabeledImages, file: str | Path, split_names: Mapping[str, str], sizes: Mapping[str, int]
) -> Folder:
    """Return the splits, classes and labels of a table's images as a `Folder`.

    Args:
        root: what the paths are relative to.
        images: from `read_label_table`; its paths become those below the root, see `find_listed`.
        file: the table, for errors.
        split_names: {"train", "val", "test": name of the split}; without a split column all images are of the first.
        sizes: bytes of each image below the root by path.

    Returns:
        The folder. With several labels an image the labels of a split are (N, K) float32: 1 applies, 0 does not, NaN
        unknown.

    Raises:
        UserError: an image is missing, is named twice, or has a label that no training image has.
    """
    root = Path(root)
    images.paths = paths = find_listed(root, images, file, sizes)
    roles = images.splits or ["train"] * len(paths)
    seen: dict[str, set[str]] = {role: set() for role in roles}
    for role, labels_of_image in zip(roles, images.labels):
        seen[role].update(labels_of_image or ())
    everything: set[str] = set().union(*seen.values())
    classes = images.names or _sorted_names(seen.get("train") or everything)
    for role, names in seen.items():
        if unknown := _sorted_names(names - set(classes)):
            raise UserError(
                f"{file}: the {role} images have the label {unknown[0]}, which no training image has; "
                "correct the labels or the splits"
            )
    number = {name: i for i, name in enumerate(classes)}
    splits = {}
    for role in seen:
        rows = sorted((i for i in range(len(paths)) if roles[i] == role), key=paths.__getitem__)
        if images.several:
            labels: np.ndarray = np.zeros((len(rows), len(classes)), np.float32)
            for out, i in zip(labels, rows):
                out[[number[name] for name in images.labels[i] or ()]] = 1
                out[[number[name] for name in images.unknown[i]]] = np.nan
                if images.labels[i] is None:
                    out[:] = np.nan
        else:
            labels = np.array([number[own[0]] if (own := images.labels[i]) else -1 for i in rows], np.int64)
        kept = [paths[i] for i in rows]
        splits[split_names[role]] = Split(Paths(kept), labels, np.array([sizes[path] for path in kept], np.int64))
    return Folder(root, classes, splits)


def _sorted_names(names: set[str]) -> list[str]:
    """Sort names as text, or as numbers if all are integers."""
    if all(name.isascii() and name.lstrip("-").isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
