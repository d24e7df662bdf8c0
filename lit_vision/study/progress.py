"""What a person sees while a study runs: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from lit_vision.io.text import format_duration


class Reporter:
    """One bar for the whole study (seconds done of seconds planned) and one for the training at hand.

    Args:
        every: seconds between two lines of a long training where there is no terminal.
    """

    def __init__(self, every: float = 20.0):
        self.out, self.every, self.began = sys.stdout, every, time.perf_counter()
        self._bar = self._task = None
        self._said = 0.0

    def __enter__(self) -> Reporter:
        if self.out.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
            times = TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
            self._bar = Progress(
                *columns, *times, console=Console(file=self.out), redirect_stdout=False, transient=True
            )
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the reporter was made."""
        return time.perf_counter() - self.began

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._bar:
            self._bar.console.print(f"[dim]{format_duration(self.elapsed):>7}[/]  {text}", highlight=False)
        else:
            print(f"{format_duration(self.elapsed):>7}  {text}", file=self.out, flush=True)

    def begin(self, text: str, images_per_step: int = 0) -> None:
        """A training starts."""
        self._text, self._images, self._first, self._said = (
            text,
            images_per_step,
            time.perf_counter(),
            time.perf_counter(),
        )
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(text, total=1.0, note="")

    def tick(self, step: int, steps: int, loss: float) -> None:
        """A step is done."""
        now = time.perf_counter()
        rate = step / max(now - self._first, 1e-9)
        note = f"loss {loss:.3f}, {rate * self._images:,.0f} images/s"
        if self._bar:
            self._bar.update(self._task, completed=step / steps, note=note)
        elif now - self._said > self.every:
            self._said = now
            self.say(f"  {self._text}: {step / steps:.0%}, {note}, {format_duration((steps - step) / rate)} left")
