"""Scan an image folder for its splits, classes, labels and a fingerprint.

Supported layouts: `ROOT/<split>/<class>/**`, `ROOT/<class>/**` (all of it is the training split), `ROOT/*` (flat,
unlabeled), `ROOT/<split>/*` (flat, unlabeled), and any of these with a folder `ROOT/unlabeled/**` added, or inside the
only folder of ROOT, as a zip file makes it. layout.py says which folders are splits; image_files.py which files are
images. What a scan leaves out is counted (`Folder.inventory`), and every command prints it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from lit_vision.data.image_files import device_and_inode
from lit_vision.data.inventory import Inventory, count_images
from lit_vision.data.layout import (
    UNLABELED,
    check_beside_splits,
    check_class_folders,
    check_names,
    is_image_folder,
    is_unlabeled,
)
from lit_vision.data.splits import has_label
from lit_vision.data.walk import (
    FilesByClass,
    enter_repeated_folder,
    enter_wrapping_folder,
    images_below,
    images_by_class,
)
from lit_vision.errors import UserError
from lit_vision.io.text import join_names


class Paths(Sequence[str]):
    """Sequence of paths stored in two arrays.

    Forked workers share the arrays' memory; of a list of strings they would copy page after page, since reading a
    string changes its reference count.
    """

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    @classmethod
    def of_arrays(cls, ends: np.ndarray, texts: np.ndarray) -> Paths:
        """Return paths that are in two arrays already.

        Args:
            ends: (N + 1,) int64, where each path begins and ends.
            texts: uint8, the bytes of the paths.
        """
        paths = cls(())
        paths._ends, paths._bytes = ends, texts
        return paths

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

    Annotation files, packs and shards may come from a stranger. A link inside the root may lead anywhere: its author
    could read both folders.

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
        inventory: what the scan left out; empty for a pack and for shards.
        label_file: the table that the labels are from, for messages; "" if they are from folders' names.
        groups: of each path of the splits: what must not stand on both sides of a split; None without groups.
        packed: True for shards and packs, whose images have the paths of the files they were stored from.
        remote: True if the images lie on another machine, so that reading them early saves time.
    """

    packed: ClassVar[bool] = False
    remote: ClassVar[bool] = False
    root: Path
    classes: list[str]
    splits: dict[str, Split]
    unlabeled: Split = field(default_factory=lambda: _split([]))
    inventory: Inventory = field(default_factory=Inventory)
    label_file: str = ""
    groups: Mapping[str, str] | None = None

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

    def prefetch(self, paths: Iterable[str]) -> None:
        """Begin to read images that will be read next, the first first; nothing if they lie on this machine."""

    def exclude(self, paths: set[str]) -> int:
        """Remove the images of some paths from every split and return how many were removed."""
        before = self.count()
        self.splits = {name: rest for name, split in self.splits.items() if len(rest := split.without(paths))}
        self.unlabeled = self.unlabeled.without(paths)
        removed = before - self.count()
        self.inventory.left_out.quarantined += removed
        return removed

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
            has = f"it has {', '.join(self.splits)}, but " if self.splits else ""
            if place := self.inventory.splits.get(split):
                left_out = f" (left out: {', '.join(self.inventory.phrases())})" if self.inventory.phrases() else ""
                raise UserError(f"{self.root / place}: no image in it{left_out}, but {purpose} needs this split")
            how = f"create {self.root / split}/<class>/, name its folder by data.train_split, val_split or test_split"
            if self.label_file:
                how = f"name its images in a split column of {self.label_file}"
            if split in ("val", "test") and self.splits:
                how += f", or draw it from the training images by data.{split}_fraction"
            if self.packed:
                how = "pack a folder that has it"
            raise UserError(f"{self.root}: {has}there is no {split} split, which {purpose} needs; {how}")
        return self.splits[split]

    def require_labels(self, split: str, purpose: str) -> Split:
        """Return a split whose images have labels; raises as `require_split`, or if no image of it has one."""
        found = self.require_split(split, purpose)
        if not has_label(found.labels).any():
            if self.label_file:
                raise UserError(
                    f"{self.label_file}: no image of the {split} split has a label, but {purpose} needs labels; fill "
                    "them in"
                )
            folder = self.root / self.inventory.splits.get(split, split)
            raise UserError(f"{folder}: its images are in no class folders, but {purpose} needs labels; sort them")
        return found

    def require_classes(self, purpose: str) -> None:
        """Raise a UserError that names the purpose unless there are at least two classes."""
        if len(self.classes) < 2:
            if self.label_file:
                named = f"one label ({self.classes[0]})" if self.classes else "no label"
                raise UserError(f"{self.label_file}: has {named}, but {purpose} needs two or more; correct its labels")
            has = f"one class ({self.classes[0]})" if self.classes else "no class folders"
            place, inner = self._folders_in_only_class()
            if self.classes and is_image_folder(self.classes[0]) and not inner:
                raise UserError(
                    f"{self.root}: {has}, as sets with boxes or masks have it: use lit_vision.data.AnnotatedDataModule "
                    f"(lit-vision doctor names its settings), or create a folder per class for {purpose}"
                )
            hint = f", and {place} has the folders {', '.join(inner[:3])}: give {self.root / place}" if inner else ""
            raise UserError(
                f"{self.root}: it has {has}{hint}, but {purpose} needs two or more; create a folder per class"
            )

    def _folders_in_only_class(self) -> tuple[str, list[str]]:
        """Return the folder that holds all images of a root without splits, and the folders in it, two or more.

        A zip file or a set with annotations wraps class folders so: archive/flowers/rose, images/001.Albatross.
        """
        if len(self.classes) != 1 or self.inventory.splits or len(self.splits) != 1:
            return "", []
        (split,) = self.splits.values()
        folders = {path.rpartition("/")[0] for path in split.paths}
        shared = os.path.commonpath(folders)
        inner = sorted({folder.removeprefix(shared).split("/")[1] for folder in folders if folder != shared})
        return (shared, inner) if len(inner) > 1 else ("", [])

    def lines(self) -> list[str]:
        """Return one or two lines for a command to print: what was taken as what, and what was left out."""
        taken = []
        for name, split in self.splits.items():
            place = self.inventory.splits.get(name, name)
            known = split.labels[has_label(split.labels)]
            of_classes = len(np.unique(known)) if known.ndim == 1 else int((known == 1).any(0).sum())
            classes = f" in {of_classes} class{'es' * (of_classes != 1)}" if of_classes else " without labels"
            labeled = f", {len(known)} with a label" if 0 < len(known) < len(split) else ""
            taken.append(f"{name} {len(split)}{classes}{labeled}{f' ({place}/)' * (place != name)}")
        taken += [f"unlabeled {len(self.unlabeled)}"] if len(self.unlabeled) else []
        left_out = self.inventory.phrases()
        return [f"{self.root}: {', '.join(taken)}", *([f"left out: {'; '.join(left_out)}"] if left_out else [])]

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
        train: name of the training split's folder. Of a default name (train, val, test) other spellings are known, see
            `layout.role_of`; the split keeps its default name.
        val: name of the validation split's folder. A missing split is an error only when it is needed.
        test: name of the test split's folder.

    Raises:
        UserError: the folder is missing, is a file, holds no image, has images next to class folders, contains a link
            back into itself, has classes in another split that the training split lacks, or has a layout that would be
            misread (see layout.py).
    """
    root = Path(root)
    if not root.exists():
        raise UserError(
            f"{root}: no such folder; check data.root (lit-vision data --help lists the data sets it can make)"
        )
    if not root.is_dir():
        raise UserError(f"{root}: is a file, but a folder of images is expected; give the folder that holds it")
    inventory = Inventory()
    root, tops, inventory.splits, loose = enter_wrapping_folder(root, (train, val, test), inventory.left_out)
    unlabeled_folder = next((name for name in (UNLABELED, *sorted(tops)) if name in tops and is_unlabeled(name)), "")
    found = {}
    if inventory.splits:
        others = sorted({*tops} - {*inventory.splits.values(), unlabeled_folder})
        inventory.beside = {name: count for name in others if (count := count_images(root / name))}
        inventory.loose = loose
        check_names(root, loose)
        if not unlabeled_folder:
            check_beside_splits(root, inventory.splits, train, [*inventory.beside])
        for name, folder in inventory.splits.items():
            inventory.splits[name] = folder = enter_repeated_folder(root, folder)
            found[name] = images_by_class(root / folder, f"{folder}/", inventory.left_out)
    else:
        found[train] = images_by_class(root, "", inventory.left_out, skip=unlabeled_folder)
    unlabeled: list[tuple[str, int]] = []
    if unlabeled_folder:
        place, parents = str(root / unlabeled_folder), (device_and_inode(root),)
        unlabeled += images_below(place, f"{unlabeled_folder}/", parents, inventory.left_out)
    if not unlabeled and not any(files for split in found.values() for files in split.values()):
        left_out = ", ".join(inventory.phrases())
        raise UserError(
            f"{root}: no image in it{f' (left out: {left_out})' if left_out else ''}; it should hold "
            "train/<class>/*.jpg, or images (.jpg, .png, .webp, .tif and others, by the endings of their names)"
        )
    classes, splits = _number_classes(root, found, train, inventory)
    return Folder(root, classes, splits, _split([(path, size, -1) for path, size in unlabeled]), inventory)


def _number_classes(
    root: Path, found: dict[str, FilesByClass], train: str, inventory: Inventory
) -> tuple[list[str], dict[str, Split]]:
    """Return the sorted class names and the splits that have images; raise for a layout that would be misread."""
    place = {name: f"{inventory.splits[name]}/" if inventory.splits else "" for name in found}
    for name, by_class in found.items():
        check_class_folders(root, by_class, place[name])
        inventory.empty += [f"{place[name]}{c}" for c, files in sorted(by_class.items()) if c and not files]
    classes = sorted(name for name, files in found.get(train, {}).items() if name and files)
    if not classes:  # pre-training on unlabeled images, perhaps with labeled val and test; or test alone, to measure on
        classes = sorted({name for split in found.values() for name, files in split.items() if name and files})
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {}
    for name, by_class in found.items():
        unknown = sorted(c for c, files in by_class.items() if c and files and c not in numbers)
        if unknown:
            raise UserError(
                f"{root / place[name]}: classes {join_names(unknown)} are not in {root / place[train]}; "
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
    return classes, splits


def _split(items: Iterable[tuple[str, int, int]]) -> Split:
    """Return the split of (path, bytes, label) items."""
    items = sorted(items)
    labels = np.array([item[2] for item in items], np.int64)
    return Split(Paths(item[0] for item in items), labels, np.array([item[1] for item in items], np.int64))
