"""Rows of a table (CSV, tab-separated text or JSON lines), its columns, and the paths and splits in its cells."""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_vision.data.image_files import has_image_extension
from lit_vision.data.layout import role_of
from lit_vision.errors import UserError
from lit_vision.io.text import is_text

# names of columns that are taken without being named, compared in lower case
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path")
SPLIT_COLUMNS = ("split", "subset", "set", "partition")


def read_rows(path: Path, key: str = "data.label_file") -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, {column: value}) of each row; values of CSV are text.

    Args:
        path: a .csv, .tsv or .txt file whose first line names the columns (comma, semicolon or tab, whichever that line
            has most of), or JSON objects line by line (.jsonl, .ndjson). UTF-8, with or without a byte-order mark.
        key: the setting that names the file, for messages.

    Raises:
        UserError: no such file, another format, or a broken line; it names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}; name a .csv, .tsv or .jsonl file") from None
    except UnicodeDecodeError:
        raise UserError(f"{key}: {path}: is not UTF-8 text; save it as UTF-8") from None
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_json_lines(path, text, '"caption": "a cat"' if "caption" in key else '"label": "cat"')
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise UserError(f"{key}: {path}: name a .csv, .tsv or .jsonl file")
    header = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    names: list[str] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if not names:
                names = [value.strip() for value in values]
                if len(set(names)) < len(names):
                    raise UserError(f"{path}: two columns have the same name; rename one")
            elif len(values) != len(names):
                raise UserError(
                    f"{path}, line {reader.line_num}: has {len(values)} values for {len(names)} columns; correct it"
                )
            else:
                rows.append((reader.line_num, dict(zip(names, values))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is not CSV ({error}); correct it") from None
    return rows


def _read_json_lines(path: Path, text: str, second: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.split("\n"), 1):  # splitlines() also splits at U+2028, which JSON texts hold
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {line}: is not a JSON object such as {{"path": "a.jpg", {second}}}')
        if "\\u" in content and not is_text(json.dumps(row, ensure_ascii=False), allow_bytes=True):
            raise UserError(
                f"{path}, line {line}: holds half a character (\\ud83d without its second half); correct it"
            )
        rows.append((line, row))
    return rows


def find_column(
    path: Path, names: Sequence[str], wanted: str | None, usual: Sequence[str], purpose: str, required: bool = True
) -> str | None:
    """Return the column that was named, or the only one with a usual name.

    Args:
        path: of the table, for the error.
        names: all its columns.
        wanted: name that the user gave; None: look for a usual one.
        usual: usual names in lower case; the first one is taken before the others.
        purpose: path, label, caption, split or group.
        required: False returns None where there is none.

    Raises:
        UserError: there is no such column, or more than one could be meant.
    """
    if wanted is not None:
        if wanted in names:
            return wanted
        raise UserError(f"{path}: has no column {wanted!r}, only {', '.join(names)}; correct the {purpose} column")
    matches = [name for name in names if name.strip().lower() in usual]
    if len(matches) > 1:
        matches = [name for name in matches if name.strip().lower() == usual[0]] or matches
    if len(matches) == 1:
        return matches[0]
    if not matches and not required:
        return None
    if purpose == "path" and (file := next(filter(has_image_extension, names), "")):
        raise UserError(f"{path}: its first line names an image ({file}); add a first line that names the columns")
    has = f"several {purpose} columns ({', '.join(matches)})" if matches else f"no {purpose} column"
    raise UserError(f"{path}: has {has} among {', '.join(names)}; name it with data.{purpose}_column")


def cell_text(value: Any) -> str:
    """Return the text of a cell, "" for nothing and NaN; 3.0 is 3."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def listed_path(path: str, where: str) -> str:
    """Return a path in one spelling, with forward slashes; UserError that begins with `where` if it is none."""
    if not path:
        raise UserError(f"{where}: has no path; fill it in or remove the line")
    if "\0" in path:
        raise UserError(f"{where}: {path!r} is no path; correct it")
    path = path.replace("\\", "/")  # written on Windows: a\b.jpg, or a/b\c.jpg by os.path.join
    return path if "://" in path else posixpath.normpath(path)  # one spelling a file, so that duplicates are seen


def split_role(value: str, where: str) -> str:
    """Return train, val or test for the name of a split, "" for ""; UserError that begins with `where` for another."""
    if not value:
        return ""
    if role := role_of(value):
        return role
    raise UserError(f"{where}: the split {value!r} is not train, val or test; correct it")
