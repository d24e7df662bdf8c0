"""Checkpoints from which a run goes on to the same bits, written so that a kill or a full disk never tears one.

Three parts, each used alone or together (lit_vision.train puts all three into every run):
- `AtomicIO` (checkpoint_files.py): how a checkpoint file is written (temporary file, fsync, rename) and read (sha256 checked, no code executed);
- `KeyedRandomness`: the model's random numbers as a function of (seed, rank, number of the batch);
- `LastCheckpoint`: writes last.ckpt where a resume is exact, best.ckpt beside it, and answers SIGTERM and Ctrl-C.

Lightning 2.6.6 replays batches after a resume inside an epoch, stores no random state, and leaves with code 0 and no file
on SIGTERM. The cures here lean on private names of its loops (`_should_check_val_fx`, `_data_fetcher`, `_should_accumulate`,
`_batches_that_stepped`, the layout of checkpoint["loops"]): tests/test_checkpointing_resume.py kills real runs, and must run
on every version of Lightning that setup.cfg admits.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_vision.checkpoint_files import AtomicIO, DamagedCheckpoint, is_valid, sidecar
from lit_vision.errors import UserError

__all__ = ["AtomicIO", "DamagedCheckpoint", "KeyedRandomness", "LastCheckpoint", "is_valid", "sidecar"]

# what best.ckpt is chosen by: the first of these that the run measures; True = larger is better
MONITORS = (
    ("val/top1", True),
    ("val/knn_top1", True),
    ("val/map", True),
    ("val/dice", True),
    ("val/loss", False),
)


class KeyedRandomness(Callback):
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
    """Writes checkpoints/last.ckpt in the run's folder, only where a resume is exact, and best.ckpt at the end of an epoch.

    last.ckpt: every `every_n_steps` optimiser steps, at the end of each epoch, and when SIGTERM or Ctrl-C comes (within one
    optimiser step, also in validation); the process then leaves with 143 or 130. A second Ctrl-C leaves at once.
    best.ckpt: when the first of MONITORS that the run measures is better than ever.

    Args:
        every_n_steps: optimiser steps between two writes of last.ckpt inside an epoch, at least 1.
        folder: where the files go; RUN/checkpoints if None.
        best: whether best.ckpt is written.
    """

    # A Checkpoint: Lightning calls these after all other callbacks, so that what those log and keep is in the file.
    def __init__(self, every_n_steps: int = 1000, folder: str | None = None, best: bool = True) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps: {every_n_steps} is not at least 1")
        self.every_n_steps, self.folder, self.keep_best = every_n_steps, folder, best
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0  # spent writing: not the data's fault, says the progress report
        self._signal = 0
        self._validation_follows = self._epoch_over = False
        self._saved_at, self._group = -1, None

    @property
    def path(self) -> Path:
        """The file last.ckpt (known once the run has begun)."""
        return Path(self.folder or "checkpoints") / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = self.folder or str(Path(trainer.default_root_dir) / "checkpoints")

    # ---- signals: the handler only sets a flag

    def _watch(self) -> None:
        def terminated(number: int, frame: Any) -> None:
            self._signal = number

        def interrupted(number: int, frame: Any) -> None:
            if self._signal:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt
            self._signal = number
            print("\nCtrl-C: saving after this step; once more to leave at once", file=sys.stderr)

        with contextlib.suppress(ValueError):  # not in the main thread: no signals there
            # Lightning's own handler, which this one replaces, comes back at teardown
            signal.signal(signal.SIGTERM, terminated)
            signal.signal(signal.SIGINT, interrupted)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch()

    def _agree(self) -> None:
        """All ranks stop at the same place, whichever got the signal (0.4 ms)."""
        if self._group is not None:
            flag = torch.tensor(self._signal)
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
            self._signal = int(flag)

    # ---- when to save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch()
        self._saved_at = trainer.global_step
        self._group = dist.new_group(backend="gloo") if trainer.world_size > 1 else None

    def _save(self, trainer: Trainer, *names: str) -> None:
        start = time.perf_counter()
        for name in names:
            # False: the whole state; the default None prints a line at each save
            trainer.save_checkpoint(self.path.with_name(name), weights_only=False)
        self._saved_at = trainer.global_step
        self.seconds += time.perf_counter() - start
        if self._signal:
            # a child's 143 would make Lightning's launcher kill rank 0 within 5 s
            raise SystemExit(128 + self._signal if trainer.is_global_zero else 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        self._agree()
        self._validation_follows = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        due = trainer.global_step != self._saved_at and trainer.global_step % self.every_n_steps == 0
        if (
            not (self._signal or due) or loop._should_accumulate()
        ):  # gradients are not in the file: never inside a window
            return
        if self._validation_follows or not loop.batch_progress.is_last_batch:
            _write_row_of_this_step(trainer)
            self._save(trainer, "last.ckpt")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._agree()
        if self._signal and not trainer.fit_loop._should_accumulate():
            self._save(trainer, "last.ckpt")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_follows = False  # no save here: a resume would miss the fresh val/ metrics

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agree()
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        # best first: killed between the two, the run goes on from the older last.ckpt and finds the same best again
        names = ("best.ckpt", "last.ckpt") if self._improved(trainer) else ("last.ckpt",)
        self._epoch_over = True
        self._save(trainer, *names)
        self._epoch_over = False

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
        """Sets the loops' counters as if the batch, or the epoch, were over: Lightning writes them a moment too early."""
        if trainer.is_global_zero:
            checkpoint["metrics_rows"] = [logger.rows for logger in trainer.loggers if hasattr(logger, "rows")]
        zero = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
        loop = checkpoint["loops"]["fit_loop"]
        batch, val = loop["epoch_loop.batch_progress"], loop["epoch_loop.val_loop.batch_progress"]
        if batch["total"]["completed"] < batch["total"]["ready"]:  # saved in on_train_batch_end
            for counters in (batch["total"], batch["current"]):
                counters["completed"] = counters["ready"]
            if not self._validation_follows:
                loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
        if self._validation_follows:  # a resume runs the whole validation
            val.update(total={**zero, "ready": 1, "started": 1}, current=dict(zero), is_last_batch=False)
        if self._epoch_over:
            for counters in loop["epoch_progress"].values():
                counters["completed"] = counters["processed"]
            batch.update(current=dict(zero), is_last_batch=False)
            val.update(total=dict(zero), current=dict(zero), is_last_batch=False)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Recounts micro-batches where the number of processes changed at the same global batch."""
        data = checkpoint.get(type(trainer.datamodule).__qualname__)
        if data is None or "micro" not in data:
            raise UserError(
                "--resume: the checkpoint holds no position in the data; it was not written by lit-vision fit"
            )
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        micro = trainer.datamodule.batch_size * trainer.world_size
        for counters in (progress["total"], progress["current"]):
            counters.update({k: v * data["micro"] // micro for k, v in counters.items()})
        if trainer.is_global_zero:
            files = [logger for logger in trainer.loggers if hasattr(logger, "rows")]
            for logger, rows in zip(files, checkpoint.get("metrics_rows", [])):
                logger.cut(rows)


def _write_row_of_this_step(trainer: Trainer) -> None:
    """Lightning logs a step's row after this hook; a run killed between the save and the row would lack it for ever.

    Only loggers that drop the repeated row (RunCSVLogger) get it early.
    """
    connector = trainer._logger_connector
    if connector.should_update_logs:
        row = {name: float(value) for name, value in connector.metrics["log"].items()}
        row.setdefault("epoch", trainer.current_epoch)
        for logger in trainer.loggers:
            if row and hasattr(logger, "rows"):
                logger.log_metrics(row, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
