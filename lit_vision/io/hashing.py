"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass


def sha256_of_file(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Digest:
    """The sha256 (hex) of a file, its size in bytes and the optimiser step that it is from (-1: not known)."""

    sha256: str
    size: int = -1
    step: int = -1

    @classmethod
    def of(cls, path: str | os.PathLike, step: int = -1) -> Digest:
        """That of the file as it lies there."""
        return cls(sha256_of_file(path), os.path.getsize(path), step)
