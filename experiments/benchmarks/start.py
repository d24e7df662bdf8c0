"""How long a person waits for --help: whole processes, wall-clock time, the candidates taking turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

COMMANDS = {
    "lit-vision --help": ["-m", "lit_vision", "--help"],
    "lit-vision fit --help": ["-m", "lit_vision", "fit", "--help"],
    "import lightning, timm": ["-c", "import lightning, timm"],
}


def seconds(words: list[str]) -> float:
    """Wall-clock time of one Python process, start to end.

    Raises:
        RuntimeError: it failed; a crash must not count as a fast start.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    took = time.perf_counter() - start
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"python {' '.join(words)} ended with code {done.returncode}: {last}")
    return took


def measure(repeats: int) -> list[dict[str, Any]]:
    """Median of each command after one unmeasured round that fills the file cache."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(repeats + 1):
        for name, words in COMMANDS.items():  # taking turns: a busy moment hits all of them
            took = seconds(words)
            if turn:
                times[name].append(took)
    short, fit, imports = (statistics.median(times[name]) for name in COMMANDS)
    # each ratio within one turn, so that a slow phase of the machine cancels out
    ratio = statistics.median(f / i for f, i in zip(times["lit-vision fit --help"], times["import lightning, timm"]))
    return [
        {
            "what": "lit-vision --help",
            "value": short,
            "unit": "s",
            "against": "-",
            "target": "< 0.5 s",
            "met": short < 0.5,
        },
        {"what": "import lightning, timm", "value": imports, "unit": "s", "against": "-", "target": "-", "met": None},
        {"what": "lit-vision fit --help", "value": fit, "unit": "s", "against": "-", "target": "-", "met": None},
        {
            "what": "lit-vision fit --help",
            "value": ratio,
            "unit": "x",
            "against": "import lightning, timm",
            "target": "<= 1.15 x",
            "met": ratio <= 1.15,
        },
    ]
