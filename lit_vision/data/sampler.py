"""Batch samplers whose order is a pure function of (seed, epoch).

They yield keys. Neither they nor any worker hold random state, so that nothing can repeat or go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lit_vision.data.order import EpochOrder, FullOrder
from lit_vision.data.views.keyed_rng import Key


class TrainBatches:
    """Batch sampler for training: a permutation per epoch, cut into global batches, of which each rank takes a slice.

    The same samples meet in the same optimizer step for any split of the global batch over ranks and accumulation, as
    long as batch_size x world_size x accumulate stays the same. Samples that do not fill a last global batch are left
    out (different ones in each epoch).

    Attributes:
        epoch: the epoch that the next iterator yields.
        first_batch: batches of that epoch to skip, after a resume in the middle of it; `len()` still counts all batches
            of the epoch, since Lightning adds the batches already done itself.
        same_images: each epoch has the images of epoch 0 in the same batches (trainer.overfit_batches); their keys,
            and so their augmentation, are those of the epoch.
        on_epoch_end: called with the epoch that is over, when the next one begins.

    Args:
        n: samples in the data set.
        batch_size: samples per rank and batch.
        rank: this process, in [0, world_size).
        world_size: number of processes.
        accumulate: batches per optimizer step; an epoch is a multiple of it.
        seed: in [0, 2**64).
        copies: repeated augmentation: each sampled image comes `copies` times in a row, each time with new views. The
            epoch keeps its length, so it visits about n / copies images (as in DeiT).
        order: makes the order of an epoch from (n, seed, epoch), see order.py.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        rank: int,
        world_size: int,
        accumulate: int,
        seed: int,
        copies: int = 1,
        order: Callable[[int, int, int], EpochOrder] = FullOrder,
    ):
        if min(batch_size, world_size, accumulate, copies) < 1 or not 0 <= rank < world_size or n < 0:
            raise ValueError(
                f"n={n} batch_size={batch_size} rank={rank} world_size={world_size} "
                f"accumulate={accumulate} copies={copies}"
            )
        self.n, self.batch_size, self.rank, self.world_size = n, batch_size, rank, world_size
        self.accumulate, self.seed, self.copies, self.order = accumulate, seed, copies, order
        self.epoch = self.first_batch = 0
        self.same_images = False
        self.on_epoch_end: Callable[[int], None] | None = None
        self.sampler = self  # Lightning calls batch_sampler.sampler.set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch.

        Lightning calls this after iter() in a run's first epoch and before it in later ones (Lightning issue #21938).
        """
        if epoch != self.epoch:
            finished, self.epoch, self.first_batch = self.epoch, epoch, 0
            if self.on_epoch_end:
                self.on_epoch_end(finished)

    def __len__(self) -> int:
        """Batches of a full epoch on this rank."""
        return self.n // (self.batch_size * self.world_size * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        """Read the state now (this is no generator) and change nothing: torch calls it twice when there are workers."""
        order = self.order(self.n, self.seed, 0 if self.same_images else self.epoch)
        epoch, batches = self.epoch, range(self.first_batch, len(self))
        return (self._keys(order, epoch, batch) for batch in batches)

    def _keys(self, order: EpochOrder, epoch: int, batch: int) -> list[Key]:
        """Return this rank's keys of a batch of an epoch."""
        first = (batch * self.world_size + self.rank) * self.batch_size
        place, copy = divmod(np.arange(first, first + self.batch_size), self.copies)
        indices = order.take(int(place[0]), int(place[-1]) + 1)[place - place[0]]
        return [(epoch, index, number) for index, number in zip(indices.tolist(), copy.tolist())]


class EvalBatches:
    """Batch sampler for evaluation: every sample exactly once over all ranks, in order, nothing padded or repeated.

    The samples are cut into `world_size` consecutive blocks whose lengths differ by one at most; rank r takes block r.

    Args:
        n: samples in the data set.
        batch_size: samples per batch; the last may be smaller.
        rank: this process, in [0, world_size).
        world_size: number of processes.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world_size: int = 1):
        if batch_size < 1 or not 0 <= rank < world_size or n < 0:
            raise ValueError(f"n={n} batch_size={batch_size} rank={rank} world_size={world_size}")
        self.first, self.end = n * rank // world_size, n * (rank + 1) // world_size
        self.batch_size = batch_size
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order does not depend on the epoch. Lightning calls it."""

    def __len__(self) -> int:
        """Batches on this rank."""
        return -(-(self.end - self.first) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield keys of epoch 0, copy 0."""
        firsts = range(self.first, self.end, self.batch_size)
        return ([(0, i, 0) for i in range(first, min(first + self.batch_size, self.end))] for first in firsts)


def keys_in_batches(indices: np.ndarray, batch_size: int) -> list[list[Key]]:
    """Return the keys of some samples in epoch 0, copy 0, in batches; the last may be smaller."""
    parts = np.split(indices, range(batch_size, len(indices), batch_size))
    return [[(0, index, 0) for index in part.tolist()] for part in parts]
