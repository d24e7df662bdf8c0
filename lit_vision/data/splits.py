"""Subsets of a data set: stratified by fraction, count or shots, split files that store them, and evenly spaced rows.

Stratified subsets are nested: under one seed the images of a smaller subset are in every larger one, so that a curve
over the number of labels does not also compare different images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write


def evenly_spaced(n: int, limit: int) -> np.ndarray:
    """Return at most `limit` of the row numbers 0 to n - 1, evenly spaced from the first to the last.

    In a set sorted by class the rows are spread over all classes.

    Args:
        n: rows of the set, 0 or more.
        limit: number of rows to return, 0 or more; with 1 it is the first row.

    Returns:
        (min(n, limit),) int64, ascending, without repeats.
    """
    return np.linspace(0, n - 1, min(n, limit)).round().astype(np.int64)


def has_label(labels: np.ndarray) -> np.ndarray:
    """Return (N,) bool: True for images with a label.

    Args:
        labels: (N,) class numbers, -1 without one; or (N, K) float with NaN for unknown labels.
    """
    return np.asarray(labels >= 0 if labels.ndim == 1 else ~np.isnan(labels).all(1))


def sample_stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sample images with the classes in the proportions of the set (largest remainders), at least one of each class.

    Args:
        labels: (N,) class numbers; -1 is never sampled.
        count: number of images in total.
        seed: in [0, 2**64).

    Returns:
        (count,) sorted positions in `labels`.

    Raises:
        UserError: `count` is less than one per class, or more than the labeled images.
    """
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    if count > sizes.sum():
        raise UserError(f"labels={count}: the training split has {sizes.sum()} labeled images; ask for fewer")
    if count < len(classes):
        raise UserError(
            f"labels={count}: fewer than one for each of {len(classes)} classes; ask for at least {len(classes)}"
        )
    share = count * sizes / sizes.sum()
    take = np.clip(np.floor(share), 1, sizes).astype(int)
    while take.sum() != count:  # a few rounds of one image each, for the class that is farthest from its share
        step = 1 if take.sum() < count else -1
        allowed = take < sizes if step > 0 else take > 1
        missing = np.where(allowed, step * (share - take), -np.inf)
        take[np.argmax(missing)] += step
    return _first_of_each(labels, dict(zip(classes.tolist(), take.tolist())), seed)


def sample_fraction(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sample a stratified fraction of the labeled images, rounded to full images, at least one of each class.

    Args:
        labels: (N,) class numbers; -1 is never sampled.
        fraction: above 0 and at most 1.
        seed: in [0, 2**64).

    Returns:
        Sorted positions in `labels`.

    Raises:
        UserError: the fraction is out of its range.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"labels={fraction}: a fraction lies above 0 and up to 1; an integer is a count")
    labeled = int((labels >= 0).sum())
    return sample_stratified(labels, max(round(fraction * labeled), len(np.unique(labels[labels >= 0]))), seed)


def sample_per_class(labels: np.ndarray, shots: int, seed: int, class_names: Sequence[str] = ()) -> np.ndarray:
    """Sample a number of images of each class.

    Args:
        labels: (N,) class numbers; -1 is never sampled.
        shots: images per class, at least 1.
        seed: in [0, 2**64).
        class_names: for the error message.

    Returns:
        Sorted positions in `labels`.

    Raises:
        UserError: a class has fewer images.
    """
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    if shots < 1:
        raise UserError(f"shots={shots}: give at least 1 image per class")
    if (sizes < shots).any():
        smallest = int(classes[sizes.argmin()])
        raise UserError(
            f"shots={shots}: class {class_names[smallest] if class_names else smallest} has {sizes.min()} image(s); "
            "ask for fewer shots"
        )
    return _first_of_each(labels, dict.fromkeys(classes.tolist(), shots), seed)


def sample_subset(
    labels: np.ndarray, amount: float | int | None, shots: int | None, seed: int, class_names: Sequence[str] = ()
) -> np.ndarray | None:
    """Sample the subset that a data module's arguments `labels` and `shots` describe.

    Args:
        labels: (N,) class numbers; -1 is never sampled. Or (N, K) for several labels an image, see `has_label`.
        amount: the data module's `labels`: a float up to 1 is a fraction, an integer a count.
        shots: images per class.
        seed: in [0, 2**64).
        class_names: for the error message.

    Returns:
        Sorted positions in `labels`; None if neither `amount` nor `shots` is set.

    Raises:
        UserError: both are set, `shots` with several labels an image, or as in
            `sample_fraction`, `sample_stratified` and `sample_per_class`.
    """
    if amount is not None and shots is not None:
        raise UserError("labels and shots: set one of them")
    if labels.ndim == 2:
        return _sample_any(labels, amount, shots, seed)
    if shots is not None:
        return sample_per_class(labels, shots, seed, class_names)
    if amount is None:
        return None
    if isinstance(amount, float) and (amount <= 1 or not amount.is_integer()):
        return sample_fraction(labels, amount, seed)
    return sample_stratified(labels, int(amount), seed)


def _sample_any(labels: np.ndarray, amount: float | int | None, shots: int | None, seed: int) -> np.ndarray | None:
    """Sample labeled images at random where each has several labels; see `sample_subset`."""
    if shots is not None:
        raise UserError("shots: counts images of one class, and here an image has several labels; set labels")
    if amount is None:
        return None
    rows = np.flatnonzero(has_label(labels))
    count = round(amount * len(rows)) if isinstance(amount, float) and amount <= 1 else int(amount)
    if not 0 < count <= len(rows):
        raise UserError(f"labels={amount}: the training split has {len(rows)} labeled images; ask for 1 to so many")
    return np.sort(rows[np.random.Generator(np.random.Philox(key=seed)).permutation(len(rows))[:count]])


def _first_of_each(labels: np.ndarray, counts: dict[int, int], seed: int) -> np.ndarray:
    """Return the first images of each class in an order that depends on (seed, class) alone, which nests the subsets.

    Args:
        labels: (N,) class numbers.
        counts: {class number: images}.
        seed: in [0, 2**64).

    Returns:
        Sorted positions in `labels`.
    """
    chosen = []
    for number, count in counts.items():
        rows = np.flatnonzero(labels == number)
        order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, number, 1])).permutation(len(rows))
        chosen.append(rows[order[:count]])
    return np.sort(np.concatenate(chosen))


def write_split(path: str | Path, names: Sequence[str], note: str) -> None:
    """Write a split file atomically: one relative path per line, below a `#` line with a note on its origin."""
    text = f"# {note}\n" + "".join(f"{name}\n" for name in names)
    atomic_write(path, lambda file: file.write_text(text, encoding="utf-8", errors="surrogateescape"))


def read_list(path: str | Path) -> set[str]:
    """Return the paths that a file lists, one per line; lines with `#` in front are comments.

    Raises:
        UserError: the file cannot be read, or is no list of paths.
    """
    try:
        listed = set(_listed_paths(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; lit-vision doctor writes such a list") from None
    if any("\0" in name for name in listed):  # no path has it, UTF-16 and most binary files do
        raise UserError(f"{path}: is not a UTF-8 text file with a path a line; lit-vision doctor writes such a list")
    return listed


def read_split(path: str | Path, names: Sequence[str]) -> np.ndarray:
    """Return the sorted positions in `names` of the paths that a split file lists.

    Raises:
        UserError: the file is missing or empty, lists a path twice, or lists one that is not in the set.
    """
    try:
        wanted = _listed_paths(path)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; set labels or shots to create it, or give another split_file"
        ) from None
    positions = {name: position for position, name in enumerate(names)}
    missing = [name for name in wanted if name not in positions]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of its paths are not in the training split, first {missing[0]}; "
            "it belongs to other data"
        )
    if not wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"{path}: it lists {'a path twice' if wanted else 'no image'}; create it again")
    return np.sort(np.array([positions[name] for name in wanted]))


def _listed_paths(path: str | Path) -> list[str]:
    """Return the lines of a file without empty ones and comments; OSError if it cannot be read."""
    lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read_or_sample(
    paths: Sequence[str],
    labels: np.ndarray,
    amount: float | int | None,
    shots: int | None,
    seed: int,
    class_names: Sequence[str],
    file: str | Path | None,
    may_write: bool = True,
) -> np.ndarray | None:
    """Return the subset that a split file lists, or sample it (see `sample_subset`) and write the file.

    An existing file takes precedence; it must list as many images as `amount` or `shots` ask for, if they are set.

    Args:
        paths: (N,) relative paths of the set.
        labels: (N,) class numbers; -1 is never sampled.
        amount: as in `sample_subset`.
        shots: as in `sample_subset`.
        seed: in [0, 2**64).
        class_names: for the error message.
        file: the split file, or None.
        may_write: false on all processes but one.

    Returns:
        Sorted positions, or None for the full set.

    Raises:
        UserError: as in `sample_subset` and `read_split`; also if the file is missing and neither `amount` nor `shots`
            is set.
    """
    chosen = sample_subset(labels, amount, shots, seed, class_names)
    if not file:
        return chosen
    if Path(file).exists():
        listed = read_split(file, paths)
        if chosen is not None and len(listed) != len(chosen):
            raise UserError(
                f"{file}: it lists {len(listed)} images, but labels or shots ask for {len(chosen)}; remove either"
            )
        return listed
    if chosen is None:
        raise UserError(f"{file}: no such file; set labels or shots to create it, or give another split_file")
    if may_write:
        note = f"labels={amount} shots={shots} label_seed={seed} of {len(labels)} images"
        write_split(file, [paths[i] for i in chosen], note)
    return chosen
