"""A folder with the images, packs and recipes of the files from before the rooms were moved."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # run_summary and resume_runs

FILES = Path(__file__).parent / "files"


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory):
    """The folder that the commands of that time were given in: garments/, shapes/, recipes/, a pack and a list."""
    from resume_runs import prepare

    folder = tmp_path_factory.mktemp("started_in")
    prepare(folder)
    for name in ("exports", "answers"):
        shutil.copytree(FILES / name, folder / name)
    return folder


@pytest.fixture
def here(start_folder, monkeypatch):
    """The working directory is that folder."""
    monkeypatch.chdir(start_folder)
    return start_folder


@pytest.fixture
def files():
    """The folder of the files."""
    return FILES
