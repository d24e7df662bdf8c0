"""Find the images of a command, and read them in ordered batches, at most two batches ahead."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lit_vision.data.folder import Folder, Paths
from lit_vision.data.image_files import LeftOut, device_and_inode, list_entries
from lit_vision.data.open_images import is_packed, open_packed
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat
from lit_vision.errors import UserError
from lit_vision.predict.input_paths import expand_paths


class ImageSource(Protocol):
    """A list of images that `batches` reads: `Inputs`, or the `ImageList` of a caller from Python."""

    names: Sequence[str]

    def __len__(self) -> int:
        """Return the number of images."""

    def pixels(self, i: int, pixel_format: PixelFormat) -> np.ndarray:
        """Return image i, (H, W, 3) uint8, converted as by `decode`; ImageDecodeError or OSError if that fails."""


@dataclass
class Inputs:
    """List of images.

    Attributes:
        names: as results name them: relative to the folder that was given, or the file as it was typed.
        folder: where the names start; "" for files.
        source: the scanned folder, shards or pack that the images are read from; None: from the files themselves.
        left_out: what a search for images passed over.
    """

    names: Sequence[str]
    folder: str
    source: Folder | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    @classmethod
    def of(cls, folder: Folder, names: Sequence[str]) -> Inputs:
        """Return some images of a scanned folder, shards or a pack."""
        return cls(names, str(folder.root), folder)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        """Return the bytes of image i; OSError or UserError if it cannot be read."""
        if self.source is not None:
            return self.source.read(self.names[i])
        with open(self.path(i), "rb") as file:
            return file.read()

    def lines(self) -> list[str]:
        """Return one or two lines for a command to print: the number of images, and what was left out."""
        left_out = self.left_out.phrases()
        found = [f"{self.folder}: {len(self)} images"] if self.folder else []
        return found + ([f"left out: {'; '.join(left_out)}"] if left_out else [])

    def path(self, i: int) -> str:
        """Return the path of image i."""
        return os.path.join(self.folder, self.names[i])

    def pixels(self, i: int, pixel_format: PixelFormat = DEFAULT_FORMAT) -> np.ndarray:
        """Return image i, (H, W, 3) uint8, converted as `decode` does.

        Raises:
            ImageDecodeError: it is no complete image. OSError or UserError: it cannot be read.
        """
        return decode(self.read(i), pixel_format)

    def digest(self) -> str:
        """Return the sha256 (hex) of the names, in order."""
        sha256 = hashlib.sha256()
        for name in self.names:
            sha256.update(os.fsencode(name) + b"\0")
        return sha256.hexdigest()


def find_images(paths: Sequence[str], output_folders: Mapping[str, str] | None = None) -> Inputs:
    """Return the images of folders and their subfolders, of one set of shards, or files.

    Args:
        paths: folders, files, patterns, lists and `-`, see `expand_paths`; or shards. In a folder, files with an
            image's ending count, sorted by name; a file is taken whatever its name. One folder alone is where the names
            start; of several, each name has its folder in front.
        output_folders: {flag: folder} that the command writes images to. They are left out of the search, or the list
            would grow during the run.

    Raises:
        UserError: no such path, no image in it, shards beside other paths, or an output folder that is the folder of
            the images itself.
    """
    if not paths:
        raise UserError("images: name a folder or image files")
    paths = expand_paths(paths)
    folders = [path for path in paths if os.path.isdir(path) or is_packed(path)]
    if folders and len(paths) > 1:
        return _join([find_images([path], output_folders) if path in folders else Inputs([path], "") for path in paths])
    if not folders:
        for path in paths:
            if not os.path.exists(path):
                raise UserError(f"{path}: no such file or folder; check the path")
        return Inputs(Paths(paths), "")
    folder, excluded = paths[0], set()
    if is_packed(folder):
        packed = open_packed(folder)
        splits = (*packed.splits.values(), packed.unlabeled)
        return Inputs.of(packed, Paths(sorted(path for split in splits for path in split.paths)))
    for flag, output in (output_folders or {}).items():
        if os.path.isdir(output):
            if os.path.samefile(output, folder):
                raise UserError(
                    f"{flag} {output}: is the folder of the images itself; name another one, such as "
                    f"{os.path.join(output, flag.lstrip('-'))}"
                )
            excluded.add(device_and_inode(output))
    left_out = LeftOut()
    names = Paths(sorted(_walk(folder, "", (), excluded, left_out)))
    if not len(names):
        passed = f" (left out: {'; '.join(left_out.phrases())})" if left_out.phrases() else ""
        raise UserError(f"{folder}: no image in it{passed}; name another folder, or the files themselves")
    return Inputs(names, folder, left_out=left_out)


def _join(parts: Sequence[Inputs]) -> Inputs:
    """Return the images of several lists as one, each image once, named by its path."""
    left_out = LeftOut()
    for part in parts:
        if part.source is not None:
            raise UserError(f"{part.folder}: shards and packs are read alone; give them without other paths")
        left_out.add(part.left_out)
    names = dict.fromkeys(part.path(i) for part in parts for i in range(len(part)))
    return Inputs(Paths(names), "", left_out=left_out)


def _walk(
    folder: str,
    prefix: str,
    parents: tuple[tuple[int, int], ...],
    excluded: Set[tuple[int, int]],
    left_out: LeftOut,
) -> Iterator[str]:
    """Yield relative paths of images; does not follow links to parent folders and does not enter excluded folders."""
    here = device_and_inode(folder)
    if here in parents or here in excluded:
        return
    for entry in list_entries(folder):
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself; if it has an image's extension, reading it will report the error
            is_folder = False
        if not left_out.count(entry.name, is_folder):
            continue
        if is_folder:
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*parents, here), excluded, left_out)
        else:
            yield prefix + entry.name


@dataclass
class InputBatch:
    """Part of the list of images: N that could be read, and those that could not.

    Attributes:
        start, stop: the batch is images start to stop - 1 of the list.
        names: of the N images.
        positions: of the N images in the list.
        pixels: (N, S, S, 3) uint8; None if N is 0.
        sizes: (height, width) of the N files.
        unreadable: (name, reason) of the other images.
    """

    start: int
    stop: int
    names: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    pixels: np.ndarray | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


_ReadImage = tuple[np.ndarray | None, tuple[int, int], str]  # pixels or None, (height, width), reason


def batches(
    inputs: ImageSource,
    prepare: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    start: int = 0,
    workers: int = 2,
    pixel_format: PixelFormat = DEFAULT_FORMAT,
    stop: int | None = None,
) -> Iterator[InputBatch]:
    """Yield the images in order; batches begin at multiples of batch_size, so that a resumed run sees the same ones.

    Args:
        inputs: the list.
        prepare: (H, W, 3) uint8 to (S, S, 3) uint8; called in threads.
        batch_size: images of the list per batch; unreadable ones leave it smaller.
        start: a multiple of batch_size.
        workers: threads that read and decode, one batch ahead.
        pixel_format: of the model's metadata: conversion of the files' values to 8 bits.
        stop: position after the last image; None: all.
    """
    end = len(inputs) if stop is None else stop
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, int, list[Future[_ReadImage]]]] = deque()
        starts = iter(range(start, end, batch_size))
        while True:
            while len(waiting) < 2 and (first := next(starts, None)) is not None:
                last = min(first + batch_size, end)
                if isinstance(inputs, Inputs) and inputs.source is not None:
                    inputs.source.prefetch(inputs.names[i] for i in range(first, min(last + batch_size, end)))
                jobs = [pool.submit(_read, inputs, i, prepare, pixel_format) for i in range(first, last)]
                waiting.append((first, last, jobs))
            if not waiting:
                return
            first, last, jobs = waiting.popleft()
            batch, images = InputBatch(first, last), []
            for i, job in zip(range(first, last), jobs):
                image, size, reason = job.result()
                if image is None:
                    batch.unreadable.append((inputs.names[i], reason))
                else:
                    images.append(image)
                    batch.names.append(inputs.names[i])
                    batch.positions.append(i)
                    batch.sizes.append(size)
            batch.pixels = np.stack(images) if images else None
            yield batch


def _read(
    inputs: ImageSource, i: int, prepare: Callable[[np.ndarray], np.ndarray], pixel_format: PixelFormat
) -> _ReadImage:
    """Return pixels, size and "", or None and the reason."""
    try:
        image = inputs.pixels(i, pixel_format)
    except ImageDecodeError as error:
        return None, (0, 0), str(error)
    except OSError as error:
        return None, (0, 0), f"{error.strerror}; bring it back or change its permissions"
    return prepare(image), (image.shape[0], image.shape[1]), ""
