"""Outcomes of the exports of annotation tools: rows of experiments/results/what-people-bring.md."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toy_exports import EXPORTS

from lit_vision.data import AnnotatedDataModule
from lit_vision.data.annotations.formats import FORMATS
from lit_vision.data.check.check_folder import check_folder
from lit_vision.errors import UserError
from lit_vision.predict.inputs import find_images
from lit_vision.study.images import read_images

TITLE = (
    "## Exports of annotation tools\n\nFit's set-up takes the settings in the third column, which doctor names; doctor "
    "says the same of each export. Objects train\nand validate. A study learns labels of folders, so it refuses these."
)
COLUMNS = ("export", "fit", "settings", "train + validation", "study", "images that predict sees", "what doctor says")


@dataclass
class ExportOutcome:
    """Outcome of an export: whether doctor and fit's set-up accept it, and the row of the table."""

    doctor: bool
    fit: bool
    row: tuple[str, ...]


def export_outcomes(place: Path) -> list[ExportOutcome]:
    """Return the outcome of each of EXPORTS, written below a folder."""
    return [_export_outcome(export, place / str(number)) for number, export in enumerate(EXPORTS)]


def _export_outcome(export: str, place: Path) -> ExportOutcome:
    writer, name, _ = EXPORTS[export]
    root = place / "set"
    root.mkdir(parents=True)
    writer(root)
    with contextlib.redirect_stdout(io.StringIO()):
        report = check_folder(root, out=place / "out", workers=1)
        settings = report.get("settings", {}).get(name, {"format": name})
        trains = _what_trains(root, settings)
        study = _outcome(lambda: "yes" if read_images(root) else "")
        seen = _outcome(lambda: str(len(find_images([str(root)]))))
    said = [
        finding["what"] + (f" ({finding['files'][0]})" if finding["files"] else "")
        for finding in report["findings"]
        if finding["level"] != "note" and "the same picture" not in finding["what"] and "copies" not in finding["what"]
    ]
    text = "; ".join(said[:2]).replace(f"{root}/", "").replace(str(root), "ROOT").replace("|", "/") or "nothing"
    shown = ", ".join(f"{key}: {value}" for key, value in settings.items()) if trains != "no" else ""
    row = (export, "no" if trains == "no" else "yes", shown, trains, study, seen, text)
    return ExportOutcome(report["fit"], trains != "no", row)


def _what_trains(root: Path, settings: dict) -> str:
    """Set the data module up as fit does, read every batch, and return what trains and validates."""
    data = AnnotatedDataModule(str(root), img_size=32, batch_size=1, num_workers=0, **settings)
    try:
        data.setup()
        counts = []
        for role, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
            batches = list(loader)
            if FORMATS[data.format].semantic:
                counts.append(f"{len(batches)} masks")
            else:
                table = data.table(role)
                crowd = f" and {table.crowd.sum()} crowd" if table.crowd.any() else ""
                counts.append(f"{int((~table.crowd).sum())}{crowd}")
    except UserError:
        return "no"
    return f"{counts[0]} + {counts[1]}" + ("" if FORMATS[data.format].semantic else " objects")


def _outcome(action: Callable[[], str]) -> str:
    try:
        return action()
    except UserError:
        return "no"
