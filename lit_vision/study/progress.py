"""Progress of a study: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from lit_vision.io.text import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Reporter:
    """Prints lines with the time since the start, and shows a bar for the current training.

    Args:
        interval: seconds between two lines of a long training if the output is not a terminal.
    """

    def __init__(self, interval: float = 20.0):
        self.out, self.interval, self.started = sys.stdout, interval, time.perf_counter()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title, self._images_per_step = "", 0
        self._task_started = self._last_line = 0.0

    def __enter__(self) -> Reporter:
        if self.out.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
            times = TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
            console = Console(file=self.out)
            self._bar = Progress(*columns, *times, console=console, redirect_stdout=False, transient=True)
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the reporter was created."""
        return time.perf_counter() - self.started

    def log(self, text: str) -> None:
        """Print a line with the time since the start; it stays above the bar."""
        time_text = f"{format_duration(self.elapsed):>7}"
        if self._bar:
            self._bar.console.print(f"[dim]{time_text}[/]  {text}", highlight=False)
        else:
            print(f"{time_text}  {text}", file=self.out, flush=True)

    def start_task(self, title: str, images_per_step: int = 0) -> None:
        """Start the bar of a training."""
        self._title, self._images_per_step = title, images_per_step
        self._task_started = self._last_line = time.perf_counter()
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=1.0, note="")

    def update(self, step: int, steps: int, loss: float | None = None) -> None:
        """Show that `step` of `steps` steps are done, and the loss of the last one, if it is a training."""
        now = time.perf_counter()
        rate = step / max(now - self._task_started, 1e-9)
        parts = [] if loss is None else [f"loss {loss:.3f}"]
        if self._images_per_step:
            parts.append(f"{rate * self._images_per_step:,.0f} images/s")
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step / steps, note=", ".join(parts))
        elif now - self._last_line > self.interval:
            self._last_line = now
            remaining = format_duration((steps - step) / rate)
            self.log(f"  {self._title}: {', '.join([f'{step / steps:.0%}', *parts, f'{remaining} left'])}")
