"""Scenarios of studies: one that repeats a plan, and one that plans for itself, killed at random instants."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load_file

from soak.run import SoakError

LABELS, SEEDS = "4,20", "2,2"
BUDGET = "2"  # minutes
TAIL = 1500  # characters of a log that an error shows


def write_bars(root: Path) -> Path:
    """Write images of bars, lying or upright, 20 of each to learn from and 10 to test; return the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name in ("lying", "upright"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 80, (16, 16, 3), np.uint8)
                at = rng.integers(3, 12)
                image[at : at + 2] = 255
                image = image.transpose(1, 0, 2) if name == "upright" else image
                cv2.imwrite(str(root / split / name / f"{i}.png"), image)
    return root


class KilledStudy:
    """A study in a process of its own, that is killed and started again.

    Args:
        images: the folder of images.
        run: the folder of the run; its log lies beside it.
        more: further arguments of the command.
    """

    def __init__(self, images: Path, run: Path, *more: str) -> None:
        self.run, self.log = run, run.with_suffix(".log")
        self.command = [sys.executable, "-m", "lit_vision", "study", str(images), "--run_dir", str(run)]
        self.command += ["--labels", LABELS, "--seeds", SEEDS, "--budget", BUDGET, "--pretrained", "off", *more]
        self.kills = 0

    def start(self, kill_after: float | None = None) -> float | None:
        """Start or continue the study; kill it so many seconds after its first line.

        Returns:
            The seconds that it took to its end, None if it was killed.

        Raises:
            SoakError: it ended in another way.
        """
        size = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and self.log.stat().st_size == size:
            time.sleep(0.02)
        begin = time.perf_counter()
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.kills += 1
            return None
        if code:
            raise SoakError(f"{self.run.name}: exit code {code}\n{self.log.read_text()[size:][-TAIL:]}")
        return time.perf_counter() - begin

    def decisions(self) -> list[str]:
        """Return the finished lines of plan.jsonl."""
        path = self.run / "plan.jsonl"
        return path.read_text().split("\n")[:-1] if path.exists() else []


def repeat_a_plan(folder: Path, kills: int, draw: random.Random) -> int:
    """Make a study, repeat its plan in another folder with so many kills, and compare every bit; return the kills.

    Raises:
        SoakError: a table, a weight or an answer differs, or the plan was not followed.
    """
    images = write_bars(folder / "images")
    whole = KilledStudy(images, folder / "whole")
    seconds = whole.start() or 0.0
    again = KilledStudy(images, folder / "again", "--plan", str(whole.run / "plan.jsonl"))
    _kill_and_finish(again, kills, seconds, draw, lambda: None)
    _compare(whole.run, again.run)
    return again.kills


def keep_decisions(folder: Path, kills: int, draw: random.Random) -> int:
    """Kill a study that plans for itself: what it had decided stands, and the finished one can be repeated.

    Returns:
        The kills.

    Raises:
        SoakError: a decision changed, or the repeated study differs.
    """
    images = write_bars(folder / "images")
    seconds = KilledStudy(images, folder / "whole").start() or 0.0
    study, before = KilledStudy(images, folder / "killed"), []

    def check() -> None:
        nonlocal before
        now = study.decisions()
        if now[: len(before)] != before:
            raise SoakError(f"a decision changed after a kill: {before} became {now}")
        before = now

    _kill_and_finish(study, kills, seconds, draw, check)
    again = KilledStudy(images, folder / "repeated", "--plan", str(study.run / "plan.jsonl"))
    again.start()
    _compare(study.run, again.run)
    return study.kills


def _kill_and_finish(
    study: KilledStudy, kills: int, seconds: float, draw: random.Random, check: Callable[[], None]
) -> None:
    """Kill a study so often, then let it end.

    `seconds` are what it takes without a kill; a start is killed before its share of them, so that kills are spread
    over the study and come before its end.
    """
    while study.kills < kills:
        if study.start(draw.uniform(0.0, seconds / kills)) is not None:
            raise SoakError(f"{study.run.name}: ended after {study.kills} kills instead of {kills}")
        check()
    study.start()
    check()


def _compare(one: Path, other: Path) -> None:
    """Raise SoakError if the tables, the answers or the weights of two studies differ."""
    tables = [json.loads((run / "results.json").read_text())["cells"] for run in (one, other)]
    for cells in tables:
        for cell in cells:
            for key in [key for key in cell if "seconds" in key]:
                del cell[key]
    if tables[0] != tables[1]:
        raise SoakError(f"{other.name}: the table differs:\n{tables[0]}\n{tables[1]}")
    for pattern in ("cells/*.npy", "**/*.safetensors"):
        names = [sorted(path.relative_to(run).as_posix() for path in run.glob(pattern)) for run in (one, other)]
        if names[0] != names[1] or not names[0]:
            raise SoakError(f"{other.name}: other files: {names[0]} and {names[1]}")
        for name in names[0]:
            if not _same(one / name, other / name):
                raise SoakError(f"{other.name}: {name} differs")


def _same(one: Path, other: Path) -> bool:
    """True if two files of arrays hold the same bits."""
    if one.suffix == ".npy":
        return one.read_bytes() == other.read_bytes()
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)
