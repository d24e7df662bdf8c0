"""Report the validations of a trial to the sweep's journal, and end the trial when its pruner says so."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.errors import UserError
from lit_vision.io.atomic import write_json
from lit_vision.sweep.settings import open_journal, read

VARIABLE = "LIT_VISION_SWEEP_TRIAL"  # of the environment, so that every process of the trial's run gets it
PRUNED_FILE = "pruned.json"


def trial_callbacks() -> list[Callback]:
    """Return the callback of the trial that this process trains; [] if it trains none."""
    folder, _, number = os.environ.get(VARIABLE, "").rpartition(":")
    return [ReportTrial(Path(folder), int(number))] if folder else []


class ReportTrial(Callback):
    """Report the sweep's metric after each epoch's validation; the first process decides, all end together.

    Args:
        folder: of the sweep.
        number: of the trial in its journal.
        open_report: returns the function that reports and decides; for tests.
    """

    def __init__(
        self, folder: Path, number: int, open_report: Callable[[], Callable[[int, float], bool]] | None = None
    ) -> None:
        self.metric = read(folder).metric
        self._open_report = open_report or (lambda: open_journal(folder, read(folder)).reporter(number))
        self._report: Callable[[int, float], bool] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        prune = trainer.is_global_zero and self._decide(trainer)
        if trainer.strategy.broadcast(prune, src=0):
            trainer.should_stop = True

    def _decide(self, trainer: Trainer) -> bool:
        measured: dict[str, Any] = trainer.callback_metrics
        if self.metric not in measured:
            known = ", ".join(sorted(name for name in measured if name.startswith("val/"))) or "none"
            raise UserError(f"--metric {self.metric}: is not measured by this run; its validation measures {known}")
        value, step = float(measured[self.metric]), trainer.current_epoch + 1
        if not math.isfinite(value):
            return False
        self._report = self._report or self._open_report()
        prune = self._report(step, value)
        if prune:  # written before the run ends: a run that is killed now is pruned all the same
            write_json(Path(trainer.default_root_dir) / PRUNED_FILE, {"epoch": step, self.metric: value})
        return prune
