"""Labels from a table (CSV or JSON lines) instead of from the folders' names: one label or several an image, splits.

`path,label[,split][,group]`, a row an image, columns found by name. Several labels an image stand either in a column
each (1 applies, 0 does not, empty or -1 unknown), or as a list in the label column (a JSON list, or text with a
separator); an image may then have several rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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

# names that are taken without being named, compared in lower case; those of paths and splits are in table_rows.py
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")
_UNKNOWN = ("", "nan", "none", "null", "-1", "-1.0")  # of a column a label


@dataclass(frozen=True)
class TableColumns:
    """Columns of a label table; None is found by its usual name, or absent.

    Attributes:
        path: the image's path, relative to the root.
        label: the class, or the list of labels.
        labels: names of columns with 0 and 1, one a label; instead of `label`.
        separator: between the labels of one cell of the label column; makes the table one of several labels an image.
        split: train, val or test, or another name of one that `layout.role_of` knows (valid, Training, dev, ...).
        group: what must not stand on both sides of a split, such as the patient.
    """

    path: str | None = None
    label: str | None = None
    labels: Sequence[str] = ()
    separator: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass
class LabeledImages:
    """Rows of a label table, one an image.

    Attributes:
        paths: as listed, with forward slashes and in one spelling ("./a//b.png" is "a/b.png").
        lines: (N) line numbers in the file, the first of each image.
        labels: names of the labels that apply to each image; None for an unlabeled one.
        unknown: names of the labels of which nothing is known, per image.
        several: True if an image may have several labels.
        names: of the labels in the columns' order; empty if they follow from the rows.
        splits: "train", "val" or "test" of each image, or None without such a column.
        groups: of each image, or None.
    """

    paths: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    labels: list[list[str] | None] = field(default_factory=list)
    unknown: list[list[str]] = field(default_factory=list)
    several: bool = False
    names: list[str] = field(default_factory=list)
    splits: list[str] | None = None
    groups: list[str] | None = None


def read_label_table(file: str | Path, columns: TableColumns | None = None) -> LabeledImages:
    """Read the labels, splits and groups of a table's images.

    Args:
        file: see `read_rows`.
        columns: their names; None finds all by their usual names.

    Raises:
        UserError: no such file, another format, a missing column or value, an unknown split, numbers to predict instead
            of classes, or an image with two different labels; it names the file and the line.
    """
    path, columns = Path(file).expanduser(), columns or TableColumns()
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path}: has no row below its header; give a table with a row an image")
    found_columns = _find_columns(path, list(dict.fromkeys(name for _, row in rows for name in row)), columns)
    several = bool(columns.labels or columns.separator) or any(
        isinstance(row.get(found_columns.label or ""), list) for _, row in rows
    )
    images: dict[str, _Image] = {}
    for line, row in rows:
        image = _parse(row, found_columns, several, line, f"{path}, line {line}")
        _add(images, image, several and not columns.labels, path)
    listed = list(images.values())
    if any(image.split for image in listed) and (without := [i.line for i in listed if not i.split]):
        raise UserError(f"{path}, line {without[0]}: has no {found_columns.split}; write train, val or test")
    if not several:
        _refuse_numbers(path, [image.labels[0] for image in listed if image.labels])
        _refuse_lists(path, [image.labels[0] for image in listed if image.labels])
    return LabeledImages(
        paths=[image.path for image in listed],
        lines=[image.line for image in listed],
        labels=[image.labels for image in listed],
        unknown=[image.unknown for image in listed],
        several=several,
        names=list(columns.labels),
        splits=[image.split for image in listed] if listed[0].split else None,
        groups=[image.group for image in listed] if found_columns.group else None,
    )


@dataclass
class _Image:
    path: str
    line: int
    labels: list[str] | None
    unknown: list[str]
    split: str
    group: str


def _find_columns(path: Path, names: Sequence[str], columns: TableColumns) -> TableColumns:
    """Return the columns with their names in the file."""
    for name in columns.labels:
        find_column(path, names, name, (), "label")
    return replace(
        columns,
        path=find_column(path, names, columns.path, PATH_COLUMNS, "path"),
        label=None if columns.labels else find_column(path, names, columns.label, LABEL_COLUMNS, "label"),
        split=find_column(path, names, columns.split, SPLIT_COLUMNS, "split", required=False),
        group=columns.group and find_column(path, names, columns.group, (), "group"),
    )


def _parse(row: Mapping[str, Any], columns: TableColumns, several: bool, line: int, where: str) -> _Image:
    labels: list[str] | None
    if columns.label is None:
        labels, unknown = _from_columns(row, columns.labels, where)
    else:
        labels, unknown = _from_cell(row.get(columns.label), columns.separator, several, where), []
    group = cell_text(row.get(columns.group)) if columns.group else ""
    if columns.group and not group:
        raise UserError(f"{where}: has no {columns.group}, which data.group_by needs; fill it in")
    path = listed_path(cell_text(row.get(columns.path or "")), where)
    split = split_role(cell_text(row.get(columns.split)), where) if columns.split else ""
    return _Image(path, line, labels, unknown, split, group)


def _add(images: dict[str, _Image], image: _Image, joins_labels: bool, file: Path) -> None:
    """Add an image, or its labels to those of an earlier row."""
    first = images.setdefault(image.path, image)
    if first is image:
        return
    where = f"{file}, line {image.line}: {image.path} is also on line {first.line}"
    if (first.split, first.group) != (image.split, image.group):
        raise UserError(f"{where}, in another split or group")
    if joins_labels:
        if image.labels is not None:
            first.labels = list(dict.fromkeys([*(first.labels or []), *image.labels]))
    elif (first.labels, first.unknown) != (image.labels, image.unknown):
        raise UserError(
            f"{where}, with another label; remove one, or set data.label_separator if an image may have several"
        )


def _from_columns(row: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[list[str], list[str]]:
    applies, unknown = [], []
    for name in names:
        value = cell_text(row.get(name)).lower()
        if value in ("1", "1.0", "true", "yes"):  # pandas writes 1.0 where a column has gaps
            applies.append(name)
        elif value in _UNKNOWN:
            unknown.append(name)
        elif value not in ("0", "0.0", "false", "no"):
            raise UserError(f"{where}: {name} is {value!r}; write 1, 0, or nothing where it is unknown")
    return applies, unknown


def _from_cell(value: Any, separator: str | None, several: bool, where: str) -> list[str] | None:
    """Return the labels of a cell, None if it is empty."""
    if isinstance(value, list):
        if not all(isinstance(item, (str, int)) for item in value):
            raise UserError(f"{where}: its labels must be a list of names; correct it")
        return list(dict.fromkeys(cell_text(item) for item in value))
    if isinstance(value, (dict, bool)):
        raise UserError(f"{where}: its label {value!r} must be a name or a list of names")
    text = cell_text(value)
    if not text or text.lower() == "nan":  # as pandas writes what is missing
        return None
    if several and separator:
        return list(dict.fromkeys(part.strip() for part in text.split(separator) if part.strip()))
    return [text]


def _refuse_lists(path: Path, labels: Sequence[str]) -> None:
    """Refuse a label that lists others, as one class beside them: a|b where a and b are labels too."""
    names = set(labels)
    for text in sorted(names):
        for separator in "|;,/+":
            parts = [part.strip() for part in text.split(separator)]
            if len(parts) > 1 and names.issuperset(parts):
                raise UserError(
                    f"{path}: the label {text!r} lists the labels {' and '.join(parts)}; set data.label_separator: "
                    f"{separator!r} if an image may have several, or rename it"
                )


def _refuse_numbers(path: Path, labels: Sequence[str]) -> None:
    """Refuse what is no class: decimal numbers, or a different number for almost every image."""

    def number(text: str) -> float | None:
        try:
            return float(text.replace(",", "."))  # 0,5 where a comma marks decimals
        except ValueError:
            return None

    distinct = sorted(set(labels))
    numbers = {text: value for text in distinct if (value := number(text)) is not None}
    if not labels or len(numbers) < len(distinct):
        return
    decimal = next((text for text, value in numbers.items() if not value.is_integer()), None)
    if decimal is not None:
        raise UserError(
            f"{path}: its labels are decimal numbers such as {decimal}, a value to predict (regression), which this "
            "version cannot train; give classes, for instance ranges of the value (or data.label_separator, if a cell "
            "lists several labels)"
        )
    spelled: dict[float, str] = {}
    for text, value in numbers.items():
        other = spelled.setdefault(value, text)
        if other != text and "0" in (other[-1], text[-1]) and {".", ","} & {*other, *text}:
            raise UserError(f"{path}: its labels {other} and {text} are one number; write it in one way")
    if len(distinct) > max(20, len(labels) // 2):
        raise UserError(
            f"{path}: its labels are {len(distinct)} different numbers for {len(labels)} images, so no classes "
            "(an id, or a value to predict?); name the right column with data.label_column"
        )
