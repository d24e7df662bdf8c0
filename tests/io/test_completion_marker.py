"""`lit-vision data` after kills, wrong folders and damage: one line, or the same bytes after repeating the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_vision.cli import main as cli
from lit_vision.data.make import fashion, scenes
from lit_vision.data.make.fashion import DATASET_NOTE
from lit_vision.io import completion_marker

ARGUMENTS = ["data", "scenes", "--train", "3", "--val", "1", "--test", "0", "--seed", "2", "--out"]


@pytest.fixture(scope="module")
def complete_set(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    assert cli.main([*ARGUMENTS, str(out)]) == 0
    return out


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _changed(file: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda out: (out / file).write_text((out / file).read_text().replace(old, new))


REPAIRED = {
    "a deleted picture": lambda out: (out / "train/images/000001.png").unlink(),
    "a deleted semantic mask": lambda out: (out / "train/semantic/000001.png").unlink(),
    "a deleted instance mask": lambda out: (out / "val/instances/000000.png").unlink(),
    "an empty picture": lambda out: (out / "train/images/000000.png").write_bytes(b""),
    "a cut-off mask": lambda out: (out / "train/semantic/000002.png").write_bytes(b"\x89PNG\r\n\x1a\n and so on"),
    "a deleted split": lambda out: shutil.rmtree(out / "val"),
    "no annotations": lambda out: (out / "train/annotations.json").unlink(),
    "annotations that are garbage": lambda out: (out / "train/annotations.json").write_bytes(b"\xff\xfe garbage"),
    "annotations that are cut off": lambda out: (out / "train/annotations.json").write_text('{"images": ['),
    "annotations that are a list": lambda out: (out / "train/annotations.json").write_text("[1]"),
    "annotations without objects": lambda out: (out / "train/annotations.json").write_text('{"images": [], "info": 3}'),
    "annotations of another seed": _changed("train/annotations.json", '"seed":2', '"seed":3'),
    "annotations of no image": _changed("val/annotations.json", '"image_id":1', '"image_id":7'),
    "killed between the splits": lambda out: (out / DATASET_NOTE).rename(out / f"{DATASET_NOTE}.begun"),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_scenes_are_made_again_where_a_file_is_missing_or_damaged(
    name: str, complete_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(complete_set, tmp_path / "set")
    REPAIRED[name](tmp_path / "set")
    assert _files(tmp_path / "set") != _files(complete_set)
    assert cli.main([*ARGUMENTS, str(tmp_path / "set")]) == 0
    assert _files(tmp_path / "set") == _files(complete_set)


def test_a_complete_set_is_left_as_it_is(complete_set: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in complete_set.rglob("*")}
    assert cli.main([*ARGUMENTS, str(complete_set)]) == 0
    assert {p: p.stat().st_mtime_ns for p in complete_set.rglob("*")} == before


@pytest.mark.parametrize("left", [f"{DATASET_NOTE}.begun", f".{DATASET_NOTE}.begun.tmp"])
@pytest.mark.parametrize("command", [ARGUMENTS, ["data", "fashion", "--out"]])
def test_a_kill_during_the_first_note_is_no_end(left: str, command: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        fashion,
        "write_folder",
        lambda out, splits, alter, note: completion_marker.mark_complete(out, DATASET_NOTE, "{}"),
    )
    (tmp_path / left).write_text("")
    assert cli.main([*command, str(tmp_path)]) == 0
    assert (tmp_path / DATASET_NOTE).exists()
    assert not (tmp_path / f"{DATASET_NOTE}.begun").exists()


def test_a_kill_at_any_time_leaves_what_can_be_repeated(complete_set: Path, tmp_path: Path, monkeypatch) -> None:
    class Killed(BaseException): ...

    def killed(*args):
        raise Killed

    for name in ("_write", "mark_complete"):
        with monkeypatch.context() as patch:
            patch.setattr(scenes, name, killed)
            with pytest.raises(Killed):
                cli.main([*ARGUMENTS, str(tmp_path / name)])
        assert cli.main([*ARGUMENTS, str(tmp_path / name)]) == 0
        assert _files(tmp_path / name) == _files(complete_set)


def _in(out: Path, **files: str) -> Path:
    for name, text in files.items():
        (out / name.replace("NOTE", DATASET_NOTE).replace("__", ".")).write_text(text)
    return out


REFUSED = {
    "no place for a folder": (lambda tmp: Path("/proc/x"), "--out"),
    "inside a file": (lambda tmp: _in(tmp, file="") / "file/set", "file"),
    "a file": (lambda tmp: _in(tmp, file="") / "file", "a folder"),
    "a name that is too long": (lambda tmp: tmp / ("x" * 300), "File name too long"),
    "a damaged note": (lambda tmp: _in(tmp, NOTE="{", train=""), DATASET_NOTE),
    "a note of bytes": (lambda tmp: (_in(tmp) / DATASET_NOTE).write_bytes(b"\xff") and tmp, DATASET_NOTE),
    "a note that is a list": (lambda tmp: _in(tmp, NOTE="[1]"), DATASET_NOTE),
    "another set": (lambda tmp: _in(tmp, NOTE='{"name": "fashion"}'), DATASET_NOTE),
    "another set, begun": (lambda tmp: _in(tmp, NOTE__begun='{"seed": 9}'), f"{DATASET_NOTE}.begun"),
    "a begun note, damaged, and pictures": (lambda tmp: _in(tmp, NOTE__begun="", mine="x"), f"{DATASET_NOTE}.begun"),
    "somebody's folder": (lambda tmp: _in(tmp, mine="x"), "not empty"),
}


@pytest.mark.parametrize("command", [ARGUMENTS, ["data", "fashion", "--rotated", "--out"]])
@pytest.mark.parametrize("name", REFUSED)
def test_other_folders_are_one_line(name: str, command: list[str], tmp_path: Path, capsys) -> None:
    prepare, says = REFUSED[name]
    out = prepare(tmp_path)
    before = _files(tmp_path)
    assert cli.main([*command, str(out)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert f"--out {out}: " in lines[0]
    assert says in lines[0]
    assert _files(tmp_path) == before


def test_a_split_that_is_a_file_and_a_folder_in_place_of_a_note(complete_set: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(complete_set, tmp_path / "set")
    shutil.rmtree(tmp_path / "set/train")
    (tmp_path / "set/train").write_text("")
    assert cli.main([*ARGUMENTS, str(tmp_path / "set")]) == 1
    assert f"--out {tmp_path / 'set'}: " in capsys.readouterr().err
    (tmp_path / "other" / DATASET_NOTE).mkdir(parents=True)
    assert cli.main([*ARGUMENTS, str(tmp_path / "other")]) == 1
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "scenes"],
        ["data", "scenes", "--out"],
        ["data", "scenes", "--out", "x", "--seed", "two"],
        ["data", "scenes", "--out", "x", "--seed", "-1"],
        ["data", "scenes", "--out", "x", "--seed", str(2**64)],
        ["data", "scenes", "--out", "x", "--train", "1.5"],
        ["data", "scenes", "--out", "x", "--train", "-3"],
        ["data", "scenes", "--out", "x", "--train", "0", "--val", "0", "--test", "0"],
        ["data", "scenes", "--out", "x", "--trane", "5"],
        ["data", "scenes", "--out", "x", "more"],
        ["data"],
        ["data", "shoes", "--out", "x"],
        ["data", "fashion", "--out", "x", "--seed", str(2**64)],
        ["data", "fashion"],
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(("lit-vision: error: --", "lit-vision: error: data"))
    assert not list(tmp_path.iterdir())


def test_notes_are_what_earlier_versions_wrote(complete_set: Path) -> None:
    assert json.loads((complete_set / DATASET_NOTE).read_text()) == {
        "name": "scenes",
        "seed": 2,
        "side": 128,
        "images": {"train": 3, "val": 1},
    }
