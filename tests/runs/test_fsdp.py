"""FSDP2 on two gloo processes: equal to one process, checkpoints for another number of processes, damage, kills."""

import csv
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import soak

import lit_vision.cli.lightning_cli
import lit_vision.runs.fsdp  # noqa: F401
from lit_vision.io import checkpoint_digest
from lit_vision.io.safe_load import DamagedCheckpointError
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO

SHARDED = "{class_path: lit_vision.runs.fsdp.FSDP2Strategy, init_args: {activation_checkpointing: %s}}"


@pytest.fixture(scope="module")
def kills():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="shard-") as folder:
        yield soak.Soak(Path(folder), preload=("Plain",))


@pytest.fixture(scope="module")
def two(kills: soak.Soak) -> soak.Case:
    return soak.Case(kills.folder, "Plain", world_size=2, strategy=SHARDED % "false")


@pytest.fixture(scope="module")
def uninterrupted(two: soak.Case) -> soak.Run:
    run = soak.Run(two, "sharded-uninterrupted")
    assert not run.advance(), run.log.read_text()
    return run


def state(run: soak.Run, name: str = "last.ckpt") -> dict:
    return AtomicCheckpointIO().load_checkpoint(run.folder / "checkpoints" / name)


def measured(run: soak.Run, name: str) -> list[float]:
    rows = csv.DictReader((run.folder / "metrics.csv").read_text().splitlines())
    found = [float(row[name]) for row in rows if row.get(name)]
    assert len(found) == soak.EPOCHS
    return found


def assert_close(a: dict, b: dict, atol: float) -> None:
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for key, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][key], rtol=0, atol=atol, msg=key)


def test_two_sharded_processes_train_as_one_plain_process(kills: soak.Soak, uninterrupted: soak.Run) -> None:
    one = soak.Run(soak.Case(kills.folder, "Plain", accumulate=2, strategy="auto"), "plain-uninterrupted")
    assert not one.advance(), one.log.read_text()
    assert_close(state(uninterrupted), state(one), 1e-5)
    assert state(uninterrupted)["global_step"] == state(one)["global_step"]
    assert measured(uninterrupted, "val/top1") == measured(one, "val/top1")
    assert measured(uninterrupted, "val/loss") == pytest.approx(measured(one, "val/loss"), abs=1e-5)
    found = sorted(p.name for p in (uninterrupted.folder / "checkpoints" / "last.ckpt").iterdir())
    parts = ["rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"]
    assert found == ["manifest.json", *parts, "rest.ckpt"]
    sizes = [(uninterrupted.folder / "checkpoints" / "last.ckpt" / p).stat().st_size for p in parts]
    assert max(sizes) < 1.3 * min(sizes)  # split, not copied
    checkpoints = sorted((uninterrupted.folder / "checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert [checkpoint_digest.integrity_error(p) for p in checkpoints] == [None] * 3


def test_killed_and_resumed__same_bits(two: soak.Case, uninterrupted: soak.Run) -> None:
    run = soak.Run(two, "sharded-killed")
    assert run.advance("end:2")
    assert run.advance("start:3")
    assert not run.advance()
    assert_close(state(run), state(uninterrupted), 0.0)
    soak.assert_same(state(run)["optimizer_states"], state(uninterrupted)["optimizer_states"], "optimiser")


@pytest.mark.slow
def test_two_to_one_to_plain(kills: soak.Soak, two: soak.Case, uninterrupted: soak.Run) -> None:
    run = soak.Run(two, "sharded-elastic")
    one = soak.Case(kills.folder, "Plain", accumulate=2)
    plain = soak.Case(kills.folder, "Plain", accumulate=2, strategy="auto")
    assert run.advance("start:3")
    assert run.advance("start:3", case=soak.CaseWithOtherRecipe(one, two))
    assert len(list((run.folder / "checkpoints" / "last.ckpt").glob("rank-*"))) == 1
    assert not run.advance(case=soak.CaseWithOtherRecipe(plain, two)), run.log.read_text()[-2000:]
    assert (run.folder / "checkpoints" / "last.ckpt").is_file()
    assert_close(state(run), state(uninterrupted), 1e-5)


@pytest.mark.slow
def test_activation_checkpointing_of_two_processes(kills: soak.Soak) -> None:
    one = soak.Run(soak.Case(kills.folder, "MAE", accumulate=2, strategy="auto"), "plain-mae")
    assert not one.advance(), one.log.read_text()[-3000:]
    run = soak.Run(soak.Case(kills.folder, "MAE", world_size=2, strategy=SHARDED % "true"), "sharded-mae")
    assert not run.advance(), run.log.read_text()[-3000:]
    assert measured(run, "val/loss") == pytest.approx(measured(one, "val/loss"), abs=1e-4)
    assert "OnlineKNN: " in run.log.read_text()
    assert_close(state(run), state(one), 2e-3)  # adamw in float32: the sum over two halves is in another order


@pytest.mark.slow
def test_a_damaged_part_is_passed_over(two: soak.Case) -> None:
    run = soak.Run(two, "sharded-damaged")
    assert run.advance("start:4")
    part = run.folder / "checkpoints" / "last.ckpt" / "rank-00001-of-00002.safetensors"
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"rank-00001-of-00002\.safetensors"):
        AtomicCheckpointIO().load_checkpoint(part.parent)
    assert run.advance("start:2")
    text = run.log.read_text()
    assert "skipped checkpoint:" in text
    assert "resuming from" in text.split("skipped checkpoint:")[1]
    assert "previous.ckpt" in text.split("resuming from")[-1]
    manifest = json.loads((run.folder / "checkpoints" / "last.ckpt" / "manifest.json").read_text())
    assert manifest["world"] == 2
