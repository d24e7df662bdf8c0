"""Every notebook runs from top to bottom, in an empty folder, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SAFETY_NET = 1800  # seconds a cell; no test is judged by it
SLOW = {"reading_embeddings"}  # runs a one-minute study


def test_notebooks__exist() -> None:
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in NOTEBOOKS]
)
def test_notebook__runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "commit it without outputs"
    NotebookClient(notebook, timeout=SAFETY_NET, resources={"metadata": {"path": str(tmp_path)}}).execute()
