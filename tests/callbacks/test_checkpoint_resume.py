"""Kill a real run, resume it, and compare every bit with an uninterrupted run."""

import contextlib
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.utils.tensorboard

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import soak
import toy_run  # noqa: F401  the forks have it then
from toy_fork import parent_objects_kept

import lit_vision.cli.lightning_cli  # noqa: F401
from lit_vision.callbacks.checkpoint import is_valid
from lit_vision.cli.fit import run_command

RECIPE = """
seed_everything: 3
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 1
  enable_model_summary: false
  accumulate_grad_batches: ACCUMULATE
  val_check_interval: VAL
  callbacks:
    - {class_path: lit_vision.callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 1}}
model: {class_path: toy_run.MODEL, init_args: {width: 4}}
data: {class_path: toy_run.ToyData, init_args: {n: 24, num_workers: WORKERS}}
"""


def in_child(arguments: list[str], log: Path, stop: str = "") -> int:
    """Runs the command in a fork (lightning is imported already); its exit code, negative for a signal."""
    soak.preparse(arguments)
    sys.stdout.flush()
    with parent_objects_kept():
        child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.environ["TOY_STOP"] = stop
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
            torch.set_num_threads(1)
            soak.use_preparsed(arguments)
            try:
                code = run_command(arguments[0], arguments[1:])
            except BaseException as error:
                print(repr(error))
                raise
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def state(run: Path) -> dict:
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {k: kept[k] for k in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "loops")}


def assert_same(a, b, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


class Case:
    def __init__(self, folder: Path, workers: int = 0, accumulate: int = 1, val: str = "1.0", model: str = "ToyNet"):
        self.folder = folder
        self.recipe = folder / "toy.yaml"
        text = RECIPE.replace("WORKERS", str(workers)).replace("ACCUMULATE", str(accumulate))
        self.recipe.write_text(text.replace("VAL", val).replace("MODEL", model))
        # in this process: what it imports on the way, its forks need not import again
        assert run_command("fit", ["--config", str(self.recipe), "--run_dir", str(folder / "whole")]) == 0

    def run(self, name: str, stop: str = "", resume: bool = False) -> int:
        arguments = ["fit", "--config", str(self.recipe), "--run_dir", str(self.folder / name)]
        return in_child(arguments + ["--resume", "auto"] * resume, self.folder / f"{name}.log", stop)

    def chain(self, name: str, stop: str) -> None:
        """Goes on and dies at the same event of each process until the run is over, then compares.

        An event that comes before the first save of a process would come for ever: the next process dies one event
        later.
        """
        sign, event, first = stop.split(":")
        expected = {signal.SIGKILL: -9, signal.SIGTERM: 143}[getattr(signal, sign)]
        at, log = int(first), self.folder / f"{name}.log"
        for i in range(40):
            code = self.run(name, f"{sign}:{event}:{at}", resume=i > 0)
            if code == 0:
                break
            assert code == expected, (stop, i, code, log.read_text()[-2000:])
            restored = re.findall(r"restored step (\d+)", log.read_text())[-2:]
            at = at + 1 if len(restored) == 2 and restored[0] == restored[1] else int(first)
        assert code == 0
        assert i > 1
        self.compare(name, (stop,))

    def check(self, name: str, *stops: str) -> None:
        """Stops the run once per entry, each time going on, then lets it end, and compares."""
        for i, stop in enumerate(stops):
            number = getattr(signal, stop.split(":")[0])
            expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}[number]
            code = self.run(name, stop, resume=i > 0)
            assert code == expected, (stop, code, (self.folder / f"{name}.log").read_text()[-2000:])
        assert self.run(name, resume=True) == 0, (self.folder / f"{name}.log").read_text()[-2000:]
        self.compare(name, stops)

    def compare(self, name: str, stops: tuple[str, ...]) -> None:
        """Every bit of the resumed run with that of the whole one."""
        whole, resumed = self.folder / "whole", self.folder / name
        assert_same(state(whole), state(resumed), name)
        assert (whole / "metrics.csv").read_text() == (resumed / "metrics.csv").read_text(), stops
        assert is_valid(resumed / "checkpoints" / "last.ckpt")


def test_killed_runs_end_with_the_bits_of_the_whole_run(tmp_path: Path) -> None:
    case = Case(tmp_path)  # 6 batches an epoch, 4 of validation
    # at an epoch's end, within its validation, within the next epoch
    case.check("killed", "SIGKILL:saved:6", "SIGKILL:val:2", "SIGKILL:saved:4")
    case.check("term", "SIGTERM:batch:2", "SIGUSR1:val:3", "SIGINT:batch:3")
    log = (tmp_path / "term.log").read_text()
    assert "stopped by SIGTERM" in log
    assert "stopped by SIGUSR1" in log
    assert "stopped by Ctrl-C" in log
    assert f"resuming from {tmp_path / 'term'}/checkpoints/last.ckpt" in log


def test_a_kill_with_workers_accumulation_and_validation_inside_an_epoch(tmp_path: Path) -> None:
    case = Case(tmp_path, workers=1, accumulate=2, val="4")
    case.check("killed", "SIGKILL:saved:5", "SIGTERM:batch:2")


def test_pretraining_without_validation(tmp_path: Path) -> None:
    Case(tmp_path, model="ToyPretrain").check("killed", "SIGKILL:saved:6", "SIGKILL:batch:3")


@pytest.fixture
def quick_disk(tmp_path: Path):
    """A folder in memory where there is one: thousands of fsyncs take minutes on a busy disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "accumulate", "val"), [(0, 1, "1.0"), (2, 1, "3"), (0, 2, "4"), (2, 3, "1.0")])
def test_every_step_and_event(quick_disk: Path, workers: int, accumulate: int, val: str) -> None:
    """Each restart is killed at its first event of a kind, so that a chain of restarts is killed at every step."""
    case = Case(quick_disk, workers, accumulate, val)
    for name in ("SIGKILL", "SIGTERM"):
        # after the save of a step; as the next one begins (a window of accumulation is never in a file, so one later)
        for event in (f"saved:{accumulate}", f"batch:{accumulate + 1}"):
            case.chain(f"{name}-{event}", f"{name}:{event}")
        for n in range(1, 5):
            case.check(f"{name}-val-{n}", f"{name}:val:{n}", "SIGKILL:batch:1", f"{name}:val:{n}")
