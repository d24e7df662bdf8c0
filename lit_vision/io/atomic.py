"""Atomic writes: a file or folder is renamed into place only after it is complete.

`atomic_write` is the way to write a file that is read again. Checkpoints use `write_temp_and_hash` and
`rename_into_place` instead, because the digest next to a checkpoint has to match it at every instant.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lit_vision.errors import UserError
from lit_vision.io.hashing import Digest


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], fsync: bool = True) -> Iterator[Path]:
    """Yield a temporary path of the same file name; what is there at the end of the block replaces `path`.

    Temporary files live in a hidden folder next to `path`, unique to this call, because a rename is atomic only inside
    one file system and because writers such as OpenVINO's need the suffix. Other files written into that folder (the
    .bin of an .xml) move along, before `path` itself. If the block raises, `path` stays as it was and the temporary
    folder is removed.

    Args:
        path: file or folder; its parent is created. An existing one is replaced, but a folder only by a folder.
        fsync: write the content to the disk before the rename, so that a power failure leaves the old or the new file.
            False is for files that lose nothing of value and are rewritten often.

    Raises:
        OSError: the folder cannot be written, the disk is full, or a folder is where a file should go.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=_temp_prefix(path), suffix=".tmp"))
    try:
        yield folder / path.name
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(_default_mode())  # safetensors writes 0600, which hides a model from one's group
                if fsync:
                    _fsync(file)
        companions = sorted(file for file in folder.iterdir() if file.name != path.name)
        for new in (*companions, folder / path.name):
            old = path.with_name(new.name)
            if old.is_dir() and not old.is_symlink():  # a rename cannot replace a folder that is not empty
                if not new.is_dir():  # a name typed by mistake must not remove a folder and all that is in it
                    raise IsADirectoryError(errno.EISDIR, "a folder of this name is there", str(old))
                shutil.rmtree(old)
            elif new.is_dir():
                old.unlink(missing_ok=True)
            os.replace(new, old)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object], fsync: bool = True) -> None:
    """Write a file or folder so that `path` holds the old content or the new one, never a part of it.

    Args:
        path: file or folder; its parent is created. An existing one is replaced, but a folder only by a folder.
        write: called with the temporary path to write to, which has the file name of `path` (see `atomic_path`).
        fsync: write the content to the disk before the rename.

    Raises:
        UserError: the folder cannot be written, the disk is full, or a folder is where a file should go; `path` is as
            it was.
    """
    try:
        with atomic_path(path, fsync) as temporary:
            write(temporary)
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written ({reason}); make room or choose another place") from error


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON, atomically, and return the path.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        UserError: the file cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write_text(text, encoding="utf-8"))
    return Path(path)


def is_temporary(name: str, of: str | os.PathLike[str]) -> bool:
    """True if `name` is a file or folder that a killed `atomic_write` of the file `of` left next to it."""
    return name.startswith(_temp_prefix(Path(of))) and name.endswith(".tmp")


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Remove what killed writes of `path` left next to it. Only for a file with one writer at a time."""
    for entry in Path(path).parent.iterdir():
        if is_temporary(entry.name, path):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _temp_prefix(path: Path) -> str:
    return f".{path.name[:60]}."  # 60 characters of four bytes leave room below the limit of 255 bytes for a name


@functools.cache
def _default_mode() -> int:
    """Return the mode of a file that `open` makes: 0666 less the umask, which can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_failure(error: Exception) -> str | None:
    """Return the system's reason for a failed write; None if the error is of another kind.

    The writers of safetensors and torch report a full disk as errors of their own: "I/O error: No space left on device
    (os error 28)", and a RuntimeError of inline_container.cc without the reason.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":
        found = re.search(r"I/O error: (.+?) \(os error \d+\)", str(error))
        return found[1] if found else None
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return "the disk is full, or the file too large"
    return None


class _HashedFile:
    """Binary file that computes the sha256 of what torch.save writes, front to back, and keeps its OSError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch's zip writer makes a RuntimeError of it that lacks the reason
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_temp_and_hash(path: Path, write: Callable[[_HashedFile], object]) -> tuple[Path, Digest]:
    """Write the temporary file NAME.tmp next to `path`, down to the disk; return it and its digest.

    The name is fixed, so that any number of kills leaves one such file.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # a kill may have left a hard link to best.ckpt: never write into it
    try:
        with open(temporary, "wb") as file:
            hashed = _HashedFile(file)
            try:
                write(hashed)
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
    """Rename `temporary` to `path`, and write the change of the folder to the disk."""
    os.replace(temporary, path)
    _fsync(path.parent)


@contextlib.contextmanager
def disk_full_error(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a UserError that says that the previous checkpoint is intact."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}); the previous checkpoint is intact: "
            "make room, then go on with --resume auto"
        ) from error
