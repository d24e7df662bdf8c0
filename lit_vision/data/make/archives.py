"""Read the files of an npm package (.tgz) or a Debian package (.deb), which may come from a stranger.

Nothing is written to disk and no script runs: a file's bytes are handed to the caller, who chooses where they go. Links
are never followed. Sizes are counted while the archive is unpacked, so that a small file that unpacks to a huge one is
refused early.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from lit_vision.errors import UserError
from lit_vision.io.hashing import sha256_of_file

MOST_BYTES = 512 << 20  # of an unpacked archive; the largest known one has 217 MB
MOST_FILE_BYTES = 32 << 20  # of one file that is read
MOST_FILES = 50_000
_DEBIAN, _GZIP = b"!<arch>\n", b"\x1f\x8b"
_UNPACKERS: dict[str, Callable[[Any], Any]] = {".xz": lzma.LZMAFile, ".gz": lambda file: gzip.GzipFile(fileobj=file)}
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Package:
    """An npm or Debian package in a file.

    Attributes:
        path: of the file.
        name: that it has in its own description, not in the name of the file.
        version: likewise.
        sha256: of the file, hex.
    """

    path: Path
    name: str
    version: str
    sha256: str

    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of the files whose names are wanted, in the archive's order.

        Names have forward slashes and no "./" in front; those of an npm package begin with `package/`.

        Raises:
            UserError: the archive is damaged, cut off or too large, or holds a name or link that leads out of it.
        """
        with _report_damage(self.path):
            yield from _files(self.path, "data.tar", wanted)


def find_packages(archives: Sequence[Path], names: Sequence[str], fetch: str) -> list[Package]:
    """Return the packages of some names, each in one of the archives.

    Args:
        archives: files, in any order.
        names: of the packages, in the order of the result.
        fetch: the command that fetches the files, for messages.

    Raises:
        UserError: a file cannot be read, is no package or another one, or a package is missing; one line that says how
            to fetch it.
    """
    found: dict[str, Package] = {}
    for path in archives:
        package = _describe(path, fetch)
        if package.name not in names:
            raise UserError(f"--archive {path}: holds {package.name}, not {' or '.join(names)}; {fetch}")
        if package.name in found:
            raise UserError(
                f"--archive {path}: holds {package.name}, as {found[package.name].path} does; leave one out"
            )
        found[package.name] = package
    if missing := [name for name in names if name not in found]:
        raise UserError(f"--archive: {' and '.join(missing)} is missing; {fetch}")
    return [found[name] for name in names]


def _describe(path: Path, fetch: str) -> Package:
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        with _report_damage(path):
            if start == _DEBIAN:
                control = next((data for _, data in _files(path, "control.tar", lambda name: name == "control")), b"")
                fields = dict(line.split(": ", 1) for line in control.decode().splitlines() if ": " in line)
                name, version = fields.get("Package"), fields.get("Version")
            elif start.startswith(_GZIP):
                wanted = _files(path, "", lambda name: name == "package/package.json")
                note = json.loads(next((data for _, data in wanted), b"{}"))
                name, version = (note.get("name"), note.get("version")) if isinstance(note, dict) else (None, None)
            else:
                name = version = None
            if not isinstance(name, str) or not isinstance(version, str):
                raise UserError(f"--archive {path}: is neither an npm package (.tgz) nor a Debian one (.deb)")
            return Package(path, name, version, sha256_of_file(path))
    except FileNotFoundError:
        raise UserError(f"--archive {path}: no such file; {fetch}") from None
    except UserError as error:
        raise UserError(f"{error}; {fetch}") from None
    except OSError as error:
        raise UserError(f"--archive {path}: cannot be read ({error.strerror or error}); {fetch}") from None


@contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"--archive {path}: is damaged or cut off ({error}); fetch it again") from None
    except OSError as error:  # gzip.BadGzipFile is one, without a number
        if error.errno is not None:
            raise
        raise UserError(f"--archive {path}: is damaged or cut off ({error}); fetch it again") from None


def _files(path: Path, part: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the wanted files of an archive; of a Debian package, of one of its two parts."""
    with open(path, "rb") as file:
        if file.read(8) == _DEBIAN:
            raw, ending = _debian_part(file, path, part)
        else:
            file.seek(0)
            raw, ending = file, ".gz"
        stream = _CountedStream(_UNPACKERS[ending](raw) if ending else raw, path)
        count = 0
        # "r|" reads from front to back, and so no header can send it anywhere else
        with tarfile.open(
            fileobj=cast(IO[bytes], stream), mode="r|", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in tar:
                count += 1
                if count > MOST_FILES:
                    raise UserError(f"--archive {path}: holds more than {MOST_FILES} files; fetch it again")
                name = _checked_name(path, member)
                if not member.isreg() or not wanted(name):
                    tar.members = []  # type: ignore[attr-defined]  # or the list of all members grows
                    continue
                if member.size > MOST_FILE_BYTES or member.issparse():
                    raise UserError(
                        f"--archive {path}: {name} unpacks to more than {MOST_FILE_BYTES >> 20} MiB; fetch it again"
                    )
                content = tar.extractfile(member)
                assert content is not None
                data = content.read()
                if len(data) != member.size:
                    raise EOFError(f"{name} ends early")
                yield name, data
        while stream.read(1 << 16):  # to the checksum at the end
            pass


def _checked_name(path: Path, member: tarfile.TarInfo) -> str:
    """Return a member's name; UserError if it, or what a link leads to, is outside the archive, or for a device."""
    name = posixpath.normpath(member.name)
    places = [name]
    if member.issym():
        places.append(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
    elif member.islnk():
        places.append(posixpath.normpath(member.linkname))
    for place in places:
        if place.startswith(("/", "../")) or place == ".." or "\0" in place or "\\" in place:
            raise UserError(f"--archive {path}: {member.name!r} leads out of the archive; fetch it again")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise UserError(f"--archive {path}: {member.name!r} is no file, folder or link; fetch it again")
    return name


def _debian_part(file: IO[bytes], path: Path, part: str) -> tuple[IO[bytes], str]:
    """Return `control.tar` or `data.tar` of a Debian package as a file, and the ending of its compression."""
    size = path.stat().st_size
    while header := file.read(60):  # ar: name 16, time 12, owner 6, group 6, mode 8, size 10, and two bytes
        if len(header) < 60 or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise EOFError("a header is incomplete")
        name, length, start = header[:16].decode().rstrip(" /"), int(header[48:58]), file.tell()
        if start + length > size:
            raise EOFError(f"{name} ends early")
        if name == part or name.startswith(part + "."):
            ending = name[len(part) :]
            if ending and ending not in _UNPACKERS:
                raise UserError(
                    f"--archive {path}: is packed as {name}, which is not read; fetch the package of Debian itself"
                )
            return cast(IO[bytes], _Section(file, start, length)), ending
        file.seek(start + length + length % 2)
    raise EOFError(f"it has no {part}")


class _Section(io.RawIOBase):
    """Part of an open file, read like a file."""

    def __init__(self, file: IO[bytes], start: int, length: int):
        super().__init__()
        self._file, self._left = file, length
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _CountedStream:
    """Unpacked bytes of an archive; UserError when there are more than MOST_BYTES."""

    def __init__(self, stream: IO[bytes], path: Path):
        self._stream, self._path, self._left = stream, path, MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UserError(f"--archive {self._path}: unpacks to more than {MOST_BYTES >> 20} MiB; fetch it again")
        return data
