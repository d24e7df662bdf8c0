"""A run that is killed and goes on, and its comparison with the run that nobody killed."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

import torch

from lit_vision.io import checkpoint_digest
from soak.forks import launch
from soak.toys import Case


class Failure(AssertionError):
    """A run did not end as the one that nobody killed."""


class Run:
    """A run that is killed and goes on.

    Args:
        case: its setting.
        name: of its folder.
    """

    def __init__(self, case: Case, name: str) -> None:
        self.case, self.name, self.kills, self.repeated = case, name, 0, 0
        self.folder, self.log = case.folder / name, case.folder / f"{name}.log"
        self.begun = False

    def go(
        self, kill: str = "", sign: str = "SIGKILL", case: Case | None = None, delay: tuple[float, float] = (0, 0)
    ) -> bool:
        """Starts or goes on, up to the kill; False if the run came to its end first.

        Raises:
            Failure: it ended in another way, or repeats more than one interval, as a run that starts anew would.
        """
        case = case or self.case
        done, read = self._steps(), self.log.stat().st_size if self.log.exists() else 0
        resume = self.begun
        self.begun = True
        code = launch(case.words(self.name, resume), self.log, kill, case.world, delay, sign)
        said = self.log.read_text()[read:]
        if code not in (0, -9, {"SIGTERM": 143, "SIGINT": 130}.get(sign)):
            raise Failure(f"{case} {self.name} {kill}: exit code {code}\n{said[-1500:]}")
        if resume:
            self._check_restored(said, done, kill)
        self.kills += code != 0
        return code != 0

    def _check_restored(self, said: str, done: int, kill: str) -> None:
        restored = re.findall(r"^restored step (\d+) ", said, re.M)
        if not restored and "restored" not in said and "starts anew" not in said:
            if "going on from" not in said and not said.strip():
                return  # killed before it could say anything
            raise Failure(f"{self.name} {kill}: does not say what it restored\n{said[-1500:]}")
        step = int(restored[0]) if restored else 0
        self.repeated = max(self.repeated, done - step)
        if done - step > self.case.interval:
            raise Failure(
                f"{self.name} {kill}: {done} steps were done, restored step {step}: more than {self.case.interval} repeated"
            )

    def _steps(self) -> int:
        return max((line["step"] for line in self.journal()), default=0)

    def journal(self, rank: int = 0) -> list[dict[str, Any]]:
        """What was done, batch by batch, repeated ones included."""
        path = self.folder / f"journal-{rank}.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def samples(self, ranks: int) -> dict[int, set[tuple[int, ...]]]:
        """The samples of each optimiser step (the counter after it) over all ranks; a repeated step must have the same."""
        steps: dict[int, set] = {}
        for rank in range(ranks):
            for line in self.journal(rank):
                # inside an accumulation window the counter is that of the step before
                steps.setdefault((line["epoch"], line["step"]), set()).update(map(tuple, line["keys"]))
        return steps

    def check(self, whole: Run, tolerance: float = 0.0) -> None:
        """Compares with the run that nobody killed.

        Raises:
            Failure: something differs.
        """
        ours, theirs = (torch.load(r.folder / "checkpoints" / "last.ckpt", weights_only=True) for r in (self, whole))
        if tolerance:
            for key, value in theirs["state_dict"].items():
                if not torch.allclose(ours["state_dict"][key], value, rtol=0, atol=tolerance):
                    raise Failure(f"{self.name}: {key} differs by {(ours['state_dict'][key] - value).abs().max():.2e}")
            return
        for key in (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "epoch",
            "global_step",
            "loops",
            "ImageFolderDataModule",
        ):
            assert_same(ours[key], theirs[key], f"{self.name}: {key}")
        ours, theirs = ((r.folder / "metrics.csv").read_text() for r in (self, whole))
        if ours != theirs:
            diff = "".join(difflib.unified_diff(theirs.splitlines(True), ours.splitlines(True), "whole", "ours", n=1))
            raise Failure(f"{self.name}: metrics.csv differs\n{diff}\n{self.log.read_text()[-3000:]}")
        for rank in range(self.case.world):
            last = [max(r.journal(rank), key=lambda line: (line["epoch"], line["step"])) for r in (self, whole)]
            assert_same(
                *(r.journal(rank)[-1] for r in (self, whole)), f"{self.name}: the last batch and the RNG after it"
            )
            assert_same(last[0]["step"], last[1]["step"], f"{self.name}: steps")
        assert_same(self.samples(self.case.world), whole.samples(self.case.world), f"{self.name}: samples of the steps")
        for path in (self.folder / "checkpoints").glob("*.ckpt"):
            if wrong := checkpoint_digest.integrity_error(path):
                raise Failure(f"{path} {wrong}")


def assert_same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        same = a.keys() == b.keys()
        for key in a if same else ():
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        same = len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b) if same else ()):
            assert_same(x, y, f"{where}[{i}]")
    else:
        same = a == b
    if not same:
        raise Failure(f"{where} differs")
