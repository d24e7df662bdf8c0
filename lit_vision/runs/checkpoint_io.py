"""How a checkpoint file is written and read: whole or not at all, its sha256 beside it, and nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from lit_vision.errors import UserError
from lit_vision.io import checkpoint_digest
from lit_vision.io.atomic import disk_full_error, rename_into_place, write_temp_and_hash
from lit_vision.io.checkpoint_digest import digest_path, is_valid
from lit_vision.io.hashing import Digest
from lit_vision.io.safe_load import DamagedCheckpointError, load_safely

__all__ = ["AtomicCheckpointIO", "DamagedCheckpointError", "digest_path", "is_valid"]


def _write_digests(path: Path, found: list[Digest]) -> None:
    temporary, _ = write_temp_and_hash(
        digest_path(path), lambda file: file.write(checkpoint_digest.format_digests(path, found).encode())
    )
    rename_into_place(temporary, digest_path(path))


def _replace(temporary: Path, path: Path, found: list[Digest]) -> None:
    """The file `temporary`, whose digest is among `found`, takes the place of `path`; at each instant the sidecar fits."""
    aside = path.with_name(path.name + ".old")
    if path.is_dir():  # a sharded checkpoint of an earlier part of the run: no rename puts a file over a folder
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    _write_digests(path, [*found, *checkpoint_digest.read_digests(path)])
    rename_into_place(temporary, path)
    temporary.unlink(missing_ok=True)  # rename does nothing where both are one file already
    _write_digests(path, found)
    shutil.rmtree(aside, ignore_errors=True)


def _link_or_copy(source: Path, target: Path, found: list[Digest]) -> None:
    """The checkpoint `source` under a second name: a hard link, which costs no room; a copy where the file system has none."""
    link = target.with_name(target.name + ".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(source, link)
    except OSError:
        shutil.copyfile(source, link)
        with open(link, "rb+") as file:
            os.fsync(file.fileno())
    _replace(link, target, found)


def _move_sharded(source: Path, target: Path) -> None:
    """A sharded checkpoint gets another name, whatever had it."""
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    digest_path(target).unlink(missing_ok=True)
    rename_into_place(source, target)


class AtomicCheckpointIO(CheckpointIO):
    """Trainer(plugins=[AtomicCheckpointIO()]): a checkpoint is either the old one or the new one, never half of each.

    Beside NAME.ckpt lies NAME.ckpt.sha256 (see checkpoint_digest.py).
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()  # what this process wrote itself

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: dict[str, Any] | None = None
    ) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: what torch.save takes; tensors, numbers, strings and containers of them, else it cannot be loaded again.
            path: the file; its folder is made.
            storage_options: {"previous": NAME}: the file that was at path stays under this name in the same folder, unless it is
                damaged; {"also": [NAME, ...]}: the new one gets these names too.

        Raises:
            UserError: the disk is full or the folder cannot be written; the file that was at path before is intact.
        """
        path, options = Path(path), storage_options or {}
        with disk_full_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary, written = write_temp_and_hash(path, lambda file: torch.save(checkpoint, file))
            found = [Digest(written.sha256, written.size, int(checkpoint.get("global_step", -1)))]
            try:
                for name in options.get("also", ()):
                    _link_or_copy(temporary, path.with_name(name), found)
                # a damaged file (this run has gone on from an older one) must not push out the one that is whole
                if (previous := options.get("previous")) and (path in self._written or is_valid(path)):
                    if path.is_dir():
                        _move_sharded(path, path.with_name(previous))
                    else:
                        _link_or_copy(path, path.with_name(previous), checkpoint_digest.read_digests(path))
                _replace(temporary, path, found)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            self._written.add(path)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint; nothing in it is executed, whatever `weights_only` says.

        Args:
            path: a checkpoint file, or the folder of a sharded one; its digests are checked where there are any.
            map_location: as in torch.load; the CPU if None.
            weights_only: not used: always True.

        Raises:
            UserError: there is no such file.
            DamagedCheckpointError: the file is torn or a bit has changed, or it holds more than tensors and plain values.
        """
        path = Path(path)
        if path.is_dir():
            from lit_vision.runs.fsdp import load_consolidated

            return load_consolidated(path)
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint; a run's checkpoints are in RUN/checkpoints")
        if digest_path(path).is_file() and (wrong := checkpoint_digest.integrity_error(path)):
            raise DamagedCheckpointError(f"{path} {wrong}; use another checkpoint")
        return load_safely(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Removes the file and its sidecar, if they are there."""
        path = Path(path)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        digest_path(path).unlink(missing_ok=True)
        self._written.discard(path)
