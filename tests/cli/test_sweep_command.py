"""The sweep command with real runs of a toy network."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_vision.cli.main import main
from lit_vision.sweep.settings import open_journal, read

RECIPE = """
seed_everything: 1
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
model: {class_path: toy_run.ToyNet, init_args: {width: 2}}
data: {class_path: toy_run.ToyData, init_args: {n: 8}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(RECIPE)
    Path("space.yaml").write_text("model.lr: {values: [0.1, 0.01]}\n")
    return tmp_path


def sweep(*more: str) -> int:
    return main(["sweep", "--config", "toy.yaml", "--space", "space.yaml", "--metric", "val/loss", *more])


def test_a_key_or_value_that_the_recipe_cannot_take_is_refused_by_file_and_key(place, capsys):
    for text, named in (("model.rate: {values: [1]}", "rate"), ("model.lr: {values: [0.1, big]}", "lr")):
        Path("space.yaml").write_text(text)
        assert sweep("--sampler", "grid") == 2
        error = capsys.readouterr().err
        assert "space.yaml" in error
        assert named in error
    assert not Path("runs").exists()
    Path("space.yaml").write_text("model.lr: {low: 0.1, high: 1.0}")
    assert sweep("--sampler", "grid") == 2
    assert "model.lr" in capsys.readouterr().err


def test_trials_are_ordinary_runs_in_the_sweeps_folder(place, capsys):
    assert sweep("--sampler", "grid", "--trainer.max_epochs", "1") == 0
    folder = Path("runs/sweep/toy")
    for number in (0, 1):
        assert (folder / f"trials/000{number}/seed-1/checkpoints/last.ckpt").is_file()
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert {row["model.lr"] for row in rows} == {"0.1", "0.01"}
    losses = [float(row["mean val/loss"]) for row in rows]
    assert losses == sorted(losses)
    assert str(folder / "best.yaml") in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_recipe_is_the_run_that_won_and_the_finish_tests_it(place, capsys):
    assert sweep("--trials", "2", "--metric", "val/top1", "--finish", "--finish_seeds", "2") == 0
    folder = Path("runs/sweep/toy")
    assert len(json.loads((folder / "finish.json").read_text())["best"]) == 2
    best = next(csv.DictReader((folder / "trials.csv").open()))
    assert main(["fit", "--config", str(folder / "best.yaml"), "--run_dir", "again"]) == 0
    again = json.loads(Path("again/results.json").read_text())["metrics"]["val/top1"]
    assert again == float(best["mean val/top1"])


@pytest.mark.slow
def test_two_processes_of_a_trial_report_once(place):
    toys = str(Path(__file__).parents[1] / "toys")
    paths = os.pathsep.join([toys, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lit_vision", "sweep", "--config", "toy.yaml", "--space", "space.yaml"]
    command += ["--metric", "val/loss", "--sampler", "grid", "--trials", "1", "--pruner", "median"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--run_dir", "sweep"]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    journal = open_journal(place / "sweep", read(place / "sweep"))
    environment = json.loads((place / "sweep/trials/0000/seed-1/environment.json").read_text())
    assert environment["processes"] == 2
    (frozen,) = journal._study.get_trials()
    assert sorted(frozen.intermediate_values) == [1, 2]
