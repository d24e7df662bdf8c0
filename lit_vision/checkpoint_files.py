"""How a checkpoint file is written and read: whole or not at all, its sha256 beside it, and nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from lit_vision.errors import UserError
from lit_vision.evaluation.results import sha256_of_file


class DamagedCheckpoint(UserError):
    """The bytes of a checkpoint are not those that were written."""


def sidecar(path: str | os.PathLike) -> Path:
    """The file that holds the sha256 of the checkpoint `path`: its name with .sha256 added."""
    return Path(f"{os.fspath(path)}.sha256")


class _HashedFile:
    """A binary file that computes the sha256 of what passes through (torch.save writes front to back) and keeps its OSError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.error = file, hashlib.sha256(), None

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch's zip writer makes a RuntimeError of it, which does not say what was wrong
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write_beside(path: Path, fill: Callable[[_HashedFile], None]) -> tuple[Path, str]:
    """Writes a temporary file next to path, down to the disk; returns it and its sha256.

    Beside the target, for a rename is atomic only inside one file system; one fixed name, so that kills leave one file at most.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            hashed = _HashedFile(file)
            try:
                fill(hashed)
            except RuntimeError as error:
                raise (hashed.error or error) from error
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary, hashed.sha256.hexdigest()


def _put_in_place(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_digests(path: Path, digests: list[str]) -> None:
    text = "".join(f"{digest}  {path.name}\n" for digest in digests)  # the format of sha256sum -c
    temporary, _ = _write_beside(sidecar(path), lambda file: file.write(text.encode()))
    _put_in_place(temporary, sidecar(path))


def _read_digests(path: Path) -> list[str]:
    return (
        [line.split()[0] for line in sidecar(path).read_text().splitlines() if line] if sidecar(path).is_file() else []
    )


def is_valid(path: str | os.PathLike) -> bool:
    """True if the file is there and its sha256 is among those in its sidecar (two, after a kill between two writes)."""
    path = Path(path)
    return path.is_file() and sha256_of_file(path) in _read_digests(path)


class AtomicIO(CheckpointIO):
    """Trainer(plugins=[AtomicIO()]): a checkpoint is either the old one or the new one, never half of each.

    Beside NAME.ckpt lies NAME.ckpt.sha256. It is written before the rename with the new digest in front of the old one, and after
    the rename with the new one alone, so that at each instant the digest of the file that is there is among those in the sidecar.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: what torch.save takes; tensors, numbers, strings and containers of them, else it cannot be loaded again.
            path: the file; its folder is made.
            storage_options: not used.

        Raises:
            UserError: the disk is full or the folder cannot be written; the file that was at path before is whole.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary, digest = _write_beside(path, lambda file: torch.save(checkpoint, file))
            _write_digests(path, [digest, *_read_digests(path)])
            _put_in_place(temporary, path)
            _write_digests(path, [digest])
        except OSError as error:
            raise UserError(
                f"{path}: could not be written ({error.strerror or error}); the checkpoint that was there before is whole: "
                "make room, then go on with --resume auto"
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint; nothing in it is executed, whatever `weights_only` says.

        Args:
            path: a checkpoint file; its sidecar is checked where there is one.
            map_location: as in torch.load; the CPU if None.
            weights_only: not used: always True.

        Raises:
            UserError: there is no such file.
            DamagedCheckpoint: the file is torn or a bit has changed, or it holds more than tensors and plain values.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint; a run's checkpoints are in RUN/checkpoints")
        if sidecar(path).is_file() and not is_valid(path):
            raise DamagedCheckpoint(
                f"{path}: its sha256 is not the one in {sidecar(path).name}: the file was changed or torn; use another checkpoint"
            )
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0][:150]
            raise DamagedCheckpoint(f"{path}: not a checkpoint that can be loaded safely ({reason})") from error

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Removes the file and its sidecar, if they are there."""
        Path(path).unlink(missing_ok=True)
        sidecar(path).unlink(missing_ok=True)
