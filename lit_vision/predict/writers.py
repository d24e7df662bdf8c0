"""Write results: CSV lines, JSON lines, and COCO's JSON from streamed parts; check output paths."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.data.shards.address import is_address
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path, atomic_write

# COCO ids of an image's annotations follow from the image's id, so that a resumed run gives the same ids
PER_IMAGE = 1000


def check_not_existing(path: str | os.PathLike[str], overwrite: bool, flag: str = "--out") -> None:
    """Refuse a path that exists, unless it may be overwritten.

    Raises:
        UserError: it exists.
    """
    if os.path.exists(path) and not overwrite:
        raise UserError(f"{flag} {path}: exists already; choose another name, or give --overwrite")


def check_output_path(path: str | os.PathLike[str], overwrite: bool, flag: str = "--out") -> Path:
    """Return the path of a file to write; create its folder.

    Raises:
        UserError: it is a folder or an address, it exists and may not be overwritten, or its folder cannot be created
            or written to.
    """
    if is_address(path):
        raise UserError(f"{flag} {path}: is no local file; name one, and copy it there afterwards")
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give the name of a file in it")
    check_not_existing(path, overwrite, flag)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag} {path}: its folder cannot be created ({error.strerror}); choose another folder"
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: no permission to write to its folder; choose another folder")
    return path


def csv_line(row: Sequence[Any]) -> bytes:
    """Return one line of CSV. File names that are not valid text keep their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")


def json_line(record: Mapping[str, Any]) -> bytes:
    """Return one line of JSON."""
    return json.dumps(record).encode() + b"\n"


def coco_image(image_id: int | float | str, name: str, size: tuple[int, int]) -> bytes:
    """Return an entry of COCO's `images`; `size` is (height, width)."""
    return json_line({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})


def atomic_write_streams(out: Path, write: Callable[[Path, dict[str, Path]], None], paths: dict[str, Path]) -> None:
    """Write OUT with `write`, a function of a path and {stream: path}; it appears only when it is complete.

    Raises:
        UserError: it cannot be written.
    """
    atomic_write(out, lambda path: write(path, paths))


def coco_file(out: Path, paths: Mapping[str, Path], class_names: Sequence[str], ids: Sequence[Any]) -> None:
    """Write OUT as one COCO file from the streams `images` and `rows`; only one line is in memory at a time.

    Args:
        out: the file; it appears under this name only when it is complete.
        paths: of the streams, which have one JSON object per line.
        class_names: the categories, in order.
        ids: of the categories.
    """
    categories = [{"id": i, "name": name} for i, name in zip(ids, class_names)]
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        file.write(b'{"info": {"description": "predictions of lit-vision"},\n"categories": ')
        file.write(json.dumps(categories).encode() + b',\n"images": [\n')
        file.writelines(_separated(paths["images"]))
        file.write(b'],\n"annotations": [\n')
        file.writelines(_separated(paths["rows"]))
        file.write(b"]}\n")


def results_file(out: Path, paths: Mapping[str, Path]) -> None:
    """Write OUT as the list of detections that pycocotools' `loadRes` takes, from the stream `rows`."""
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        file.write(b"[\n")
        file.writelines(_separated(paths["rows"]))
        file.write(b"]\n")


def _separated(path: Path) -> Iterable[bytes]:
    """Yield the lines of a file with commas between."""
    with open(path, "rb") as lines:
        separator = b""
        for line in lines:
            yield separator + line.rstrip(b"\n")
            separator = b",\n"
        if separator:
            yield b"\n"
