"""A MedMNIST file becomes a folder with its pixels and labels; any other file is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.cli.main import main
from lit_vision.data.make.medmnist import unpack_medmnist
from lit_vision.errors import UserError


def _file(path: Path, **changes) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


def test_pixels_and_labels_are_the_files(tmp_path: Path) -> None:
    file = _file(tmp_path / "breast.npz")
    assert unpack_medmnist(file, tmp_path / "out", ["malignant", "normal"]) == {"train": 12, "val": 4, "test": 6}
    with np.load(file) as content:
        for index in range(6):
            name = ("malignant", "normal")[index % 2]
            image = np.asarray(Image.open(tmp_path / "out/test" / name / f"{index:06d}.png"))
            assert (image == content["test_images"][index]).all()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    unpack_medmnist(file, tmp_path / "out", ["malignant", "normal"])
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    with pytest.raises(UserError, match=r"out: .*\.unpacked"):
        unpack_medmnist(file, tmp_path / "out", ["a", "b"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(UserError, match="mine: "):
        unpack_medmnist(file, tmp_path / "mine")
    with pytest.raises(UserError, match=r"thesis\.tex/out: "):
        unpack_medmnist(file, tmp_path / "mine/thesis.tex/out")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("after", [0, 1, 15])
def test_an_interrupted_unpacking_is_finished_by_the_next(tmp_path: Path, monkeypatch, after: int) -> None:
    file, save, done = _file(tmp_path / "breast.npz"), Image.Image.save, []

    def killed_after_some(image: Image.Image, path: Path) -> None:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(path)
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", killed_after_some)
        with pytest.raises(KeyboardInterrupt):
            unpack_medmnist(file, tmp_path / "out")
    with pytest.raises(UserError, match=r"out: .*\.unpacked"):
        unpack_medmnist(file, tmp_path / "out", ["a", "b"])
    assert unpack_medmnist(file, tmp_path / "out") == {"train": 12, "val": 4, "test": 6}
    unpack_medmnist(file, tmp_path / "whole")
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"val_images": None}, "val_images"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "train_labels"),
        ({"test_images": np.zeros((6, 28, 28, 28), np.uint8)}, "test_images"),
        ({"test_images": np.zeros((6, 28, 28), np.float32)}, "test_images"),
        ({"train_labels": np.full((12, 1), 2, np.uint8)}, "--class_names"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        unpack_medmnist(_file(tmp_path / "x.npz", **changes), tmp_path / "out", ["a", "b"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_file_and_no_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.npz"):
        unpack_medmnist(tmp_path / "none.npz", tmp_path / "out")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match=r"bad\.npz"):
        unpack_medmnist(tmp_path / "bad.npz", tmp_path / "out")
    np.savez(tmp_path / "evil.npz", train_images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"evil\.npz"):
        unpack_medmnist(tmp_path / "evil.npz", tmp_path / "out")


def test_command__unpacks_a_file_and_refuses_wrong_usage(tmp_path: Path, capsys) -> None:
    file = _file(tmp_path / "breast.npz")
    command = ["data", "medmnist", str(file), "--out", str(tmp_path / "out")]
    assert main([*command, "--class_names", "malignant", "normal"]) == 0
    assert len(list((tmp_path / "out/train/normal").iterdir())) == 6
    assert "train 12, val 4, test 6" in capsys.readouterr().out
    for arguments, named in (
        ([*command[:3]], "data medmnist: "),
        ([*command, "--seed", "1"], "--seed"),
        (["data", "fashion", "--out", str(tmp_path / "x"), "--seed", "x"], "data fashion: "),
        (["data", "fashion", "--out", str(tmp_path / "x"), "--seed", "-1"], "--seed -1: "),
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert named in message
        assert message.count("\n") == 1
