"""Write checkpoint files atomically with their sha256, and read them without executing anything in them."""

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
from lit_vision.io.safe_load import DamagedCheckpointError, load_safely, unreadable

__all__ = ["AtomicCheckpointIO", "DamagedCheckpointError", "digest_path", "is_valid"]


def _write_digests(path: Path, digests: list[Digest]) -> None:
    """Write the digest file of the checkpoint `path`."""
    temporary, _ = write_temp_and_hash(
        digest_path(path), lambda file: file.write(checkpoint_digest.format_digests(path, digests).encode())
    )
    rename_into_place(temporary, digest_path(path))


def _replace(temporary: Path, path: Path, digests: list[Digest]) -> None:
    """Replace `path` by `temporary`, which has `digests`; at each instant the digest file fits the current file."""
    aside = path.with_name(path.name + ".old")
    if path.is_dir():  # a sharded checkpoint of an earlier part of the run: a rename cannot replace a folder by a file
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    _write_digests(path, [*digests, *checkpoint_digest.read_digests(path)])
    rename_into_place(temporary, path)
    temporary.unlink(missing_ok=True)  # a rename does nothing where both names are the same file already
    _write_digests(path, digests)
    shutil.rmtree(aside, ignore_errors=True)


def _link_or_copy(source: Path, target: Path, digests: list[Digest]) -> None:
    """Give the checkpoint `source` a second name by a hard link, or by a copy on a file system without links."""
    link = target.with_name(target.name + ".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(source, link)
    except OSError:
        shutil.copyfile(source, link)
        with open(link, "rb+") as file:
            os.fsync(file.fileno())
    _replace(link, target, digests)


def _move_sharded(source: Path, target: Path) -> None:
    """Rename a sharded checkpoint, replacing the file or folder of that name."""
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    digest_path(target).unlink(missing_ok=True)
    rename_into_place(source, target)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin that writes checkpoints atomically: `Trainer(plugins=[AtomicCheckpointIO()])`.

    A checkpoint is at each instant either the old one or the new one, with its digest in NAME.ckpt.sha256 (see
    io/checkpoint_digest.py).
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()  # the files that this process wrote

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: dict[str, Any] | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: tensors, numbers, strings and containers of them; anything else cannot be loaded again.
            path: the file; its folder is created.
            storage_options: {"previous": NAME} keeps the replaced file under this name in the same folder, unless it is
                damaged; {"also": [NAME, ...]} gives the new file further names.

        Raises:
            UserError: the disk is full, the folder cannot be written, or the checkpoint holds what could not be loaded
                again (it is read back before it takes its name); the previous file is intact.
        """
        path, options = Path(path), storage_options or {}
        with disk_full_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary, written = write_temp_and_hash(path, lambda file: torch.save(checkpoint, file))
            if reason := unreadable(temporary):
                temporary.unlink(missing_ok=True)
                raise UserError(
                    f"{path}: not saved, as it could not be loaded again ({reason}); the file before is kept"
                )
            digests = [Digest(written.sha256, written.size, int(checkpoint.get("global_step", -1)))]
            try:
                for name in options.get("also", ()):
                    _link_or_copy(temporary, path.with_name(name), digests)
                # a damaged file (this run resumed from an older one) must not replace an undamaged one
                if (previous := options.get("previous")) and (path in self._written or is_valid(path)):
                    if path.is_dir():
                        _move_sharded(path, path.with_name(previous))
                    else:
                        _link_or_copy(path, path.with_name(previous), checkpoint_digest.read_digests(path))
                _replace(temporary, path, digests)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            self._written.add(path)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint; nothing in it is executed, whatever the value of `weights_only`.

        Args:
            path: a checkpoint file, or the folder of a sharded one; verified if it has a digest.
            map_location: as in torch.load; the CPU if None.
            weights_only: ignored: always True.

        Raises:
            UserError: there is no such file.
            DamagedCheckpointError: the file is truncated or altered, or holds more than tensors and plain values.
        """
        path = Path(path)
        if path.is_dir():
            from lit_vision.io.sharded_checkpoint import load_consolidated

            return load_consolidated(path)
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint; a run's checkpoints are in RUN/checkpoints")
        if digest_path(path).is_file() and (wrong := checkpoint_digest.integrity_error(path)):
            raise DamagedCheckpointError(f"{path} {wrong}; use another checkpoint")
        return load_safely(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove the file and its digest file, if they exist."""
        path = Path(path)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        digest_path(path).unlink(missing_ok=True)
        self._written.discard(path)
