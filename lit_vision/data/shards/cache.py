"""Local cache of images that lie elsewhere, with a limit in bytes, shared by processes."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from lit_vision.errors import UserError
from lit_vision.io.file_lock import locked

log = logging.getLogger(__name__)
VARIABLE = "LIT_VISION_CACHE_GB"
DEFAULT_GB = 10.0
KEEP = 0.9  # share of the limit that is left after old images were removed


def cache_folder() -> Path:
    """Return the folder of the cache: lit_vision/shards in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_vision" / "shards"


def cache_bytes(gigabytes: float | None) -> int:
    """Return the limit of the cache in bytes.

    Args:
        gigabytes: of 10^9 bytes, 0 for no cache; None takes the environment variable LIT_VISION_CACHE_GB, else 10.

    Raises:
        UserError: it is negative or no number.
    """
    given, name = (gigabytes, "data.cache_gb") if gigabytes is not None else (os.environ.get(VARIABLE), VARIABLE)
    try:
        value = DEFAULT_GB if given is None or given == "" else float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise UserError(f"{name}: {given}; give gigabytes, 0 or more")
    return int(value * 1e9)


class ByteCache:
    """Files named by the checksum of their content, at most `limit` bytes of them; the longest unused go first.

    Any number of processes share one: a file appears when it is complete, and one that is removed while it is read
    stays readable to its reader. What is read must be compared with the checksum, since a disk may lose or change it.

    Args:
        folder: of the files; made when the first is stored.
        limit: bytes, 0 stores and reads nothing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._full = False  # the disk is full or read-only: nothing more is stored

    def get(self, name: str) -> bytes | None:
        """Return the content of a file, None if it is not there."""
        if not self.limit:
            return None
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                data = file.read()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Store a content under its checksum, after removing old ones if there is no room for it."""
        if len(data) > self.limit or self._full:
            return
        try:
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "lock"):
                if path.exists():
                    return
                used = self._used()
                if used + len(data) > self.limit:
                    used = self._remove_old(int(self.limit * KEEP) - len(data))
                # counted before it is written: a kill in between makes the count too large, never too small
                (self.folder / "used").write_text(str(used + len(data)))
                temporary = self.folder / "incomplete"  # one writer at a time
                temporary.write_bytes(data)
                os.replace(temporary, path)
        except (OSError, UserError) as error:
            self._full = True
            log.warning("%s: %s; images are read without a cache", self.folder, getattr(error, "strerror", error))

    def remove(self, name: str) -> None:
        """Remove a file whose content is not what its name says."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]

    def _used(self) -> int:
        """Return the bytes that are stored, counted anew if the count was lost."""
        try:
            return max(0, int((self.folder / "used").read_text()))
        except (OSError, ValueError):
            return sum(size for _, size, _ in self._files())

    def _remove_old(self, target: int) -> int:
        """Remove files, the longest unused first, until at most `target` bytes are left; return how many are."""
        files = sorted(self._files())
        left = sum(size for _, size, _ in files)
        for _, size, path in files:
            if left <= target:
                break
            Path(path).unlink(missing_ok=True)
            left -= size
        return left

    def _files(self) -> list[tuple[float, int, str]]:
        """Return (time of the last use, bytes, path) of every stored file."""
        found = []
        for part in os.scandir(self.folder):
            if part.is_dir():
                for entry in os.scandir(part.path):
                    with contextlib.suppress(FileNotFoundError):  # another process found it damaged
                        state = entry.stat()
                        found.append((state.st_mtime, state.st_size, entry.path))
        return found
