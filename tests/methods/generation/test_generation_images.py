"""Bits of generated images: whatever --num, kills and resumes; and what is refused."""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lit_vision import methods
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict.generate import generate_images, load_generator

SIZES = {"img_size": 8, "channels": 1, "num_classes": 3, "width": 8, "multipliers": (1, 2), "patch_size": 2}
MAKE = {
    "FlowMatching": lambda: methods.FlowMatching(**SIZES, blocks=1),
    "GAN": lambda: methods.GAN(**SIZES, noise_width=4, discriminator_width=8),
}
NAMES = ["bag", "coat", "dress"]
OPTIONS = {"FlowMatching": {"steps": 3}, "GAN": {}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run of each, with random weights everywhere."""
    place = tmp_path_factory.mktemp("generators")
    for name, make in MAKE.items():
        torch.manual_seed(0)
        module = make()
        for p in module.parameters():  # layers that begin at zero too
            torch.nn.init.normal_(p, std=0.3)
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        (place / name / "checkpoints").mkdir(parents=True)
        torch.save({**content, "card": {"class_names": NAMES}}, place / name / "checkpoints/last.ckpt")
    return place


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("name", MAKE)
def test_generation__num_kills_and_resumes_change_no_bit(name: str, runs: Path, tmp_path: Path) -> None:
    options = {"micro_batch": 4, "seed": 5, "device": "cpu", **OPTIONS[name]}
    assert generate_images(runs / name, tmp_path / "whole", 10, **options, grid=tmp_path / "whole-grid.png") == 10
    whole = pictures(tmp_path / "whole")
    assert len(whole) == len(set(whole.values())) == 10
    assert generate_images(runs / name, tmp_path / "parts", 3, **options) == 3
    assert generate_images(runs / name, tmp_path / "parts", 7, **options) == 4
    (tmp_path / "parts/000001.png").unlink()  # as after a kill between two files of a micro-batch
    (tmp_path / "parts/.000001.png.abc.tmp").mkdir()
    assert generate_images(runs / name, tmp_path / "parts", 10, **options, grid=tmp_path / "grid.png") == 4
    assert pictures(tmp_path / "parts") == whole
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "whole-grid.png").read_bytes()
    assert not list((tmp_path / "parts").glob(".*"))
    for other in (1, 3, 10):  # another micro-batch: at most one grey level
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        generate_images(runs / name, tmp_path / "other", 10, **{**options, "micro_batch": other})
        for file in whole:
            a, b = (cv2.imread(str(tmp_path / folder / file)).astype(int) for folder in ("whole", "other"))
            assert np.abs(a - b).max() <= 1
    with open(tmp_path / "whole/labels.csv") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [NAMES[i % 3] for i in range(10)]


def test_generation__of_named_classes_with_the_command(runs: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "classes.txt").write_text("dress\nbag\n")
    command = f"generate --device cpu --num 4 --out {tmp_path}/made --classes {tmp_path}/classes.txt --model {runs}"
    assert main(f"{command}/GAN".split()) == 0
    assert main(f"generate --device cpu --num 6 --out {tmp_path}/all --model {runs}/GAN".split()) == 0
    made, every = pictures(tmp_path / "made"), pictures(tmp_path / "all")
    assert made["000001.png"] != every["000001.png"]  # bag instead of coat
    assert [line.split(",")[1] for line in (tmp_path / "made/labels.csv").read_text().split()[1:]] == [
        "dress",
        "bag",
    ] * 2
    (tmp_path / "classes.txt").write_text("dress\nhat\n")
    capsys.readouterr()
    for words, flag in (
        (f"{command}/GAN", "classes.txt: 'hat'"),
        (f"{command}/GAN --steps 3", "--steps"),
        (f"generate --model {runs}/FlowMatching --out {tmp_path}/other --steps 0", "steps"),
        (f"generate --model {runs}/FlowMatching --out {tmp_path}/other --guidance nan", "guidance"),
        (f"generate --device cpu --seed 1 --out {tmp_path}/all --model {runs}/GAN", "seed"),
        (f"generate --device cpu --out {runs} --model {runs}/GAN", "--out"),
        (f"generate --device cpu --grid grid.jpg --out {tmp_path}/other --model {runs}/GAN", "--grid"),
    ):
        assert main(words.split()) in (1, 2), words
        error = capsys.readouterr().err
        assert flag in error
        assert error.count("\n") == 1


def test_generation__a_wrong_option_or_a_damaged_file_costs_nothing_else(runs: Path, tmp_path: Path, capsys) -> None:
    start = f"generate --device cpu --num 2 --out {tmp_path}/out --grid"
    (tmp_path / "mine.png").write_bytes(b"a photograph")
    for words, flag in (
        *(
            (f"{tmp_path}/g.png --model {runs}/FlowMatching --guidance {value}", "--guidance")
            for value in ("inf", "nan", -3)
        ),
        (f"{tmp_path}/g.png --model {runs}/FlowMatching --steps 0", "--steps"),
        (f"{tmp_path}/mine.png --model {runs}/GAN", "--grid"),
        (f"{tmp_path}/out/000001.png --model {runs}/GAN", "--grid"),
    ):
        assert main(f"{start} {words}".split()) in (1, 2), words
        error = capsys.readouterr().err
        assert flag in error
        assert error.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]  # the corrected command needs no other folder
    assert main(f"{start} {tmp_path}/g.png --model {runs}/GAN".split()) == 0
    grid = (tmp_path / "g.png").read_bytes()
    (tmp_path / "out/000000.png").write_bytes(b"")  # after a power failure
    assert main(f"{start} {tmp_path}/g.png --model {runs}/GAN".split()) == 0
    assert (tmp_path / "g.png").read_bytes() == grid
    (tmp_path / "out/000000.png").write_bytes(b"no image")
    assert main(f"{start} {tmp_path}/g.png --model {runs}/GAN".split()) == 1
    assert "000000.png: is damaged" in capsys.readouterr().err
    content = torch.load(runs / "GAN/checkpoints/last.ckpt")
    content["state_dict"] = {name: value * torch.nan for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match="not finite"):
        generate_images(tmp_path / "nan.ckpt", tmp_path / "nan", 1, device="cpu")


def test_generation__other_commands_name_it(runs: Path, tmp_path: Path, capsys) -> None:
    run = runs / "GAN/checkpoints/last.ckpt"
    for words in (
        f"embed --model {run} x.png --out {tmp_path}/i.safetensors",
        f"export {run} --format safetensors --out {tmp_path}/e.safetensors",
        f"import {run} --backbone_only --out {tmp_path}/w.safetensors",
    ):
        (tmp_path / "x.png").write_bytes(b"")
        assert main(words.replace("x.png", str(tmp_path / "x.png")).split()) == 1
        error = capsys.readouterr().err
        assert "last.ckpt" in error, words
        assert "lit-vision generate" in error, words
    torch.save({"state_dict": {"a": torch.ones(1)}, "hyper_parameters": {}}, tmp_path / "c.ckpt")
    with pytest.raises(UserError, match="is no generator"):
        load_generator(tmp_path / "c.ckpt")
