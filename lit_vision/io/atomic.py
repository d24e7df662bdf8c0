"""A file or folder that appears under its name only when all of it is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lit_vision.errors import UserError
from lit_vision.io.hashing import Digest


def atomic_write(out: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `out`, then gives what it wrote the name `out`, replacing what was there.

    Raises:
        UserError: the place cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.tmp")
    try:
        write(beside)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(beside, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        beside.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Write JSON whole or not at all: a kill in the middle leaves the file that was there. NaN is refused."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from a group
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


class _HashedFile:
    """A binary file that computes the sha256 of what passes through (torch.save writes front to back) and keeps its OSError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size, self.error = file, hashlib.sha256(), 0, None

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch's zip writer makes a RuntimeError of it, which does not say what was wrong
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_temp_and_hash(path: Path, fill: Callable[[_HashedFile], None]) -> tuple[Path, Digest]:
    """Writes a temporary file next to path, down to the disk; returns it and its digest.

    Beside the target, for a rename is atomic only inside one file system; one fixed name, so that kills leave one file at most.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # a kill's leftover may be a second name of best.ckpt: never write into it
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
    return temporary, Digest(hashed.sha256.hexdigest(), hashed.size)


def rename_into_place(temporary: Path, path: Path) -> None:
    """Renames, and has the folder written to the disk."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def disk_full_error(path: Path) -> Iterator[None]:
    """A write that fails becomes one line that says what is left."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}); the checkpoint that was there before is whole: "
            "make room, then go on with --resume auto"
        ) from error
