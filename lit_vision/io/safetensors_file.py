"""Writing safetensors files of which equal contents have equal bytes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as safetensors; the same ones give the same bytes, and so the same sha256.

    The package writes the metadata in an order that differs from call to call; here it is sorted by key.

    Args:
        tensors: contiguous, on the CPU.
        path: the file.
        metadata: of the file.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata=dict(metadata))
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # always so: both escape the same characters; spaces at the end belong to the format
            file.seek(8)
            file.write(text.ljust(length))
