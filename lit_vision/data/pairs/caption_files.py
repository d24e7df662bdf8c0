"""Captions of images from a table (CSV or JSON lines), or from NAME.txt beside NAME.jpg.

A table has the columns `path,caption[,split][,group]`, found by name; an image may have several rows, or a JSON list of
captions in one. A text file has a caption a line. Captions keep their order; the first one stands for the image where
one is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import Folder, Split
from lit_vision.data.holdout import check_groups, folder_groups
from lit_vision.data.label_table import LabeledImages
from lit_vision.data.labeled_folder import LabelOptions, draw_splits, folder_of_listed
from lit_vision.data.open_images import is_packed, open_images
from lit_vision.data.table_rows import (
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    cell_text,
    find_column,
    listed_path,
    read_rows,
    split_role,
)
from lit_vision.errors import UserError
from lit_vision.io.text import is_text

# names of columns and of tables below the root that are taken without being named; metadata is Hugging Face's
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentence", "sentences", "title", "description")
TABLES = tuple(f"{name}.{ending}" for name in ("captions", "metadata") for ending in ("csv", "tsv", "jsonl", "ndjson"))

Captions = dict[str, list[str]]  # {path of an image below the root: its captions, at least one}


@dataclass(frozen=True)
class CaptionOptions:
    """Options of `PairsDataModule` about captions and splits; see there for their meaning."""

    file: str | None = None
    path_column: str | None = None
    caption_column: str | None = None
    split_column: str | None = None
    group_by: str | int | None = None
    fractions: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


def open_pairs(root: str | Path, split_names: Mapping[str, str], options: CaptionOptions) -> tuple[Folder, Captions]:
    """Return the images below a root that have captions, in splits, without labels, and all captions.

    No image stands in two splits, so neither do its captions; with `group_by` that holds for each group.

    Args:
        root: the folder, or shards (with a table).
        split_names: {"train", "val", "test": name of the split}.
        options: where the captions are, and how splits are drawn.

    Raises:
        UserError: no captions are found, one is empty or no UTF-8 text, an image is missing, listed in two splits or
            twice with the same caption, or as `hold_out` and `check_groups`; names the file and the line.
    """
    table = Path(options.file).expanduser() if options.file else find_table(Path(root))
    groups: list[str] | None = None
    if table is None:
        if isinstance(options.group_by, str):
            raise UserError(
                f"data.group_by: {options.group_by}: is a column, and there is no table of captions; name it"
            )
        folder, captions = _from_text_files(root, split_names)
        paths = list(captions)
    else:
        images, texts = read_caption_table(table, options)
        folder = folder_of_listed(root, images, table, split_names)
        folder.label_file = str(table)
        paths, groups = images.paths, images.groups  # the paths are now those below the root
        captions = dict(zip(paths, texts))
    if len(folder.unlabeled):  # images of unlabeled/, which have no text file
        folder.inventory.beside["unlabeled"] = len(folder.unlabeled)
        folder.unlabeled = folder.unlabeled.without(set(folder.unlabeled.paths))
    folder.classes, folder.splits = [], {name: _without_labels(split) for name, split in folder.splits.items()}
    if isinstance(options.group_by, int):
        groups = folder_groups(paths, options.group_by)
    of_group = None if groups is None else dict(zip(paths, groups))
    if of_group is not None:
        check_groups(folder, of_group)
    draw_splits(folder, split_names, LabelOptions(fractions=options.fractions, seed=options.seed), of_group)
    return folder, captions


def find_table(root: Path) -> Path | None:
    """Return the table of captions in a folder, by its usual names; UserError if there are several."""
    found = [root / name for name in TABLES if (root / name).is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{root}: has several tables of captions ({names}); name one with data.captions")
    return found[0] if found else None


def read_caption_table(file: Path, options: CaptionOptions | None = None) -> tuple[LabeledImages, list[list[str]]]:
    """Read the images, splits and groups of a table, and the captions of each image.

    Args:
        file: see `read_rows`.
        options: names of columns; None finds all by their usual names.

    Returns:
        The images, without labels, in the order of their first rows, and the captions of each.

    Raises:
        UserError: see `open_pairs`.
    """
    options = options or CaptionOptions()
    rows = read_rows(file, "data.captions")
    if not rows:
        raise UserError(f"{file}: has no row below its header; give a table with a row a caption")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    path_column = find_column(file, names, options.path_column, PATH_COLUMNS, "path")
    caption_column = find_column(file, names, options.caption_column, CAPTION_COLUMNS, "caption")
    split_column = find_column(file, names, options.split_column, SPLIT_COLUMNS, "split", required=False)
    group_column = options.group_by if isinstance(options.group_by, str) else None
    if group_column:
        find_column(file, names, group_column, (), "group")
    found: dict[str, tuple[int, str, str, dict[str, int]]] = {}  # by path: line, split, group, {caption: line}
    for line, row in rows:
        where = f"{file}, line {line}"
        path = listed_path(cell_text(row.get(path_column or "")), where)
        split = split_role(cell_text(row.get(split_column)), where) if split_column else ""
        group = cell_text(row.get(group_column)) if group_column else ""
        if group_column and not group:
            raise UserError(f"{where}: has no {group_column}, which data.group_by needs; fill it in")
        first, first_split, first_group, captions = found.setdefault(path, (line, split, group, {}))
        if (first_split, first_group) != (split, group):
            raise UserError(f"{where}: {path} is also on line {first}, in another split or group; correct one")
        for caption in _captions_of(row.get(caption_column or ""), where, caption_column or ""):
            if (other := captions.setdefault(caption, line)) != line:
                raise UserError(
                    f"{where}: {path} is also on line {other}, with the same caption; remove one of the two"
                )
    images = list(found.values())
    if split_column and any(split for _, split, _, _ in images):
        if without := [line for line, split, _, _ in images if not split]:
            raise UserError(f"{file}, line {without[0]}: has no {split_column}; write train, val or test")
        splits = [split for _, split, _, _ in images]
    else:
        splits = None
    listed = LabeledImages(
        paths=list(found),
        lines=[line for line, _, _, _ in images],
        labels=[None] * len(images),
        unknown=[[] for _ in images],
        splits=splits,
        groups=[group for _, _, group, _ in images] if group_column else None,
    )
    return listed, [list(captions) for _, _, _, captions in images]


def _captions_of(value: Any, where: str, column: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list, bool)) for item in values):
        raise UserError(f"{where}: its {column} must be a text or a list of texts; correct it")
    captions = [_plain(cell_text(item)) for item in values]
    if not captions or not all(captions):
        raise UserError(f"{where}: has an empty {column}; fill it in or remove it")
    if not all(map(is_text, captions)):
        raise UserError(f"{where}: its {column} holds half a character (a lone surrogate); correct it")
    return captions


def _from_text_files(root: str | Path, split_names: Mapping[str, str]) -> tuple[Folder, Captions]:
    """Return the images of a folder and the captions in the text file beside each."""
    if is_packed(root):
        raise UserError(f"{root}: shards and packs hold no captions; name their table with data.captions")
    folder = open_images(root, *split_names.values())
    paths = [path for split in folder.splits.values() for path in split.paths]
    files = {path: f"{path.rpartition('.')[0]}.txt" for path in paths}
    missing = [path for path in paths if not (folder.root / files[path]).is_file()]
    if missing:
        tables = ", ".join(TABLES[:2] + TABLES[2:3])
        none = len(missing) == len(paths)
        count = "no image has captions" if none else f"{len(missing)} of {len(paths)} images have none"
        raise UserError(
            f"{folder.root}: {count}: "
            f"there is no {files[missing[0]]} beside {missing[0]}; write a caption a line into it"
            + (f", or give a table (data.captions, or one of {tables} in the folder)" if none else "")
        )
    _refuse_shared(folder.root, files)
    folder.inventory.left_out.endings -= Counter({"txt": len(files)})
    return folder, {path: _read_lines(folder.root / file) for path, file in files.items()}


def _refuse_shared(root: Path, files: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for path, file in files.items():
        if (other := first.setdefault(file, path)) != path:
            raise UserError(
                f"{root}: {file} stands beside {other} and {path}; rename one of the images and its captions"
            )


def _read_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; make it readable") from None
    lines = list(dict.fromkeys(_plain(line) for line in text.split("\n") if line.strip()))
    if not lines or any("\0" in line for line in lines):
        raise UserError(f"{file}: has no caption; write one a line, as UTF-8 text")
    return lines


def _plain(text: str) -> str:
    """Return text in one line."""
    return " ".join(text.split())


def _without_labels(split: Split) -> Split:
    return Split(split.paths, np.full(len(split), -1, np.int64), split.sizes)
