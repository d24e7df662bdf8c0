"""A run that is killed and resumed, and its comparison with a run that nobody killed."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any

import torch

from lit_vision.io import checkpoint_digest
from soak.cases import Case, batch_file, restored_file
from soak.fork_server import launch

if TYPE_CHECKING:
    from soak.scenarios import CaseWithOtherRecipe

CHECKPOINT_KEYS = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "epoch",
    "global_step",
    "loops",
    "ImageFolderDataModule",
)


class SoakError(AssertionError):
    """A run did not end as the run that nobody killed."""


class Run:
    """A run that is killed and resumed.

    Args:
        case: its setting.
        name: of its folder.
    """

    def __init__(self, case: Case, name: str) -> None:
        self.case, self.name, self.kills, self.repeated = case, name, 0, 0
        self.folder, self.log = case.folder / name, case.folder / f"{name}.log"
        self.started = False

    def advance(
        self,
        kill: str = "",
        signal_name: str = "SIGKILL",
        case: Case | CaseWithOtherRecipe | None = None,
        delay: tuple[float, float] = (0, 0),
    ) -> bool:
        """Start or resume the run, up to the kill; return False if it came to its end first.

        Args:
            kill: event of the kill, see `fork_server.launch`.
            signal_name: the signal that is sent.
            case: another setting for this part of the run.
            delay: seconds, see `fork_server.launch`.

        Raises:
            SoakError: it ended in another way, or repeats more than one save interval, as a run from step 0 would.
        """
        case = case or self.case
        steps_done, log_size = self._steps(), self.log.stat().st_size if self.log.exists() else 0
        restores = len(self._restored_steps())
        resume, self.started = self.started, True
        code = launch(case.arguments(self.name, resume), self.log, kill, case.world_size, delay, signal_name)
        output = self.log.read_text()[log_size:]
        if code not in (0, -9, {"SIGTERM": 143, "SIGINT": 130}.get(signal_name)):
            raise SoakError(f"{case} {self.name} {kill}: exit code {code}\n{output[-1500:]}")
        if resume:
            self._check_restored(self._restored_steps()[restores:], steps_done, output, kill)
        self.kills += code != 0
        return code != 0

    def _check_restored(self, restored: list[int], steps_done: int, output: str, kill: str) -> None:
        if not restored:
            return  # killed before training went on, or it was complete
        (step,) = restored
        if step and not re.search(rf"\bstep {step}\b", output):
            raise SoakError(f"{self.name} {kill}: does not print that it restored step {step}\n{output[-1500:]}")
        repeated = steps_done - step
        self.repeated = max(self.repeated, repeated)
        if repeated > self.case.interval:
            raise SoakError(
                f"{self.name} {kill}: {steps_done} steps were done, restored step {step}: "
                f"more than {self.case.interval} repeated"
            )

    def _restored_steps(self) -> list[int]:
        """Return the step at which each process of rank 0 began to train."""
        path = restored_file(self.folder, 0)
        return [int(line) for line in path.read_text().split()] if path.is_file() else []

    def _steps(self) -> int:
        return max((line["step"] for line in self.batches()), default=0)

    def batches(self, rank: int = 0) -> list[dict[str, Any]]:
        """Return what `cases.KillAtEvent` recorded of each batch, repeated ones included."""
        path = batch_file(self.folder, rank)
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def samples(self, ranks: int) -> dict[tuple[int, int], set[tuple[int, ...]]]:
        """Return {(epoch, step): sample keys} over all ranks; a repeated step must have the same."""
        steps: dict[tuple[int, int], set[tuple[int, ...]]] = {}
        for rank in range(ranks):
            for line in self.batches(rank):
                # inside an accumulation window the counter is that of the step before
                steps.setdefault((line["epoch"], line["step"]), set()).update(map(tuple, line["keys"]))
        return steps

    def check(self, reference: Run, tolerance: float = 0.0) -> None:
        """Compare with the run that nobody killed.

        Args:
            reference: that run.
            tolerance: absolute, for weights, and then nothing else is compared; 0 compares everything bit by bit.

        Raises:
            SoakError: something differs.
        """
        runs = (self, reference)
        ours, expected = (torch.load(r.folder / "checkpoints" / "last.ckpt", weights_only=True) for r in runs)
        if tolerance:
            for key, value in expected["state_dict"].items():
                if not torch.allclose(ours["state_dict"][key], value, rtol=0, atol=tolerance):
                    difference = (ours["state_dict"][key] - value).abs().max()
                    raise SoakError(f"{self.name}: {key} differs by {difference:.2e}")
            return
        for key in CHECKPOINT_KEYS:
            assert_same(ours[key], expected[key], f"{self.name}: {key}")
        ours, expected = ((r.folder / "metrics.csv").read_text() for r in runs)
        if ours != expected:
            lines = difflib.unified_diff(expected.splitlines(True), ours.splitlines(True), "reference", self.name, n=1)
            raise SoakError(f"{self.name}: metrics.csv differs\n{''.join(lines)}\n{self.log.read_text()[-3000:]}")
        for rank in range(self.case.world_size):
            last = [max(r.batches(rank), key=lambda line: (line["epoch"], line["step"])) for r in runs]
            assert_same(*(r.batches(rank)[-1] for r in runs), f"{self.name}: the last batch and the RNG after it")
            assert_same(last[0]["step"], last[1]["step"], f"{self.name}: steps")
        ranks = self.case.world_size
        assert_same(self.samples(ranks), reference.samples(ranks), f"{self.name}: samples of the steps")
        for path in (self.folder / "checkpoints").glob("*.ckpt"):
            if error := checkpoint_digest.integrity_error(path):
                raise SoakError(f"{path} {error}")


def assert_same(a: Any, b: Any, name: str) -> None:
    """Compare two values, containers and tensors included, bit by bit.

    Raises:
        SoakError: they differ; the message starts with `name` and the path to the difference.
    """
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        same = a.keys() == b.keys()
        for key in a if same else ():
            assert_same(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, (list, tuple)):
        same = len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b) if same else ()):
            assert_same(x, y, f"{name}[{i}]")
    else:
        same = a == b
    if not same:
        raise SoakError(f"{name} differs")
