"""Result of one part of the GPU check, written to its JSON file after each measurement."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._rows import make_row

from lit_vision.io.atomic import write_json


class Report:
    """The results of one part so far.

    Args:
        part: its name.
        path: its JSON file.
        work: folder for data and runs, the same for all parts.
        device: "cuda" or "cpu"; on "cpu" everything has toy sizes.
        seconds: time limit of the part.
        environment: device, versions and commit, see `collect_environment`.
    """

    def __init__(
        self, part: str, path: Path, work: Path, device: str, seconds: float, environment: dict[str, Any]
    ) -> None:
        self.part, self.path, self.work, self.device, self.seconds = part, path, work, device, seconds
        self.environment = environment
        self._end = time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []
        self.failures: list[dict[str, str]] = []
        self.facts: dict[str, Any] = {}
        self.write()

    @property
    def on_gpu(self) -> bool:
        """True on a GPU, where sizes are those of real use."""
        return self.device == "cuda"

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit; the imports before are not counted."""
        return self._end - time.monotonic()

    def add(self, what: str, value: float, unit: str, against: str = "-") -> None:
        """Add a number, and write the file; a number that is not finite is a failure."""
        if math.isfinite(value):
            self.rows.append(make_row(what, value, unit, against))
        else:
            self.failures.append({"what": what, "error": f"the value is {value}"})
        self.write()

    def leave_out(self, what: str, reason: str) -> None:
        """Record that something was not measured, which is no failure."""
        self.left_out.append({"what": what, "reason": reason})
        self.write()

    def fail(self, what: str, error: str) -> None:
        """Record that something failed."""
        self.failures.append({"what": what, "error": error})
        self.write()

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Record an exception inside the block as a failure and go on after it."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.fail(what, f"{type(error).__name__}: {str(error)[:1000]}")

    def write(self) -> None:
        """Write the file with the status "running"; whoever started the part replaces it at the end."""
        content = {"part": self.part, "status": "running", "environment": self.environment, "rows": self.rows}
        content |= {"left_out": self.left_out, "failures": self.failures, "facts": self.facts}
        write_json(self.path, content)
