"""Startup of whole processes, the candidates taking turns: wall time of --help, CPU time of commands on one image."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._processes import run_python, save_classifier, write_jpegs
from benchmarks._rows import make_row

COMMANDS = {
    "lit-vision --help": ["-m", "lit_vision", "--help"],
    "lit-vision fit --help": ["-m", "lit_vision", "fit", "--help"],
    "lit-vision fit --help_all": ["-m", "lit_vision", "fit", "--help_all"],
    "import lightning, timm": ["-c", "import lightning, timm"],
}

IMPORTS = "import torch, timm"
BACKBONE, SIZE = "resnet18", 224  # of the model that the commands run on one image


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
    """Measure commands on one image, then --help."""
    return one_image_rows(repeats) + help_rows(repeats)


def one_image_commands(folder: Path) -> dict[str, list[str]]:
    """Make an image and a model in a folder; return {name: arguments of Python}, OUT standing for a new path."""
    write_jpegs(folder / "images", 1)
    model = str(save_classifier(folder / "model.ckpt", BACKBONE, SIZE))
    image = str(folder / "images" / "00000.jpg")
    run = ["-m", "lit_vision"]
    return {
        IMPORTS: ["-c", IMPORTS],
        "lit-vision predict": [*run, "predict", "--device", "cpu", "--model", model, image, "--out", "OUT.csv"],
        "lit-vision embed": [*run, "embed", "--device", "cpu", "--model", model, image, "--out", "OUT.safetensors"],
        "lit-vision export": [*run, "export", model, "--format", "safetensors", "--out", "OUT.safetensors"],
        "lit-vision doctor": [*run, "doctor", str(folder / "images"), "--out", "OUT"],
    }


def one_image_rows(repeats: int) -> list[dict[str, Any]]:
    """Measure user and system seconds on one image, after one unmeasured round; ratios are taken within a turn."""
    with tempfile.TemporaryDirectory() as place:
        commands = one_image_commands(Path(place))
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(repeats + 1):
            for number, (name, arguments) in enumerate(commands.items()):
                out = f"{place}/out-{turn}-{number}"
                used = run_python([argument.replace("OUT", out) for argument in arguments])
                if turn:
                    times[name].append(used.cpu)
    rows = [make_row(f"{name}, one image: CPU", statistics.median(taken), "s") for name, taken in times.items()]
    for name, taken in times.items():
        if name != IMPORTS:
            ratio = statistics.median(one / other for one, other in zip(taken, times[IMPORTS]))
            rows.append(make_row(f"{name}, one image: CPU", ratio, "x", IMPORTS, "at most 1.15 x", ratio <= 1.15))
    return rows


def help_rows(repeats: int) -> list[dict[str, Any]]:
    """Measure the median of each command's --help after one unmeasured round that fills the file cache."""
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
