"""Rows of a table: CSV, tab-separated text or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, {column: value}) of each row; values of CSV are text.

    Args:
        path: a .csv, .tsv or .txt file whose first line names the columns (comma, semicolon or tab, whichever that line
            has most of), or JSON objects line by line (.jsonl, .ndjson). UTF-8, with or without a byte-order mark.

    Raises:
        UserError: no such file, another format, or a broken line; it names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"data.label_file: {path}: {error.strerror}; name a .csv, .tsv or .jsonl file") from None
    except UnicodeDecodeError:
        raise UserError(f"data.label_file: {path}: is not UTF-8 text; save it as UTF-8") from None
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_json_lines(path, text)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise UserError(f"data.label_file: {path}: name a .csv, .tsv or .jsonl file")
    header = text.split("\n", 1)[0]
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


def _read_json_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {line}: is not a JSON object such as {{"path": "a.jpg", "label": "cat"}}')
        rows.append((line, row))
    return rows
