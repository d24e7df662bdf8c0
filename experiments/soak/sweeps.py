"""Scenario of a sweep: two processes search a grid of 12 points and are killed at random instants, over and over."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lit_vision.cli.main import main
from lit_vision.sweep.settings import open_journal, read
from soak.cases import Case
from soak.run import SoakError, assert_same

SPACE = (
    "model.init_args.lr: {values: [0.01, 0.02, 0.05, 0.1]}\nmodel.init_args.weight_decay: {values: [0.0, 0.05, 0.1]}\n"
)
POINTS, PROCESSES, TAIL = 12, 2, 1500


class SweepProcess:
    """A process of a sweep, in a fork of this one, which has imported everything.

    Args:
        recipe: to search settings of.
        folder: of the sweep; log and space file lie beside it.
        number: of the process.
    """

    def __init__(self, recipe: Path, folder: Path, number: int) -> None:
        self.log = folder.with_name(f"{folder.name}-{number}.log")
        space = folder.with_name("space.yaml")
        space.write_text(SPACE)
        arguments = ["sweep", "--config", str(recipe), "--space", str(space)]
        self.arguments = [*arguments, "--sampler", "grid", "--metric", "val/loss", "--run_dir", str(folder)]
        self.pid = 0

    def start(self) -> None:
        """Start or continue the sweep."""
        sys.stdout.flush()
        self.log.touch()
        self._size = self.log.stat().st_size
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            with contextlib.suppress(BaseException), open(self.log, "ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                code = main(self.arguments)
                sys.stdout.flush()
            os._exit(code)

    def output(self) -> str:
        """Return what the process has printed since it was started last."""
        with open(self.log, "rb") as log:
            log.seek(self._size)
            return log.read().decode(errors="replace")

    def ended(self) -> bool:
        """True if the process came to its end by itself."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0
        return self.pid == 0

    def kill(self) -> None:
        """Kill the process, and with it the run that it has started."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0


def kill_the_processes(folder: Path, kills: int, draw: random.Random) -> int:
    """Search a grid without a kill and with so many, compare tables and weights, and return the kills.

    Raises:
        SoakError: a point is missing or was searched twice, the tables or weights differ, or the sweep ended too early.
    """
    recipe = Case(folder, "Plain").write()
    whole, killed = folder / "whole", folder / "killed"
    process = SweepProcess(recipe, whole, 0)
    begin = time.perf_counter()
    process.start()
    _wait_for_end([process])
    seconds = (time.perf_counter() - begin) / POINTS  # of one run
    processes = [SweepProcess(recipe, killed, number) for number in range(PROCESSES)]
    done = 0
    while done < kills:
        for process in processes:
            if process.pid == 0:
                process.start()
        victim = draw.choice(processes)
        while ": model" not in victim.output():  # until it has taken a run
            if victim.ended():
                raise SoakError(f"ended after {done} kills instead of {kills}\n{victim.output()[-TAIL:]}")
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.8) * seconds)
        if victim.ended():
            raise SoakError(f"ended after {done} kills instead of {kills}\n{victim.output()[-TAIL:]}")
        victim.kill()
        done += 1
    for process in processes:
        if process.pid == 0:
            process.start()
    _wait_for_end(processes)
    _compare(whole, killed)
    return done


def _wait_for_end(processes: list[SweepProcess]) -> None:
    for process in processes:
        _, status = os.waitpid(process.pid, 0)
        process.pid = 0
        if code := os.waitstatus_to_exitcode(status):
            raise SoakError(f"{process.log.name}: exit code {code}\n{process.output()[-TAIL:]}")


def _compare(whole: Path, killed: Path) -> None:
    """Raise SoakError unless both sweeps ran each point once, to the same table and weights."""
    tables = [(folder / "trials.csv").read_text() for folder in (whole, killed)]
    if tables[0] != tables[1]:
        raise SoakError(f"the table differs:\n{tables[0]}\n{tables[1]}")
    rows = list(csv.DictReader(tables[1].splitlines()))
    points = {(row["model.init_args.lr"], row["model.init_args.weight_decay"]) for row in rows}
    trials = open_journal(killed, read(killed)).trials()
    if not len(points) == len(rows) == len(trials) == POINTS or {row["state"] for row in rows} != {"complete"}:
        raise SoakError(f"not each of {POINTS} points once:\n{tables[1]}")
    for run in sorted(killed.glob("trials/*/*")):
        paths = [folder / run.relative_to(killed) / "checkpoints" / "last.ckpt" for folder in (killed, whole)]
        states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
        assert_same(states[0], states[1], f"{run.relative_to(killed)}: weights")
