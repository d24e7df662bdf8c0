"""The order of samples as a pure function of (seed, epoch), yielding keys: no worker holds a state that can repeat or go stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Key = tuple[int, int, int]  # (epoch, index, copy)


class TrainBatches:
    """Batch sampler for training: a new permutation each epoch, cut into global batches, of which each rank takes its slice.

    The same samples meet in the same optimizer step for any split of the global batch over ranks and accumulation, as long as
    batch_size x world x accumulate stays the same. What does not fill a last global batch is left out (another part each epoch).

    Attributes:
        epoch: the epoch that the next iterator yields.
        on_epoch: called with an epoch that is over, when the next one begins.
        start: how many batches of it to leave out, after a resume in the middle; `len()` still counts the whole epoch, since
            Lightning adds the batches already done itself.

    Args:
        n: samples in the data set.
        batch_size: samples per rank and batch.
        rank: this process, in [0, world).
        world: number of processes.
        accumulate: batches per optimizer step; an epoch has a whole number of steps.
        seed: in [0, 2**64).
        copies: repeated augmentation: each drawn image comes `copies` times in a row with its own views; the epoch keeps its
            length, so it visits about n / copies images (as DeiT has it).
    """

    def __init__(self, n: int, batch_size: int, rank: int, world: int, accumulate: int, seed: int, copies: int = 1):
        if min(batch_size, world, accumulate, copies) < 1 or not 0 <= rank < world or n < 0:
            raise ValueError(
                f"n={n} batch_size={batch_size} rank={rank} world={world} accumulate={accumulate} copies={copies}"
            )
        self.n, self.size, self.rank, self.world = n, batch_size, rank, world
        self.accumulate, self.seed, self.copies = accumulate, seed, copies
        self.epoch = self.start = 0
        self.on_epoch: Callable[[int], None] | None = None
        self.sampler = self  # Lightning calls batch_sampler.sampler.set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch. Lightning calls it after iter() in a run's first epoch and before it in the others (#21938)."""
        if epoch != self.epoch:
            over, self.epoch, self.start = self.epoch, epoch, 0
            if self.on_epoch:
                self.on_epoch(over)

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return self.n // (self.size * self.world * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        """Read the state now (this is no generator) and change nothing: torch calls it twice when there are workers."""
        epoch, per_batch = self.epoch, self.size * self.world
        order = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, epoch])).permutation(self.n)
        place = np.arange(len(self) * per_batch)
        index = order[place // self.copies].reshape(len(self), self.world, self.size)[self.start :, self.rank]
        copy = (place % self.copies).reshape(len(self), self.world, self.size)[self.start :, self.rank]
        return ([(epoch, i, c) for i, c in zip(row.tolist(), turn.tolist())] for row, turn in zip(index, copy))


class EvalBatches:
    """Batch sampler for measuring: every sample exactly once over all ranks, in order, nothing padded or repeated.

    Rank r takes the r-th of `world` neighbouring blocks, whose lengths differ by one at most.

    Args:
        n: samples in the data set.
        batch_size: samples per batch; the last may be smaller.
        rank: this process, in [0, world).
        world: number of processes.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1):
        if batch_size < 1 or not 0 <= rank < world or n < 0:
            raise ValueError(f"n={n} batch_size={batch_size} rank={rank} world={world}")
        self.first, self.last = n * rank // world, n * (rank + 1) // world
        self.size = batch_size
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the order does not depend on the epoch. Lightning calls it."""

    def __len__(self) -> int:
        """Batches on this rank."""
        return -(-(self.last - self.first) // self.size)

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of epoch 0, copy 0."""
        starts = range(self.first, self.last, self.size)
        return ([(0, i, 0) for i in range(s, min(s + self.size, self.last))] for s in starts)
