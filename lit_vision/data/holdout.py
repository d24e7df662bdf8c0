"""Groups of images that must not stand on both sides of a split, and splits drawn from the training images.

Images of one patient, place or video look alike: a model that has seen some of them is not tested by the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lit_vision.data.folder import Folder, Paths, Split
from lit_vision.data.splits import has_label, sample_fraction
from lit_vision.errors import UserError


def folder_groups(paths: Sequence[str], level: int) -> list[str]:
    """Return the group of each image: its path up to one of its folders.

    Args:
        paths: relative to the root, with forward slashes.
        level: of the folder: -1 is the one that holds the image, -2 the one above it; 0 the first below the root.

    Raises:
        UserError: an image stands in fewer folders.
    """
    groups = []
    for path in paths:
        folders = path.split("/")[:-1]
        if not -len(folders) <= level < len(folders):
            raise UserError(
                f"data.group_by: {level}: {path} stands in {len(folders)} folder(s); -1 is the folder that holds it"
            )
        groups.append(folders[level])
    return groups


def check_groups(folder: Folder, groups: Mapping[str, str]) -> None:
    """Refuse a group with images in two splits.

    Args:
        folder: with its splits.
        groups: of each path.

    Raises:
        UserError: names the group, an image of it in each split, and how many such groups there are.
    """
    first: dict[str, tuple[str, str]] = {}
    shared: dict[str, tuple[str, str, str, str]] = {}
    for name, split in folder.splits.items():
        for path in split.paths:
            where = first.setdefault(groups[path], (name, path))
            if where[0] != name:
                shared.setdefault(groups[path], (*where, name, path))
    if shared:
        group, (a, in_a, b, in_b) = next(iter(sorted(shared.items())))
        raise UserError(
            f"{folder.root}: {len(shared)} group(s) stand in two splits, {group!r} in {a} ({in_a}) and {b} ({in_b}); "
            "move all of a group's images into one split"
        )


def hold_out(
    folder: Folder,
    train: str,
    fractions: Mapping[str, float],
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> None:
    """Move a part of the training images into new splits.

    With groups whole groups move, in an order that depends on the seed alone, until a split has its share. Otherwise
    the share is stratified by class (several labels an image: drawn at random). Images without a label stay where
    others have one.

    Args:
        folder: is changed.
        train: name of the training split.
        fractions: {name of the new split: share of the training images, above 0}; together below 1.
        seed: in [0, 2**64).
        groups: of each path, or None.

    Raises:
        UserError: a split exists already, or nothing would be left of the training images or of a new split.
    """
    split = folder.require_split(train, "holding out a part of it")
    rest, total = np.arange(len(split)), len(split)
    for stream, (name, fraction) in enumerate(fractions.items()):
        if name in folder.splits:
            raise UserError(f"{folder.root}: has a {name} split already; leave out the fraction that makes one")
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, 2]))
        if groups is None:
            wanted = fraction * total / len(rest)
            rows = _stratified(split.labels[rest], wanted, int(rng.integers(1 << 63)))
        else:
            rows = _groups_of(np.array([groups[split.paths[int(i)]] for i in rest]), fraction * total, rng)
        if not 0 < len(rows) < len(rest):
            what = f"of {len(rest)} training images" if groups is None else "of the groups of the training images"
            raise UserError(f"{folder.root}: a {name} split of {fraction:g} {what} leaves one side empty")
        folder.splits[name] = _rows_of(split, rest[rows])
        rest = np.setdiff1d(rest, rest[rows])
    folder.splits[train] = _rows_of(split, rest)


def leave_out_unlabeled(folder: Folder, train: str) -> None:
    """Leave images without a label out of the evaluation splits whose others have one, and count them."""
    for name, split in folder.splits.items():
        known = has_label(split.labels)
        if name != train and known.any() and not known.all():
            folder.splits[name] = _rows_of(split, np.flatnonzero(known))
            folder.inventory.not_labeled += int((~known).sum())


def _stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return sorted rows: of each class its share; images of several labels or of none are drawn at random."""
    if labels.ndim == 1 and (labels >= 0).any():
        known = np.flatnonzero(labels >= 0)
        chosen: np.ndarray = known[sample_fraction(labels[known], fraction, seed)]
        return chosen
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(labels))
    return np.sort(order[: round(fraction * len(labels))])


def _groups_of(groups: np.ndarray, wanted: float, rng: np.random.Generator) -> np.ndarray:
    """Return sorted rows of whole groups, of as many images as wanted or a few more."""
    names, sizes = np.unique(groups, return_counts=True)
    order = rng.permutation(len(names))
    count = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
    return np.flatnonzero(np.isin(groups, names[order[:count]]))


def _rows_of(split: Split, rows: np.ndarray) -> Split:
    return Split(Paths(split.paths[int(i)] for i in rows), split.labels[rows], split.sizes[rows])
