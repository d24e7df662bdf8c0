"""Checkpoints from which a run goes on to the same bits, written so that a kill or a full disk never tears one.

Three parts, each used alone or together (lit_vision.cli.fit puts all three into every run):
- `AtomicCheckpointIO` (checkpoint_io.py): how a checkpoint file is written (temporary file, fsync, rename) and read (sha256 checked, no code executed);
- `SeedEachBatch`: the model's random numbers as a function of (seed, rank, number of the batch);
- `LastCheckpoint`: writes last.ckpt where a resume is exact, keeps the one before and the best, and answers signals (preemption.py).

Lightning 2.6.6 replays batches after a resume inside an epoch, stores no random state, and leaves with code 0 and no file
on SIGTERM. The cures here and in loop_state.py lean on private names of its loops (`_should_check_val_fx`, `_data_fetcher`,
`_should_accumulate`, `_signal_connector`, the layout of checkpoint["loops"]): tests/test_checkpointing_resume.py kills real runs,
and must run on every version of Lightning that setup.cfg admits.
"""

from __future__ import annotations

import hashlib
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

from lit_vision.errors import UserError
from lit_vision.io.safe_load import DamagedCheckpointError
from lit_vision.runs import loop_state
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO, digest_path, is_valid
from lit_vision.runs.preemption import EXIT_CODES, StopSignals, requeue
from lit_vision.runs.retention import Retention

__all__ = ["AtomicCheckpointIO", "DamagedCheckpointError", "LastCheckpoint", "SeedEachBatch", "digest_path", "is_valid"]

# what best.ckpt is chosen by: the first of these that the run measures; True = larger is better
MONITORS = (
    ("val/top1", True),
    ("val/knn_top1", True),
    ("val/map", True),
    ("val/dice", True),
    ("val/loss", False),
)


class SeedEachBatch(Callback):
    """Sets torch's, numpy's and Python's generators at the start of each batch from (seed, rank, number of the batch).

    So there is nothing to store, and neither validation, callbacks nor `iter(loader)` (which draws once from torch's generator)
    can disturb what dropout, drop path or mixup draw after a resume.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _put(self, trainer: Trainer, *key: int) -> None:
        # Python's hash() is salted per process, hence blake2b. torch.manual_seed costs 180 us a call, the generator's own 9 us.
        digest = hashlib.blake2b(repr((self.seed, trainer.global_rank, *key)).encode(), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        torch.default_generator.manual_seed(value)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(value)
        np.random.seed(value & 0xFFFFFFFF)
        random.seed(value)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._put(trainer, 0, trainer.fit_loop.total_batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._put(trainer, 1, dataloader_idx, batch_idx)


class LastCheckpoint(Checkpoint):
    """Writes the checkpoints in the run's folder, only where a resume is exact.

    last.ckpt: every `every_n_steps` optimiser steps, at the end of each epoch, and when SIGTERM, SIGUSR1 or Ctrl-C comes (within
    one optimiser step, also in validation); the process then leaves with 143 or 130. A second Ctrl-C leaves at once.
    previous.ckpt: what last.ckpt was before. best.ckpt: when the first of MONITORS that the run measures is better than ever, at the
    end of an epoch. step-<n>.ckpt: every `keep_every_n_steps` steps. A checkpoint with several names is one file on the disk.
    SIGUSR1 in a SLURM job has the job requeued, after last.ckpt has been read again and found whole.

    Args:
        every_n_steps: optimiser steps between two writes of last.ckpt inside an epoch, at least 1.
        folder: where the files go; RUN/checkpoints if None.
        best: whether best.ckpt is written.
        keep_every_n_steps: None keeps no step-<n>.ckpt.
        budget_gb: of all checkpoints together, 10^9 bytes: the oldest step-<n>.ckpt go first, the other names never.
    """

    # A Checkpoint: Lightning calls these after all other callbacks, so that what those log and keep is in the file.
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
        self.seconds = 0.0  # spent writing: not the data's fault, says the progress report
        self.signals = StopSignals()
        self._agreed = 0  # the signal that all ranks know of
        self._validation_follows = self._epoch_over = False
        self._saved_at, self._group, self._validation_batches = -1, None, 0

    @property
    def path(self) -> Path:
        """The file last.ckpt (known once the run has begun)."""
        return Path(self.folder or "checkpoints") / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = self.folder or str(Path(trainer.default_root_dir) / "checkpoints")
        if stage == "fit":
            # Lightning's own handlers, which these replace, broadcast between processes and save, all inside a handler
            trainer._signal_connector.register_signal_handlers = self.signals.watch

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signals.give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.give_back()

    def _agree(self) -> int:
        """The signal that ends the run, 0 for none: all ranks stop at the same place, whichever got it (0.4 ms)."""
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
        """Leaves, now that the checkpoint is written."""
        if trainer.is_global_zero and self._agreed == signal.SIGUSR1 and (said := requeue(self.path)):
            print(said, flush=True)
        # a child's 143 would make Lightning's launcher kill rank 0 within 5 s
        raise SystemExit(EXIT_CODES[self._agreed] if trainer.is_global_zero else 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop, step = trainer.fit_loop.epoch_loop, trainer.global_step
        self._agree()
        self._validation_follows = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        due = step != self._saved_at and (step % self.every_n_steps == 0 or bool(self.retention.names(step)))
        if (
            not (self._agreed or due) or loop._should_accumulate()
        ):  # gradients are not in the file: never inside a window
            return
        if self._validation_follows or not loop.batch_progress.is_last_batch:
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
        if self._agree() and not trainer.fit_loop._should_accumulate():
            self._save(trainer)
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_follows = False  # no save here: a resume would miss the fresh val/ metrics

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self._epoch_over = True
        self._save(trainer, best=self._improved(trainer))
        self._epoch_over = False
        # after the last epoch only the results are left to write: the run is complete, and ends as such
        if self._agree() and trainer.current_epoch + 1 != trainer.max_epochs:
            self._stop(trainer)

    def _improved(self, trainer: Trainer) -> bool:
        measured = trainer.callback_metrics
        for name, larger in MONITORS if self.keep_best else ():
            if self.best and self.best["name"] == name and name not in measured:
                return False  # not measured since the resume: no lesser metric takes its place
            if name in measured:
                value = float(measured[name])
                known = self.best["value"] if self.best and self.best["name"] == name else None
                if known is None or (value > known if larger else value < known):
                    self.best = {"name": name, "value": value, "step": trainer.global_step}
                    return True
                return False
        return False

    # ---- what is in the file

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            checkpoint["metrics_rows"] = [logger.rows for logger in _row_counting_loggers(trainer)]
        loop_state.complete_loop_counters(checkpoint["loops"]["fit_loop"], self._validation_follows, self._epoch_over)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "training_weights" in checkpoint and not any(type(c).__name__ == "EMA" for c in trainer.callbacks):
            raise UserError(
                "--resume: this checkpoint's weights are an average (callback EMA), and the recipe has no EMA; put it back"
            )
        loop_state.rescale_batch_counters(trainer, checkpoint)
        if trainer.is_global_zero:
            epoch, batch = loop_state.next_position(checkpoint["loops"]["fit_loop"])
            print(f"restored step {checkpoint['global_step']} (epoch {epoch}, batch {batch})", flush=True)
            for logger, rows in zip(_row_counting_loggers(trainer), checkpoint.get("metrics_rows", [])):
                logger.cut(rows)


def _row_counting_loggers(trainer: Trainer) -> list[Any]:
    """The loggers that count their rows (RunCSVLogger). Only rank 0 may touch their file, and reading `rows` opens it."""
    return [one for one in trainer.loggers if hasattr(type(one), "rows")] if trainer.is_global_zero else []


def _flush_metrics_row(trainer: Trainer) -> None:
    """Lightning logs a step's row after this hook; a run killed between the save and the row would lack it for ever.

    Only loggers that drop the repeated row (RunCSVLogger) get it early.
    """
    connector = trainer._logger_connector
    if connector.should_update_logs:
        row = {name: float(value) for name, value in connector.metrics["log"].items()}
        row.setdefault("epoch", trainer.current_epoch)
        for logger in _row_counting_loggers(trainer) if row else ():
            logger.log_metrics(row, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
