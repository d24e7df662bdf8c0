"""Images of a set that lies elsewhere, read by ranged requests through fsspec, with a cache and reading ahead."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import getproxies

from lit_vision.data.shards.address import Address
from lit_vision.data.shards.cache import ByteCache
from lit_vision.data.shards.index import INDEX_NAME, ShardIndex, ShardIndexError, load_index
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path
from lit_vision.io.file_lock import locked

log = logging.getLogger(__name__)
T = TypeVar("T")
ATTEMPTS = 6  # of each request; the waits between them are 0.1, 0.2, 0.4, 0.8 and 1.6 s
FIRST_WAIT = 0.1
THREADS = 8  # requests at a time and process
AHEAD_BYTES = 64 << 20  # of images that are read ahead and not used yet, in each process
PIECE = 16 << 20  # bytes of one request for an index
MOST_HEADER = 100 << 20  # bytes, as in the safetensors package
_TIMEOUT = 60  # seconds of one HTTP request


class RemoteFiles:
    """Files below an address, read in ranges; failing requests are repeated.

    Args:
        address: of their folder.
    """

    def __init__(self, address: Address):
        self.address = address
        self._process = 0
        self.open()

    def open(self) -> None:
        """Open the file system, again in a forked process, before its threads begin: connections survive no fork."""
        if self._process == os.getpid():
            return
        if self._process:  # fsspec before 2025.5 would wait for a thread that is not in this process
            from fsspec.asyn import reset_lock

            reset_lock()
        self._process, self._system = os.getpid(), _open_file_system(self.address)

    def read(self, name: str, first: int, stop: int) -> bytes:
        """Return the bytes of a file from `first` to before `stop`.

        Raises:
            UserError: there is no such file, it may not be read, or all attempts failed.
        """
        return self._repeated(
            name, lambda system, url: _exactly(system.cat_file(url, start=first, end=stop), stop - first)
        )

    def size(self, name: str) -> int:
        """Return the bytes of a file; raises as `read`, or if the server does not say it."""
        found: int | None = self._repeated(name, lambda system, url: system.size(url))
        if found is None:
            raise UserError(f"{self.address / name}: the server does not say how long it is; use another server")
        return found

    def _repeated(self, name: str, request: Callable[[Any, str], T]) -> T:
        url = f"{self.address.given}/{name}"
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return request(self._system, url)
            except Exception as error:  # each library has exceptions of its own for a lost connection
                if final := _final_reason(error):
                    raise UserError(f"{self.address / name}: {final}") from None
                cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
                reason = f"{type(cause).__name__}: {cause}".rstrip(": ")
        raise UserError(
            f"{self.address / name}: {ATTEMPTS} requests failed, the last by {_one_line(reason)}; try later"
        )

    def __reduce__(self) -> tuple[type[RemoteFiles], tuple[Address]]:
        return RemoteFiles, (self.address,)


def _open_file_system(address: Address) -> Any:
    import fsspec

    scheme = address.given.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        # aiohttp then reads the environment and .netrc at each request, which takes as long as all the rest
        proxies = bool({"http", "https", "all"} & getproxies().keys())
        options["client_kwargs"] = {"trust_env": proxies, "timeout": _http_timeout()}
    try:
        # an instance of fsspec's own cache might be one that another process made
        return fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        raise UserError(f"{address}: {_one_line(str(error))} (pip install 'lit-vision[shards]')") from None
    except ValueError as error:
        raise UserError(f"{address}: {_one_line(str(error))}; give s3://, gs:// or https://") from None


def _http_timeout() -> Any:
    try:
        import aiohttp
    except ImportError:
        raise UserError("https:// needs aiohttp: pip install 'lit-vision[shards]'") from None
    return aiohttp.ClientTimeout(total=_TIMEOUT)


def _final_reason(error: Exception) -> str:
    """Return the reason of an error that another request would meet too, "" if one may help.

    For fsspec an HTTP server that does not answer is one without the file; the error of aiohttp is then the cause.
    """
    cause = error.__cause__
    status = getattr(error, "status", getattr(cause, "status", None))
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        return "may not be read; check the credentials"
    if status == 404 or (isinstance(error, FileNotFoundError) and not type(cause).__module__.startswith("aiohttp")):
        return "no such file; check data.root"
    if status == 416:  # a range beyond the end
        return "is shorter than the set's index says; copy the set there again"
    return ""


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) > length:
        raise UserError("the server ignores which part of a file is asked for (HTTP ranges); use another server")
    if len(data) < length:
        raise EOFError(f"{len(data)} of {length} bytes came")
    return data


def _one_line(text: str) -> str:
    from lit_vision.io.redact import redact

    return str(redact(" ".join(text.split())[:300]))


class RemoteShards:
    """Images of a set below an address.

    Args:
        files: of the set.
        index: of the set.
        cache: of images.
    """

    def __init__(self, files: RemoteFiles, index: ShardIndex, cache: ByteCache):
        self.files, self.index, self.cache = files, index, cache
        self._process = -1
        self._start()

    def _start(self) -> None:
        """Forget what another process, from which this one was forked, was reading ahead."""
        self.files.open()
        self._process, self._lock = os.getpid(), threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[bytes]] = {}
        self._ahead_bytes = 0

    def read(self, row: int) -> bytes:
        """Return the bytes of one image, from what was read ahead, the cache, or the set.

        Raises:
            UserError: they cannot be read, or their checksum does not match.
        """
        if self._process != os.getpid():
            self._start()
        with self._lock:
            future = self._give_up(row)
        return self._load(row) if future is None else future.result()

    def prefetch(self, rows: Iterable[int]) -> None:
        """Begin to read images that will be asked for, the first first, as far as AHEAD_BYTES allow.

        What was read ahead earlier and is not among them makes room: training may have stopped within an epoch.
        """
        if self._process != os.getpid():
            self._start()
        wanted = dict.fromkeys(rows)
        with self._lock:
            for row in wanted:
                if row in self._ahead:
                    continue
                length = int(self.index.arrays["length"][row])
                while self._ahead_bytes + length > AHEAD_BYTES:
                    old = next((row for row in self._ahead if row not in wanted), None)
                    if old is None:
                        return
                    self._give_up(old)
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(THREADS, "shards")
                self._ahead[row] = self._pool.submit(self._load, row)
                self._ahead_bytes += length

    def _give_up(self, row: int) -> Future[bytes] | None:
        """Take an image off those that are read ahead."""
        future = self._ahead.pop(row, None)
        if future is not None:
            self._ahead_bytes -= int(self.index.arrays["length"][row])
        return future

    def _load(self, row: int) -> bytes:
        arrays = self.index.arrays
        name = arrays["checksum"][row].tobytes().hex()
        cached = self.cache.get(name)
        if cached is not None:
            if self.index.checksum_matches(row, cached):
                return cached
            self.cache.remove(name)
        offset, length = int(arrays["offset"][row]), int(arrays["length"][row])
        data = self.files.read(self.index.shards[int(arrays["shard"][row])].name, offset, offset + length)
        self.index.check(row, data, str(self.files.address))
        self.cache.put(name, data)
        return data

    def __reduce__(self) -> tuple[type[RemoteShards], tuple[RemoteFiles, ShardIndex, ByteCache]]:
        return RemoteShards, (self.files, self.index, self.cache)


def fetch_index(files: RemoteFiles, folder: Path, verify: bool = True) -> ShardIndex:
    """Return a set's index, mapped from a local copy; it is fetched once for each content, and again if it is damaged.

    Args:
        files: of the set.
        folder: of the copies; they are not counted in the cache's limit.
        verify: as for `load_index`.

    Raises:
        UserError: there is no index, it is damaged, or it cannot be read or stored.
    """
    where = str(files.address / INDEX_NAME)
    size = files.size(INDEX_NAME)
    start = files.read(INDEX_NAME, 0, min(8, size))
    header = int.from_bytes(start, "little")
    if len(start) < 8 or header > min(size - 8, MOST_HEADER):
        raise UserError(f"{where}: is no index of shards; pack again where the set was made")
    # the header holds a digest of everything else
    name = hashlib.sha256(files.read(INDEX_NAME, 8, 8 + header)).hexdigest()
    path = folder / "indexes" / f"{name}.safetensors"
    damaged = False
    if path.is_file():
        try:
            return load_index(path, verify, where)
        except ShardIndexError:
            damaged = True
            log.warning("%s: the copy of an index is damaged; it is fetched again", path)
    try:
        with locked(folder / "indexes" / "lock"):
            if damaged or not path.is_file():
                with atomic_path(path) as temporary:
                    with open(temporary, "wb") as file:
                        for first in range(0, size, PIECE):
                            file.write(files.read(INDEX_NAME, first, min(first + PIECE, size)))
                    load_index(temporary, where=where)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; set XDG_CACHE_HOME to a folder with room") from None
    return load_index(path, verify, where)
