"""Order of the training images in an epoch: a permutation of all of them, or of one window of them after the other.

The full order of n images takes 8 n bytes and reads from everywhere. The windowed one cuts the stored order of the
images (shards/layout.py) into blocks, permutes the blocks, and permutes the images of each window of so many blocks
together. Only one window is held; a run that is resumed in the middle of an epoch computes the window that it is in
and none before. Both are pure functions of (seed, epoch) and of the number of images, not of the files that hold them,
so a run may go from a folder to its shards. With one window of all blocks the windowed order is the full one. Blocks
lie together in the tar files if all training images, and unlabeled ones, are trained on; a run on a part of them reads
from more places, in the same order as from the folder.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lit_vision.data.shards.layout import stored_order
from lit_vision.errors import UsageError

BLOCK = 1024  # images
WINDOW_BLOCKS = 1024  # blocks of a window: about a million images
FULL_UP_TO = 10_000_000  # images; more have the windowed order, unless the recipe says otherwise
_BLOCK_STREAM, _WINDOW_STREAM = 1, 2  # of the seed


class EpochOrder(Protocol):
    """Order of the images of one epoch."""

    def take(self, first: int, stop: int) -> np.ndarray:
        """Return the indices at places `first` to before `stop` of the order, int64."""


class FullOrder:
    """Permutation of n images.

    Args:
        n: images.
        seed: in [0, 2**64).
        epoch: number of the epoch.
    """

    def __init__(self, n: int, seed: int, epoch: int):
        self._order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, epoch])).permutation(n)

    def take(self, first: int, stop: int) -> np.ndarray:
        """Return the indices at places `first` to before `stop` of the order, int64."""
        return self._order[first:stop]


class WindowedOrder:
    """Order of n images by windows: blocks of the stored order are permuted, then the images of each window of blocks.

    Args:
        n: images, below 2**31.
        seed: in [0, 2**64).
        epoch: number of the epoch.
        block: images of a block; the last may have fewer.
        window_blocks: blocks of a window; the last may have fewer.
    """

    def __init__(self, n: int, seed: int, epoch: int, block: int = BLOCK, window_blocks: int = WINDOW_BLOCKS):
        self.n, self.seed, self.epoch, self.block, self.window_blocks = n, seed, epoch, block, window_blocks
        count = -(-n // block)
        bits = np.random.Philox(key=np.array([seed, _BLOCK_STREAM], np.uint64), counter=[0, 0, 0, epoch])
        self._blocks = np.random.Generator(bits).permutation(count)
        sizes = np.full(count, block)
        sizes[self._blocks == count - 1] = n - (count - 1) * block  # the last block may be smaller, wherever it comes
        starts = np.arange(0, count, window_blocks)
        self._ends = np.cumsum(np.add.reduceat(sizes, starts)) if count else np.zeros(0, np.int64)
        self._held, self._window = -1, np.zeros(0, np.int64)

    def take(self, first: int, stop: int) -> np.ndarray:
        """Return the indices at places `first` to before `stop` of the order, int64."""
        parts = []
        while first < stop:
            number = int(np.searchsorted(self._ends, first, "right"))
            if number == len(self._ends):
                break
            start = int(self._ends[number - 1]) if number else 0
            parts.append(self._indices_of(number)[first - start : stop - start])
            first = int(self._ends[number])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _indices_of(self, number: int) -> np.ndarray:
        """Return the indices of a window in their order."""
        if number != self._held:
            self._window = np.zeros(0, np.int64)  # the one before is given up first
            blocks = self._blocks[number * self.window_blocks : (number + 1) * self.window_blocks]
            edges = [(block * self.block, min((block + 1) * self.block, self.n)) for block in np.sort(blocks).tolist()]
            indices = np.sort(np.concatenate([stored_order(first, stop, self.n) for first, stop in edges]))
            # the first window has the stream of the full order, which it is if it holds everything
            key = [self.seed, _WINDOW_STREAM] if number else [self.seed, 0]
            bits = np.random.Philox(key=np.array(key, np.uint64), counter=[0, 0, number, self.epoch])
            self._held, self._window = number, indices[np.random.Generator(bits).permutation(len(indices))]
        return self._window


def check_order(order: str, window_blocks: int) -> str:
    """Return the name of an order, or raise a UsageError for another one or for no blocks."""
    if order not in ("auto", "full", "windowed"):
        raise UsageError(f"data.order: {order!r}; give auto, full or windowed")
    if window_blocks < 1:
        raise UsageError(f"data.window_blocks: {window_blocks}; give at least 1")
    return order


def describe_order(windowed: bool, window_blocks: int) -> str:
    """Return the order as a checkpoint and a run's environment.json record it."""
    return f"windowed, {window_blocks} blocks of {BLOCK}" if windowed else "full"


def relative_distance(n: int, block: int = BLOCK, window_blocks: int = WINDOW_BLOCKS) -> float:
    """Return how far apart in the windowed order two images of one block come on average, over that in the full one.

    Two of m permuted images are (m + 1) / 3 places apart on average; all images of a block are in one window. 1 is the
    full order. A small window also leaves two such images in one batch n / m times as often.

    Args:
        n: images.
        block: images of a block.
        window_blocks: blocks of a window.
    """
    count = -(-n // block)
    sizes = [min(window_blocks, count - start) for start in range(0, count, window_blocks)]
    return sum(blocks / count * (min(blocks * block, n) + 1) / (n + 1) for blocks in sizes) if count else 1.0


def order_line(n: int, window_blocks: int) -> str:
    """Return a line about the windowed order of n images: its windows, its distance from the full one, its memory."""
    size, blocks = min(n, BLOCK * window_blocks), -(-n // BLOCK)
    # at its making a window is there as places, sorted, as a permutation, and permuted
    memory = 8 * (4 * size + blocks)
    return (
        f"order: windowed, {-(-n // max(1, size))} windows of {size:,} images; two stored in a block of {BLOCK:,} come "
        f"{relative_distance(n, BLOCK, window_blocks):.3f} as far apart as in the full order (1); "
        f"{memory / 1e6:.1f} MB at most, the full order takes {8 * n / 1e6:.1f} MB"
    )
