"""Read sharded checkpoints: folders of safetensors with each process's part of the tensors (see runs/fsdp.py).

Imports no Lightning, so that prediction and export read such folders too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lit_vision.io import checkpoint_digest
from lit_vision.io.safe_load import DamagedCheckpointError, load_safely

REST = "rest.ckpt"


def is_tensor_ref(value: Any) -> bool:
    """True for a leaf that stands for a tensor in the files of the processes."""
    return isinstance(value, dict) and value.keys() == {"tensor"}


def map_leaves(value: Any, change: Any, path: str = "") -> Any:
    """Return a copy of nested dicts and lists with `change` applied to every leaf and tensor reference."""
    if isinstance(value, dict) and not is_tensor_ref(value):
        return {key: map_leaves(inner, change, f"{path}/{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [map_leaves(inner, change, f"{path}/{i}") for i, inner in enumerate(value)]
    return change(value)


class ShardReader:
    """Reader of the tensors of a sharded checkpoint; only the requested rows are read.

    Args:
        folder: the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / checkpoint_digest.MANIFEST).read_text())
        self.shapes = manifest["shapes"]
        names = sorted(name for name in manifest["files"] if name.startswith("rank-"))
        self.files: list[Any] = [safe_open(folder / name, "pt") for name in names]

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Return rows `start` to `end` of a tensor from the files that hold them."""
        found, at = [], 0
        for file in self.files:
            part = file.get_slice(name)
            size = part.get_shape()[0]
            first, last = max(start, at), min(end, at + size)
            if first < last:
                found.append(part[first - at : last - at])
            at += size
        if not found:
            empty: Tensor = self.files[0].get_slice(name)[0:0]
            return empty
        return found[0] if len(found) == 1 else torch.cat(found)

    def full(self, name: str) -> Tensor:
        """Return a tensor with all its rows."""
        return self.rows(name, 0, self.shapes[name][0])


def load_consolidated(folder: Path) -> dict[str, Any]:
    """Return a sharded checkpoint as a plain one on the CPU, for one process, other strategies and other commands.

    Raises:
        DamagedCheckpointError: a file differs from what was written.
    """
    if wrong := checkpoint_digest.integrity_error(folder):
        raise DamagedCheckpointError(f"{folder} {wrong}; use another checkpoint")
    parts = ShardReader(folder)
    checkpoint: dict[str, Any] = map_leaves(
        load_safely(folder / REST), lambda v: parts.full(v["tensor"]) if is_tensor_ref(v) else v
    )
    checkpoint["optimizer_states"] = [_params_by_index(state) for state in checkpoint.get("optimizer_states", [])]
    return checkpoint


def _params_by_index(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with the parameters' numbers, as torch stores it, instead of their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: s for name, s in state["state"].items()}, "param_groups": groups}
