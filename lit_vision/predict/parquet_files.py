"""Results and features as Parquet files (pyarrow), from streamed parts: one piece of 16 MB in memory at a time.

Of results, the columns are those of the CSV file: texts, and numbers as float64. Of features, they are `path` and
`features`, lists of D float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.errors import UserError

_PIECE_BYTES = 1 << 24
_TEXT_COLUMN = re.compile(r"path|labels?|label_\d+|caption")  # all other columns of our CSV files hold numbers


def import_pyarrow() -> Any:
    """Return the package pyarrow, with the modules that are used here.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("--out: .parquet needs pyarrow; pip install 'lit-vision[parquet]', or name a .csv") from error
    return pyarrow


def write_result_table(path: Path, rows: Path, columns: Sequence[str]) -> None:
    """Write the rows of a CSV file with a header as Parquet.

    Args:
        path: the Parquet file.
        rows: the CSV file.
        columns: names of its columns.

    Raises:
        UserError: the name of an image is not valid text.
    """
    pyarrow = import_pyarrow()
    types = {name: pyarrow.string() if _TEXT_COLUMN.fullmatch(name) else pyarrow.float64() for name in columns}
    schema = pyarrow.schema([(name, types[name]) for name in columns])
    try:
        with pyarrow.csv.open_csv(
            rows,
            pyarrow.csv.ReadOptions(block_size=_PIECE_BYTES, use_threads=False),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        ) as pieces:
            _write(path, schema, (pyarrow.Table.from_batches([piece]) for piece in pieces))
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"--out: the rows do not fit in Parquet ({error}); a name of an image may be no valid text: name a .csv"
        ) from error


def write_features(path: Path, rows: Path, names: Path, width: int) -> None:
    """Write features as Parquet.

    Args:
        path: the Parquet file.
        rows: raw float32 rows.
        names: of their images, each ended by a zero byte.
        width: D; 0 if there is no row.

    Raises:
        UserError: the name of an image is not valid text.
    """
    pyarrow = import_pyarrow()
    schema = pyarrow.schema([("path", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32(), max(width, 1)))])
    at_once = max(1, _PIECE_BYTES // (4 * max(width, 1)))

    def tables() -> Iterator[Any]:
        all_names = names.read_bytes().split(b"\0")[:-1]
        with open(rows, "rb") as file:
            for first in range(0, len(all_names), at_once):
                part = all_names[first : first + at_once]
                values = np.fromfile(file, "<f4", len(part) * width)
                features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), width)
                yield pyarrow.table([_texts(pyarrow, part), features], schema=schema)

    _write(path, schema, tables())


def join_files(path: Path, parts: Sequence[Path]) -> None:
    """Write the rows of Parquet files of one schema, in order, as one file."""
    pyarrow = import_pyarrow()
    files = [pyarrow.parquet.ParquetFile(part) for part in parts]
    _write(path, files[0].schema_arrow, (file.read_row_group(i) for file in files for i in range(file.num_row_groups)))


def _texts(pyarrow: Any, names: list[bytes]) -> Any:
    """Return names as an array of texts."""
    try:
        return pyarrow.array([name.decode() for name in names], pyarrow.string())
    except UnicodeDecodeError as error:
        raise UserError(
            f"--out: {error.object!r} is the name of an image and no valid text, which Parquet needs; rename it, or "
            "write a .safetensors"
        ) from error


def _write(path: Path, schema: Any, tables: Iterator[Any]) -> None:
    """Write tables as the row groups of a file."""
    with import_pyarrow().parquet.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)
