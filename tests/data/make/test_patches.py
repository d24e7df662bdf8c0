"""Patches of photographs: splits that share no pixel, no image twice, the photographs' own pixels, origins beside."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.cli.main import main
from lit_vision.data.folder import scan
from lit_vision.data.make import patches
from lit_vision.data.make.patches import COUNTS, PHOTOGRAPHS, SIDE, make_patches, spread_corners
from lit_vision.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    pytest.importorskip("skimage")
    out = tmp_path_factory.mktemp("patches") / "set"
    assert main(["data", "patches", "--out", str(out)]) == 0
    return out


def test_each_photograph_has_its_patches_and_no_image_is_there_twice(made: Path) -> None:
    folder = scan(made)
    assert sorted(folder.classes) == sorted(Path(name).stem for name in PHOTOGRAPHS)
    assert not folder.inventory.phrases()
    counts = {f"{f.parent.name}/{f.name}": len(list(f.iterdir())) for f in made.glob("*/*") if f.is_dir()}
    assert counts == {f"{split}/{name}": count for split, count in COUNTS.items() for name in folder.classes}
    images = [Image.open(path).tobytes() for path in made.rglob("*.png")]
    assert len({hashlib.sha256(image).digest() for image in images}) == len(images) == 18 * 140


def test_patches_are_the_photographs_pixels_and_splits_lie_a_patch_apart(made: Path) -> None:
    source = {path.stem: path for path in patches.photograph_files()}
    for name, path in source.items():
        photograph = np.asarray(Image.open(path).convert("RGB"))
        corners = {
            split: [tuple(map(int, file.stem.split("-"))) for file in (made / split / name).iterdir()]
            for split in COUNTS
        }
        assert max(x for x, _ in corners["train"]) + 2 * SIDE <= min(x for x, _ in corners["test"])
        x, y = corners["test"][0]
        patch = np.asarray(Image.open(made / "test" / name / f"{x}-{y}.png"))
        np.testing.assert_array_equal(patch, photograph[y : y + SIDE, x : x + SIDE])


def test_origins_lie_beside_and_a_second_call_changes_nothing(made: Path, tmp_path: Path) -> None:
    license_text = (made / "LICENSE.txt").read_text()
    assert all(name in license_text for name in PHOTOGRAPHS)
    assert "BSD-3-Clause" in license_text
    removed = next((made / "train").rglob("*.png"))
    content = removed.read_bytes()
    removed.unlink()
    make_patches(made)
    assert not removed.exists()  # complete: nothing is written
    removed.write_bytes(content)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        make_patches(tmp_path)


def test_without_scikit_image_the_message_says_what_to_install(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["data", "patches", "--out", str(tmp_path / "x")]) == 1
    assert "pip install scikit-image" in capsys.readouterr().err


def test_corners_are_those_of_the_widest_grid_without_squares_of_one_color() -> None:
    region = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    region[:8, :8] = 7
    corners = spread_corners(region, 8, 9)
    # step 8 has 6 x 3 places, one of them of one color
    places = [(x, y) for x in range(0, 43, 8) for y in range(0, 23, 8)][1:]
    assert corners == [places[i * 17 // 9] for i in range(9)]
    assert len(set(spread_corners(region, 8, 100))) == 100
    with pytest.raises(ValueError, match="no 1000 "):
        spread_corners(region, 8, 1000)
