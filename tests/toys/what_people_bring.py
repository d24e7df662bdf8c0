"""Table of what each command makes of the data that people bring: experiments/results/what-people-bring.md.

A kind of data is a section: a title, the names of its columns, and its rows. The test in
tests/cli/test_what_people_bring.py makes the rows and compares the file; to write it anew:
python tests/toys/what_people_bring.py
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export_outcomes import COLUMNS as EXPORT_COLUMNS
from export_outcomes import TITLE as EXPORT_TITLE
from export_outcomes import ExportOutcome, export_outcomes
from folder_shapes import FOLDER_SHAPES, FolderShape
from label_table_outcomes import COLUMNS as TABLE_COLUMNS
from label_table_outcomes import TITLE as TABLE_TITLE
from label_table_outcomes import TableOutcome, table_outcomes

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.check.check_folder import check_folder
from lit_vision.errors import UserError
from lit_vision.predict.inputs import find_images
from lit_vision.study.images import read_images

RESULT = Path(__file__).parents[2] / "experiments/results/what-people-bring.md"
USES = ("training on labels", "pre-training", "validation", "testing")
FOLDER_COLUMNS = ("folder", *USES, "study", "images that predict sees", "what doctor says")


@dataclass
class Section:
    """Rows of one kind of data.

    Attributes:
        title: of the kind, with a sentence on what its columns are.
        columns: names.
        rows: one text a column.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """Return the section as a heading and a table."""
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, ("---",) * len(self.columns), *self.rows)]
        return f"{self.title}\n\n" + "\n".join(lines) + "\n"


def render(sections: list[Section]) -> str:
    """Return the text of the file."""
    head = (
        "# What people bring\n\nMade by the tests (python tests/toys/what_people_bring.py writes it): each set is "
        "generated, and given to\nthe commands as it is. Where a cell says no, the command refuses the set in one "
        "line.\n"
    )
    return "\n".join([head, *(section.markdown() for section in sections)])


@dataclass
class FolderOutcome:
    """Outcome of a folder: which uses doctor and the data module allow, and the row of the table."""

    doctor: dict[str, bool]
    fit: dict[str, bool]
    row: tuple[str, ...]


def folder_outcome(shape: FolderShape, root: Path) -> FolderOutcome:
    """Write a folder and ask doctor, fit's set-up with a pass over its loaders, study and predict about it."""
    path = shape.write(root)
    report = check_folder(path, out=root.parent / f"{root.name}-doctor", workers=1)
    annotated = "settings" in report  # doctor names the data module for such a set; this one is not fit for it
    doctor = {use: not annotated and not report["uses"][use] for use in USES}
    fit = {
        "training on labels": _works(lambda: _read_all(path, "fit", "train")),
        "pre-training": _works(lambda: _read_all(path, "fit", "simclr")),
        "validation": _works(lambda: _read_all(path, "validate", "train")),
        "testing": _works(lambda: _read_all(path, "test", "train")),
    }
    try:
        images = read_images(path)
        study = f"{len(images.pool)} + {len(images.test)} images of {images.size} pixels"
    except UserError:
        study = "no"
    try:
        seen = str(len(find_images([str(path)])))
    except UserError:
        seen = "no"
    said = [f["what"] + (f" ({f['files'][0]})" if f["files"] else "") for f in report["findings"] if f["count"]]
    text = "; ".join(said[:2]) or report["uses"]["training on labels"] or "nothing"
    text = text.replace(str(path), "ROOT").replace(str(root), "ROOT").replace("|", "/")
    row = (shape.name, *("yes" if fit[use] else "no" for use in USES), study, seen, text)
    return FolderOutcome(doctor, fit, row)


def _works(action: Callable[[], Any]) -> bool:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            action()
    except UserError:
        return False
    return True


def _read_all(path: Path, stage: str, view: str) -> None:
    """Set the data module up for a stage and read each of its images once, as the Trainer would."""
    data = ImageFolderDataModule(str(path), img_size=16, batch_size=2, train_view=view, num_workers=0)
    data.setup(stage)
    loaders = {
        "fit": lambda: [data.train_dataloader(), data.val_dataloader()],
        "validate": lambda: [data.val_dataloader()],
        "test": lambda: [data.test_dataloader()],
    }
    for loader in loaders[stage]():
        for _ in loader:
            pass


def folder_section(outcomes: list[FolderOutcome]) -> Section:
    """Return the section of folders without annotations."""
    title = (
        "## Folders of images\n\nThe first four columns say whether fit (with labels, or simclr), validate and test "
        "accept the folder; doctor says the\nsame of each. Study: training + test images. The last column is "
        "doctor's gravest findings."
    )
    return Section(title, FOLDER_COLUMNS, [outcome.row for outcome in outcomes])


def folder_outcomes(place: Path) -> list[FolderOutcome]:
    """Return the outcome of each of FOLDER_SHAPES, written below a folder."""
    return [folder_outcome(shape, place / str(number)) for number, shape in enumerate(FOLDER_SHAPES)]


def export_section(outcomes: list[ExportOutcome]) -> Section:
    """Return the section of exports of annotation tools."""
    return Section(EXPORT_TITLE, EXPORT_COLUMNS, [outcome.row for outcome in outcomes])


def table_section(outcomes: list[TableOutcome]) -> Section:
    """Return the section of tables of labels."""
    return Section(TABLE_TITLE, TABLE_COLUMNS, [outcome.row for outcome in outcomes])


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as place:
        folders, exports = folder_outcomes(Path(place, "shapes")), export_outcomes(Path(place, "exports"))
        tables = table_section(table_outcomes(Path(place, "tables")))
        RESULT.write_text(render([folder_section(folders), tables, export_section(exports)]), encoding="utf-8")
    print(RESULT)


if __name__ == "__main__":
    main()
