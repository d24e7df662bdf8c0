"""Few labels: stratified subsets of a labelled set by fraction, by count or by shots, and the files that keep them.

Subsets are nested: under one seed the images of a smaller subset are in every larger one, so that a curve over labels is about labels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_vision.errors import UserError


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` images with the classes in the proportions of the set (largest remainders), at least one of each class.

    Args:
        labels: (N,) class numbers; -1 is never chosen.
        count: how many images in all.
        seed: in [0, 2**64).

    Returns:
        (count,) sorted positions in `labels`.

    Raises:
        UserError: fewer than one per class, or more than there are.
    """
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    if count > sizes.sum():
        raise UserError(f"labels={count}: the training split has {sizes.sum()} labelled images; ask for fewer")
    if count < len(classes):
        raise UserError(
            f"labels={count}: fewer than one for each of {len(classes)} classes; ask for at least {len(classes)}"
        )
    share = count * sizes / sizes.sum()
    take = np.clip(np.floor(share), 1, sizes).astype(int)
    while take.sum() != count:  # a handful of rounds: one image each, where the share is missed most
        step = 1 if take.sum() < count else -1
        allowed = take < sizes if step > 0 else take > 1
        lack = np.where(allowed, step * (share - take), -np.inf)
        take[np.argmax(lack)] += step
    return _first_of_each(labels, dict(zip(classes.tolist(), take.tolist())), seed)


def sample_fraction(labels: np.ndarray, part: float, seed: int) -> np.ndarray:
    """A share of the labelled images, stratified; 0 < part <= 1. Rounded to whole images, at least one of each class."""
    if not 0 < part <= 1:
        raise UserError(f"labels={part}: a fraction lies above 0 and up to 1; a whole number is a count")
    labeled = int((labels >= 0).sum())
    return stratified(labels, max(round(part * labeled), len(np.unique(labels[labels >= 0]))), seed)


def sample_per_class(labels: np.ndarray, k: int, seed: int, names: Sequence[str] = ()) -> np.ndarray:
    """k images of each class; sorted positions. UserError if a class has fewer."""
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    if k < 1:
        raise UserError(f"shots={k}: give at least 1 image per class")
    if (sizes < k).any():
        few = int(classes[sizes.argmin()])
        raise UserError(
            f"shots={k}: class {names[few] if names else few} has {sizes.min()} image(s); ask for fewer shots"
        )
    return _first_of_each(labels, dict.fromkeys(classes.tolist(), k), seed)


def sample_subset(
    labels: np.ndarray, part: float | int | None, k: int | None, seed: int, names: Sequence[str] = ()
) -> np.ndarray | None:
    """The subset that a data module's `labels` and `shots` ask for: a float is a fraction, an int a count; None if neither is set."""
    if part is not None and k is not None:
        raise UserError("labels and shots: set one of them")
    if k is not None:
        return sample_per_class(labels, k, seed, names)
    if part is None:
        return None
    if isinstance(part, float) and (part <= 1 or not part.is_integer()):
        return sample_fraction(labels, part, seed)
    return stratified(labels, int(part), seed)


def _first_of_each(labels: np.ndarray, take: dict[int, int], seed: int) -> np.ndarray:
    """The first few of each class in that class's own order, which depends on (seed, class) alone: hence nested subsets."""
    chosen = []
    for number, many in take.items():
        of_class = np.flatnonzero(labels == number)
        order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, number, 1])).permutation(len(of_class))
        chosen.append(of_class[order[:many]])
    return np.sort(np.concatenate(chosen))


def write_split(path: str | Path, names: Sequence[str], note: str) -> None:
    """Write a subset: one relative path a line under a `#` line with where it comes from. Whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(
        f"# {note}\n" + "".join(f"{name}\n" for name in names), encoding="utf-8", errors="surrogateescape"
    )
    os.replace(beside, path)


def read_list(path: str | Path) -> set[str]:
    """The paths that a file lists, one a line (`#` starts a remark); UserError if there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; lit-vision doctor writes such a list") from None
    return {line for line in lines if line and not line.startswith("#")}


def read_split(path: str | Path, names: Sequence[str]) -> np.ndarray:
    """Positions in `names` of the paths that a split file lists, sorted.

    Raises:
        UserError: the file is missing or empty, lists a path twice, or lists one that is not in the set.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; set labels or shots to make it, or name another split_file"
        ) from None
    wanted = [line for line in lines if line and not line.startswith("#")]
    places = {name: place for place, name in enumerate(names)}
    missing = [name for name in wanted if name not in places]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of its paths are not in the training split, first {missing[0]}; it belongs to other data"
        )
    if not wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"{path}: it lists {'a path twice' if wanted else 'no image'}; make it again")
    return np.sort(np.array([places[name] for name in wanted]))


def read_or_sample(
    paths: Sequence[str],
    labels: np.ndarray,
    part: float | int | None,
    k: int | None,
    seed: int,
    names: Sequence[str],
    file: str | Path | None,
    may_write: bool = True,
) -> np.ndarray | None:
    """`sample_subset`, kept in a split file: an existing file wins (and must have as many images as are asked for), a missing one is written.

    Args:
        paths: (N,) relative paths of the set; the other arguments as in `sample_subset`.
        file: the split file, or None.
        may_write: false on all processes but one.

    Returns:
        Sorted positions, or None for the whole set.

    Raises:
        UserError: as in `sample_subset` and `read_split`; also if the file is missing and nothing says what to put into it.
    """
    chosen = sample_subset(labels, part, k, seed, names)
    if not file:
        return chosen
    if Path(file).exists():
        listed = read_split(file, paths)
        if chosen is not None and len(listed) != len(chosen):
            raise UserError(f"{file}: it lists {len(listed)} images, labels or shots ask for {len(chosen)}; remove one")
        return listed
    if chosen is None:
        raise UserError(f"{file}: no such file; set labels or shots to make it, or name another split_file")
    if may_write:
        note = f"labels={part} shots={k} label_seed={seed} of {len(labels)} images"
        write_split(file, [paths[i] for i in chosen], note)
    return chosen
