"""Which pictures of a set are copies of each other: to the byte, or nearly so (another size, another compression, a little brighter)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lit_vision.data.check.image_check import THUMB

_FAR = 3.0  # grey levels, mean over a 16 x 16 thumbnail of equal mean and contrast: unlike pictures lie above 15
_BITS = 3  # of 64 in which near copies may differ
_CROWD = (
    512  # larger groups of one band are flat pictures; only neighbours in the order of their hashes are compared there
)


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Groups of two or more items with equal bytes; b"" belongs to none."""
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of thumbnails that show the same picture.

    A 64-bit hash (which of two neighbours in an 8 x 9 reduction is brighter) names the candidates: hashes that differ in at most 3 bits agree in one of
    four bands of 16, so only equal bands are compared. The thumbnails then decide. Flat thumbnails say nothing and are left out.

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
    whole = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    usable = np.flatnonzero(spread > 2)
    found: set[tuple[int, int]] = set()
    for band in range(4):
        order = usable[np.lexsort((whole[usable], bands[usable, band]))]
        starts = np.flatnonzero(np.diff(bands[order, band], prepend=-1))
        for group in np.split(order, starts[1:]):
            if len(group) < 2:
                continue
            if len(group) <= _CROWD:
                a, b = np.triu_indices(len(group), 1)
            else:
                a = np.repeat(np.arange(len(group) - 8), 8)
                b = a + np.tile(np.arange(1, 9), len(group) - 8)
            a, b = group[a], group[b]
            close = (
                np.bitwise_count(whole[a] ^ whole[b]) <= _BITS
                if hasattr(np, "bitwise_count")
                else _within_hamming(whole[a] ^ whole[b])
            )
            a, b = a[close], b[close]
            same = np.abs(level[a] - level[b]).mean(axis=1) <= _FAR
            found.update((min(i, j), max(i, j)) for i, j in zip(a[same].tolist(), b[same].tolist()))
    return sorted(found)


def _within_hamming(words: np.ndarray) -> np.ndarray:
    """Whether at most _BITS bits are set; numpy 1.26 cannot count them itself."""
    return np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) <= _BITS


def duplicate_groups(pairs: Sequence[tuple[int, int]], n: int) -> list[list[int]]:
    """Pairs joined to groups, each sorted."""
    parent = list(range(n))

    def top(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        parent[top(j)] = top(i)
    groups: dict[int, list[int]] = {}
    for i in sorted({i for pair in pairs for i in pair}):
        groups.setdefault(top(i), []).append(i)
    return list(groups.values())
