"""Images whose results would mislead are named: copies in the test split, long ones, classes without a test image."""

import shutil
from pathlib import Path

import pytest
from broken_files import encode, picture

from lit_vision.study.image_checks import image_notes
from lit_vision.study.images import read_images
from lit_vision.study.pixel_cache import PixelCache


def _write(root: Path, height: int, width: int, tested: tuple[str, ...] = ("cat", "dog")) -> Path:
    for s, (split, names) in enumerate((("train", ("cat", "dog")), ("test", tested))):
        for c, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                data = encode(picture(100 * s + 10 * c + i, height, width), "PNG")
                (root / split / name / f"{i}.png").write_bytes(data)
    return root


@pytest.mark.parametrize(("side", "gigabytes"), [(20, None), (20, 1), (80, None), (80, 1)])
def test_copies__in_the_test_split_are_counted_and_only_they(tmp_path, side: int, gigabytes: float | None) -> None:
    root = _write(tmp_path / "set", side, side + 4)

    def notes() -> list[str]:
        if gigabytes is None:
            return image_notes(read_images(root))
        with PixelCache(tmp_path / "run", gigabytes, lambda _: None) as cache:
            return image_notes(read_images(root, cache=cache))

    assert notes() == []
    shutil.copy(root / "train/dog/0.png", root / "test/cat/copy.png")  # under another label too
    (note,) = notes()
    assert note.startswith("1 of the 9 test images has the same pixels as a labeled training image")


def test_long_images_and_a_class_that_is_not_tested_are_named(tmp_path) -> None:
    assert image_notes(read_images(_write(tmp_path / "photos", 20, 30))) == []  # 3:2
    untested, long = image_notes(read_images(_write(tmp_path / "long", 10, 80, tested=("cat",))))
    assert "say nothing of them: dog" in untested
    assert "typically 80 x 10 pixels, of which networks see the square in the middle, 12%" in long
