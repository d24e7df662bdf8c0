"""Random numbers as a pure function of a key: Philox streams, seeds, and a temporary seed for global generators.

A stream belongs to (seed, epoch, index, copy, view). Nothing here has a state that a worker could repeat or lose: the
same key gives the same numbers in every process and in every order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lit_vision.io.hashing import seed_from_text

Key = tuple[int, int, int]  # (epoch, index, copy)


def derive_seed(*ints: int) -> int:
    """Return a 64-bit seed derived from integers, e.g. `derive_seed(seed, epoch, index, copy)`.

    It is computed with blake2b, because Python's `hash()` is salted per process.

    Args:
        ints: any number of integers of any size and sign; their order matters.

    Returns:
        An integer in [0, 2**64).
    """
    return seed_from_text(",".join(str(int(i)) for i in ints))


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, numpy and torch inside the block, and restore their states after it.

    For code that uses the global generators (timm's RandAugment, random erasing, mixup, cutmix). `torch.manual_seed`
    would format a stack trace for CUDA's lazy queue (180 us), so only the CPU generator is seeded.

    Args:
        seed: an integer in [0, 2**64), usually from `derive_seed`; numpy gets its low 32 bits.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


class PhiloxStreams:
    """Uniform numbers of one Philox-4x64 stream per (epoch, index, copy, view) under one seed.

    A stream is `Generator(Philox(key=[seed, domain], counter=[0, copy * 256 + view, index, epoch]))`. One generator is
    reused and its state set for each key: about 5 us for 24 numbers, while a new generator costs 36 us.

    Args:
        seed: in [0, 2**64).
        domain: separates uses of one seed, in [0, 2**64).
    """

    def __init__(self, seed: int, domain: int = 0):
        self.seed, self.domain = int(seed), int(domain)
        self._bits = np.random.Philox(0)
        self._random = np.random.Generator(self._bits).random
        self._key = {"counter": (0, 0, 0, 0), "key": (self.seed, self.domain)}
        self._state: Any = {  # plain tuples: setting them costs 1 us, arrays cost 8
            "bit_generator": "Philox",
            "state": self._key,
            "buffer": (0, 0, 0, 0),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }

    def uniforms(self, epoch: int, index: int, copy: int, view: int, n: int) -> list[float]:
        """Return the stream's first n numbers, in [0, 1).

        Args:
            epoch: in [0, 2**64).
            index: position of the sample in its data set, in [0, 2**64).
            copy: in [0, 2**56).
            view: in [0, 256).
            n: number of values.
        """
        self._key["counter"] = (0, copy * 256 + view, index, epoch)
        self._bits.state = self._state
        numbers: list[float] = self._random(n).tolist()
        return numbers

    def more(self, n: int) -> list[float]:
        """Return the n numbers that follow those of the last call."""
        numbers: list[float] = self._random(n).tolist()
        return numbers

    def __reduce__(self) -> tuple[type[PhiloxStreams], tuple[int, int]]:
        """Let a spawned worker create a new generator: the streams have no state worth sending."""
        return PhiloxStreams, (self.seed, self.domain)
