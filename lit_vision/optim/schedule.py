"""Warm-up + cosine schedule, peak learning rate, and the length of a run in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_vision.errors import UsageError, UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


# Lightning's callbacks that change steps, learning rates or parameter groups after the schedule is made from them:
# the schedule goes on with its own numbers, a resume is refused, or a step fails. With what to do instead.
CALLBACKS_THAT_CHANGE_THE_SCHEDULE = {
    "BackboneFinetuning": "use model.tune (last-<k>, head+norm, lora, ...) or model.layer_decay",
    "BaseFinetuning": "use model.tune (last-<k>, head+norm, lora, ...) or model.layer_decay",
    "BatchSizeFinder": "set data.batch_size",
    "GradientAccumulationScheduler": "set trainer.accumulate_grad_batches, one number for the whole run",
    "LearningRateFinder": "set model.base_lr (per 256 images) or model.lr, and compare a few short runs",
    "StochasticWeightAveraging": "use lit_vision.callbacks.ema.EMA",
}


@dataclass(frozen=True)
class TrainingLength:
    """Length of a run in optimizer steps.

    Args:
        steps_per_epoch: optimizer steps (not micro-batches) of one epoch.
        epochs: epochs of the whole run.
        global_batch_size: images per optimizer step over all devices and accumulated micro-batches.
    """

    steps_per_epoch: int
    epochs: int
    global_batch_size: int

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs


def training_length(module: LightningModule) -> TrainingLength:
    """Return the length of the run of the trainer that `module` is attached to, from the datamodule's sampler.

    Never reads `trainer.estimated_stepping_batches`: it builds the loaders early, and a restored loader state is lost
    (Lightning #20550).

    Raises:
        UserError: no datamodule that counts its batches, no `max_epochs`, less than one optimizer step per epoch, or a
            callback that changes them during the run.
    """
    trainer = module.trainer
    for callback in getattr(trainer, "callbacks", None) or ():
        for name in {base.__name__ for base in type(callback).__mro__} & set(CALLBACKS_THAT_CHANGE_THE_SCHEDULE):
            advice = CALLBACKS_THAT_CHANGE_THE_SCHEDULE[name]
            raise UsageError(f"trainer.callbacks: {type(callback).__name__} cannot be used here; {advice}")
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "batches_per_epoch"):
        raise UserError(
            "data: the trainer has no datamodule with batches_per_epoch; "
            "pass datamodule=ImageFolderDataModule(...) to fit"
        )
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise UserError(
            "trainer.max_epochs: not set, but the learning-rate schedule depends on it; set it to 1 or more"
        )
    batches, limit = data.batches_per_epoch, trainer.limit_train_batches
    if isinstance(limit, int):
        batches = min(batches, limit)
    elif limit is not None:
        batches = int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)  # Lightning steps after the last batch in any case
    if steps < 1 and data.batches_per_epoch:
        key = "overfit_batches" if getattr(trainer, "overfit_batches", 0) else "limit_train_batches"
        raise UserError(f"trainer.{key}: {limit} of {data.batches_per_epoch} batches leaves none; raise it")
    if steps < 1:
        raise UserError(
            f"data.batch_size: {data.global_batch_size} images a step are more than the training set holds; "
            "lower batch_size or accumulation"
        )
    return TrainingLength(steps, trainer.max_epochs, data.global_batch_size)


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, min_ratio: float = 0.0) -> float:
    """Return the factor on the peak learning rate at a step: linear from 0, then half a cosine down to `min_ratio`.

    Source: He et al. 2022, arXiv:2111.06377, Table 8 (set per step, not per epoch); Chen et al. 2020, arXiv:2002.05709,
    section 2.3. The first step of a run with warm-up therefore has learning rate 0, as in the official code.

    Args:
        step: optimizer steps done so far, 0 or more; past the end the factor stays at `min_ratio`.
        total_steps: steps of the whole run.
        warmup_steps: steps of the linear part; the factor is exactly 1 at step == warmup_steps.
        min_ratio: last learning rate over peak learning rate, 0 to 1.

    Returns:
        A factor, 0 to 1. If the warm-up is longer than the run, the run ends inside the linear part.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * done))


def scaled_lr(base_lr: float | None, lr: float | None, global_batch_size: int) -> float:
    """Return the peak learning rate: `lr` if it is given, else base_lr x global_batch_size / 256.

    Source: Goyal et al. 2017, arXiv:1706.02677.

    Raises:
        UserError: neither is given, or the result is not positive.
    """
    if lr is not None:
        value = lr
    elif base_lr is not None:
        value = base_lr * global_batch_size / 256
    else:
        raise UserError("base_lr: neither base_lr (per 256 images) nor lr (absolute) is set; set one of them")
    if value <= 0:
        raise UserError(f"{'base_lr' if lr is None else 'lr'}: {value} is not positive; give a positive learning rate")
    return value
