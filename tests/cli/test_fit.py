"""fit, validate and test of a toy: files of a run, and one line for each error. Lightning is imported once for all."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_vision.cli import main as cli
from lit_vision.cli.fit import HELP
from lit_vision.cli.main import COMMANDS
from lit_vision.errors import UsageError, UserError
from lit_vision.io import checkpoint_digest
from lit_vision.io.checkpoint_digest import digest_path
from lit_vision.runs import run_dir

RECIPE = """
seed_everything: 3
trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1, enable_model_summary: false}
model: {class_path: toy_run.ToyNet, init_args: {width: 4}}
data: {class_path: toy_run.ToyData, init_args: {n: 16}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


def one_line_error(capsys, words: list[str], code: int) -> str:
    assert cli.main([str(word) for word in words]) == code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vision: error")]
    assert len(error) == 1, error
    return error[0]


def test_a_run_leaves_what_the_design_says(recipe: Path, capsys) -> None:
    assert cli.main(["fit", "--config", str(recipe), "--name", "first"]) == 0
    run = Path("runs/toy/first")
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith(f"{run}: ")
    made = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "tensorboard" not in str(p)}
    files = {"config.yaml", "environment.json", "metrics.csv", "results.json", "timings.csv"}
    checkpoints = {f"checkpoints/{n}.ckpt{s}" for n in ("last", "best") for s in ("", ".sha256")}
    assert made == files | checkpoints
    assert list(run.glob("tensorboard/events*"))
    result = json.loads((run / "results.json").read_text())
    assert result["metric"]["name"] == "val/top1"
    assert (result["seed"], result["samples"], result["images_seen"], result["steps"]) == (3, 16, 16, 4)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data_fingerprint"] == "f" * 64
    assert environment["seed"] == 3
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows if r["train/loss"]] == ["0", "1", "2", "3"]
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["width"] == 4

    # config.yaml is a recipe that gives the same weights
    assert cli.main(["fit", "--config", str(run / "config.yaml"), "--run_dir", "again"]) == 0
    weights = [torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (run, Path("again"))]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

    # a finished run is not overwritten
    assert "--resume auto" in one_line_error(capsys, ["fit", "--config", recipe, "--run_dir", run], 1)

    # measured again: from the run's own config.yaml, the same number
    assert cli.main(["validate", "--ckpt_path", str(run / "checkpoints/last.ckpt")]) == 0
    again = json.loads((run / "results-validate.json").read_text())
    assert again["weights_sha256"] == result["weights_sha256"]
    assert again["samples"] == 16
    # what is typed changes the run's own settings, wherever it stands
    words = ["validate", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--run_dir", "other"]
    assert cli.main([*words, "--data.batch_size", "4", "--trainer.limit_val_batches", "1"]) == 0
    assert json.loads(Path("other/results-validate.json").read_text())["samples"] == 4
    assert cli.main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--run_dir", "measured"]) == 0
    assert "test/top1" in capsys.readouterr().out
    assert (Path("measured") / "results-test.json").is_file()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("width", "widht", "model.init_args.widht: ToyNet .* width"),
        ("{n: 16}", "{m: 16}", "data.init_args.m: ToyData"),
        ("width: 4", "width: four", "model.init_args.width: .*four"),
        ("width: 4", "width: -4", "ToyNet cannot be built with these settings: "),
        ("max_epochs: 1", "max_epochs: one", "trainer.max_epochs: .*one"),
        ("max_epochs", "max_epoch", "trainer.max_epoch: .*max_epochs"),
        ("trainer:", "trianer:", "trianer.max_epochs: .*trainer"),
        ("toy_run.ToyNet", "toy_run.ToyNot", "model: .*toy_run.ToyNot"),
        ("toy_run.ToyNet", "json.JSONDecoder", "model: .*json.JSONDecoder"),
        ("model:", "modle:", "modle"),
        ("{max_epochs: 1", "{max_epochs: 1, use_distributed_sampler: true", "trainer.use_distributed_sampler: "),
        ("data: {", "data: {{", "toy.yaml: "),
        ("{n: 16}", "{n: 16, fault: 'data/none: no such folder; make it'}", "data/none: no such folder; make it"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_the_key(recipe: Path, capsys, old, new, says) -> None:
    recipe.write_text(RECIPE.replace(old, new))
    error = one_line_error(capsys, ["fit", "--config", recipe, "--run_dir", "r"], 1 if "fault" in new else 2)
    assert re.search(says, error)
    assert "fault" in new or str(recipe) in error
    assert not Path("r/checkpoints").exists()


def test_a_missing_part_of_a_recipe(recipe: Path, capsys) -> None:
    recipe.write_text(RECIPE.split("data:")[0])
    assert "data: " in one_line_error(capsys, ["fit", "--config", recipe], 2)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["fit"], 2, "--config: "),
        (["fit", "--config", "nothere.yaml"], 2, "--config nothere.yaml: "),
        (["fit", "--config", "toy.yaml", "--config", "toy.yaml"], 2, "--config: "),
        (["fit", "--config", "toy.yaml", "--ckpt_path", "x.ckpt"], 2, "--resume"),
        (["fit", "--config", "toy.yaml", "--trainer.max_epoch", "3"], 2, "max_epoch: .*max_epochs"),
        (["fit", "--config", "toy.yaml", "--data.m", "1"], 2, "data.m: "),
        (["fit", "--config", "toy.yaml", "--data.n", "many"], 2, "data.n: .*many"),
        (["fit", "--config", "toy.yaml", "--data.n"], 2, "--data: "),
        (["fit", "--config", "toy.yaml", "--rezume", "auto"], 2, "--rezume: .*resume"),
        (["fit", "--config", "toy.yaml", "--data.seed", "1"], 2, "seed_everything"),
        (["fit", "--config", "toy.yaml", "--resume", "no.ckpt"], 1, "--resume no.ckpt: "),
        (["fit", "--config", "toy.yaml", "--nonsense", "3"], 2, "--nonsense: .*lit-vision fit --help"),
        (["validate", "--config", "toy.yaml"], 2, "--ckpt_path: "),
        (["test", "--config", "toy.yaml", "--ckpt_path", "no.ckpt"], 1, "--ckpt_path no.ckpt: "),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(recipe: Path, capsys, words, code, says) -> None:
    assert re.search(says, one_line_error(capsys, words, code))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_wrong_flag_is_answered_with_the_help_of_its_command(recipe: Path, capsys, command) -> None:
    Path("x.ckpt").touch()
    words = [command, "--config", "toy.yaml", "--ckpt_path", "x.ckpt"]
    assert f"lit-vision {command} --help" in one_line_error(capsys, [*words, "--nonsense", "3"], 2)


def test_checkpoints_that_do_not_fit_or_are_damaged(recipe: Path, capsys) -> None:
    assert cli.main(["fit", "--config", str(recipe), "--run_dir", "r"]) == 0
    last = Path("r/checkpoints/last.ckpt")
    wider = [str(recipe), "--model.width", "5"]
    error = one_line_error(capsys, ["test", "--config", *wider, "--ckpt_path", last], 1)
    assert re.search(r"last\.ckpt: .*\d keys .*backbone\.0\.weight", error)
    error = one_line_error(capsys, ["fit", "--config", *wider, "--resume", last], 1)
    assert "--resume r/checkpoints/last.ckpt: " in error
    error = one_line_error(capsys, ["fit", "--config", *wider, "--run_dir", "r", "--resume", "auto"], 1)
    assert "--resume auto: r " in error
    bytes_ = bytearray(last.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    last.write_bytes(bytes_)
    assert "sha256" in one_line_error(capsys, ["test", "--config", recipe, "--ckpt_path", last], 1)
    assert "sha256" in one_line_error(capsys, ["fit", "--config", recipe, "--run_dir", "r", "--resume", "auto"], 1)


def test_a_loss_that_is_not_finite_stops_before_the_step(recipe: Path, capsys) -> None:
    recipe.write_text(RECIPE.replace("width: 4", "width: 4, poison_step: 2"))
    error = one_line_error(capsys, ["fit", "--config", recipe, "--run_dir", "r"], 1)
    assert re.search(r"step 2\b.*\[nan\]", error)
    kept = torch.load(next(Path("r/nonfinite").glob("*.pt")), weights_only=True)
    assert kept["batches"][0]["key"].shape == (4, 3)
    assert math.isnan(kept["losses"][0])
    assert not Path("r/results.json").exists()


def test_resume_auto_finds_the_unfinished_run_of_this_recipe(recipe: Path, monkeypatch) -> None:
    words = run_dir.recipe_hash(recipe, ["--trainer.max_epochs", "2"])
    for name, run_hash, done in (("a", words, False), ("b", "other", False), ("c", words, True)):
        folder = run_dir.default_run_dir(recipe, name)
        run_dir.last_checkpoint(folder).parent.mkdir(parents=True)
        last = run_dir.last_checkpoint(folder)
        last.write_bytes(b"x")
        digest_path(last).write_text(checkpoint_digest.format_digests(last, [checkpoint_digest.Digest.of(last, 7)]))
        (folder / "environment.json").write_text(json.dumps({"run_sha256": run_hash}))
        if done:
            (folder / "results.json").write_text("{}")
    a = run_dir.RunStart(run_dir.default_run_dir(recipe, "a"), run_dir.last_checkpoint("runs/toy/a"))
    assert run_dir.resolve_run(recipe, words, None, "auto") == a
    run_dir.reset_run_dir()
    assert run_dir.resolve_run(recipe, words, "runs/toy/a", "auto") == a
    run_dir.reset_run_dir()
    with pytest.raises(UserError, match="--resume auto: runs/toy/a "):
        run_dir.resolve_run(recipe, "other", "runs/toy/a", "auto")
    run_dir.reset_run_dir()
    start = run_dir.resolve_run(recipe, "new", None, "auto")
    assert start.checkpoint is None
    assert not start.folder.exists()
    assert run_dir.resolve_run(recipe, "new", None, None) == start  # another process of the same run
    run_dir.reset_run_dir()


def test_where_a_run_runs_does_not_make_it_another_one(recipe: Path) -> None:
    first = run_dir.recipe_hash(recipe, ["--trainer.max_epochs", "2"])
    elsewhere = ["--trainer.devices=2", "--trainer.max_epochs", "2", "--data.num_workers", "3", "--data.batch_size=2"]
    assert run_dir.recipe_hash(recipe, elsewhere) == first
    assert run_dir.recipe_hash(recipe, ["--trainer.max_epochs", "3"]) != first
    for name in ("../x", "/tmp/x", "..", "a/b"):
        with pytest.raises(UsageError, match="--name"):
            run_dir.default_run_dir(recipe, name)


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_imports_neither_torch_nor_lightning(command: str | None) -> None:
    code = (
        "import sys\nfrom lit_vision.cli.main import main\n"
        "try:\n    assert main(sys.argv[1:]) == 0\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print({'torch', 'lightning', 'timm'} & set(sys.modules))"
    )
    words = ["--help"] if command is None else [command, "--help"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_names_every_flag_of_ours(capsys) -> None:
    for command in HELP:
        assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--config", "--run_dir", "--name", "--resume", "--seed_everything", "--wandb", "--wandb_weights"):
        assert flag in text
