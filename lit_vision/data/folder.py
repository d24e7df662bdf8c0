"""What lies in a folder of images: its splits, classes and labels, its fingerprint, and one-line errors for what cannot be trained on.

Shapes that are understood: `ROOT/<split>/<class>/**`, `ROOT/<class>/**` (all of it is the training split), `ROOT/*` (flat, unlabelled),
`ROOT/<split>/*` (flat, unlabelled), and any of these with `ROOT/unlabeled/**` beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lit_vision.errors import UserError

EXTENSIONS = frozenset(["jpg", "jpeg", "jpe", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm", "pgm", "pbm"])
UNLABELED = "unlabeled"


class Paths(Sequence):
    """A million paths in two arrays: forked workers do not copy them page by page, as they would a list of strings."""

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self._bytes[self._ends[i] : self._ends[i + 1]].tobytes())


@dataclass
class Split:
    """The images of one split, sorted by relative path (which sorts by class too).

    Attributes:
        paths: relative to the root, with forward slashes.
        labels: (N,) int64, -1 without one.
        sizes: (N,) int64, bytes.
    """

    paths: Paths
    labels: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, listed: set[str]) -> Split:
        """The same with some paths left out."""
        kept = [i for i, path in enumerate(self.paths) if path not in listed]
        if len(kept) == len(self):
            return self
        return Split(Paths(self.paths[i] for i in kept), self.labels[kept], self.sizes[kept])


def is_within(path: str) -> str:
    """The relative path itself, if it has no way out of its root: annotation files and packs are written by others.

    A link inside the root may lead anywhere: who made it can read both places.

    Raises:
        UserError: it is absolute, or goes up by "..".
    """
    if path[:1] in "/\\" or (".." in path and ".." in path.replace("\\", "/").split("/")) or "\0" in path:
        raise UserError(f"{path!r}: leads out of data.root; correct the file that names it")
    return path


@dataclass
class Folder:
    """A scanned folder: `splits` by name, `unlabeled` beside them (maybe empty), and the training split's `classes`, sorted."""

    root: Path
    classes: list[str]
    splits: dict[str, Split]
    unlabeled: Split = field(default_factory=lambda: _split([]))

    def read(self, path: str) -> bytes:
        """The bytes of one image, by its relative path; UserError for one that leads out of the folder."""
        is_within(path)
        with open(f"{self.root}/{path}", "rb") as file:
            return file.read()

    def without(self, listed: set[str]) -> int:
        """Leave out the images of these paths, in every split; returns how many were there."""
        before = self.count()
        self.splits = {name: kept for name, split in self.splits.items() if len(kept := split.without(listed))}
        self.unlabeled = self.unlabeled.without(listed)
        return before - self.count()

    def count(self) -> int:
        """Images in all."""
        return sum(map(len, self.splits.values())) + len(self.unlabeled)

    def need(self, split: str, why: str) -> Split:
        """A split, or the one-line error that says which folder to make."""
        if split not in self.splits:
            raise UserError(
                f"{self.root}: there is no {split} split, which {why} needs; make {self.root / split}/<class>/ or name one"
            )
        return self.splits[split]

    def need_classes(self, why: str) -> None:
        """At least two classes, or the one-line error."""
        if len(self.classes) < 2:
            has = f"one class ({self.classes[0]})" if self.classes else "no class folders"
            raise UserError(f"{self.root}: it has {has}, but {why} needs two or more; make a folder per class")

    def fingerprint(self, hash_content: bool = False) -> str:
        """sha256 (hex) over sorted (relative path, size, label) of all images; `hash_content` adds each file's own sha256.

        A touched file keeps it; a moved, resized, relabelled, added or removed one changes it.
        """
        rows = []
        for split in (*self.splits.values(), self.unlabeled):
            rows += zip(split.paths, split.sizes.tolist(), split.labels.tolist())
        digest = hashlib.sha256()
        for path, size, label in sorted(rows):
            digest.update(os.fsencode(path) + f"\0{size}\0{label}".encode())
            if hash_content:
                digest.update(hashlib.sha256(self.read(path)).digest())
            digest.update(b"\n")
        return digest.hexdigest()


def scan(root: str | Path, train: str = "train", val: str = "val", test: str = "test") -> Folder:
    """Read a folder's names and sizes; no image is opened. About 5 s for a million files on a local disk.

    Links to folders are followed, except back into a folder that holds them.

    Args:
        root: the folder.
        train: name of the training split's folder; so are `val` and `test`. A missing one is an error only when it is needed.

    Raises:
        UserError: the folder is missing, is a file, holds no image, has loose images beside class folders, links back into itself, or
            has classes in another split that the training split lacks.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root}: no such folder; check data.root (lit-vision data --help makes data sets)")
    if not root.is_dir():
        raise UserError(f"{root}: a file where a folder of images is expected; give the folder that holds it")
    tops = {entry.name for entry in _entries(root) if _is_folder(entry)}
    names = [name for name in dict.fromkeys((train, val, test)) if name in tops]
    found = {name: _by_class(root / name, f"{name}/") for name in names}
    if train not in found:
        if not names:
            found[train] = _by_class(root, "", skip=UNLABELED)
        elif UNLABELED not in tops:
            raise UserError(
                f"{root}: it has {', '.join(names)} but no {train} folder; make {root / train} or set data.train_split"
            )
    spare = (
        list(_images(str(root / UNLABELED), f"{UNLABELED}/", (_device_and_inode(root),))) if UNLABELED in tops else []
    )
    if not spare and not any(files for split in found.values() for files in split.values()):
        raise UserError(
            f"{root}: no image in it; it should hold train/<class>/*.jpg, or images ({', '.join(sorted(EXTENSIONS))})"
        )
    classes = sorted(name for name, files in found.get(train, {}).items() if name and files)
    if not classes:  # pre-training on unlabelled images, perhaps with labelled val and test
        classes = sorted({name for split in found.values() for name, files in split.items() if name and files})
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {}
    for name, by_class in found.items():
        strange = sorted(c for c, files in by_class.items() if c and files and c not in numbers)
        if strange:
            more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
            raise UserError(
                f"{root / name}: classes {', '.join(strange[:3])}{more} are not in {root / train}; rename or remove them"
            )
        if "" in by_class and len(by_class) > 1 and any(files for c, files in by_class.items() if c):
            loose = by_class[""]
            raise UserError(
                f"{root / loose[0][0]}: {len(loose)} image(s) beside class folders; move them into a class or {root / UNLABELED}"
            )
        items = [(path, size, numbers.get(c, -1)) for c, files in by_class.items() for path, size in files]
        if items:
            splits[name] = _split(items)
    return Folder(root, classes, splits, _split([(path, size, -1) for path, size in spare]))


def _split(items: Iterable[tuple[str, int, int]]) -> Split:
    items = sorted(items)
    labels = np.array([item[2] for item in items], np.int64)
    return Split(Paths(item[0] for item in items), labels, np.array([item[1] for item in items], np.int64))


def _by_class(folder: Path, prefix: str, skip: str = "") -> dict[str, list[tuple[str, int]]]:
    """{class name: [(path, bytes)]} of the folders below, paths starting with `prefix`; images directly in `folder` come under ""."""
    above, found, loose = (_device_and_inode(folder),), {}, []
    for entry in _entries(folder):
        if _is_folder(entry):
            if entry.name != skip:
                found[entry.name] = list(_images(entry.path, f"{prefix}{entry.name}/", above))
        elif _is_image(entry.name):
            loose.append((prefix + entry.name, _size(entry)))
    return {**found, "": loose} if loose else found


def _images(folder: str, prefix: str, above: tuple) -> Iterator[tuple[str, int]]:
    """(path, bytes) of all images below a folder; `above` identifies the folders that hold it."""
    here = _device_and_inode(folder)
    if here in above:
        raise UserError(f"{folder}: links back to a folder that holds it, a loop without end; remove the link")
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _images(entry.path, f"{prefix}{entry.name}/", (*above, here))
        elif _is_image(entry.name):
            yield prefix + entry.name, _size(entry)


def _entries(folder: Path | str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except PermissionError:
        raise UserError(f"{folder}: it may not be read; change its permissions") from None


def _device_and_inode(folder: Path | str) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise UserError(f"{entry.path}: {error.strerror}; remove or mend it") from None


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{entry.path}: a link to nothing; remove it or bring its target back") from None
