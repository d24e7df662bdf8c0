"""Atomic writes: the old content or the new one at every instant, the usual mode, nothing left over."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path, atomic_write, remove_temporaries, write_json


def test_atomic_write__replaces_files_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        atomic_write(path, lambda file, text=text: file.write_text(text))
        assert path.read_text() == text
    for text in ("in a folder", "again"):
        atomic_write(path, lambda folder, text=text: (folder.mkdir(), (folder / "x").write_text(text)))
        assert (path / "x").read_text() == text
    assert os.listdir(path.parent) == ["a.txt"]


def test_atomic_write__a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "precious").write_text("x")
    with pytest.raises(UserError, match=r"work: .*folder"):
        atomic_write(tmp_path / "work", lambda file: file.write_text("y"))
    assert (tmp_path / "work" / "precious").read_text() == "x"
    assert os.listdir(tmp_path) == ["work"]


def test_atomic_write__companions_move_along(tmp_path: Path) -> None:
    atomic_write(tmp_path / "m.xml", lambda f: (f.write_text("xml"), f.with_suffix(".bin").write_text("bin")))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"m.xml": "xml", "m.bin": "bin"}


def test_atomic_write__an_error_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail(error: Exception) -> None:
        def write(file: Path) -> None:
            file.write_text("half")
            raise error

        atomic_write(path, write)

    with pytest.raises(ValueError, match="of the writer"):
        fail(ValueError("of the writer"))
    with pytest.raises(UserError, match=r"a: .*No space left"):
        fail(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_atomic_write__mode_follows_the_umask_whatever_the_writer_sets(tmp_path: Path) -> None:
    program = (
        "import os, sys; os.umask(0o027); from pathlib import Path; from lit_vision.io.atomic import atomic_write\n"
        "atomic_write(Path(sys.argv[1]), lambda f: (f.write_text('x'), f.chmod(0o600)))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_remove_temporaries__only_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    other = tmp_path / ".b.json.x.tmp"
    other.mkdir()
    (tmp_path / ".a.json.killed.tmp").mkdir()
    with atomic_path(path) as file:
        file.write_text("{}")
    assert (tmp_path / ".a.json.killed.tmp").is_dir()
    path.unlink()
    remove_temporaries(path)
    assert [p.name for p in tmp_path.iterdir()] == [other.name]


def test_write_json__round_trip(tmp_path: Path) -> None:
    value = {"ä": [1, 2.5, None, True]}
    assert json.loads(write_json(tmp_path / "x" / "v.json", value).read_text(encoding="utf-8")) == value
