"""Scan an image folder for its splits, classes, labels and a fingerprint.

Supported layouts: `ROOT/<split>/<class>/**`, `ROOT/<class>/**` (all of it is the training split), `ROOT/*` (flat,
unlabeled), `ROOT/<split>/*` (flat, unlabeled), and any of these with a folder `ROOT/unlabeled/**` added.
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


class Paths(Sequence[str]):
    """Sequence of paths stored in two arrays.

    Forked workers share the arrays' memory; of a list of strings they would copy page after page, since reading a
    string changes its reference count.
    """

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # no slices
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self._bytes[self._ends[i] : self._ends[i + 1]].tobytes())


@dataclass
class Split:
    """Images of one split, sorted by relative path (which sorts by class too).

    Attributes:
        paths: relative to the root, with forward slashes.
        labels: (N,) int64, -1 without one; or (N, K) float32 for several labels an image, see batch.py.
        sizes: (N,) int64, bytes.
    """

    paths: Paths
    labels: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, excluded: set[str]) -> Split:
        """Return the split without the images of some paths."""
        rows = [i for i, path in enumerate(self.paths) if path not in excluded]
        if len(rows) == len(self):
            return self
        return Split(Paths(self.paths[i] for i in rows), self.labels[rows], self.sizes[rows])


def check_within_root(path: str) -> str:
    """Return a relative path unchanged, or raise if it leaves its root.

    Annotation files and packs may come from a stranger. A link inside the root may lead anywhere: its author could read
    both folders.

    Raises:
        UserError: it is absolute, or goes up by "..".
    """
    if path[:1] in "/\\" or (".." in path and ".." in path.replace("\\", "/").split("/")) or "\0" in path:
        raise UserError(f"{path!r}: leads out of data.root; correct the file that lists it")
    return path


@dataclass
class Folder:
    """Splits, classes and unlabeled images of a scanned folder.

    Attributes:
        root: the folder.
        classes: names of the training split's classes, sorted.
        splits: the splits by name.
        unlabeled: the images of `ROOT/unlabeled`; may be empty.
    """

    root: Path
    classes: list[str]
    splits: dict[str, Split]
    unlabeled: Split = field(default_factory=lambda: _split([]))

    def read(self, path: str) -> bytes:
        """Return the bytes of one image.

        Args:
            path: relative to the root.

        Raises:
            UserError: the path leads out of the folder.
        """
        check_within_root(path)
        with open(f"{self.root}/{path}", "rb") as file:
            return file.read()

    def exclude(self, paths: set[str]) -> int:
        """Remove the images of some paths from every split and return how many were removed."""
        before = self.count()
        self.splits = {name: rest for name, split in self.splits.items() if len(rest := split.without(paths))}
        self.unlabeled = self.unlabeled.without(paths)
        return before - self.count()

    def count(self) -> int:
        """Return the number of images in all splits, unlabeled ones included."""
        return sum(map(len, self.splits.values())) + len(self.unlabeled)

    def require_split(self, split: str, purpose: str) -> Split:
        """Return a split.

        Args:
            split: its name.
            purpose: names the task that needs it, in the error message.

        Raises:
            UserError: there is no such split.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.root}: there is no {split} split, which {purpose} needs; "
                f"create {self.root / split}/<class>/ or choose another split"
            )
        return self.splits[split]

    def require_classes(self, purpose: str) -> None:
        """Raise a UserError that names the purpose unless there are at least two classes."""
        if len(self.classes) < 2:
            has = f"one class ({self.classes[0]})" if self.classes else "no class folders"
            raise UserError(f"{self.root}: it has {has}, but {purpose} needs two or more; create a folder per class")

    def fingerprint(self, hash_content: bool = False) -> str:
        """Return the sha256 (hex) over the sorted (relative path, size, label) of all images.

        A new modification time does not change it; a moved, resized, relabeled, added or removed file does.

        Args:
            hash_content: include the sha256 of each file's bytes.
        """
        rows: list[tuple[str, int, int]] = []
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
    """Read a folder's file names and sizes; no image is opened. About 5 s for a million files on a local disk.

    Links to folders are followed, except back into a folder that holds them.

    Args:
        root: the folder.
        train: name of the training split's folder.
        val: name of the validation split's folder. A missing val or test folder is an error only when it is needed.
        test: name of the test split's folder.

    Raises:
        UserError: the folder is missing, is a file, holds no image, has images next to class folders, contains a link
            back into itself, or has classes in another split that the training split lacks.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(
            f"{root}: no such folder; check data.root (lit-vision data --help lists the data sets it can make)"
        )
    if not root.is_dir():
        raise UserError(f"{root}: is a file, but a folder of images is expected; give the folder that holds it")
    tops = {entry.name for entry in list_entries(root) if _is_folder(entry)}
    names = [name for name in dict.fromkeys((train, val, test)) if name in tops]
    found = {name: _by_class(root / name, f"{name}/") for name in names}
    if train not in found:
        if not names:
            found[train] = _by_class(root, "", skip=UNLABELED)
        elif UNLABELED not in tops:
            raise UserError(
                f"{root}: it has {', '.join(names)} but no {train} folder; "
                f"create {root / train} or set data.train_split"
            )
    unlabeled = (
        list(_images(str(root / UNLABELED), f"{UNLABELED}/", (device_and_inode(root),))) if UNLABELED in tops else []
    )
    if not unlabeled and not any(files for split in found.values() for files in split.values()):
        raise UserError(
            f"{root}: no image in it; it should hold train/<class>/*.jpg, or images ({', '.join(sorted(EXTENSIONS))})"
        )
    classes = sorted(name for name, files in found.get(train, {}).items() if name and files)
    if not classes:  # pre-training on unlabeled images, perhaps with labeled val and test
        classes = sorted({name for split in found.values() for name, files in split.items() if name and files})
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {}
    for name, by_class in found.items():
        unknown = sorted(c for c, files in by_class.items() if c and files and c not in numbers)
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise UserError(
                f"{root / name}: classes {', '.join(unknown[:3])}{more} are not in {root / train}; "
                "rename or remove them"
            )
        if "" in by_class and len(by_class) > 1 and any(files for c, files in by_class.items() if c):
            outside = by_class[""]
            raise UserError(
                f"{root / outside[0][0]}: {len(outside)} image(s) next to class folders; "
                f"move them into a class or {root / UNLABELED}"
            )
        items = [(path, size, numbers.get(c, -1)) for c, files in by_class.items() for path, size in files]
        if items:
            splits[name] = _split(items)
    return Folder(root, classes, splits, _split([(path, size, -1) for path, size in unlabeled]))


def _split(items: Iterable[tuple[str, int, int]]) -> Split:
    """Return the split of (path, bytes, label) items."""
    items = sorted(items)
    labels = np.array([item[2] for item in items], np.int64)
    return Split(Paths(item[0] for item in items), labels, np.array([item[1] for item in items], np.int64))


def _by_class(folder: Path, prefix: str, skip: str = "") -> dict[str, list[tuple[str, int]]]:
    """Return {class name: [(path, bytes)]} of the folders in a folder; its own images come under the name "".

    Args:
        folder: the folder of the class folders.
        prefix: put before each path.
        skip: name of a folder to leave out.
    """
    parents, found, outside = (device_and_inode(folder),), {}, []
    for entry in list_entries(folder):
        if _is_folder(entry):
            if entry.name != skip:
                found[entry.name] = list(_images(entry.path, f"{prefix}{entry.name}/", parents))
        elif has_image_extension(entry.name):
            outside.append((prefix + entry.name, _size(entry)))
    return {**found, "": outside} if outside else found


def _images(folder: str, prefix: str, parents: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) of all images below a folder; `parents` are device and inode of the folders above it."""
    this = device_and_inode(folder)
    if this in parents:
        raise UserError(f"{folder}: links back to a folder that holds it, a loop without end; remove the link")
    for entry in list_entries(folder):
        if _is_folder(entry):
            yield from _images(entry.path, f"{prefix}{entry.name}/", (*parents, this))
        elif has_image_extension(entry.name):
            yield prefix + entry.name, _size(entry)


def list_entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, without hidden ones.

    Raises:
        UserError: the folder may not be read.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except PermissionError:
        raise UserError(f"{folder}: it may not be read; change its permissions") from None


def device_and_inode(folder: Path | str) -> tuple[int, int]:
    """Return the identity of a folder, equal for every path and link that leads to it."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise UserError(f"{entry.path}: {error.strerror}; remove or correct the link") from None


def has_image_extension(name: str) -> bool:
    """True if a file name ends in one of EXTENSIONS, in upper or lower case."""
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{entry.path}: a link to a missing file; remove the link or restore the file") from None
