"""Summary of a run's folder in plain values: digests and norms of tensors, callback and data state, metrics.csv.

Reads the files without lit_vision, so that the code of before the move (make_files.py) and the code of today
(resume_runs.py) are measured in the same way.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# One thread, and the instructions that every x86-64 processor has, so that another processor gives the same bits.
PORTABLE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENCV_IPP": "disabled",
}
PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "numpy",
    "opencv-python-headless",
    "albumentations",
    "torchmetrics",
)
DATA_STATES = ("ImageFolderDataModule", "AnnotatedDataModule", "PairsDataModule")


def versions() -> dict[str, str]:
    """The packages and the processor that a sum's last bit may depend on."""
    found = {"machine": platform.machine(), "processor": processor()}
    return found | {name: version(name) for name in PACKAGES}


def processor() -> str:
    """The processor's name as Linux tells it; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, tensor or plain value) of each leaf of nested dicts and lists, in order."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors_in(value[key], f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from tensors_in(inner, f"{path}/{number}")
    else:
        yield path, value


def digest(value: Any) -> str:
    """SHA-256 over the paths, types, shapes and bytes of all leaves."""
    sha256 = hashlib.sha256()
    for path, leaf in tensors_in(value):
        sha256.update(path.encode())
        if hasattr(leaf, "numpy"):
            sha256.update(
                f"{leaf.dtype} {tuple(leaf.shape)}".encode() + leaf.detach().cpu().contiguous().numpy().tobytes()
            )
        else:
            sha256.update(repr(leaf).encode())
    return sha256.hexdigest()


def norms(value: Any) -> dict[str, float]:
    """Euclidean norm of each tensor, for comparisons that allow for another processor."""
    return {path: float(leaf.double().norm()) for path, leaf in tensors_in(value) if hasattr(leaf, "numpy")}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as torch reads it; of a sharded one (a folder) each process's tensors stand beside the rest."""
    import torch
    from safetensors.torch import load_file

    if path.is_file():
        return torch.load(path, map_location="cpu", weights_only=True)
    rest = torch.load(path / "rest.ckpt", map_location="cpu", weights_only=True)
    return rest | {"state_dict": {file.name: load_file(file) for file in sorted(path.glob("rank-*.safetensors"))}}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, empty cells left out."""
    with open(path, newline="") as file:
        return [{name: text for name, text in row.items() if text} for row in csv.DictReader(file)]


def plain(value: Any) -> Any:
    """Through JSON and back, so that a stored summary equals a fresh one; infinities become text."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def summarize_run(folder: Path) -> dict[str, Any]:
    """Summary of a finished run's files, without times, versions and places."""
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    weights = {name: checkpoint[name] for name in ("state_dict", "training_weights") if name in checkpoint}
    result = json.loads((folder / "results.json").read_text())
    kept = ("metric", "metrics", "best", "samples", "images_seen", "data_fingerprint", "epochs", "steps")
    return plain(
        {
            "weights": digest(weights),
            "norms": norms(weights),
            "optimizer": digest(checkpoint["optimizer_states"]),
            "scheduler": digest(checkpoint["lr_schedulers"]),
            "loops": digest(checkpoint["loops"]),
            "step": checkpoint["global_step"],
            "callbacks": checkpoint["callbacks"],
            "data": {name: checkpoint[name] for name in DATA_STATES if name in checkpoint},
            "rows": read_rows(folder / "metrics.csv"),
            "result": {name: result.get(name) for name in kept},
            "pictures": sorted(path.name for path in folder.glob("samples/*")),
        }
    )
