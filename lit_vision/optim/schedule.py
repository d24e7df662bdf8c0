"""Learning-rate schedules (cosine; warm-up, stable, decay), peak learning rate, and the length of a run in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

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
        planned_steps: optimizer steps of the whole run where it ends inside an epoch; None: at the end of the last one.
    """

    steps_per_epoch: int
    epochs: int
    global_batch_size: int
    planned_steps: int | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs if self.planned_steps is None else self.planned_steps


def training_length(module: LightningModule) -> TrainingLength:
    """Return the length of the run of the trainer that `module` is attached to, from the datamodule's sampler.

    A data module with an attribute `planned_steps` sets the number of steps; else it is that of `max_epochs` epochs.

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
    return TrainingLength(steps, trainer.max_epochs, data.global_batch_size, getattr(data, "planned_steps", None))


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


def warmup_stable_decay(
    step: int, *, warmup_steps: int, decay_start: int, decay_steps: int, min_ratio: float = 0.0
) -> float:
    """Return the factor on the peak learning rate at a step: linear from 0, then constant, then 1 - sqrt to the end.

    In the decay, at step decay_start + t, the factor is 1 - (1 - min_ratio) * sqrt(t / decay_steps). Up to the decay it
    does not depend on the length of the run, which can therefore be ended at any step by a decay from there, or go on.
    Source: Hu et al. 2024, arXiv:2404.06395 (the three stages); Haegele et al. 2024, arXiv:2405.18392, section 3 (the
    decay by 1 - sqrt, there better than a linear one).

    Args:
        step: optimizer steps done so far, 0 or more; past the end the factor stays at `min_ratio`.
        warmup_steps: steps of the linear part; the factor is exactly 1 at step == warmup_steps.
        decay_start: steps before the decay; the factor at this step is still that of the warm-up or 1.
        decay_steps: steps of the decay, 1 or more.
        min_ratio: last learning rate over peak learning rate, 0 to 1.

    Returns:
        A factor, 0 to 1. A decay that starts inside the warm-up starts from the factor that is reached there.
    """
    reached = min(step, decay_start)
    factor = reached / warmup_steps if reached < warmup_steps else 1.0
    done = min(1.0, max(0, step - decay_start) / decay_steps)
    return factor - (factor - min(min_ratio, factor)) * math.sqrt(done)


def decay_start_of(total_steps: int, decay_share: float) -> int:
    """Return the step at which the decay of a run begins, whose last `decay_share` of all steps, at least one, it is.

    Raises:
        UserError: `decay_share` is not between 0 and 1.
    """
    _check_decay_share(decay_share)
    return total_steps - max(1, round(decay_share * total_steps))


def decay_steps_from(decay_start: int, decay_share: float) -> int:
    """Return the steps of a decay that begins after `decay_start` steps, and then is `decay_share` of the run.

    It is the inverse of `decay_start_of`: a run planned for decay_start + decay_steps_from(decay_start, ...) steps
    decays from `decay_start`.

    Raises:
        UserError: `decay_share` is not between 0 and 1.
    """
    _check_decay_share(decay_share)
    return max(1, round(decay_start * decay_share / (1.0 - decay_share)))


def _check_decay_share(decay_share: float) -> None:
    """Raise a UserError unless 0 < decay_share < 1."""
    if not 0.0 < decay_share < 1.0:
        raise UserError(f"decay_share: {decay_share} is not between 0 and 1; give the share of the steps, such as 0.2")


class StableDecayLR(LambdaLR):
    """Steps an optimizer through `warmup_stable_decay`; the decay can be moved while the training runs.

    Attributes:
        decay_start: steps before the decay.
        decay_steps: steps of the decay.

    Args:
        optimizer: with its peak learning rates.
        total_steps: of the run.
        warmup_steps: of the linear part.
        decay_share: of the decay in the run, between 0 and 1.
        min_ratio: last learning rate over peak learning rate.

    Raises:
        UserError: `decay_share` is not between 0 and 1.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int, decay_share: float, min_ratio: float
    ) -> None:
        self.warmup_steps, self.decay_share, self.min_ratio = warmup_steps, decay_share, min_ratio
        self.decay_start = decay_start_of(total_steps, decay_share)
        self.decay_steps = total_steps - self.decay_start
        self.moved = False
        super().__init__(optimizer, lambda step: self.factor(step))

    def factor(self, step: int) -> float:
        """Return the factor on the peak learning rates at a step."""
        return warmup_stable_decay(
            step,
            warmup_steps=self.warmup_steps,
            decay_start=self.decay_start,
            decay_steps=self.decay_steps,
            min_ratio=self.min_ratio,
        )

    def begin_decay(self) -> int:
        """Begin the decay at the present step, and return the number of steps after which the run is over."""
        self.decay_start, self.moved = self.last_epoch, True
        self.decay_steps = decay_steps_from(self.decay_start, self.decay_share)
        return self.decay_start + self.decay_steps

    def state_dict(self) -> dict[str, Any]:
        """Return the state; the decay is in it if `begin_decay` has set it, and else follows from the run's length."""
        computed = ["warmup_steps", "decay_share", "min_ratio", *([] if self.moved else ["decay_start", "decay_steps"])]
        return {name: value for name, value in super().state_dict().items() if name not in computed}


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
