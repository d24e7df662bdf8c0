"""SHA-256 of files and weights, and seeds from text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # checkpoint_digest.py imports this file and nothing heavy
    from torch import Tensor


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 (hex) of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def state_dict_sha256(state: Mapping[str, Tensor], scalars_as_text: bool = False) -> str:
    """Return the sha256 (hex) of the names, shapes, types and values of tensors, in the order of the names.

    Args:
        state: tensors by name.
        scalars_as_text: hash the digits of a tensor without dimensions (a batch norm's counter) instead of its bytes,
            as adapter files do for the weights that they belong to.
    """
    import torch

    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        if scalars_as_text and not value.dim():
            digest.update(str(value.item()).encode())
        else:
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def seed_from_text(text: str) -> int:
    """Return a seed in [0, 2**64) from a text by blake2b (Python's own `hash()` differs from process to process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Digest:
    """The sha256 (hex) of a file, its size in bytes and its optimizer step; -1 where a number is not known."""

    sha256: str
    size: int = -1
    step: int = -1

    @classmethod
    def of(cls, path: str | os.PathLike[str], step: int = -1) -> Digest:
        """Return the digest of a file on the disk."""
        return cls(sha256_of_file(path), os.path.getsize(path), step)
