"""Views of the answers in formats that others read: a table of labels, Label Studio's JSON, COCO's JSON.

Images that were skipped, or that nobody was sure of, are in none of them.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lit_vision.data.table_rows import cell_text, listed_path
from lit_vision.data.views.decode import ImageDecodeError, read_size
from lit_vision.io.atomic import atomic_write
from lit_vision.io.text import printable
from lit_vision.serve.labeling.events import LabelAnswer
from lit_vision.serve.labeling.session import Labeling

TABLE = "labels.csv"


def labeled(labeling: Labeling) -> list[tuple[str, LabelAnswer]]:
    """Return path and answer of each image that has a label, in the order of the paths."""
    answers = labeling.answers()
    return [
        (labeling.images.paths[number], answers[number])
        for number in sorted(answers)
        if answers[number].kind == "label"
    ]


def as_csv(labeling: Labeling) -> bytes:
    """Return a table that `lit_vision.data.label_table` reads: path,label or, with several labels, a column each.

    A column of a label has 1 where it applies and 0 elsewhere. Images whose names no table can hold are left out, see
    `without_row`.
    """
    answers = [(_cell(path), answer) for path, answer in labeled(labeling) if _is_cell(path)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    classes = list(labeling.store.classes)
    if labeling.store.multiple:
        writer.writerow(["path", *classes])
        rows = ([path, *(int(name in answer.labels) for name in classes)] for path, answer in answers)
    else:
        writer.writerow(["path", "label"])
        rows = ([path, answer.labels[0]] for path, answer in answers)
    writer.writerows(rows)
    return text.getvalue().encode()


def without_row(labeling: Labeling) -> list[str]:
    """Return the paths of labeled images that are not in the table, since it would be read as naming another file.

    These are names that are not UTF-8, begin or end with a space, or have a backslash, which is a slash in a table.
    """
    return [path for path, _ in labeled(labeling) if not _is_cell(path)]


def _is_cell(path: str) -> bool:
    return printable(path) == path and listed_path(cell_text(path), "") == path


def _cell(path: str) -> str:
    """Return a path as the table has it: a spreadsheet would run one that begins like a formula."""
    return f"./{path}" if path.startswith(("=", "+", "-", "@")) else path


def as_label_studio(labeling: Labeling) -> bytes:
    """Return tasks with annotations for Label Studio's import; its local storage must have the folder as its root.

    The labeling configuration needs <Image name="image" value="$image"/> and <Choices name="label" toName="image">.
    """
    tasks = []
    for path, answer in labeled(labeling):
        value = {"choices": list(answer.labels)}
        result = {"from_name": "label", "to_name": "image", "type": "choices", "value": value}
        url = f"/data/local-files/?d={quote(os.fsencode(path))}"
        tasks.append(
            {
                "data": {"image": url, "path": path},
                "annotations": [
                    {
                        "result": [result] if answer.labels else [],
                        "created_at": answer.time,
                        "unique_id": answer.id,
                        "created_username": answer.annotator,
                    }
                ],
            }
        )
    return _json(tasks)


def as_coco(labeling: Labeling) -> bytes:
    """Return COCO's JSON; each label is an annotation whose box is the complete image, since COCO wants one."""
    classes = {name: number for number, name in enumerate(labeling.store.classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path, answer in labeled(labeling):
        try:
            height, width = read_size(labeling.images.root / path)
        except (OSError, ImageDecodeError):
            continue  # it became unreadable
        images.append({"id": len(images) + 1, "file_name": path, "width": width, "height": height})
        for name in answer.labels:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": classes[name],
                    "bbox": [0, 0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in classes.items()]
    info = {"description": "labels of complete images by lit-vision label; boxes are those of the images"}
    return _json({"info": info, "images": images, "categories": categories, "annotations": annotations})


# name in the API: file name, media type, function
EXPORTS = {
    "csv": (TABLE, "text/csv; charset=utf-8", as_csv),
    "label-studio": ("label-studio.json", "application/json", as_label_studio),
    "coco": ("coco.json", "application/json", as_coco),
}


def write_table(labeling: Labeling) -> Path:
    """Write labels.csv into the labeling's folder, atomically, and return it.

    Raises:
        UserError: the disk is full.
    """
    path, content = labeling.store.folder / TABLE, as_csv(labeling)
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, lambda file: file.write_bytes(content))
    return path


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()  # ASCII: names may hold what UTF-8 has no bytes for
