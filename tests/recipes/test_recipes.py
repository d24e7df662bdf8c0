"""Every recipe is parsed, no weights built; one per method trains two batches through the command line."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from PIL import Image

from lit_vision import cli
from lit_vision.lightning_cli import RunCLI

ROOT = Path(__file__).parents[2] / "experiments"
ROOMS = ("debug", "mae", "simclr", "classify", "detect", "segment")
RECIPES = sorted(str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).glob("*.yaml"))


class ParseOnly(RunCLI):
    def instantiate_classes(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...

    def _set_seed(self) -> None: ...


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_parses(recipe: str) -> None:
    cli_ = ParseOnly(["fit", "--config", str(ROOT / recipe)], None, [])
    assert isinstance(cli_, LightningCLI)
    settings = cli_.config.fit
    assert settings.model.class_path.startswith("lit_vision.methods")
    assert settings.data.init_args.seed == settings.seed_everything


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_header(recipe: str) -> None:
    header = "\n".join(line for line in (ROOT / recipe).read_text().splitlines() if line.startswith("#"))
    for word in ("run:", "expect:", "reached:", "cost:", "differs:"):
        assert word in header, f"{recipe} lacks {word}"
    assert f"--config experiments/{recipe}" in header


@pytest.mark.parametrize("recipe", [r for r in RECIPES if not r.startswith("debug/")])
def test_the_comment_on_the_global_batch_is_its_arithmetic(recipe: str) -> None:
    text = (ROOT / recipe).read_text()
    settings = yaml.safe_load(text)
    if match := re.search(r"# ([\d x]+) = (\d+)", text):
        trainer, batch = settings["trainer"], settings["data"]["init_args"]["batch_size"]
        total = batch * trainer["devices"] * trainer["num_nodes"]
        assert total == int(match[2]) == int(np.prod([int(n) for n in match[1].split(" x ")]))


def test_readme_has_a_row_per_recipe() -> None:
    rows = re.findall(r"^\| `([^`]+\.yaml)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(r for r in rows if r.split("/")[0] in ROOMS) == RECIPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 2)):
        for k in range(10):
            place = root / split / f"class{k}"
            place.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 25 * k + 25, (28, 28), dtype=np.uint8)).save(place / f"{i}.png")
    return root


@pytest.mark.parametrize("method", ["mae", "simclr", "classifier"])
def test_two_batches_through_the_command_line(method: str, folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data.root", str(folder), "--data.batch_size", "16", "--trainer.max_epochs", "1"]
    words += ["--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    assert cli.main(["fit", "--config", str(ROOT / f"debug/{method}.yaml"), "--run_dir", "run", *words]) == 0
    assert Path("run/checkpoints/last.ckpt").is_file()
    assert Path("run/results.json").is_file()
    if method == "mae":
        assert Path("run/samples/reconstructions-e0001.png").is_file()
        probe = ["--model.backbone_checkpoint", "run/checkpoints/last.ckpt", "--run_dir", "tuned"]
        assert cli.main(["fit", "--config", str(ROOT / "debug/classifier.yaml"), *probe, *words]) == 0
        swapped = ["--model.backbone_checkpoint", "run/checkpoints/last.ckpt", "--model.backbone", "resnet10t"]
        swapped += ["--model.backbone_args", "{}", "--run_dir", "no"]
        assert cli.main(["fit", "--config", str(ROOT / "debug/classifier.yaml"), *swapped, *words]) == 1
    if method == "classifier":
        assert (
            cli.main(
                [
                    "fit",
                    "--config",
                    str(ROOT / "debug/classifier.yaml"),
                    "--run_dir",
                    "no",
                    *words,
                    "--model.num_classes",
                    "7",
                ]
            )
            == 1
        )
    assert not Path("no/checkpoints").exists()
