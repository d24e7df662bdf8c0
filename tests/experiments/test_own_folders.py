"""experiments/own_folders.py: folders not prepared for machine learning, from fetched packages."""

import io
import json
import runpy
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from lit_vision.data.folder import scan

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "own_folders.py"))


def _png(color: tuple[int, int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), color).save(file, "png")
    return file.getvalue()


def test_emoji__go_into_their_category_on_white(tmp_path) -> None:
    table = [{"image": "a.png", "category": "Food & Drink"}, {"image": "b.png", "category": "<b>Flags"}]
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as tar:
        for name, data in (
            ("package/emoji.json", json.dumps([*table, {"image": "c.png", "category": "Component"}]).encode()),
            ("package/img/t/64/a.png", _png((255, 0, 0, 255))),
            ("package/img/t/64/b.png", _png((0, 0, 0, 0))),
            ("package/img/t/64/c.png", _png((0, 0, 0, 255))),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    SCRIPT["emoji"](tmp_path / "p.tgz", tmp_path / "out")
    assert scan(tmp_path / "out").classes == ["<b>Flags", "Food & Drink"]
    pixels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").rglob("*.png"))]
    assert sorted(p[0, 0].tolist() for p in pixels) == [[255, 0, 0], [255, 255, 255]]
