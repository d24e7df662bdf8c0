"""Image files of predict: masks that our reader loads, unique names, no image overwritten, the same after a stop."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_dense import NAMES, SIZE, make_segmenter, write_pictures
from toy_models import write_run

from lit_vision.cli.main import main
from lit_vision.data import AnnotatedDataModule
from lit_vision.errors import UserError
from lit_vision.predict.image_writer import ImageWriter
from lit_vision.predict.inputs import Inputs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("pictures") / "segmenter", make_segmenter())


def predict(run: Path, images: Path, out: Path, *more: str) -> int:
    arguments = ["predict", str(images), "--model", str(run), "--out", str(out), "--device", "cpu", "--batch_size", "2"]
    return main([*arguments, *more])


def test_masks_are_a_set_that_trains(run, tmp_path) -> None:
    root = tmp_path / "set"
    names = write_pictures(root / "train/images", 4)
    (root / "train/images/sub").mkdir()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(root / "train/images/sub/a.b.jpg")
    assert predict(run, root / "train/images", tmp_path / "o.csv", "--masks", str(root / "train/semantic")) == 0
    (root / "classes.txt").write_text("\n".join(["background", *NAMES]))
    data = AnnotatedDataModule(str(root), format="masks", img_size=SIZE, batch_size=5, num_workers=0, in_memory=False)
    table = data.table("train")
    assert list(table.paths) == [f"train/images/{name}" for name in (*names, "sub/a.b.jpg")]
    (batch,) = data.eval_loader("train")
    square = np.asarray(Image.open(root / "train/semantic" / names[0]))
    np.testing.assert_array_equal(batch["mask"][0].numpy(), square)


def test_two_images_of_one_name_keep_their_endings_after_a_stop_too(run, tmp_path, stopped_writer) -> None:
    write_pictures(tmp_path / "images", 5)
    Image.open(tmp_path / "images/004.png").convert("RGB").save(tmp_path / "images/001.jpg")
    with stopped_writer(3):
        assert predict(run, tmp_path / "images", tmp_path / "o.csv", "--masks", str(tmp_path / "m")) == 130
    assert predict(run, tmp_path / "images", tmp_path / "o.csv", "--masks", str(tmp_path / "m")) == 0
    assert predict(run, tmp_path / "images", tmp_path / "p.csv", "--masks", str(tmp_path / "n")) == 0
    want = ["000.png", "001.jpg.png", "001.png.png", "002.png", "003.png", "004.png"]
    for name in ("m", "n"):
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == want
    for name in want:
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["a.jpg", "b.c.jpg", "d", "x/a.jpg"], ["a.png", "b.c.png", "d.png", "x/a.png"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg.png", "a.png.png", "b.png"]),
        (["a.jpg", "a.png", "a.png.jpg"], ["a.jpg.png", "a.png.png", "a.png.jpg.png"]),
        (["../x/a.jpg", "/y/a.jpg", "x/a.png"], ["x/a.jpg.png", "y/a.png", "x/a.png.png"]),
        (["a.jpg", "a.jpg"], ["a.png", "a.png"]),
    ],
)
def test_paths__are_below_the_folder_and_unique(tmp_path, names, places) -> None:
    found = ImageWriter("--masks", tmp_path, Inputs(names, ""))
    assert [found.path(name).relative_to(tmp_path).as_posix() for name in names] == places


def test_paths__that_collide_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"--masks .*: x/a\.jpg and \.\./x/a\.jpg"):
        ImageWriter("--masks", tmp_path, Inputs(["x/a.jpg", "../x/a.jpg"], ""))


def test_pictures_never_replace_an_image(run, tmp_path, monkeypatch, capsys) -> None:
    write_pictures(tmp_path / "photos", 2)
    before = {p: p.read_bytes() for p in (tmp_path / "photos").iterdir()}
    monkeypatch.chdir(tmp_path / "photos")
    arguments = ["predict", "000.png", "001.png", "--model", str(run), "--out", str(tmp_path / "o.csv"), "--masks", "."]
    assert main([*arguments, "--device", "cpu"]) == 1
    error = capsys.readouterr().err.strip()
    assert "--masks 000.png" in error or "--masks 001.png" in error
    assert len(error.splitlines()) == 1
    assert {p: p.read_bytes() for p in (tmp_path / "photos").iterdir()} == before
