"""Batches of keys that carry the keys that the same worker gets next, so that it can begin to read their images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sized
from itertools import chain
from typing import Any, cast

from lit_vision.data.views.keyed_rng import Key

AHEAD = 2  # batches of the same worker whose images are read early


class KeysWithNext(list[Key]):
    """Keys of a batch, and those of the batches that the same worker gets next, in `upcoming`."""

    upcoming: list[Key]


class LookaheadBatches:
    """Batch sampler that yields the batches of another one as `KeysWithNext`.

    The other one's order is a pure function of its state, so it can be read ahead without changing anything.

    Args:
        batches: the other sampler, or a list of lists of keys.
        workers: worker processes of the loader: batch i goes to worker i mod workers, and the next one there is
            i + workers. 0 is the loader's own process.
    """

    def __init__(self, batches: Iterable[list[Key]], workers: int):
        self.batches, self.step = batches, max(1, workers)
        if hasattr(batches, "sampler"):
            self.sampler: Any = batches.sampler  # Lightning calls batch_sampler.sampler.set_epoch

    def __len__(self) -> int:
        return len(cast(Sized, self.batches))

    def __iter__(self) -> Iterator[list[Key]]:
        """Read the other sampler's state now, as that one's own iterator does."""
        return self._with_next(iter(self.batches))

    def _with_next(self, batches: Iterator[list[Key]]) -> Iterator[list[Key]]:
        window: deque[list[Key]] = deque()
        for batch in chain(batches, [None] * (AHEAD * self.step)):
            window.append(batch or [])
            if len(window) > AHEAD * self.step:
                keys = KeysWithNext(window.popleft())
                keys.upcoming = [key for i in range(AHEAD) for key in window[(i + 1) * self.step - 1]]
                yield keys
