"""Progress bar, log lines and RUN/timings.csv."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lit_vision.io.text import format_duration
from lit_vision.runs.loggers import CsvFile


class Throughput:
    """Images per second, share of the time spent waiting for data, and seconds per batch, measured since `reset`.

    Validation and the writing of checkpoints count neither as waiting nor as training.

    Args:
        now: returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.reset()

    def reset(self) -> None:
        """Set all counts to 0."""
        self.images = self.batches = 0
        self.waited = self.worked = 0.0
        self._mark = self.now()

    def skip(self) -> None:
        """Leave out the time since the last call."""
        self._mark = self.now()

    def batch_came(self, written: float = 0.0) -> None:
        """Count the time since the last call, less `written` seconds spent on a checkpoint, as waiting for a batch."""
        now = self.now()
        self.waited += max(0.0, now - self._mark - written)
        self._mark = now

    def batch_done(self, images: int) -> None:
        """Count the time since the last call as training on a batch of `images` images."""
        now = self.now()
        self.worked += now - self._mark
        self.images += images
        self.batches += 1
        self._mark = now

    @property
    def seconds(self) -> float:
        """Return the seconds counted so far."""
        return self.waited + self.worked

    @property
    def images_per_second(self) -> float:
        """Return the images per second of all processes together."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting(self) -> float:
        """Return the share of the time spent waiting for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0


class Progress(ProgressBar):
    """Report images/s, share of time waiting for data, loss, learning rate and time left.

    On a terminal it is a rich bar; elsewhere a line after about 5, 10, 20, 40 and then every `every` seconds, and one
    at the end of each epoch with the validation metrics. Every report is also a row of RUN/timings.csv. The learning
    rate is logged as train/lr.

    Args:
        every: seconds between two plain lines, greater than 0.
        terminal: True forces a bar, False forces lines; None: a bar if the output goes to a terminal.
    """

    def __init__(self, every: float = 60.0, terminal: bool | None = None) -> None:
        super().__init__()
        self.every, self.terminal = every, terminal
        self._throughput, self._wait = Throughput(), 5.0
        self._written = self._last_line = 0.0
        self._bar: Any = None
        self._task: Any = None
        self._on = True
        self._timings: CsvFile | None = None
        self._seconds_per_batch: float | None = None

    def disable(self) -> None:
        self._on = False

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._timings = CsvFile(Path(trainer.default_root_dir) / "timings.csv") if trainer.is_global_zero else None
        self._throughput.reset()
        self._written, self._last_line = self._seconds_writing(trainer), time.perf_counter()
        self._start_bar(trainer, "epoch", self._total(trainer), trainer.fit_loop.total_batch_idx + 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        written = self._seconds_writing(trainer)
        self._throughput.batch_came(written - self._written)
        self._written = written
        if trainer.optimizers:
            lr = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
            pl_module.log("train/lr", lr, on_step=True, on_epoch=False, batch_size=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._throughput.batch_done(_images_in(batch) * trainer.world_size)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, text=self._text(trainer))
        if time.perf_counter() - self._last_line >= self._wait:
            self._wait = min(self.every, self._wait * 2)
            self._report(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._throughput.batches:
            self._report(trainer)
        measured = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        if measured:
            text = "  ".join(f"{name} {value:.4g}" for name, value in measured.items())
            self._print(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}")

    def _report(self, trainer: Trainer) -> None:
        throughput, self._last_line = self._throughput, time.perf_counter()
        self._seconds_per_batch = throughput.seconds / throughput.batches
        if self._bar is None:
            self._print(trainer, self._text(trainer))
        if self._timings is not None:
            row = {
                "step": trainer.global_step,
                "epoch": trainer.current_epoch,
                "images": throughput.images,
                "seconds": throughput.seconds,
            }
            self._timings.append(
                row | {"images_per_second": throughput.images_per_second, "waiting_for_data": throughput.waiting}
            )
        throughput.reset()

    def _text(self, trainer: Trainer) -> str:
        throughput, loop = self._throughput, trainer.fit_loop
        total, done = self._total(trainer), loop.total_batch_idx + 1
        per_batch = (
            throughput.seconds / throughput.batches
            if throughput.batches >= 5 or not self._seconds_per_batch
            else self._seconds_per_batch
        )
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", f"step {trainer.global_step}"]
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            parts.append(f"loss {float(loss):.4f}")
        lr = trainer.callback_metrics.get("train/lr")
        if lr is not None:
            parts.append(f"lr {float(lr):.2e}")
        parts += [f"{throughput.images_per_second:.0f} images/s", f"{throughput.waiting:.0%} waiting for data"]
        if total:
            parts.append(f"{format_duration(max(0, total - done) * per_batch)} left")
        return "  ".join(parts)

    @staticmethod
    def _total(trainer: Trainer) -> int | None:
        per_epoch, epochs = trainer.num_training_batches, trainer.max_epochs
        return int(per_epoch * epochs) if epochs and epochs > 0 and per_epoch != float("inf") else None

    @staticmethod
    def _seconds_writing(trainer: Trainer) -> float:
        return sum(getattr(callback, "seconds", 0.0) for callback in trainer.checkpoint_callbacks)

    # ---- validation inside training, validate and test

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._start_bar(trainer, "validate", _total_batches(trainer.num_val_batches), 0)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn != "fit" and self._bar is not None:
            self._bar.update(self._task, advance=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._throughput.skip()
        if trainer.state.fn != "fit":
            self._stop_bar()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_bar(trainer, "test", _total_batches(trainer.num_test_batches), 0)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_bar()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_bar()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_bar()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop_bar()

    # ---- output

    def _start_bar(self, trainer: Trainer, text: str, total: int | None, done: int) -> None:
        terminal = sys.stdout.isatty() if self.terminal is None else self.terminal
        if not (terminal and self._on and trainer.is_global_zero):
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self._task = self._bar.add_task("", total=total, completed=done, text=text)
        self._bar.start()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, trainer: Trainer, text: str) -> None:
        if not (self._on and trainer.is_global_zero):
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a text; `LightningModule.print` calls this."""
        print(*args, **kwargs)


def _images_in(batch: Any) -> int:
    images = batch.get("images") if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
    return len(images) if images is not None else 0


def _total_batches(batches: Any) -> int | None:
    total = sum(batches) if isinstance(batches, list) else batches
    return None if total == float("inf") else int(total)
