"""A sample of experiments/soak: real runs are killed, go on, and end with the bits of the run that nobody killed. All: make soak."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import soak

import lit_vision.cli.lightning_cli  # noqa: F401  the forks have it then
from lit_vision.io import checkpoint_digest


@pytest.fixture(scope="module", autouse=True)
def _own_group() -> None:
    """pytest-xdist's processes share a process group; what another one starts is none of `processes()`."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.setpgid(0, 0)


@pytest.fixture(scope="module")
def kills():
    """One folder and one warm process for all tests here; in memory, where hundreds of fsyncs cost nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="soak-") as folder:
        yield soak.Soak(Path(folder))


def test_killed_before_and_after_saves(kills: soak.Soak) -> None:
    kills.every_step(["Classifier"], [2], [2], steps=1)
    kills.every_step(["MAE"], [0], [1], steps=1)
    assert kills.failures == []
    assert kills.counts["every step"] == {"runs": 2, "kills": 4, "steps_repeated_at_most": 1}


def test_killed_while_saving(kills: soak.Soak) -> None:
    kills.during_saving(3)
    assert kills.failures == []


def test_a_run_that_starts_anew_is_a_failure(kills: soak.Soak) -> None:
    run = soak.Run(soak.Case(kills.folder), "anew")
    assert run.go("start:4")
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(soak.Failure, match=r"3 steps were done, restored step 0: more than 1 repeated"):
        run.go("start:2")


def test_a_damaged_newest_checkpoint_is_passed_over(kills: soak.Soak) -> None:
    run = soak.Run(soak.Case(kills.folder), "damaged")
    damages = [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:]]
    assert run.go("start:4")
    for damage in damages:
        last = run.folder / "checkpoints" / "last.ckpt"
        last.write_bytes(damage(last.read_bytes()))
        run.go("start:3")
    run.go()
    said = run.log.read_text()
    assert [word in said for word in ("last.ckpt is torn", "last.ckpt is empty", "last.ckpt is altered")] == [True] * 3
    assert said.count("passed over: ") == 3
    assert said.count("going on from") == 4
    run.check(kills.whole(run.case))


@pytest.mark.parametrize("event", ["start:3", "val:3", "save:2"])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
def test_a_signal__checkpoint_within_a_step_code_and_nothing_left(kills, event: str, name: str, code: int) -> None:
    if event != "start:3" and name != "SIGTERM":
        pytest.skip("one handler serves all three")
    case, folder = soak.Case(kills.folder, "Classifier", workers=2, interval=3), f"{name}-{event[:2]}"
    whole = kills.whole(case)
    before = processes()
    log = case.folder / f"{folder}.log"
    assert soak.launch(case.words(folder, False), log, event, sign=name) == code, log.read_text()[-2000:]
    assert "stopped by" in log.read_text()
    assert end_soon(before)
    run = soak.Run(case, folder)
    run.begun = True
    done = run.journal()[-1]["step"]
    assert checkpoint_digest.step_of(run.folder / "checkpoints" / "last.ckpt") == done
    assert done <= {"start:3": 3, "val:3": 4, "save:2": 4}[event]
    run.go()
    run.check(whole)


def processes() -> set[str]:
    """All of this process's group, by id: its children, theirs, and orphans among them; zombies that nobody waits for left out."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,stat,pgid,comm"], capture_output=True, text=True).stdout.splitlines()
    group = str(os.getpgid(0))
    return {
        line.split()[0]
        for line in lines[1:]
        if line.split()[3] == group and line.split()[4].startswith(("python", "pt_"))
    }


def end_soon(before: set[str]) -> bool:
    """Whether within two seconds only those processes are there that were before; an ended one takes a moment to be gone."""
    deadline = time.monotonic() + 2
    while processes() != before and time.monotonic() < deadline:
        time.sleep(0.02)
    return processes() == before


def test_workers_end_with_a_parent_that_was_killed(kills: soak.Soak) -> None:
    case, before = soak.Case(kills.folder, "MAE", workers=2), processes()
    assert soak.launch(case.words("orphans", False), case.folder / "orphans.log", "start:2") == -signal.SIGKILL
    assert end_soon(before)


@pytest.mark.parametrize("whole", [True, False])
def test_slurm_is_asked_to_requeue_only_after_a_verified_save(
    kills: soak.Soak, tmp_path: Path, monkeypatch, whole
) -> None:
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    if not whole:
        monkeypatch.setattr("lit_vision.runs.preemption.integrity_error", lambda path: "is torn")
    case, log = soak.Case(kills.folder), kills.folder / f"slurm-{whole}.log"
    code = soak.launch(case.words(f"slurm-{whole}", False), log, "start:2", sign="SIGUSR1")
    if whole:
        assert code == 143
        assert (tmp_path / "asked").read_text() == "requeue 12_3\n"
        assert "SLURM: job 12_3 requeued" in log.read_text()
    else:
        assert code == 1
        assert "job 12_3 was not requeued" in log.read_text()
        assert not (tmp_path / "asked").exists()


def test_sigterm_does_not_requeue(kills: soak.Soak, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    log = kills.folder / "term.log"
    assert soak.launch(soak.Case(kills.folder).words("term", False), log, "start:2", sign="SIGTERM") == 143
    assert "SLURM" not in log.read_text()


def test_two_processes_and_two_to_one_to_two(kills: soak.Soak) -> None:
    kills.random_steps(1, 2, "two")
    kills.elastic()
    assert kills.failures == []
    assert kills.counts["2 to 1 to 2"]["kills"] == 2
