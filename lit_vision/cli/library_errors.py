"""Errors of Lightning, torch and timm that the user can mend, as one line that says what to do."""

from __future__ import annotations

import errno
import inspect
import re

from lit_vision.errors import UsageError, UserError

# what a message contains: the line that takes its place, where {0} is the first line of the message.
_FAILURES = {
    r"shared memory|shm\b|torch_\d+_\d+|Bus error|received 0 items of ancdata": (
        "the worker processes of the loader have too little shared memory (/dev/shm): set data.num_workers to 0, or "
        "give the container more (docker run --shm-size 8g)"
    ),
    r"DataLoader worker .*(Killed|exited unexpectedly)": (
        "a worker process of the loader was killed, most often because the memory was full: lower data.num_workers or "
        "data.batch_size"
    ),
    r"CUDA out of memory|CUDA error: out of memory": (
        "the memory of the GPU is full: lower the batch size (data.batch_size, or --batch_size), or use bf16-mixed"
    ),
    r"returned nan values in its": "trainer.detect_anomaly: {0} Lower base_lr, or clip gradients",
}
# a file that the system refuses to open or make; a missing file is not among them: commands check what they are given
_REFUSED_BY_THE_SYSTEM = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
}
_WRONG_SETTINGS = {
    r"Early stopping conditioned on metric": "trainer.callbacks: {0}",
    r"(Trainer\()?`?val_check_interval": "trainer.val_check_interval: {0}",
}


def from_library_error(error: Exception) -> UserError | None:
    """Return an error of a library as the UserError that says what to do; None for any other, which is a bug.

    Matched are Lightning's MisconfigurationException, torch's errors about shared memory, killed workers, a full GPU
    and the NaN that `detect_anomaly` finds, and files that the system refuses (no permission, no room). Classes are
    compared by name, so that no library is imported for it.
    """
    text = " ".join(str(error).split())
    if type(error).__name__ == "MisconfigurationException":
        return UsageError(_name_the_key(text))
    if isinstance(error, OSError) and error.errno in _REFUSED_BY_THE_SYSTEM and error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror}; name another file or folder, or make this one usable")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # a write, which names no file
        return UserError("no room left on the disk: make room, then repeat the command")
    if isinstance(error, RuntimeError | OSError):
        for pattern, line in _FAILURES.items():
            if re.search(pattern, text):
                return UserError(line.format(text))
    if isinstance(error, RuntimeError | ValueError):
        for pattern, line in _WRONG_SETTINGS.items():
            if re.match(pattern, text):
                return UsageError(line.format(text))
    return None


def from_trainer_error(error: Exception) -> UsageError:
    """Return what the constructor of Lightning's Trainer raised as one line that names the setting."""
    return UsageError(_name_the_key(" ".join(str(error).split())))


def _name_the_key(text: str) -> str:
    """Return "trainer.<key>: <text>" with the first argument of the Trainer that the text names."""
    from lightning.pytorch import Trainer  # loaded already: the text is Lightning's

    known = inspect.signature(Trainer).parameters
    key = next((word for word in re.findall(r"\w+", text) if word in known), None)
    return f"trainer.{key}: {text}" if key else f"trainer: {text}"
