"""Processes of the benchmarks: what a command costs, and a model and JPEGs to run it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A small process starts the command and waits for it: Linux counts the memory of the process that starts another one
# as that one's peak, and this one has torch loaded.
_WAIT = """
import json, os, subprocess, sys, time
start = time.perf_counter()
_, status, used = os.wait4(subprocess.Popen(sys.argv[1:], stdout=sys.stderr).pid, 0)
unit = 1 if sys.platform == "darwin" else 1024
costs = {"user": used.ru_utime, "system": used.ru_stime, "wall": time.perf_counter() - start, "code": status}
print(json.dumps({**costs, "faults": used.ru_minflt, "peak": used.ru_maxrss * unit / 1e6}))
"""


@dataclass(frozen=True)
class Usage:
    """Costs of one process and of the children that it waited for.

    Attributes:
        user, system: CPU seconds.
        wall: seconds from start to end.
        faults: minor page faults.
        peak: resident memory in MB (10^6 bytes), of the largest process.
    """

    user: float
    system: float
    wall: float
    faults: int
    peak: float

    @property
    def cpu(self) -> float:
        """User and system seconds; unlike wall time they hardly grow when other processes use the cores too."""
        return self.user + self.system


def run_python(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run one Python process and return its costs.

    Args:
        arguments: of the Python interpreter.
        environment: added to that of this process.

    Raises:
        RuntimeError: it failed; a crash must not count as a fast run.
    """
    command = [sys.executable, "-S", "-c", _WAIT, sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    used = json.loads(done.stdout)
    if used.pop("code") != 0:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"python {' '.join(arguments)}: failed: {last_line}")
    return Usage(**used)


def save_classifier(path: Path, backbone: str, size: int) -> Path:
    """Write the checkpoint of a classifier with 10 classes and random weights; costs do not depend on the weights."""
    import torch

    from lit_vision.methods import Classifier

    torch.manual_seed(0)
    method = Classifier(backbone, 10, mean=[0.5] * 3, std=[0.25] * 3)
    method.metadata = {"task": "classification", "size": size, "class_names": [f"class{i}" for i in range(10)]}
    checkpoint = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def write_jpegs(folder: Path, count: int, width: int = 500, height: int = 375) -> None:
    """Write `count` JPEGs of smooth colors with noise, of about 70 kB: decoding costs what it does for photographs."""
    import cv2

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        colors = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(smooth.astype(int) + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:05}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
