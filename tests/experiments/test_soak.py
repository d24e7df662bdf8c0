"""A sample of experiments/soak: real runs are killed, resume, and end with the bits of a run that nobody killed.

The whole soak: make soak.
"""

import dataclasses
import os
import random
import re
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

import lit_vision.cli.lightning_cli  # noqa: F401  imported before the forks, once for all of them
from lit_vision.data.folder import scan
from lit_vision.data.shard_writer import write_shards
from lit_vision.io import checkpoint_digest

SAFETY_NET = 1800  # seconds; no test is judged by it


@pytest.fixture(scope="module", autouse=True)
def _separate_process_group() -> None:
    """Leave the process group that pytest-xdist's workers share: `processes()` must not see what another one starts."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.setpgid(0, 0)


@pytest.fixture(scope="module")
def kills():
    """One folder and one process with everything imported for all tests here; in memory, where fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="soak-") as folder:
        yield soak.Soak(Path(folder), preload=("MAE",))


@pytest.mark.slow
def test_killed_before_and_after_saves(kills: soak.Soak) -> None:
    kills.every_step(["Classifier", "LeJEPA"], [2], [2], steps=1)  # LeJEPA with local views
    kills.every_step(["MAE", "Distiller"], [0], [1], steps=1)  # Distiller's learned map of features is beside its state
    assert kills.failures == []
    assert kills.counts["every step"] == {"runs": 4, "kills": 8, "steps_repeated_at_most": 1}


def test_on_shards__killed_and_resumed_has_the_bits_of_a_run_on_the_folder(kills: soak.Soak) -> None:
    case = soak.Case(kills.folder, "MAE")
    write_shards(scan(case.write_images()), kills.folder / "shards", 3)
    on_shards = dataclasses.replace(case, source=str(kills.folder / "shards"))
    kills.kill_and_compare("shards", on_shards, "on-shards", lambda i: {"kill": "end:3"} if i == 0 else None)
    assert kills.failures == []


@pytest.mark.slow
def test_killed_while_saving(kills: soak.Soak) -> None:
    kills.during_saving(2)
    assert kills.failures == []


def test_a_run_that_starts_from_step_0_is_a_failure(kills: soak.Soak) -> None:
    run = soak.Run(soak.Case(kills.folder), "restarted")
    assert run.advance("start:4")
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(soak.SoakError, match=r"\b3\b.*\bstep 0\b"):
        run.advance("start:2")


def test_a_damaged_newest_checkpoint_is_skipped(kills: soak.Soak) -> None:
    run = soak.Run(soak.Case(kills.folder), "damaged")
    damages = [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:]]
    assert run.advance("start:4")
    for damage in damages:
        last = run.folder / "checkpoints" / "last.ckpt"
        last.write_bytes(damage(last.read_bytes()))
        error = checkpoint_digest.integrity_error(last)
        assert error
        size = run.log.stat().st_size
        run.advance("start:3")
        output = run.log.read_text()[size:]
        assert re.search(rf"last\.ckpt.*{re.escape(error)}", output)
        assert "previous.ckpt" in output
    run.advance()
    run.check(kills.reference(run.case))


@pytest.mark.parametrize(
    ("event", "name", "code"),  # one handler serves all three signals
    [
        ("start:3", "SIGUSR1", 143),
        ("save:2", "SIGTERM", 143),
        # tests/callbacks/test_checkpoint_resume.py sends these two to runs without workers
        pytest.param("start:3", "SIGINT", 130, marks=pytest.mark.slow),
        pytest.param("val:3", "SIGTERM", 143, marks=pytest.mark.slow),
        pytest.param("start:3", "SIGTERM", 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal__checkpoint_within_a_step_code_and_nothing_left(kills, event: str, name: str, code: int) -> None:
    case, folder = soak.Case(kills.folder, "Classifier", workers=2, interval=3), f"{name}-{event[:2]}"
    reference = kills.reference(case)
    before = processes()
    log = case.folder / f"{folder}.log"
    assert soak.launch(case.arguments(folder, False), log, event, signal_name=name) == code, log.read_text()[-2000:]
    assert name in log.read_text()
    wait_until_ended(before)
    run = soak.Run(case, folder)
    run.started = True
    steps_done = run.batches()[-1]["step"]
    assert checkpoint_digest.step_of(run.folder / "checkpoints" / "last.ckpt") == steps_done
    assert steps_done <= {"start:3": 3, "val:3": 4, "save:2": 4}[event]
    run.advance()
    run.check(reference)


def processes() -> set[str]:
    """Ids in this process's group: its children, theirs and orphans among them; zombies of others left out."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,stat,pgid,comm"], capture_output=True, text=True).stdout.splitlines()
    group = str(os.getpgid(0))
    return {
        line.split()[0]
        for line in lines[1:]
        if line.split()[3] == group and line.split()[4].startswith(("python", "pt_"))
    }


def wait_until_ended(before: set[str]) -> None:
    """Wait until no process is left that was not there before."""
    deadline = time.monotonic() + SAFETY_NET
    while processes() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes() <= before


def test_workers_end_with_a_parent_that_was_killed(kills: soak.Soak) -> None:
    case, before = soak.Case(kills.folder, "MAE", workers=2), processes()
    assert soak.launch(case.arguments("orphans", False), case.folder / "orphans.log", "start:2") == -signal.SIGKILL
    wait_until_ended(before)


@pytest.mark.parametrize("intact", [True, False])
def test_slurm_is_asked_to_requeue_only_after_a_verified_save(
    kills: soak.Soak, tmp_path: Path, monkeypatch, intact
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requests\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    if not intact:
        monkeypatch.setattr("lit_vision.runs.preemption.integrity_error", lambda path: "is torn")
    case, log = soak.Case(kills.folder), kills.folder / f"slurm-{intact}.log"
    code = soak.launch(case.arguments(f"slurm-{intact}", False), log, "start:2", signal_name="SIGUSR1")
    assert "job 12_3" in log.read_text()
    if intact:
        assert code == 143
        assert (tmp_path / "requests").read_text() == "requeue 12_3\n"
    else:
        assert code == 1
        assert "is torn" in log.read_text()
        assert not (tmp_path / "requests").exists()


def test_sigterm_does_not_requeue(kills: soak.Soak, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    arguments, log = soak.Case(kills.folder).arguments("term", False), kills.folder / "term.log"
    assert soak.launch(arguments, log, "start:2", signal_name="SIGTERM") == 143
    assert "SLURM" not in log.read_text()


@pytest.mark.slow
def test_two_processes_and_two_to_one_to_two(kills: soak.Soak) -> None:
    kills.random_steps(1, 2, "two")
    kills.elastic()
    assert kills.failures == []
    assert kills.counts["2 to 1 to 2"]["kills"] == 2


@pytest.mark.slow
def test_no_answer_is_lost_or_doubled_when_the_server_is_killed(tmp_path) -> None:
    pytest.importorskip("uvicorn", reason="pip install 'lit-vision[serve]'")
    from soak import labeling

    assert labeling.kill_the_server(tmp_path, 2, random.Random(0)) == 2
    lines = (tmp_path / "store/labels.jsonl").read_text().splitlines()
    assert sum('"event": "answer"' in line for line in lines) >= 20
    counts = labeling.LabelCounts({"never sent": ("a.png", "cat")})
    labeling.count_faults(tmp_path / "store/labels.jsonl", counts)
    assert (counts.lost, counts.doubled) == (1, 0)
    (tmp_path / "doubled.jsonl").write_text("\n".join([*lines, lines[-1]]))
    labeling.count_faults(tmp_path / "doubled.jsonl", counts)
    assert counts.doubled == 2  # the id, and the image
