"""Folds of a cross-validation: stratified by class, and with whole groups or several labels an image.

N samples, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def stratified_folds(labels: np.ndarray, folds: int, seed: int = 0, groups: Any = None) -> np.ndarray:
    """Return the fold in which each sample is held out, (N,) int64; -1 for the only sample of a class, never held out.

    Each class is shuffled and distributed over the folds in turn, beginning after the fold of the previous class's last
    sample, so folds differ by at most one sample, and every class has a sample in every training part. There are at
    most as many folds as the largest class has members.

    Args:
        labels: (N,) class numbers.
        folds: how many, if there are enough samples.
        seed: of the shuffling.
        groups: (N,) whole groups stand in one fold, as in `grouped_folds`: a training part may then lack a class.
    """
    if groups is not None:
        return grouped_folds(labels[:, None] == np.unique(labels), folds, seed, groups)
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    folds = max(1, min(folds, counts.max()))
    fold, next_fold = np.full(len(labels), -1), 0
    if folds < 2:
        return fold
    for label, count in zip(classes, counts):
        if count > 1:
            fold[rng.permutation(np.flatnonzero(labels == label))] = (next_fold + np.arange(count)) % folds
            next_fold += count
    return fold


def grouped_folds(members: np.ndarray, folds: int, seed: int = 0, groups: Any = None) -> np.ndarray:
    """Return the fold in which each sample is held out, (N,) int64: whole groups, each class spread over the folds.

    The classes are taken in turn, that with the fewest groups first; each of its groups, in random order, goes to the
    fold with the fewest members of the class, in ties to the smallest. A simple form of iterative stratification
    (Sechidis et al. 2011, "On the Stratification of Multi-Label Data"): unlike there the order of the classes is fixed
    at the beginning.

    Args:
        members: (N, K) bool: the sample has the label; any number of them.
        folds: at least 1; never more than there are groups.
        seed: of the order of the groups.
        groups: (N,) name or number of each sample's group; None: each sample is one.

    Returns:
        All -1, never held out, if there is one fold.
    """
    count = len(members)
    group = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(group)
    folds = min(folds, len(sizes))
    if folds < 2:
        return np.full(count, -1)
    has = np.zeros((len(sizes), members.shape[1]), np.int64)
    np.add.at(has, group, members.astype(np.int64))
    order, place = np.random.default_rng(seed).permutation(len(sizes)), np.full(len(sizes), -1)
    held, total = np.zeros((folds, members.shape[1]), np.int64), np.zeros(folds, np.int64)

    def put(number: int, first: np.ndarray) -> None:
        """Put a group into the fold where `first` is smallest, in ties into the smallest fold."""
        fold = int(np.lexsort((total, first))[0])
        place[number] = fold
        held[fold] += has[number]
        total[fold] += sizes[number]

    for label in np.argsort((has > 0).sum(0), kind="stable"):
        for number in order[(has[order, label] > 0) & (place[order] < 0)]:
            put(number, held[:, label])
    for number in order[place[order] < 0]:  # without any label
        put(number, total)
    return np.asarray(place[group])
