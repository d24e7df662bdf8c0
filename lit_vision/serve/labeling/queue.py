"""The order in which images are asked: every fifth from a random sample that measures accuracy, the others as chosen.

The sample (a fifth of all images) follows from the paths alone, so that it is the same after a restart and independent
of what was chosen and of the answers; no model is trained on it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

AUDIT_EVERY = 5
AUDIT_REASON = "drawn at random to measure accuracy"
RANDOM_REASON = "drawn at random"
_RANGE = 1 << 64


@dataclass(frozen=True)
class QueuedImage:
    """An image to label, and the reason in plain words."""

    number: int
    audit: bool
    reason: str


class ImageQueue:
    """Images in the order in which they are asked.

    Args:
        paths: of all images.

    Attributes:
        order: all numbers, in a random order.
        audit_order: numbers of the images that measure accuracy, in the order in which they are asked.
        random_order: those of all others, in a random order.
        chosen: (number, reason) of images that a strategy chose; they are asked before the others.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        keys = [_random_key(path) for path in paths]
        self.order = order = sorted(range(len(paths)), key=keys.__getitem__)
        # the order within the sample comes from other bits than the membership
        self.audit_order = [number for number in order if is_audit(paths[number])]
        audit = set(self.audit_order)
        self.random_order = [number for number in order if number not in audit]
        self.chosen: list[tuple[int, str]] = []

    def next(
        self,
        count: int,
        held: Collection[int],
        is_done: Callable[[int], bool],
        answered: tuple[int, int],
    ) -> list[QueuedImage]:
        """Return the next images.

        Args:
            count: at most this many.
            held: numbers that the browser has and that are not answered yet.
            is_done: True for an image that is answered or cannot be read.
            answered: numbers of answered images of the sample and of others.
        """
        audit = set(self.audit_order)
        audits = answered[0] + sum(number in audit for number in held)
        others = answered[1] + sum(number not in audit for number in held)
        to_audit = self._free(self._audits(), held, is_done)
        to_train = self._free(self._others(), held, is_done)
        found: list[QueuedImage] = []
        while len(found) < count:
            sources = (
                [to_audit, to_train] if AUDIT_EVERY * (audits + 1) <= audits + others + 1 else [to_train, to_audit]
            )
            choice = next(sources[0], None) or next(sources[1], None)
            if choice is None:
                break
            found.append(choice)
            audits, others = audits + choice.audit, others + (not choice.audit)
        return found

    def _audits(self) -> Iterator[QueuedImage]:
        return (QueuedImage(number, True, AUDIT_REASON) for number in self.audit_order)

    def _others(self) -> Iterator[QueuedImage]:
        yield from (QueuedImage(number, False, reason) for number, reason in self.chosen)
        yield from (QueuedImage(number, False, RANDOM_REASON) for number in self.random_order)

    @staticmethod
    def _free(
        choices: Iterable[QueuedImage], held: Container[int], is_done: Callable[[int], bool]
    ) -> Iterator[QueuedImage]:
        given: set[int] = set()
        for choice in choices:
            if choice.number not in held and choice.number not in given and not is_done(choice.number):
                given.add(choice.number)
                yield choice


def is_audit(path: str) -> bool:
    """True if an image belongs to the random fifth that measures accuracy; it follows from its path alone."""
    return _random_key(f"audit/{path}") < _RANGE // AUDIT_EVERY


def _random_key(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")
