"""Which images a command was given, and their pixels in batches, in order, without ever holding more than two batches."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lit_vision.data.folder import EXTENSIONS, Paths
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.errors import UserError


@dataclass
class Inputs:
    """The images that were asked for.

    names: as results name them: relative to the folder that was given, or the file as it was typed.
    folder: where the names start from; "" for files.
    """

    names: Sequence[str]
    folder: str

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        """Where image i lies."""
        return os.path.join(self.folder, self.names[i])

    def digest(self) -> str:
        """sha256 of the names, in order."""
        sha256 = hashlib.sha256()
        for name in self.names:
            sha256.update(os.fsencode(name) + b"\0")
        return sha256.hexdigest()


def find_images(words: Sequence[str], apart: Mapping[str, str] | None = None) -> Inputs:
    """One folder, searched with all that is below it, or files.

    Args:
        words: what was typed. Of a folder, files with an image's ending count, sorted by name; a file is taken whatever it is called.
        apart: {flag: folder} that the command writes pictures to. They are no images of the folder that is searched, or the list would
            grow while it is worked on.

    Raises:
        UserError: nothing there, no image in it, folders mixed with others, or a folder of `apart` that is the one to be searched.
    """
    if not words:
        raise UserError("images: name a folder or image files")
    folders = [word for word in words if os.path.isdir(word)]
    if folders and len(words) > 1:
        raise UserError(f"{folders[0]}: give one folder, or files only")
    if not folders:
        for word in words:
            if not os.path.exists(word):
                raise UserError(f"{word}: no such file or folder; check the path")
        return Inputs(Paths(words), "")
    folder, own = words[0], set()
    for flag, place in (apart or {}).items():
        if os.path.isdir(place):
            if os.path.samefile(place, folder):
                raise UserError(
                    f"{flag} {place}: is the folder of the images itself; name one of its own, such as "
                    f"{os.path.join(place, flag.lstrip('-'))}"
                )
            own.add(_device_and_inode(place))
    names = Paths(sorted(_walk(folder, "", (), own)))
    if not len(names):
        raise UserError(f"{folder}: no image in it ({', '.join(sorted(EXTENSIONS))}); name another folder")
    return Inputs(names, folder)


def _device_and_inode(folder: str) -> tuple[int, int]:
    """The same for every path to a folder, links too."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _walk(folder: str, prefix: str, above: tuple, apart: Set[tuple[int, int]]) -> Iterator[str]:
    """Relative paths of the images below; neither links back to a folder above are followed nor those `apart` entered."""
    here = _device_and_inode(folder)
    if here in above or here in apart:
        return
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        raise UserError(f"{folder}: it may not be read; change its permissions") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself; if it is called like an image, reading it will say so
            is_folder = False
        if is_folder:
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here), apart)
        elif entry.name.rpartition(".")[2].lower() in EXTENSIONS:
            yield prefix + entry.name


@dataclass
class Batch:
    """Some images of the list, those that could be read.

    first, after: which part of the list it covers.   names: N.   places: N, in the list.   pixels: (N, S, S, 3) uint8.
    sizes: N (height, width) of the files.
    bad: (name, reason) of those that could not be read.
    """

    first: int
    after: int
    names: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    pixels: np.ndarray | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def batches(
    inputs: Inputs, prepare: Callable[[np.ndarray], np.ndarray], batch_size: int, start: int = 0, workers: int = 2
) -> Iterator[Batch]:
    """The images in order. Batches begin at multiples of batch_size, wherever it starts: a resumed run sees the same batches.

    Args:
        inputs: the list.
        prepare: (H, W, 3) uint8 to (S, S, 3) uint8; called in threads.
        batch_size: images of the list per batch; broken ones leave it smaller.
        start: a multiple of batch_size.
        workers: threads that read and decode, a batch ahead.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, int, list[Future]]] = deque()
        firsts = iter(range(start, len(inputs), batch_size))
        while True:
            while len(waiting) < 2 and (first := next(firsts, None)) is not None:
                after = min(first + batch_size, len(inputs))
                jobs = [pool.submit(_read, inputs.path(i), prepare) for i in range(first, after)]
                waiting.append((first, after, jobs))
            if not waiting:
                return
            first, after, jobs = waiting.popleft()
            batch, pixels = Batch(first, after), []
            for i, job in zip(range(first, after), jobs):
                found, size, reason = job.result()
                if found is None:
                    batch.bad.append((inputs.names[i], reason))
                else:
                    pixels.append(found)
                    batch.names.append(inputs.names[i])
                    batch.places.append(i)
                    batch.sizes.append(size)
            batch.pixels = np.stack(pixels) if pixels else None
            yield batch


def _read(path: str, prepare: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray | None, tuple[int, int], str]:
    """Pixels, size and "", or None and the reason."""
    try:
        with open(path, "rb") as file:
            image = decode(file.read())
    except ImageDecodeError as error:
        return None, (0, 0), str(error)
    except OSError as error:
        return None, (0, 0), f"{error.strerror}; bring it back or change its permissions"
    return prepare(image), (image.shape[0], image.shape[1]), ""


def check_output_path(path: str | os.PathLike, flag: str = "--out") -> Path:
    """A path to write to; its folder is made.

    Raises:
        UserError: it is a folder, or its own folder cannot be made.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give the name of a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: its folder cannot be made ({error.strerror}); choose another place") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: its folder may not be written; choose another place")
    return path
