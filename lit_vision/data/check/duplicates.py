"""Find copies among images: equal bytes, or the same picture in another size, compression or brightness."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lit_vision.data.check.image_check import THUMB

_MAX_DIFFERENCE = (
    3.0  # gray levels, mean over a 16 x 16 thumbnail of equal mean and contrast; unlike pictures: above 15
)
_MAX_BITS = 3  # of 64 in which the hashes of near copies may differ
_MAX_GROUP = (
    512  # larger groups of one band are flat pictures: there only neighbors in the order of hashes are compared
)


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Return groups of two or more items with equal bytes; b"" belongs to none."""
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs of thumbnails that show the same picture.

    A 64-bit hash (which of two neighbors in an 8 x 9 reduction is brighter) names the candidates: hashes that differ in
    at most 3 bits agree in one of four bands of 16, so only equal bands are compared. The thumbnails then decide. Flat
    thumbnails carry no information and are left out.

    Args:
        thumbs: (N, 16, 16) uint8.

    Returns:
        Sorted pairs (i, j), i < j.
    """
    n = len(thumbs)
    if n < 2:
        return []
    flat = thumbs.reshape(n, -1).astype(np.float32)
    spread = flat.std(axis=1)
    level = (flat - flat.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-3)[:, None] * 50
    columns = np.linspace(0, THUMB, 10).astype(int)
    rows = thumbs.reshape(n, 8, 2, THUMB).mean(axis=2)  # (N, 8, 16)
    cells = np.stack([rows[:, :, a:b].mean(axis=2) for a, b in pairwise(columns)], axis=2)  # (N, 8, 9)
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).reshape(n, 64)
    bands = np.packbits(bits, axis=1).view(np.uint16)  # (N, 4)
    hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    usable = np.flatnonzero(spread > 2)
    found: set[tuple[int, int]] = set()
    for band in range(4):
        order = usable[np.lexsort((hashes[usable], bands[usable, band]))]
        starts = np.flatnonzero(np.diff(bands[order, band], prepend=-1))
        for group in np.split(order, starts[1:]):
            if len(group) < 2:
                continue
            if len(group) <= _MAX_GROUP:
                a, b = np.triu_indices(len(group), 1)
            else:
                a = np.repeat(np.arange(len(group) - 8), 8)
                b = a + np.tile(np.arange(1, 9), len(group) - 8)
            a, b = group[a], group[b]
            close = _within_hamming(hashes[a] ^ hashes[b])
            a, b = a[close], b[close]
            same = np.abs(level[a] - level[b]).mean(axis=1) <= _MAX_DIFFERENCE
            found.update((min(i, j), max(i, j)) for i, j in zip(a[same].tolist(), b[same].tolist()))
    return sorted(found)


def _within_hamming(differing: np.ndarray) -> np.ndarray:
    """True where at most _MAX_BITS bits of a uint64 are set; numpy 1.26 cannot count them itself."""
    count: np.ndarray
    if hasattr(np, "bitwise_count"):
        count = np.bitwise_count(differing)
    else:
        count = np.unpackbits(differing.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
    return count <= _MAX_BITS


def connected_groups(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of items linked by pairs, directly or through others.

    Each group is sorted, and groups are ordered by their first item.
    """
    if not pairs:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    items, ends = np.unique(np.array(pairs, np.int64).reshape(-1, 2), return_inverse=True)
    ends = ends.reshape(-1, 2)
    links = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(items), len(items)))
    _, labels = connected_components(links, directed=False)
    groups: dict[int, list[int]] = {}
    for item, label in zip(items.tolist(), labels.tolist()):
        groups.setdefault(label, []).append(item)
    return list(groups.values())
