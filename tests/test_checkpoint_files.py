"""A checkpoint file is the old one or the new one, never half of each; nothing in it runs."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_vision.checkpoint_files import AtomicIO, DamagedCheckpoint, is_valid, sidecar
from lit_vision.errors import UserError


def test_round_trip_and_sidecar_in_the_format_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for value in (1.0, 2.0):
        AtomicIO().save_checkpoint({"w": torch.full((1000,), value), "n": 3}, path)
        assert is_valid(path)
        assert torch.equal(AtomicIO().load_checkpoint(path)["w"], torch.full((1000,), value))
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert subprocess.run(["sha256sum", "-c", sidecar(path).name], cwd=path.parent, capture_output=True).returncode == 0
    AtomicIO().remove_checkpoint(path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"w": torch.ones(1000)}, path)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes({"flip": data, "cut": data[:2000], "empty": b""}[damage])
    with pytest.raises(DamagedCheckpoint, match="sha256"):
        AtomicIO().load_checkpoint(path)
    sidecar(path).unlink()
    if damage != "flip":  # without the sidecar a flipped bit cannot be seen
        with pytest.raises(DamagedCheckpoint):
            AtomicIO().load_checkpoint(path)


def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Bad()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Bad()))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(DamagedCheckpoint):
            AtomicIO().load_checkpoint(tmp_path / name, weights_only=False)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no such checkpoint"):
        AtomicIO().load_checkpoint(tmp_path / "none.ckpt")


def test_no_room_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"w": torch.ones(10)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(UserError, match="the checkpoint that was there before is whole"):
            AtomicIO().save_checkpoint({"w": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_valid(path)
    assert len(AtomicIO().load_checkpoint(path)["w"]) == 10
    assert not path.with_name("last.ckpt.tmp").exists()


@pytest.mark.slow
def test_kills_during_saving_leave_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    code = (
        "import sys, torch\nfrom lit_vision.checkpoint_files import AtomicIO\nn = 0\nprint('ready', flush=True)\n"
        f"while True:\n    n += 1\n    AtomicIO().save_checkpoint({{'w': torch.full((200_000,), float(n))}}, {str(path)!r})\n"
    )
    for i in range(8):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.2 + 0.013 * i)
        child.kill()
        child.wait()
        assert is_valid(path)
        assert AtomicIO().load_checkpoint(path)["w"].unique().numel() == 1
