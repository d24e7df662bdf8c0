"""Outcomes of tables of labels: rows of experiments/results/what-people-bring.md."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.check.check_folder import check_folder
from lit_vision.data.labeled_folder import label_options
from lit_vision.errors import UserError
from lit_vision.study.images import read_images

TITLE = (
    "## Tables of labels\n\nSixteen images in one folder, and a table of their labels (`data.label_file`). Fit: "
    "train + validation images; doctor says\nthe same of each. Study: training + test images. The last column is the "
    "reason."
)
COLUMNS = ("table", "settings", "fit", "study", "what is said")
COUNT = 16
_LABELS = ["cat" if i % 2 else "dog" for i in range(COUNT)]
_SPLITS = ["Training" if i % 4 < 2 else "valid" for i in range(COUNT)]


def _csv(header: str, *columns: list[Any], separator: str = ",") -> str:
    rows = [separator.join(map(str, row)) for row in zip(*columns)]
    return "\n".join([header.replace(",", separator), *rows]) + "\n"


def tables() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return {name: (name of the file, text, settings)}."""
    names = [f"{i:02d}.png" for i in range(COUNT)]
    drawn = {"val_fraction": 0.25}
    people = [i // 4 for i in range(COUNT)]
    flags = [[int(i % 2 == 0) for i in range(COUNT)], [("", 1, 0)[i % 3] for i in range(COUNT)]]
    return {
        "path,label": ("a.csv", _csv("path,label", names, _LABELS), drawn),
        "path,label,split": ("a.csv", _csv("path,label,split", names, _LABELS, _SPLITS), {}),
        "of Excel: semicolons and a byte-order mark": (
            "a.csv",
            "\ufeff" + _csv("filename,Class", names, _LABELS, separator=";"),
            drawn,
        ),
        "JSON lines": (
            "a.jsonl",
            "\n".join(f'{{"image": "{n}", "label": "{label}"}}' for n, label in zip(names, _LABELS)),
            drawn,
        ),
        "the folder's name before each path": (
            "a.csv",
            _csv("path,label", [f"set/{n}" for n in names], _LABELS),
            drawn,
        ),
        "numbers as classes": ("a.csv", _csv("path,label", names, [i % 3 for i in range(COUNT)]), drawn),
        "a column a label": ("a.csv", _csv("path,cat,dog", names, *flags), {**drawn, "label_columns": ["cat", "dog"]}),
        "several labels in a cell": (
            "a.csv",
            _csv("path,label", names, [f"{label}|animal" for label in _LABELS]),
            {**drawn, "label_separator": "|"},
        ),
        "groups": ("a.csv", _csv("path,label,patient", names, _LABELS, people), {**drawn, "group_by": "patient"}),
        "a group in two splits": (
            "a.csv",
            _csv("path,label,split,patient", names, _LABELS, _SPLITS, people),
            {"group_by": "patient"},
        ),
        "no split and no fraction": ("a.csv", _csv("path,label", names, _LABELS), {}),
        "a value to predict": ("a.csv", _csv("path,label", names, [i / 7 for i in range(COUNT)]), drawn),
        "a missing image": ("a.csv", _csv("path,label", [*names[:-1], "lost.png"], _LABELS), drawn),
        "the same image with two labels": ("a.csv", _csv("path,label", [*names[:-1], names[0]], _LABELS), drawn),
        "another split": ("a.csv", _csv("path,label,split", names, _LABELS, ["train"] * 15 + ["later"]), {}),
        "several label columns": ("a.csv", _csv("path,class,target", names, _LABELS, _LABELS), drawn),
    }


@dataclass
class TableOutcome:
    """Outcome of a table: whether doctor and fit's set-up accept it, and the row."""

    doctor: bool
    fit: bool
    row: tuple[str, ...]


def table_outcomes(place: Path) -> list[TableOutcome]:
    """Return the outcome of each table, written below a folder."""
    root = place / "set"
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(root / f"{i:02d}.png")
    return [_outcome(name, root, place / str(i)) for i, name in enumerate(tables())]


def _outcome(name: str, root: Path, place: Path) -> TableOutcome:
    file, text, settings = tables()[name]
    place.mkdir()
    table = place / file
    table.write_text(text, encoding="utf-8")
    of_command = {k: ",".join(value) if isinstance(value, list) else value for k, value in settings.items()}
    said, fit, study = "nothing", "no", "no"
    options = {"label_file": str(table), "img_size": 16, "batch_size": 2, "num_workers": 0, **settings}
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            data = ImageFolderDataModule(str(root), **options)
            data.setup("fit")
            loaders = data.train_dataloader(), data.val_dataloader()
            seen = [sum(len(batch["key"]) for batch in loader) for loader in loaders]
            fit = f"{seen[0]} + {seen[1]} images, {data.num_classes} classes"
        except UserError as error:
            said = str(error)
        report = check_folder(root, label_file=table, out=place / "out", workers=1, **of_command)
        try:
            columns = {key: value for key, value in settings.items() if key != "val_fraction"}
            images = read_images(root, labels=label_options(table, **columns))
            study = f"{len(images.pool)} + {len(images.test)} images"
        except UserError:
            pass
    said = said.replace(str(table), "TABLE").replace(str(root), "ROOT").replace("|", "/")
    shown = ", ".join(f"{key}: {value}" for key, value in settings.items()).replace("|", "/")
    return TableOutcome(not report["uses"]["training on labels"], fit != "no", (name, shown, fit, study, said))
