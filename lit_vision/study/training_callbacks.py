"""Callbacks of a study's trainings: losses, an earlier decay of the learning rate, and a checkpoint to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_vision import lightning_internals
from lit_vision.io.safe_load import DamagedCheckpointError
from lit_vision.optim import StableDecayLR
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO
from lit_vision.runs.preemption import StopSignals

OnStep = Callable[[int, int, float], None]  # called with (step, total steps, loss)
FEWEST_MEASURED = 4  # steps of a measurement


def stable_decay_of(trainer: Trainer) -> StableDecayLR | None:
    """Return the training's learning-rate schedule if its decay can be moved, else None."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return next((scheduler for scheduler in schedulers if isinstance(scheduler, StableDecayLR)), None)


class CoolDown(Callback):
    """Ask after each step whether the decay of the learning rate shall begin, and end the training after it.

    Args:
        steps: of the training as planned.
        ask: called with the number of steps done, until it returns True or the decay has begun; None: as planned.

    Attributes:
        steps: of the training, fewer than planned after an earlier decay.
    """

    def __init__(self, steps: int, ask: Callable[[int], bool] | None) -> None:
        self.steps, self.ask = steps, ask

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ValueError if the schedule has no decay that can be moved; take up one that a checkpoint holds."""
        schedule = stable_decay_of(trainer)
        if schedule is None:
            if self.ask is not None:
                raise ValueError("cool_down needs a method with schedule='warmup-stable-decay'")
        elif schedule.moved:
            self.steps = schedule.decay_start + schedule.decay_steps
            trainer.should_stop = trainer.global_step >= self.steps

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        step, schedule = trainer.global_step, stable_decay_of(trainer)
        if schedule is None:
            return
        # the learning rate of the next step, which is set already, is the same with and without the decay
        if self.ask is not None and not schedule.moved and step < schedule.decay_start and self.ask(step):
            self.steps = schedule.begin_decay()
        if schedule.moved and step >= self.steps:
            trainer.should_stop = True


class LossRecorder(Callback):
    """Record the losses, report each step to the study's progress, and stop a measurement after `limit` seconds.

    Attributes:
        losses: of each step, also of those before the checkpoint that the training went on from.
        times: when each step ended, seconds from the start; time between a stop and the next start does not count.
    """

    def __init__(
        self, length: CoolDown, on_step: OnStep | None, limit: float, fewest_measured: int = FEWEST_MEASURED
    ) -> None:
        self.length, self.on_step, self.limit, self.fewest_measured = length, on_step, limit, fewest_measured
        self.losses: list[float] = []
        self.times: list[float] = []
        self.begin = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "times": self.times}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.times = list(state_dict["losses"]), list(state_dict["times"])
        self.begin -= self.times[-1]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        self.losses.append(loss)
        self.times.append(time.perf_counter() - self.begin)
        if self.on_step:
            self.on_step(len(self.losses), self.length.steps, loss)
        if self.times[-1] > self.limit and len(self.times) >= self.fewest_measured:
            trainer.should_stop = True


class TrainingCheckpoint(Checkpoint):
    """Write the state of a training to one file from which it goes on to the same bits.

    It is written before `seconds` pass without one, as far as the duration of a step allows it, and on SIGTERM, SIGUSR1
    and Ctrl-C, which end the training after the present step; `signals.received` is then the signal.

    Args:
        path: the file, written atomically, with its sha256 in a file beside it.
        inputs: hash of all that the training depends on; stored in the file.
        seconds: of wall clock.
    """

    # A subclass of Checkpoint: Lightning calls these after all other callbacks, whose state is then in the file.
    def __init__(self, path: Path, inputs: str, seconds: float) -> None:
        self.path, self.inputs, self.seconds = path, inputs, seconds
        self.signals = StopSignals()
        self._saved_at = self._last_step = 0.0
        self._epoch_over = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        lightning_internals.replace_signal_handlers(trainer, self.signals.watch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.restore()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = self._last_step = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._epoch_over = True
            self._save_if_due(trainer)
            self._epoch_over = False

    def _save_if_due(self, trainer: Trainer) -> None:
        now = time.monotonic()
        step, self._last_step = now - self._last_step, now
        stop = self.signals.received
        if stop or now + step - self._saved_at >= self.seconds:
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved_at = self._last_step = time.monotonic()
        trainer.should_stop |= bool(stop)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["inputs"] = self.inputs
        lightning_internals.complete_loop_counters(checkpoint, False, self._epoch_over)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go to the place in the data; its loader is made after this."""
        batches = trainer.datamodule.batches
        batches.epoch, batches.first_batch = lightning_internals.next_position(checkpoint)


def can_go_on_from(path: Path, inputs: str) -> bool:
    """True if `path` is an undamaged checkpoint of a training with these inputs."""
    if not path.is_file():
        return False
    try:
        return AtomicCheckpointIO().load_checkpoint(path).get("inputs") == inputs
    except DamagedCheckpointError:
        return False
