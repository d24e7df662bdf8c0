"""Check before the first step that the metrics which callbacks wait for are measured."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.callbacks.online_knn import OnlineKNN
from lit_vision.errors import UsageError


class CheckMonitoredMetrics(Callback):
    """Look for each callback's `monitor` (EarlyStopping, ModelCheckpoint) in the short validation before training.

    Lightning looks for it at the end of the first epoch. Metrics of training, whose names begin with "train", are left
    to it, as is every metric where that validation does not run (`num_sanity_val_steps` 0, or a resume).

    Raises:
        UsageError: names the callback, its metric and those that are measured.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.limit_val_batches == 0:
            self._check(trainer, [], "trainer.limit_val_batches is 0, so nothing is validated")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = sorted(trainer.callback_metrics)
        declared = getattr(pl_module, "monitor", None)
        if measured and (declared is None or declared[0] in measured):  # else the few batches were too few to measure
            self._check(trainer, measured, f"the validation measures {', '.join(measured)}")

    def _check(self, trainer: Trainer, measured: list[str], reason: str) -> None:
        if any(isinstance(callback, OnlineKNN) for callback in trainer.callbacks):
            measured = [*measured, "val/knn_top1"]  # measured at the ends of epochs
        for callback in trainer.callbacks:
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and not name.startswith("train") and name not in measured:
                raise UsageError(
                    f"trainer.callbacks: {type(callback).__name__} waits for {name!r}, which is not measured: "
                    f"{reason}; change its monitor"
                )
