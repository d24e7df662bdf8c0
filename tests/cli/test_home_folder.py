"""`~/` is the home folder in arguments, flags, recipes and the data module."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.cli.fit import resolve_config
from lit_vision.cli.main import main
from lit_vision.data import ImageFolderDataModule
from lit_vision.predict.inputs import find_images
from lit_vision.predict.models import resolve_model_file

RECIPE = """
model: {class_path: toy_run.ToyNet, init_args: {width: 4}}
data:
  class_path: lit_vision.data.ImageFolderDataModule
  init_args: {root: ~/set, quarantine: "~/bad.txt", img_size: 16, train_view: "train"}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / "set/train" / name).mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(tmp_path / "set/train" / name / "0.png")
    return tmp_path


def test_arguments_and_flags(home: Path, capsys) -> None:
    assert main(["pack", "~/set", "--out=~/a", "--lossless"]) == 0
    assert main(["pack", "~/set", "--out", "~/b", "--lossless"]) == 0
    a, b = ({file.name: file.read_bytes() for file in (home / name).iterdir()} for name in "ab")
    assert a == b
    assert str(home) in capsys.readouterr().out
    assert main(["pack", "~", "--out", "x~/c"]) == 1  # only ~/ at the beginning


def test_recipes_and_typed_keys(home: Path) -> None:
    (home / "r.yaml").write_text(RECIPE)
    typed = resolve_config(["fit", "--config", str(home / "r.yaml")])["data"]["init_args"]
    assert (typed["root"], typed["quarantine"]) == (f"{home}/set", f"{home}/bad.txt")
    arguments = ["fit", "--config", str(home / "r.yaml"), "--data.root", "~/other"]
    assert resolve_config(arguments)["data"]["init_args"]["root"] == f"{home}/other"


def test_python(home: Path) -> None:
    data = ImageFolderDataModule("~/set", img_size=16, batch_size=2, num_workers=0)
    data.setup()
    assert data.num_train == 2
    assert len(find_images(["~/set"])) == 2
    (home / "m.ckpt").touch()
    assert resolve_model_file("~/m.ckpt") == home / "m.ckpt"
