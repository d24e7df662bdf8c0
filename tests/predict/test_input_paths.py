"""Images as people name them: several folders, patterns, lists in a file and on standard input."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_models import make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict.inputs import Inputs, find_images


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a/1.png, a/sub/2.png, b/1.png and c.png, all empty."""
    for name in ("a/1.png", "a/sub/2.png", "b/1.png", "c.png", "a/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(inputs: Inputs) -> list[str]:
    return [inputs.path(i) for i in range(len(inputs))]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a"], ["a/1.png", "a/sub/2.png"]),
        (["b", "a"], ["b/1.png", "a/1.png", "a/sub/2.png"]),
        (["c.png", "a"], ["c.png", "a/1.png", "a/sub/2.png"]),
        (["a", "a/sub"], ["a/1.png", "a/sub/2.png"]),  # each image once
        (["*/*.png"], ["a/1.png", "b/1.png"]),
        (["**/*.png"], ["a/1.png", "a/sub/2.png", "b/1.png", "c.png"]),
        (["?"], ["a/1.png", "a/sub/2.png", "b/1.png"]),  # folders
        (["list.txt"], ["c.png", "b/1.png"]),
        (["list.txt", "a/sub"], ["c.png", "b/1.png", "a/sub/2.png"]),
        (["-"], ["b/1.png", "c.png"]),
    ],
)
def test_find_images__of_all_kinds(place: Path, monkeypatch, given, found) -> None:
    (place / "list.txt").write_bytes(b"\xef\xbb\xbfc.png\r\n\r\nb/1.png\r\n")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"b/1.png\nc.png\n")))
    assert paths(find_images(given)) == found
    assert list(find_images(["a"]).names) == ["1.png", "sub/2.png"]  # one folder alone is where the names start


def test_find_images__a_file_with_special_characters_is_itself(place: Path) -> None:
    (place / "x[1].png").touch()
    assert paths(find_images(["x[1].png"])) == ["x[1].png"]
    strange = os.fsdecode(b"caf\xe9.png")
    (place / strange).touch()
    (place / "list.txt").write_bytes(b"caf\xe9.png\n")
    assert paths(find_images(["list.txt"])) == [strange]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "list.txt: lists no image"),
        (b"c.png\nz.png\n", "line 2: 'z.png'"),
        (b"c\0.png", "line 1"),
        (b"\n", "no image"),
    ],
)
def test_lists__wrong_ones_are_named_by_line(place: Path, content: bytes, says: str) -> None:
    (place / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        find_images(["list.txt"])


@pytest.mark.parametrize("pattern", ["*.webp", "none", "none/*", "none.txt"])
def test_patterns__without_a_match_are_refused(place: Path, pattern: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_images(["a", pattern])


def test_predict__of_two_folders_writes_each_drawing_beside_its_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), make_classifier())
    for name in ("one", "two"):
        write_images(Path(name), 3)
    arguments = ["predict", "one", "two", "--model", "run", "--device", "cpu", "--out", "o.csv", "--explain", "maps"]
    assert main(arguments) == 0
    assert len(list(Path("maps").rglob("*.png"))) == 6
    lines = Path("o.csv").read_text().splitlines()[1:]
    assert [line.split("/")[0] for line in lines] == ["one"] * 3 + ["two"] * 3
    assert [line.partition("/")[2] for line in lines[:3]] == [line.partition("/")[2] for line in lines[3:]]
