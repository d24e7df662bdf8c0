"""Tree crowns and background: squares that hold a box or touch none, whole photographs held out, one known archive."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.cli.main import main
from lit_vision.data.make import trees
from lit_vision.data.make.trees import PHOTOGRAPHS, make_trees

GREEN, BROWN = (0, 200, 0), (120, 80, 40)
BOXES = [(1, 1, 20, 30), (61, 11, 100, 40), (30, 90, 49, 120), (50, 50, 59, 59)]  # as VOC counts; the last is too small


def _wheel(path: Path) -> Path:
    """Write an archive with the names of deepforest's wheel; its photographs are green in the boxes, else brown."""
    image = np.zeros((120, 100, 3), np.uint8)
    image[:] = BROWN
    for left, top, right, bottom in BOXES:
        image[top - 1 : bottom, left - 1 : right] = GREEN
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>Tree</name><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, box))}</bndbox></object>"
        for box in BOXES
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name in sum(PHOTOGRAPHS.values(), ()):
            archive.writestr(f"deepforest/data/{name}.png", png.getvalue())
            archive.writestr(f"deepforest/data/{name}.xml", f"<annotation>{objects}</annotation>")
        archive.writestr("deepforest-2.1.0.dist-info/licenses/LICENSE", "MIT License")
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch) -> Path:
    path = _wheel(tmp_path / "deepforest.whl")
    monkeypatch.setattr(trees, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_squares_hold_a_crown_or_touch_none_and_photographs_stay_in_one_split(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make_trees(wheel, out) == {"train": 6, "test": 18}  # three crowns a photograph, and a square for each
    for split, names in PHOTOGRAPHS.items():
        for name in names:
            sides = {}
            for place in ("tree", "background"):
                images = [np.asarray(Image.open(path)) for path in (out / split / place).glob(f"{name}-*.png")]
                assert all(image.shape[0] == image.shape[1] for image in images)
                sides[place] = sorted(image.shape[0] for image in images)
                if place == "background":
                    assert all((image == BROWN).all() for image in images)
                else:
                    green = [int((image == GREEN).all(axis=2).sum()) for image in images]
                    assert sorted(green) == sorted([20 * 30, 40 * 30, 20 * 31])  # the whole box is inside
            assert sides["tree"] == sides["background"] == [30, 31, 40]
    assert (out / "LICENSE.txt").read_text() == "MIT License"


def test_the_seed_determines_the_background(wheel: Path, tmp_path: Path) -> None:
    names = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        command = ["data", "trees", "--archive", str(wheel), "--out", str(out), "--seed", str(seed)]
        assert main(command) == 0
        names.append({str(path.relative_to(out)) for path in out.rglob("*.png")})
    assert names[0] == names[1] != names[2]
    assert main([*command[:-1], "3"]) == 1  # the folder holds another set


@pytest.mark.parametrize("archive", ["missing.whl", "other.whl", "."])
def test_only_the_known_wheel_is_read(archive: str, tmp_path: Path, capsys) -> None:
    _wheel(tmp_path / "other.whl")
    command = ["data", "trees", "--archive", str(tmp_path / archive), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "pip download --no-deps deepforest==2.1.0" in message
    assert not (tmp_path / "out").exists()
