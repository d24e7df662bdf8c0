"""How results are written: CSV lines, JSON lines, COCO's JSON from streamed parts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PER_IMAGE = (
    1000  # COCO ids of an image's annotations follow from the image's own id, so that a resumed run numbers alike
)


def csv_line(row: Sequence[Any]) -> bytes:
    """One line of CSV. A file's name need not be text: its bytes are kept."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(record).encode() + b"\n"


def coco_image(number: int, name: str, size: tuple[int, int]) -> bytes:
    """An entry of COCO's `images`; number counts the images that were given from 0."""
    return json_line({"id": number + 1, "file_name": name, "height": size[0], "width": size[1]})


def coco_file(out: Path, paths: Mapping[str, Path], class_names: Sequence[str], ids: Sequence[int]) -> None:
    """OUT as one COCO file, from the streams `images` and `rows` with a JSON object per line; holds one line at a time.

    Args:
        out: the file; it gets its name when it is whole.
        paths: of the streams.
        class_names: the categories, in order.
        ids: of the categories.
    """
    beside = out.with_name(out.name + ".tmp")
    categories = [{"id": i, "name": name} for i, name in zip(ids, class_names)]
    with open(beside, "wb") as file:
        file.write(b'{"info": {"description": "predictions of lit-vision"},\n"categories": ')
        file.write(json.dumps(categories).encode() + b',\n"images": [\n')
        file.writelines(_separated(paths["images"]))
        file.write(b'],\n"annotations": [\n')
        file.writelines(_separated(paths["rows"]))
        file.write(b"]}\n")
    beside.replace(out)


def results_file(out: Path, paths: Mapping[str, Path]) -> None:
    """OUT as the list of detections that pycocotools' `loadRes` takes, from the stream `rows`; as `coco_file`."""
    beside = out.with_name(out.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(b"[\n")
        file.writelines(_separated(paths["rows"]))
        file.write(b"]\n")
    beside.replace(out)


def _separated(path: Path) -> Iterable[bytes]:
    with open(path, "rb") as lines:
        before = b""
        for line in lines:
            yield before + line.rstrip(b"\n")
            before = b",\n"
        if before:
            yield b"\n"
