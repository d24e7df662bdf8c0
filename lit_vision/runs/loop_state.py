"""The counters of Lightning's loops in a checkpoint, put right: it writes them a moment too early for an exact resume."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from lit_vision.errors import UserError


def complete_loop_counters(loop: dict[str, Any], validation_follows: bool, epoch_over: bool) -> None:
    """As if the batch, or the epoch, were over.

    Args:
        loop: checkpoint["loops"]["fit_loop"]; changed in place.
        validation_follows: the checkpoint is written after a batch and before its validation, which a resume then runs whole.
        epoch_over: it is written at the end of an epoch.
    """
    zero = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    batch, val = loop["epoch_loop.batch_progress"], loop["epoch_loop.val_loop.batch_progress"]
    if batch["total"]["completed"] < batch["total"]["ready"]:  # saved in on_train_batch_end
        for counters in (batch["total"], batch["current"]):
            counters["completed"] = counters["ready"]
        if not validation_follows:
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    if validation_follows:
        val.update(total={**zero, "ready": 1, "started": 1}, current=dict(zero), is_last_batch=False)
    if epoch_over:
        for counters in loop["epoch_progress"].values():
            counters["completed"] = counters["processed"]
        batch.update(current=dict(zero), is_last_batch=False)
        val.update(total=dict(zero), current=dict(zero), is_last_batch=False)


def next_position(loop: dict[str, Any]) -> tuple[int, int]:
    """(epoch, batch) that come next, both from 0."""
    return loop["epoch_progress"]["total"]["completed"], loop["epoch_loop.batch_progress"]["current"]["completed"]


def rescale_batch_counters(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Counts micro-batches anew where the number of processes or accumulation changed; the datamodule's state is loaded already.

    Raises:
        UserError: the checkpoint does not say where in the data it was written.
    """
    data = checkpoint.get(type(trainer.datamodule).__qualname__)
    if data is None or "micro" not in data:
        raise UserError("--resume: the checkpoint holds no position in the data; it was not written by lit-vision fit")
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    micro = trainer.datamodule.batch_size * trainer.world_size
    if getattr(
        trainer.datamodule, "moved", False
    ):  # --resume_anyway over other data: what was counted means nothing now
        epoch, samples = trainer.datamodule.cursor
        per_epoch, limit = trainer.datamodule.batches_per_epoch, trainer.limit_train_batches
        per_epoch = min(per_epoch, limit) if isinstance(limit, int) else int(per_epoch * limit)
        done = min(samples // micro, per_epoch)
        for name, value in (("current", done), ("total", epoch * per_epoch + done)):
            progress[name] = dict.fromkeys(progress[name], value)
        return
    for counters in (progress["total"], progress["current"]):
        counters.update({k: v * data["micro"] // micro for k, v in counters.items()})
