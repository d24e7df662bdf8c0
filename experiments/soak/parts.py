"""The parts of a soak: which kills, in which settings, how many."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lit_vision.cli.fit import run_command
from soak.forks import parse_once
from soak.run import Failure, Run
from soak.toys import Case


class Soak:
    """All parts over one folder; counts what happened.

    Args:
        folder: for the runs; in memory it is quick.
        seed: of the random kills.
        warm: methods that the forks will need.
        out: a JSON file that the counts are added to, or None.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        warm: tuple[str, ...] = ("SimCLR", "MAE", "Classifier"),
        out: Path | None = None,
    ) -> None:
        self.out = out
        self.folder, self.random = folder, random.Random(seed)
        self.wholes: dict[tuple, Run] = {}
        self.counts: dict[str, Counter] = {}
        self.failures: list[str] = []
        # in this process: what the methods import on the way, the forks need not import again
        for method in warm:
            case = Case(folder, method)
            with contextlib.redirect_stdout(None):
                run_command("fit", case.words(f"warm-{method}", False)[1:])
            parse_once(case.words("parsed", False))

    def whole(self, case: Case) -> Run:
        """The uninterrupted run of this setting, made once (the interval between saves does not matter to it)."""
        key = (case.method, case.workers, case.accumulate, case.world)
        if key not in self.wholes:
            run = Run(case, "whole-" + "-".join(map(str, key)))
            if run.go():
                raise Failure(f"{run.name} was killed")
            self.wholes[key] = run
        return self.wholes[key]

    def chain(
        self, part: str, case: Case, name: str, kills: Any, tolerance: float = 0.0, also: Any = lambda run, whole: None
    ) -> None:
        """One run through the kills (a function of how many there were), then to its end, then compared; `also` compares more."""
        counts, run, failed = self.counts.setdefault(part, Counter()), Run(case, name), True
        try:
            whole = self.whole(case)
            while (kill := kills(run.kills)) and run.go(**kill):
                pass
            if (kill is None) and run.go():
                raise Failure(f"{name}: killed without a kill")
            run.check(whole, tolerance)
            also(run, whole)
            failed = False
        except Failure as failure:
            self.failures.append(str(failure))
            print("FAILED", failure, flush=True)
            counts["failures"] += 1
        counts["runs"] += 1
        counts["kills"] += run.kills
        counts["steps_repeated_at_most"] = max(counts["steps_repeated_at_most"], run.repeated)
        self.note(part, run, failed)

    def note(self, part: str, run: Run, failed: bool) -> None:
        """Adds a run to the file at once: a soak that is killed has not been for nothing, and parts may run beside each other."""
        if self.out is None:
            return
        folder = os.open(self.out.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            whole = json.loads(self.out.read_text())
            entry = whole["parts"].setdefault(part, {"failures": 0, "runs": 0, "kills": 0, "steps_repeated_at_most": 0})
            entry["failures"] += failed
            entry["runs"] += 1
            entry["kills"] += run.kills
            entry["steps_repeated_at_most"] = max(entry["steps_repeated_at_most"], run.repeated)
            whole["failures"] += failed
            self.out.write_text(json.dumps(whole, indent=2) + "\n")
        finally:
            os.close(folder)

    def every_step(self, methods: list[str], workers: list[int], accumulations: list[int], steps: int = 99) -> None:
        """Kills before the save of each step and after it, in one chain."""
        for method in methods:
            for n in workers:
                for accumulate in accumulations:
                    case = Case(self.folder, method, n, accumulate)
                    # before the save of a step: it is repeated; then past it, and killed as the next one begins
                    before, after = {"kill": f"end:{accumulate}"}, {"kill": f"start:{accumulate + 1}"}
                    plan = lambda i, a=after, b=before: (b, a)[i % 2] if i < 2 * steps else None  # noqa: E731
                    self.chain("every step", case, f"every-{method}-{n}-{accumulate}", plan)

    def _any_case(self, world: int = 1) -> Case:
        pick = self.random.choice
        return Case(
            self.folder, pick(["MAE", "SimCLR", "Classifier"]), pick([0, 0, 2]), pick([1, 2]), pick([1, 2, 3]), world
        )

    def random_steps(self, kills: int, world: int = 1, part: str = "random steps") -> None:
        """Kills at random events, one to four a run."""
        while self.counts.get(part, {}).get("kills", 0) < kills and not self.failures:
            left = kills - self.counts.get(part, {}).get("kills", 0)
            times = min(left, self.random.randint(1, 4))

            def kill(i: int, times: int = times) -> dict[str, Any] | None:
                event = self.random.choice(["start", "start", "end", "end", "val", "epoch"])
                most = {"start": 8, "end": 6, "val": 3, "epoch": 2}[event]
                return {"kill": f"{event}:{self.random.randint(1, most)}"} if i < times else None

            case = self._any_case(world)
            self.chain(
                part, case, f"random{world}-{len(self.failures)}-{self.counts.get(part, {}).get('runs', 0)}", kill
            )

    def during_saving(self, kills: int, world: int = 1, part: str = "during saving") -> None:
        """Kills at random instants after a save has begun; the span is longer than a save, so that some come after it."""
        while self.counts.get(part, {}).get("kills", 0) < kills and not self.failures:
            left = kills - self.counts.get(part, {}).get("kills", 0)

            def kill(i: int, left: int = left) -> dict[str, Any] | None:
                wanted = {"kill": f"save:{self.random.randint(1, 3)}", "delay": (0.0, self.save_seconds * 1.3)}
                return wanted if i < min(left, 8) else None

            self.chain(part, self._any_case(world), f"saving{world}-{self.counts.get(part, {}).get('runs', 0)}", kill)

    @property
    def save_seconds(self) -> float:
        """About how long one save of a toy takes here."""
        if not hasattr(self, "_save_seconds"):
            from lit_vision.runs.checkpoint_io import AtomicCheckpointIO

            state = torch.load(self.whole(Case(self.folder)).folder / "checkpoints" / "last.ckpt", weights_only=True)
            start = time.perf_counter()
            for _ in range(5):
                AtomicCheckpointIO().save_checkpoint(
                    state, self.folder / "probe" / "last.ckpt", {"previous": "previous.ckpt"}
                )
            self._save_seconds = (time.perf_counter() - start) / 5
        return self._save_seconds

    def elastic(self, rounds: int = 1) -> None:
        """2 to 1 to 2 processes at a constant global batch of 8."""
        two = Case(self.folder, "Plain", interval=1, world=2)
        one = Case(self.folder, "Plain", accumulate=2, interval=1)
        for i in range(rounds):
            a = self.random.randint(2, 3)
            sequence = [
                {"kill": f"start:{a}"},
                {"kill": "start:3", "case": WithRecipe(one, two)},  # one step of two batches, then killed
                None,
            ]
            self.chain("2 to 1 to 2", two, f"elastic-{i}", lambda n, s=sequence: s[min(n, 2)], 1e-5, _check_samples)


class WithRecipe:
    """A case that runs another one's recipe with its own number of processes."""

    def __init__(self, case: Case, of: Case) -> None:
        self.case, self.of, self.world, self.interval = case, of, case.world, case.interval

    def words(self, name: str, resume: bool) -> list[str]:
        words = self.of.words(name, resume)
        words[words.index("--trainer.accumulate_grad_batches") + 1] = str(self.case.accumulate)
        words[words.index("--trainer.devices") + 1] = str(self.case.world)
        return words + ["--trainer.strategy", self.case.strategy] * bool(self.case.strategy)


def _check_samples(run: Run, whole: Run) -> None:
    """No sample missing, none too many, over all processes of all parts of the run; a repeated batch counts once."""
    batches = [{json.dumps(line["keys"]) for rank in range(2) for line in r.journal(rank)} for r in (run, whole)]
    seen, expected = ({tuple(key) for batch in part for key in json.loads(batch)} for part in batches)
    if seen != expected:
        raise Failure(f"{run.name}: samples missing or too many: {sorted(seen ^ expected)}")
