"""A checkpoint file is the old one or the new one, never half of each; nothing in it runs."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from toy_fork import parent_objects_kept

from lit_vision.errors import UserError
from lit_vision.io import atomic, checkpoint_digest
from lit_vision.io.safe_load import DamagedCheckpointError
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO, digest_path, is_valid
from lit_vision.runs.retention import Retention


def test_round_trip_and_sidecar_in_the_format_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for value in (1.0, 2.0):
        AtomicCheckpointIO().save_checkpoint({"w": torch.full((1000,), value), "n": 3}, path)
        assert is_valid(path)
        assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["w"], torch.full((1000,), value))
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert checkpoint_digest.read_digests(path) == [checkpoint_digest.Digest.of(path)]
    assert (
        subprocess.run(["sha256sum", "-c", digest_path(path).name], cwd=path.parent, capture_output=True).returncode
        == 0
    )
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(1000)}, path)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes({"flip": data, "cut": data[:2000], "empty": b""}[damage])
    with pytest.raises(
        DamagedCheckpointError, match={"flip": "sha256", "cut": "2000 bytes", "empty": "is empty"}[damage]
    ):
        AtomicCheckpointIO().load_checkpoint(path)
    digest_path(path).unlink()
    if damage != "flip":  # without the sidecar a flipped bit cannot be seen
        with pytest.raises(DamagedCheckpointError):
            AtomicCheckpointIO().load_checkpoint(path)


def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Bad()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Bad()))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(DamagedCheckpointError):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name, weights_only=False)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=r"none\.ckpt: "):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


def test_no_room_leaves_the_old_file_valid(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(10)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"last\.ckpt: .*--resume auto"):
            AtomicCheckpointIO().save_checkpoint({"w": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_valid(path)
    assert len(AtomicCheckpointIO().load_checkpoint(path)["w"]) == 10
    assert not path.with_name("last.ckpt.tmp").exists()


def save(path: Path, step: int, previous: str = "previous.ckpt", also: tuple[str, ...] = (), io=None) -> None:
    checkpoint = {"w": torch.full((1000,), float(step)), "global_step": step}
    (io or AtomicCheckpointIO()).save_checkpoint(checkpoint, path, {"previous": previous, "also": list(also)})


def test_the_one_before_stays_and_one_file_has_several_names(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        save(path, step, also=("best.ckpt",) if step == 2 else ())
    found = {p.name: checkpoint_digest.step_of(p) for p in checkpoint_digest.checkpoints_in(tmp_path)}
    assert found == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 2}
    assert list(found) == ["last.ckpt", "previous.ckpt", "best.ckpt"]
    assert all(checkpoint_digest.is_valid(tmp_path / name) for name in found)
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "previous.ckpt")
    assert len(list(tmp_path.iterdir())) == 6  # nothing temporary
    for name in found:
        check = subprocess.run(["sha256sum", "--strict", "-c", f"{name}.sha256"], cwd=tmp_path, capture_output=True)
        assert check.returncode == 0, check.stderr
    old = {"w": torch.ones(3)}  # its sidecar notes no step, as sha256sum writes it
    torch.save(old, tmp_path / "step-00000009.ckpt")
    sha = checkpoint_digest.sha256_of_file(tmp_path / "step-00000009.ckpt")
    digest_path(tmp_path / "step-00000009.ckpt").write_text(f"{sha}  step-00000009.ckpt\n")
    assert checkpoint_digest.is_valid(tmp_path / "step-00000009.ckpt")
    assert checkpoint_digest.checkpoints_in(tmp_path)[-1].name == "step-00000009.ckpt"


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_the_newest_valid_one_is_found_and_a_damaged_one_never_replaces_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        save(path, step)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes({"flip": data, "cut": data[:2000], "empty": b""}[damage])
    found, passed_over = checkpoint_digest.newest_valid(tmp_path)
    assert found == tmp_path / "previous.ckpt"
    word = {"flip": "sha256", "cut": " bytes instead of ", "empty": "is empty"}.get(damage)
    assert [word in line for line in passed_over] == ([] if damage == "gone" else [True])
    # the run goes on from step 1 and saves step 2 again: until that is done the valid one stays
    save(path, 2)
    assert checkpoint_digest.is_valid(path)
    assert checkpoint_digest.is_valid(tmp_path / "previous.ckpt")
    assert checkpoint_digest.step_of(tmp_path / "previous.ckpt") == 1
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"")
    assert checkpoint_digest.newest_valid(tmp_path)[0] is None


def test_the_sidecar_may_be_damaged_too(tmp_path: Path) -> None:
    save(tmp_path / "last.ckpt", 1)
    save(tmp_path / "last.ckpt", 2)
    for content in (b"", b"\xff\xfe", b"# 3 bytes, step 9\nnothing\n"):
        digest_path(tmp_path / "last.ckpt").write_bytes(content)
        assert checkpoint_digest.newest_valid(tmp_path)[0] == tmp_path / "previous.ckpt"


def test_a_budget_removes_the_oldest_steps_first(tmp_path: Path, capsys) -> None:
    retention, io, path = (
        Retention(2, budget_gb=25e-6),
        AtomicCheckpointIO(),
        tmp_path / "last.ckpt",
    )  # a file has 5.5 kB
    for step in range(1, 13):
        save(path, step, also=("best.ckpt",) * (step == 3) + tuple(retention.names(step)), io=io)
        retention.tidy(tmp_path)
    names = sorted(p.name for p in tmp_path.glob("*.ckpt"))
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt", "step-00000010.ckpt", "step-00000012.ckpt"]
    assert not capsys.readouterr().out
    small = Retention(2, budget_gb=1e-6)
    small.tidy(tmp_path)
    small.tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert capsys.readouterr().out.count("budget_gb") == 1
    with pytest.raises(UserError, match="budget_gb"):
        Retention(2, 0)


def call_by_call(path: Path, fatal: int) -> int:
    """Save in a fork that is killed at its `fatal`-th call to the file system; return its exit code."""
    with parent_objects_kept():
        child = os.fork()
    if child == 0:
        calls = iter(range(1, 1000))

        def deadly(real):
            def call(*args, **kwargs):
                if next(calls) == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in ("fsync", "replace", "link", "open", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        atomic._HashedFile.write = deadly(atomic._HashedFile.write)
        save(path, 3, also=("best.ckpt",))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def quick_disk(tmp_path: Path):
    """A folder in memory where there is one: hundreds of fsyncs take minutes on a busy disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_call_of_a_save_leaves_two_valid_files(quick_disk: Path, stride: int) -> None:
    path = quick_disk / "last.ckpt"
    save(path, 1)
    save(path, 2, also=("best.ckpt",))
    for fatal in range(1, 200, stride):
        code = call_by_call(path, fatal)
        valid = {
            p.name: checkpoint_digest.step_of(p)
            for p in checkpoint_digest.checkpoints_in(quick_disk)
            if checkpoint_digest.is_valid(p)
        }
        assert valid.keys() == {"last.ckpt", "previous.ckpt", "best.ckpt"}, (fatal, valid)
        assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] in (2, 3)
        if code == 0:
            break
        assert code == -9
        save(path, 1)  # what the kill left behind may be a second name of a file that is kept
        assert checkpoint_digest.is_valid(quick_disk / "best.ckpt"), fatal
        save(path, 2, also=("best.ckpt",))
    assert 40 < fatal < 199
    assert not list(quick_disk.glob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_files_and_the_error_is_one_line(small_disk: Path) -> None:
    path, io = small_disk / "checkpoints" / "last.ckpt", AtomicCheckpointIO()
    for step, size in ((1, 60_000), (2, 60_000), (3, 150_000)):
        checkpoint = {"w": torch.full((size,), float(step)), "global_step": step}
        if step < 3:
            io.save_checkpoint(checkpoint, path, {"previous": "previous.ckpt"})
        else:
            with pytest.raises(UserError, match=r"last\.ckpt: .*No space left.*--resume auto") as error:
                io.save_checkpoint(checkpoint, path, {"previous": "previous.ckpt"})
            assert "\n" not in str(error.value)
    valid = {
        p.name: checkpoint_digest.step_of(p)
        for p in checkpoint_digest.checkpoints_in(path.parent)
        if checkpoint_digest.is_valid(p)
    }
    assert valid == {"last.ckpt": 2, "previous.ckpt": 1}
    assert io.load_checkpoint(path)["global_step"] == 2
    assert not list(path.parent.glob("*.tmp"))


@pytest.mark.slow
def test_kills_during_saving_leave_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    code = (
        "import sys, torch\nfrom lit_vision.runs.checkpoint_io import AtomicCheckpointIO\nn = 0\n"
        "while True:\n    n += 1\n"
        f"    AtomicCheckpointIO().save_checkpoint({{'w': torch.full((200_000,), float(n))}}, {str(path)!r})\n"
        "    if n == 1:\n        print('ready', flush=True)\n"
    )
    for i in range(8):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"  # the first file is there, however slow the machine is
        time.sleep(0.1 + 0.013 * i)
        assert child.poll() is None
        child.kill()
        child.wait()
        assert is_valid(path)
        assert AtomicCheckpointIO().load_checkpoint(path)["w"].unique().numel() == 1
