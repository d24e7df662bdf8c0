"""Every recipe is parsed, no weights built; one per method trains two batches through the command line.

Their values: test_paper_values.py.
"""

import functools
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import Namespace
from PIL import Image

from lit_vision import methods
from lit_vision.cli import main as cli
from lit_vision.cli.lightning_cli import ParseOnly
from lit_vision.data import ImageFolderDataModule

ROOT = Path(__file__).parents[2] / "experiments"
RECIPES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*/*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_header(recipe: str) -> None:
    header = "\n".join(line for line in (ROOT / recipe).read_text().splitlines() if line.startswith("#"))
    for key in ("run:", "expect:", "reached:", "cost:", "differs:"):
        assert key in header, f"{recipe} lacks {key}"
    assert f"--config experiments/{recipe}" in header


@pytest.mark.parametrize("recipe", [r for r in RECIPES if not r.startswith("debug/")])
def test_the_comment_on_the_global_batch_is_its_arithmetic(recipe: str) -> None:
    text = (ROOT / recipe).read_text()
    settings = yaml.safe_load(text)
    if match := re.search(r"# ([\d x]+) = (\d+)", text):
        trainer, batch = settings["trainer"], settings["data"]["init_args"]["batch_size"]
        total = batch * trainer["devices"] * trainer["num_nodes"]
        assert total == int(match[2]) == int(np.prod([int(n) for n in match[1].split(" x ")]))


def header_of(recipe: str) -> list[str]:
    """Return the header's lines without the leading `# `."""
    return [line[2:] for line in (ROOT / recipe).read_text().splitlines() if line.startswith("# ")]


def flags_of(recipe: str) -> dict[str, list[list[str]]]:
    """Return the flags in a header: of its variants, and of its command for one node (`--a b`, up to three spaces)."""
    found: dict[str, list[list[str]]] = {"variant": [], "one node": []}
    for line in header_of(recipe):
        if match := re.match(r"(variant|one node):.*?\s(--(?!config).*?)(?:\s{3,}|$)", line):
            found[match[1]].append(shlex.split(match[2]))
    return found


@functools.cache
def parser():
    return ParseOnly(["fit", "--config", str(ROOT / "debug/mae.yaml")], None, []).parser  # seconds to build


@functools.cache
def parsed(recipe: str, flags: tuple[str, ...] = ()):
    return parser().parse_args(["fit", "--config", str(ROOT / recipe), *flags]).fit


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_parses(recipe: str) -> None:
    settings = parsed(recipe)
    assert settings.model.class_path.startswith("lit_vision.methods")
    assert settings.data.init_args.seed == settings.seed_everything


def images_a_step(settings) -> int:
    """Return the global batch size of a recipe."""
    trainer, batch = settings.trainer, settings.data.init_args.batch_size
    return batch * int(trainer.devices) * trainer.num_nodes * (trainer.accumulate_grad_batches or 1)


PAPER = [r for r in RECIPES if re.match(r"(mae|simclr|classify)/.*(in1k|cifar|transfer)|image_text/", r)]


@pytest.mark.parametrize("recipe", PAPER)
def test_variants_and_commands_of_the_header_parse(recipe: str) -> None:
    header = header_of(recipe)
    assert re.search(r"arXiv:\d{4}\.\d{5}|FINETUNE\.md", header[0]), "the first line names the source"
    script = next(re.search(r"sbatch --nodes=\d+ experiments/(\S+) ", line)[1] for line in header if "slurm:" in line)
    assert (ROOT / script).is_file()
    assert any(line.startswith("one node:") for line in header)
    assert sum(line.startswith("variant:") for line in header) == len(flags_of(recipe)["variant"])
    global_batch = images_a_step(parsed(recipe))
    nodes = next(re.search(r"--nodes=(\d+)", line)[1] for line in header if line.startswith("slurm:"))
    assert int(nodes) == parsed(recipe).trainer.num_nodes
    for flags in flags_of(recipe)["variant"]:
        settings = parsed(recipe, tuple(flags))
        assert any(word in " ".join(flags) for word in ("max_epochs", "backbone", "batch_size")), flags
        assert settings.trainer.max_epochs >= 1
    for flags in flags_of(recipe)["one node"]:
        flags = [word for word in flags if word not in ("FOLDER", "K", "E")]
        settings = parsed(recipe, tuple(flags))
        assert settings.trainer.num_nodes == 1
        assert images_a_step(settings) == global_batch, "one node must not change the global batch"


def test_flags_of_the_papers_tables_are_keys_of_their_recipes(monkeypatch) -> None:
    """One parse per recipe; each flag's key must exist, and its value have the type of the key's value."""
    monkeypatch.syspath_prepend(str(ROOT))
    rows = importlib.import_module("paper_rows")
    commands = {c for table in rows.TABLES.values() for line in table.rows for c in line.commands}
    commands |= set(importlib.import_module("table_mae_mask_ratio").COMMANDS)
    trained = [command for command in commands if command.startswith("lit-vision fit")]
    assert len(trained) > 70
    for command in trained:
        arguments = shlex.split(re.sub(r"\$\(.*?\)+(?= )", "7", command))[4:]
        recipe = Path(shlex.split(command)[3]).relative_to("experiments")
        settings = parsed(str(recipe))
        flags = dict(zip(arguments[::2], arguments[1::2]))
        own = {
            flag.removeprefix("--data."): yaml.safe_load(v) for flag, v in flags.items() if flag.startswith("--data.")
        }
        ImageFolderDataModule(**{**vars(settings.data.init_args), **own})  # refuses an option that the view lacks
        for flag, value in zip(arguments[::2], arguments[1::2]):
            if flag in ("--run_dir", "--resume"):
                continue
            part, key = flag.removeprefix("--").split(".")
            holder = settings.trainer if part == "trainer" else settings[part].init_args
            assert key in holder, command
            kind, given = type(holder[key]), type(yaml.safe_load(value))
            same = holder[key] is None or given is kind or {given, kind} <= {int, float} or kind is str
            assert same or {given, kind} == {dict, Namespace}, command


def test_readme_has_a_row_per_recipe() -> None:
    rows = re.findall(r"^\| `([^`]+\.yaml)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == RECIPES


def test_every_method_has_a_recipe() -> None:
    paths = {yaml.safe_load((ROOT / recipe).read_text())["model"]["class_path"] for recipe in RECIPES}
    assert {path.rpartition(".")[2] for path in paths} == {*methods.__all__, *methods.TRAINERS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 2)):
        for k in range(10):
            class_folder = root / split / f"class{k}"
            class_folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 25 * k + 25, (28, 28), dtype=np.uint8)).save(class_folder / f"{i}.png")
    return root


@pytest.mark.parametrize("method", ["mae", "simclr", "classifier"])
def test_two_batches_through_the_command_line(method: str, folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data.root", str(folder), "--data.batch_size", "16", "--trainer.max_epochs", "1"]
    arguments += ["--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    assert cli.main(["fit", "--config", str(ROOT / f"debug/{method}.yaml"), "--run_dir", "run", *arguments]) == 0
    assert Path("run/checkpoints/last.ckpt").is_file()
    assert Path("run/results.json").is_file()
    if method == "mae":
        assert Path("run/samples/reconstructions-e0001.png").is_file()
        probe = ["--model.backbone_checkpoint", "run/checkpoints/last.ckpt", "--run_dir", "tuned"]
        assert cli.main(["fit", "--config", str(ROOT / "debug/classifier.yaml"), *probe, *arguments]) == 0
        swapped = ["--model.backbone_checkpoint", "run/checkpoints/last.ckpt", "--model.backbone", "resnet10t"]
        swapped += ["--model.backbone_args", "{}", "--run_dir", "no"]
        assert cli.main(["fit", "--config", str(ROOT / "debug/classifier.yaml"), *swapped, *arguments]) == 1
    if method == "classifier":
        assert (
            cli.main(
                [
                    "fit",
                    "--config",
                    str(ROOT / "debug/classifier.yaml"),
                    "--run_dir",
                    "no",
                    *arguments,
                    "--model.num_classes",
                    "7",
                ]
            )
            == 1
        )
    assert not Path("no/checkpoints").exists()


SMALL_VIT = "img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2"
SMALL_CNN = "layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]"
SMALL_FLAGS = [
    *(
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "1",
        "--trainer.num_nodes",
        "1",
        "--trainer.logger",
        "false",
    ),
    *("--trainer.precision", "32-true", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"),
    *("--data.batch_size", "8", "--data.num_workers", "0", "--data.img_size", "32"),
]


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["mae", "simclr", "supervised"])
def test_paper_recipes_train_two_batches_of_a_small_model(
    chain: str, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    """All their settings except the sizes: pre-training, then each stage that starts from its encoder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(
        "".join(f"{p.relative_to(folder)}\n" for p in sorted(folder.glob("train/*/*.png")))
    )

    def train(recipe: str, run: str, *arguments: str) -> None:
        command = ["fit", "--config", str(ROOT / f"{recipe}.yaml"), "--run_dir", run, "--data.root", str(folder)]
        assert cli.main([*command, *SMALL_FLAGS, *arguments]) == 0, recipe

    def backbone_args(text: str) -> tuple[str, str]:
        return "--model.backbone_args", f"{{{text}}}"

    if chain == "mae":
        decoder = ("--model.decoder_width", "16", "--model.decoder_depth", "1", "--model.decoder_heads", "2")
        train("mae/vitb16_in1k_1600ep", "pre", *backbone_args(SMALL_VIT), *decoder)
        from_encoder = ("--model.backbone_checkpoint", "pre/checkpoints/last.ckpt", "--model.num_classes", "10")
        for recipe in ("vitb16_in1k_100ep_finetune", "vith14_in1k_50ep_finetune_paper"):
            train(
                f"mae/{recipe}", recipe, *from_encoder, *backbone_args(f"pool: avg, drop_path_rate: 0.1, {SMALL_VIT}")
            )
        train("mae/vitb16_in1k_90ep_linear", "probe", *from_encoder, *backbone_args(f"pool: token, {SMALL_VIT}"))
    elif chain == "simclr":
        train("simclr/resnet50_in1k_1000ep", "pre", *backbone_args(SMALL_CNN))
        from_encoder = (
            "--model.backbone_checkpoint",
            "pre/checkpoints/last.ckpt",
            "--model.num_classes",
            "10",
            *backbone_args(SMALL_CNN),
        )
        train("simclr/resnet50_in1k_90ep_linear", "probe", *from_encoder)
        train("simclr/resnet50_in1k1pct_60ep_finetune", "few", *from_encoder, "--data.split_file", "list.txt")
        train("simclr/resnet50_transfer_finetune", "transfer", *from_encoder)
        train("simclr/resnet50_cifar10_1000ep", "cifar", *backbone_args(f"stem: small, {SMALL_CNN}"))
    else:
        classes = ("--model.num_classes", "10")
        train("classify/resnet50_in1k_300ep", "a2", *classes, *backbone_args(SMALL_CNN))
        vit = backbone_args(f"drop_path_rate: 0.1, {SMALL_VIT}")
        train("classify/vitb16_in1k_300ep", "deit", *classes, *vit, "--model.base_lr", "1e-2")  # 8 images a step
        train("mae/vitb16_in1k_300ep_scratch", "scratch", *classes, *vit)
        import torch

        checkpoint = torch.load("deit/checkpoints/last.ckpt", weights_only=True)
        assert not torch.equal(
            checkpoint["state_dict"]["head.weight"], checkpoint["training_weights"]["head.weight"]
        )  # EMA
