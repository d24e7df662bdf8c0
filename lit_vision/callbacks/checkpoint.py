"""Bit-exact resumable checkpoints, written atomically.

Three parts, each used alone or together (lit_vision.cli.lightning_cli adds all three to every run):
- `AtomicCheckpointIO` (runs/checkpoint_io.py) writes a checkpoint file (temporary file, fsync, rename) and reads it
  (sha256 checked, no code executed);
- `SeedEachBatch` makes the model's random numbers a function of (seed, rank, number of the batch);
- `LastCheckpoint` writes last.ckpt where a resume is exact, keeps the previous and the best one, and handles signals
  (runs/preemption.py).

Lightning 2.6.6 replays batches after a resume inside an epoch, stores no random state, and on SIGTERM exits with code 0
without a file. The remedies rely on private state of its loops through lightning_internals.py.
tests/callbacks/test_checkpoint_resume.py kills real runs, and must run on every version of Lightning that setup.cfg
admits.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from lit_vision import lightning_internals
from lit_vision.errors import UserError
from lit_vision.io.hashing import seed_from_text
from lit_vision.io.safe_load import DamagedCheckpointError
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO, digest_path, is_valid
from lit_vision.runs.lightning_switches import check_callbacks
from lit_vision.runs.loop_state import rescale_batch_counters
from lit_vision.runs.preemption import EXIT_CODES, StopSignals, requeue
from lit_vision.runs.retention import Retention

__all__ = ["AtomicCheckpointIO", "DamagedCheckpointError", "LastCheckpoint", "SeedEachBatch", "digest_path", "is_valid"]

# metrics to choose best.ckpt by, after the one that a method declares (`monitor`); True = larger is better
MONITORS = (("val/top1", True), ("val/knn_top1", True), ("val/loss", False))


def monitors_of(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """Return the metrics to choose best.ckpt by, and True where larger is better: the first that the run measures."""
    declared = getattr(module, "monitor", None)
    return MONITORS if declared is None else (declared, *(m for m in MONITORS if m != declared))


class SeedEachBatch(Callback):
    """Seed torch's, numpy's and Python's generators at the start of each batch from (seed, rank, number of the batch).

    A checkpoint needs no random state, and neither validation, callbacks nor `iter(loader)` (which draws once from
    torch's generator) changes what dropout, drop path or mixup draw after a resume.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise UsageError for a callback that has no place in a run; see `lightning_switches.CALLBACKS`."""
        if stage == "fit":
            check_callbacks(trainer.callbacks)

    def _seed(self, trainer: Trainer, *key: int) -> None:
        value = seed_from_text(repr((self.seed, trainer.global_rank, *key)))
        # torch.manual_seed takes 180 us a call, the generator's own method 9 us
        torch.default_generator.manual_seed(value)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(value)
        np.random.seed(value & 0xFFFFFFFF)
        random.seed(value)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seed(trainer, 0, trainer.fit_loop.total_batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._seed(trainer, 1, dataloader_idx, batch_idx)


class LastCheckpoint(Checkpoint):
    """Write the checkpoints of a run, only where a resume is exact.

    - last.ckpt: every `every_n_steps` optimizer steps, at the end of each epoch and of the run, and when SIGTERM,
      SIGUSR1 or Ctrl-C comes (within one optimizer step, also in validation); the process then exits with 143 or 130.
      A second Ctrl-C exits at once.
    - previous.ckpt: the last.ckpt before.
    - best.ckpt: written at the end of an epoch in which the first of `monitors_of` that the run measures is better than
      ever.
    - step-<n>.ckpt: every `keep_every_n_steps` steps.

    A checkpoint with several names is one file on the disk. SIGUSR1 in a SLURM job requeues the job, after last.ckpt
    has been read again and verified.

    Attributes:
        stopped_by: name of the signal that ended the run; "" before.

    Args:
        every_n_steps: optimizer steps between two writes of last.ckpt inside an epoch, at least 1.
        folder: the folder of the checkpoints; RUN/checkpoints if None.
        best: write best.ckpt.
        keep_every_n_steps: None keeps no step-<n>.ckpt.
        budget_gb: limit for all checkpoints together, in 10^9 bytes: the oldest step-<n>.ckpt are removed, the other
            names never.
    """

    # A subclass of Checkpoint: Lightning calls these after all other callbacks, whose logged values and state are then
    # in the file.
    def __init__(
        self,
        every_n_steps: int = 1000,
        folder: str | None = None,
        best: bool = True,
        keep_every_n_steps: int | None = None,
        budget_gb: float | None = None,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is not at least 1")
        self.every_n_steps, self.folder, self.keep_best = every_n_steps, folder, best
        self.retention = Retention(keep_every_n_steps, budget_gb)
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0  # spent writing; the progress report does not count it as waiting for data
        self.signals = StopSignals()
        self.stopped_by = ""
        self._agreed = 0  # the signal that all ranks know of
        self._validation_follows = self._epoch_over = False
        self._saved_at, self._group, self._validation_batches = -1, None, 0

    @property
    def path(self) -> Path:
        """The file last.ckpt (known once the run has started)."""
        return Path(self.folder or "checkpoints") / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = self.folder or str(Path(trainer.default_root_dir) / "checkpoints")
        if stage == "fit":
            check_callbacks(trainer.callbacks)
            # Lightning's own handlers, which these replace, broadcast between processes and save, all inside a handler
            lightning_internals.replace_signal_handlers(trainer, self.signals.watch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.restore()

    def _agree(self) -> int:
        """Return the signal that ends the run, 0 for none: all ranks stop at the same batch (0.4 ms)."""
        self._agreed = self.signals.received
        if self._group is not None:
            flag = torch.tensor(self._agreed)
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
            self._agreed = int(flag)
        return self._agreed

    # ---- when to save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = trainer.global_step
        self._group = dist.new_group(backend="gloo") if trainer.world_size > 1 else None

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        start = time.perf_counter()
        also = ["best.ckpt"] * best + self.retention.names(trainer.global_step)
        options = {"previous": "previous.ckpt", "also": also}
        # False: the whole state; the default None prints a line at each save
        trainer.save_checkpoint(self.path, weights_only=False, storage_options=options)
        if trainer.is_global_zero:
            self.retention.tidy(self.path.parent)
        self._saved_at = trainer.global_step
        self.seconds += time.perf_counter() - start

    def _stop(self, trainer: Trainer) -> None:
        """Exit, now that the checkpoint is written."""
        self.stopped_by = signal.Signals(self._agreed).name
        if trainer.is_global_zero and self._agreed == signal.SIGUSR1 and (report := requeue(self.path)):
            print(report, flush=True)
        # a child's 143 would make Lightning's launcher kill rank 0 within 5 s
        raise SystemExit(EXIT_CODES[signal.Signals(self._agreed)] if trainer.is_global_zero else 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._agree()
        self._validation_follows = lightning_internals.validation_follows_batch(trainer)
        due = step != self._saved_at and (step % self.every_n_steps == 0 or bool(self.retention.names(step)))
        if not (self._agreed or due):
            return
        if lightning_internals.is_accumulating(trainer):  # gradients are not in the file
            return
        if self._validation_follows or not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            _flush_metrics_row(trainer)
            self._save(trainer)
            if self._agree():  # it may have come while the file was written
                self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            self._validation_batches = 0
            return
        # also where a resume begins with it: after a save in it the next resume runs it whole
        self._validation_follows = True
        # ranks may have unequally many batches to measure: they can only agree at those that all have
        count = torch.tensor(sum(trainer.num_val_batches))
        if self._group is not None:
            dist.all_reduce(count, dist.ReduceOp.MIN, self._group)
        self._validation_batches = int(count)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._validation_batches -= 1
        if self._validation_batches < 0:
            return
        if self._agree() and not lightning_internals.is_accumulating(trainer):
            self._save(trainer)
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_follows = False  # no save here: a resume would miss the fresh val/ metrics

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # training ends inside the epoch: max_steps, max_time, or a callback that stops it
            if trainer.global_step != self._saved_at:
                self._save(trainer, best=self._improved(trainer))
            return
        self._epoch_over = True
        self._save(trainer, best=self._improved(trainer))
        self._epoch_over = False
        # after the last epoch only the results are left to write: the run is complete, and ends as such
        if self._agree() and trainer.current_epoch + 1 != trainer.max_epochs:
            self._stop(trainer)

    def _improved(self, trainer: Trainer) -> bool:
        measured = trainer.callback_metrics
        for name, larger in monitors_of(trainer.lightning_module) if self.keep_best else ():
            if self.best and self.best["name"] == name and name not in measured:
                return False  # not measured since the resume: a later metric of the list does not replace it
            if name in measured:
                value = float(measured[name])
                known = self.best["value"] if self.best and self.best["name"] == name else None
                if known is None or (value > known if larger else value < known):
                    self.best = {"name": name, "value": value, "step": trainer.global_step}
                    return True
                return False
        return False

    # ---- content of the file

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            checkpoint["metrics_rows"] = [logger.rows for logger in _row_counting_loggers(trainer)]
        lightning_internals.complete_loop_counters(checkpoint, self._validation_follows, self._epoch_over)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "training_weights" in checkpoint and not any(type(c).__name__ == "EMA" for c in trainer.callbacks):
            raise UserError(
                "--resume: this checkpoint holds an average (callback EMA), and the recipe has no EMA; add it"
            )
        rescale_batch_counters(trainer, checkpoint)
        if trainer.is_global_zero:
            epoch, batch = lightning_internals.next_position(checkpoint)
            print(f"restored step {checkpoint['global_step']} (epoch {epoch}, batch {batch})", flush=True)
            for logger, rows in zip(_row_counting_loggers(trainer), checkpoint.get("metrics_rows", [])):
                logger.cut(rows)


def _row_counting_loggers(trainer: Trainer) -> list[Any]:
    """Return the loggers that count their rows (RunCSVLogger); [] on ranks other than 0, which must not open it."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if hasattr(type(logger), "rows")]


def _flush_metrics_row(trainer: Trainer) -> None:
    """Write the row of this step before the checkpoint.

    Lightning writes it after the checkpoint: a run killed in between would lack it. Only for loggers that drop the
    repeated row (RunCSVLogger).
    """
    if row := lightning_internals.pending_metrics(trainer):
        lightning_internals.log_at_optimizer_step(trainer, row, _row_counting_loggers(trainer))
