"""Startup time: seconds until --help is printed, of whole processes by wall clock, the candidates taking turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks._rows import make_row

COMMANDS = {
    "lit-vision --help": ["-m", "lit_vision", "--help"],
    "lit-vision fit --help": ["-m", "lit_vision", "fit", "--help"],
    "lit-vision fit --help_all": ["-m", "lit_vision", "fit", "--help_all"],
    "import lightning, timm": ["-c", "import lightning, timm"],
}


def seconds(arguments: list[str]) -> float:
    """Return the wall-clock time of one Python process, start to end.

    Args:
        arguments: of the Python interpreter.

    Raises:
        RuntimeError: it failed; a crash must not count as a fast start.
    """
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    if process.returncode != 0:
        last_line = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"python {' '.join(arguments)}: exit code {process.returncode}: {last_line}")
    return elapsed


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure the median of each command after one unmeasured round that fills the file cache."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(repeats + 1):
        for name, arguments in COMMANDS.items():  # taking turns: a busy moment hits all of them
            elapsed = seconds(arguments)
            if turn:
                times[name].append(elapsed)
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    # each ratio within one turn, so that a slow phase of the machine cancels out
    imports = times["import lightning, timm"]
    ratios = {
        name: statistics.median(one / other for one, other in zip(times[name], imports))
        for name in ("lit-vision fit --help", "lit-vision fit --help_all")
    }
    rows = []
    for name, value in medians.items():
        target = ("-", "under 0.5 s", value < 0.5) if name == "lit-vision --help" else ()
        rows.append(make_row(name, value, "s", *target))
    # the short page is plain text; the full one builds LightningCLI's parser, which is what the ratio was set for
    for name, value in ratios.items():
        rows.append(make_row(name, value, "x", "import lightning, timm", "at most 1.15 x", value <= 1.15))
    return rows
