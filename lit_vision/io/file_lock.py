"""Locks that processes hold on files; the kernel releases them when the last process that holds one ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lit_vision.errors import UserError


def try_lock(path: str | os.PathLike[str]) -> IO[str] | None:
    """Lock a file, which is created if it does not exist, or return None if another process holds it.

    Returns:
        The open file; closing it releases the lock, once no forked child has it open.

    Raises:
        UserError: the file system has no locks.
    """
    return _lock(path, wait=False)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a file during the block, after waiting for it.

    Raises:
        UserError: the file system has no locks.
    """
    file = _lock(path, wait=True)
    assert file is not None  # only without waiting
    with file:
        yield


def _lock(path: str | os.PathLike[str], wait: bool) -> IO[str] | None:
    import fcntl

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115  the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise UserError(
            f"{path}: the file system has no file locks ({error.strerror}); use a folder elsewhere"
        ) from None
    return file
