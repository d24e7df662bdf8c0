"""Scenarios of the soak test: which kills, in which settings, and how many."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_vision.cli.fit import run_command
from soak.cases import Case
from soak.fork_server import preparse
from soak.run import Run, SoakError


def _compare_nothing(run: Run, reference: Run) -> None:
    """Default of `compare_more`."""


class Soak:
    """All scenarios in one folder, with counts of what happened.

    Args:
        folder: for the runs; fastest in memory.
        seed: of the random kills.
        preload: methods whose modules this process imports, so that its forks need not.
        out: a JSON file that the counts are added to, or None.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        preload: tuple[str, ...] = ("SimCLR", "MAE", "Classifier"),
        out: Path | None = None,
    ) -> None:
        self.out = out
        self.folder, self.random = folder, random.Random(seed)
        self.references: dict[tuple, Run] = {}
        self.counts: dict[str, Counter] = {}
        self.failures: list[str] = []
        for method in preload:
            case = Case(folder, method)
            with contextlib.redirect_stdout(None):
                run_command("fit", case.arguments(f"preload-{method}", False)[1:])
            preparse(case.arguments("parsed", False))

    def reference(self, case: Case) -> Run:
        """Return the uninterrupted run of this setting, trained once; the interval between saves does not change it."""
        key = (case.method, case.workers, case.accumulate, case.world_size)
        if key not in self.references:
            run = Run(case, "reference-" + "-".join(map(str, key)))
            if run.advance():
                raise SoakError(f"{run.name} was killed")
            self.references[key] = run
        return self.references[key]

    def kill_and_compare(
        self,
        scenario: str,
        case: Case,
        name: str,
        kills: Callable[[int], dict[str, Any] | None],
        tolerance: float = 0.0,
        compare_more: Callable[[Run, Run], None] = _compare_nothing,
    ) -> None:
        """Kill one run again and again, let it end, and compare it with the reference.

        Args:
            scenario: the name that it is counted under.
            case: its setting.
            name: of its folder.
            kills: takes the number of kills so far and returns the arguments of `Run.advance`, None for no more.
            tolerance: absolute, for weights; 0 compares everything bit by bit.
            compare_more: gets the run and the reference, and raises SoakError.
        """
        counts, run, failed = self.counts.setdefault(scenario, Counter()), Run(case, name), True
        try:
            reference = self.reference(case)
            while (kill := kills(run.kills)) and run.advance(**kill):
                pass
            if (kill is None) and run.advance():
                raise SoakError(f"{name}: killed without a kill")
            run.check(reference, tolerance)
            compare_more(run, reference)
            failed = False
        except SoakError as error:
            self.failures.append(str(error))
            print("FAILED", error, flush=True)
            counts["failures"] += 1
        counts["runs"] += 1
        counts["kills"] += run.kills
        counts["steps_repeated_at_most"] = max(counts["steps_repeated_at_most"], run.repeated)
        self.record(scenario, failed, run.kills, run.repeated)

    def run_part(self, part: str, run: Callable[[Path, int, random.Random], int], kills: int) -> None:
        """Run a part that has no training run, and record it.

        Args:
            part: the name that it is counted under.
            run: takes a new folder, the kills and what draws their instants; returns the kills; raises SoakError.
            kills: how many.
        """
        place = self.folder / part.replace(" ", "-")
        place.mkdir()
        try:
            self.record(part, False, run(place, kills, self.random))
        except SoakError as error:
            print("FAILED", error, flush=True)
            self.record(part, True)

    def record(self, part: str, failed: bool, kills: int = 0, repeated: int = 0) -> None:
        """Add the counts of one run to the JSON file at once, under a lock: jobs run in parallel and may be killed."""
        if self.out is None:
            return
        folder = os.open(self.out.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            content = json.loads(self.out.read_text())
            new_entry = {"failures": 0, "runs": 0, "kills": 0, "steps_repeated_at_most": 0}
            entry = content["parts"].setdefault(part, new_entry)
            entry["failures"] += failed
            entry["runs"] += 1
            entry["kills"] += kills
            entry["steps_repeated_at_most"] = max(entry["steps_repeated_at_most"], repeated)
            content["failures"] += failed
            self.out.write_text(json.dumps(content, indent=2) + "\n")
        finally:
            os.close(folder)

    def every_step(self, methods: list[str], workers: list[int], accumulations: list[int], steps: int = 99) -> None:
        """Kill before the save of each step and after it, in one run for each setting."""
        for method in methods:
            for n in workers:
                for accumulate in accumulations:
                    case = Case(self.folder, method, n, accumulate)
                    # before the save of a step, which is then repeated; then after it, as the next one starts
                    before, after = {"kill": f"end:{accumulate}"}, {"kill": f"start:{accumulate + 1}"}
                    kills = lambda i, a=after, b=before: (b, a)[i % 2] if i < 2 * steps else None  # noqa: E731
                    self.kill_and_compare("every step", case, f"every-{method}-{n}-{accumulate}", kills)

    def _random_case(self, world_size: int = 1) -> Case:
        pick = self.random.choice
        method = pick(["MAE", "SimCLR", "Classifier"])
        return Case(self.folder, method, pick([0, 0, 2]), pick([1, 2]), pick([1, 2, 3]), world_size)

    def _count(self, scenario: str, name: str) -> int:
        return self.counts.get(scenario, {}).get(name, 0)

    def random_steps(self, kills: int, world_size: int = 1, scenario: str = "random steps") -> None:
        """Kill at random events, one to four times a run."""
        while self._count(scenario, "kills") < kills and not self.failures:
            times = min(kills - self._count(scenario, "kills"), self.random.randint(1, 4))

            def kill(i: int, times: int = times) -> dict[str, Any] | None:
                event = self.random.choice(["start", "start", "end", "end", "val", "epoch"])
                most = {"start": 8, "end": 6, "val": 3, "epoch": 2}[event]
                return {"kill": f"{event}:{self.random.randint(1, most)}"} if i < times else None

            case = self._random_case(world_size)
            name = f"random{world_size}-{len(self.failures)}-{self._count(scenario, 'runs')}"
            self.kill_and_compare(scenario, case, name, kill)

    def during_saving(self, kills: int, world_size: int = 1, scenario: str = "during saving") -> None:
        """Kill at random instants after a save has begun, in a span longer than a save: some come after its end."""
        while self._count(scenario, "kills") < kills and not self.failures:
            left = kills - self._count(scenario, "kills")

            def kill(i: int, left: int = left) -> dict[str, Any] | None:
                wanted = {"kill": f"save:{self.random.randint(1, 3)}", "delay": (0.0, self.save_seconds * 1.3)}
                return wanted if i < min(left, 8) else None

            name = f"saving{world_size}-{self._count(scenario, 'runs')}"
            self.kill_and_compare(scenario, self._random_case(world_size), name, kill)

    @property
    def save_seconds(self) -> float:
        """Mean seconds of one save of a small run on this machine."""
        if not hasattr(self, "_save_seconds"):
            from lit_vision.runs.checkpoint_io import AtomicCheckpointIO

            checkpoint = self.reference(Case(self.folder)).folder / "checkpoints" / "last.ckpt"
            state = torch.load(checkpoint, weights_only=True)
            start = time.perf_counter()
            for _ in range(5):
                AtomicCheckpointIO().save_checkpoint(
                    state, self.folder / "probe" / "last.ckpt", {"previous": "previous.ckpt"}
                )
            self._save_seconds = (time.perf_counter() - start) / 5
        return self._save_seconds

    def elastic(self, rounds: int = 1) -> None:
        """Go from 2 to 1 to 2 processes at a constant global batch of 8."""
        two = Case(self.folder, "Plain", interval=1, world_size=2)
        one = Case(self.folder, "Plain", accumulate=2, interval=1)
        for i in range(rounds):
            first = self.random.randint(2, 3)
            kills = [
                {"kill": f"start:{first}"},
                {"kill": "start:3", "case": CaseWithOtherRecipe(one, two)},  # one step of two batches, then killed
                None,
            ]
            name = f"elastic-{i}"
            self.kill_and_compare("2 to 1 to 2", two, name, lambda n, k=kills: k[min(n, 2)], 1e-5, _check_samples)


class CaseWithOtherRecipe:
    """A case with its own number of processes and accumulation that runs the recipe of another case.

    Args:
        case: gives processes, accumulation, strategy and interval.
        recipe_case: gives the recipe.
    """

    def __init__(self, case: Case, recipe_case: Case) -> None:
        self.case, self.recipe_case = case, recipe_case
        self.world_size, self.interval = case.world_size, case.interval

    def arguments(self, name: str, resume: bool) -> list[str]:
        """Return the command line of a run, as `Case.arguments`."""
        arguments = self.recipe_case.arguments(name, resume)
        arguments[arguments.index("--trainer.accumulate_grad_batches") + 1] = str(self.case.accumulate)
        arguments[arguments.index("--trainer.devices") + 1] = str(self.case.world_size)
        return arguments + ["--trainer.strategy", self.case.strategy] * bool(self.case.strategy)


def _check_samples(run: Run, reference: Run) -> None:
    """Check over all processes that no sample is missing or too many; a repeated batch counts once.

    Raises:
        SoakError: one is.
    """
    runs = (run, reference)
    batches = [{json.dumps(line["keys"]) for rank in range(2) for line in r.batches(rank)} for r in runs]
    seen, expected = ({tuple(key) for batch in keys for key in json.loads(batch)} for keys in batches)
    if seen != expected:
        raise SoakError(f"{run.name}: samples missing or too many: {sorted(seen ^ expected)}")
