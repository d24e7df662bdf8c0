"""Convert the batch counters of a checkpoint to another number of processes or another accumulation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from lit_vision.errors import UserError
from lit_vision.lightning_internals import training_batch_counters


def rescale_batch_counters(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Change the counters of training batches to this run's batch size, after the data module's state is loaded.

    Raises:
        UserError: the checkpoint does not hold the position in the data.
    """
    data = checkpoint.get(type(trainer.datamodule).__qualname__)
    if data is None or "micro" not in data:
        raise UserError("--resume: the checkpoint holds no position in the data; it was not written by lit-vision fit")
    counters = training_batch_counters(checkpoint)
    micro = trainer.datamodule.batch_size * trainer.world_size
    if getattr(trainer.datamodule, "moved", False):  # --resume_anyway over other data: the old counts mean nothing
        epoch, samples = trainer.datamodule.cursor
        per_epoch, limit = trainer.datamodule.batches_per_epoch, trainer.limit_train_batches
        per_epoch = min(per_epoch, limit) if isinstance(limit, int) else int(per_epoch * limit)
        done = min(samples // micro, per_epoch)
        for name, value in (("current", done), ("total", epoch * per_epoch + done)):
            counters[name].update(dict.fromkeys(counters[name], value))
        return
    for numbers in counters.values():
        numbers.update({key: value * data["micro"] // micro for key, value in numbers.items()})
