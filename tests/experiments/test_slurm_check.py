"""experiments/slurm_check.py without SLURM: what it needs, its steps, and how bits are compared."""

import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import slurm_check


def test_a_machine_that_cannot_run_it_is_told_why(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm_check.os, "geteuid", lambda: 1000)
    log = tmp_path / "slurm.log"
    assert slurm_check.main(["--log", str(log)]) == 0
    assert "skipped: needs root" in capsys.readouterr().out
    monkeypatch.setattr(slurm_check.os, "geteuid", lambda: 0)
    monkeypatch.setattr(slurm_check, "_path", lambda: str(tmp_path))
    assert slurm_check.main(["--log", str(log)]) == 0
    assert "skipped: munged is not installed (apt-get install" in capsys.readouterr().out
    assert not log.exists()  # the log of an earlier check stays


def test_an_error_stops_what_was_started(monkeypatch, capsys, tmp_path: Path) -> None:
    """Programs that end at once in place of the daemons."""
    for name in slurm_check.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(slurm_check.os, "geteuid", lambda: 0)
    monkeypatch.setattr(slurm_check, "_path", lambda: str(tmp_path))
    monkeypatch.setattr(slurm_check, "PATIENCE", 0)
    monkeypatch.setattr(slurm_check.tempfile, "tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    assert slurm_check.main(["--log", str(tmp_path / "slurm.log")]) == 1
    output = capsys.readouterr().out
    assert "munged's socket did not come" in output
    assert "0 processes left" in output
    assert not list(tmp_path.glob("slurm-*"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_recipe_and_steps_fit(tmp_path: Path) -> None:
    recipe = yaml.safe_load(slurm_check.RECIPE.replace("FOLDER", str(tmp_path)))
    slurm_check.write_images(tmp_path / "images")
    images = len(list((tmp_path / "images" / "train").rglob("*.png")))
    steps = images // (2 * recipe["data"]["init_args"]["batch_size"]) * recipe["trainer"]["max_epochs"]
    assert 0 < slurm_check.WARNED_AT < slurm_check.PREEMPTED_AT < steps


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states", "global_step"])
def test_a_bit_that_differs_changes_the_digest(part: str, tmp_path: Path) -> None:
    def write(run: str, **changed) -> Path:
        content = {"state_dict": {"w": torch.ones(2)}, "optimizer_states": [{"m": torch.zeros(2)}], "global_step": 3}
        path = tmp_path / run / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({**content, **changed}, path)
        return tmp_path / run

    changed = {
        "state_dict": {"w": torch.tensor([1.0, 1.0 + 2**-23])},
        "optimizer_states": [{"m": torch.tensor([0.0, 1e-45])}],
        "global_step": 4,
    }
    first = slurm_check.digest_of(write("first"))
    assert first == slurm_check.digest_of(write("same"))
    assert first != slurm_check.digest_of(write("other", **{part: changed[part]}))
