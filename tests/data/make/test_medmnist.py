"""A MedMNIST file becomes a folder whose pixels and labels are its own; what is no such file is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.data.make.medmnist import unpack
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
    assert unpack(file, tmp_path / "out", ["malignant", "normal"]) == {"train": 12, "val": 4, "test": 6}
    with np.load(file) as content:
        for index in range(6):
            name = ("malignant", "normal")[index % 2]
            image = np.asarray(Image.open(tmp_path / "out/test" / name / f"{index:06d}.png"))
            assert (image == content["test_images"][index]).all()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    unpack(file, tmp_path / "out", ["malignant", "normal"])
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    with pytest.raises(UserError, match="holds another set"):
        unpack(file, tmp_path / "out", ["a", "b"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(UserError, match="was not made by this command"):
        unpack(file, tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written"):
        unpack(file, tmp_path / "mine/thesis.tex/out")
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
            unpack(file, tmp_path / "out")
    with pytest.raises(UserError, match="another set was begun there"):
        unpack(file, tmp_path / "out", ["a", "b"])
    assert unpack(file, tmp_path / "out") == {"train": 12, "val": 4, "test": 6}
    unpack(file, tmp_path / "whole")
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_images": None}, "lacks val_images"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "one class per image is needed"),
        ({"test_images": np.zeros((6, 28, 28, 28), np.uint8)}, "only 2-D images"),
        ({"test_images": np.zeros((6, 28, 28), np.float32)}, "only 2-D images"),
        ({"train_labels": np.full((12, 1), 2, np.uint8)}, "give one name for each"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        unpack(_file(tmp_path / "x.npz", **changes), tmp_path / "out", ["a", "b"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_file_and_no_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        unpack(tmp_path / "none.npz", tmp_path / "out")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="no whole npz"):
        unpack(tmp_path / "bad.npz", tmp_path / "out")
    np.savez(tmp_path / "evil.npz", train_images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="no whole npz"):
        unpack(tmp_path / "evil.npz", tmp_path / "out")
