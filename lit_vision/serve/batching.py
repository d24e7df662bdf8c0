"""Batches of requests: what arrives within a few milliseconds runs through the model together, on one thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """One worker thread that collects items to batches. Use it as a context manager, which waits for what was put.

    Args:
        run: takes the items of a batch, on the worker thread; must not raise.
        max_batch: items of a batch.
        max_wait: seconds that the first item of a batch waits for others. Items that wait already, because the worker
            was busy, are taken without waiting.
        on_the_way: returns the number of items that will be put soon; for none of them the worker does not wait.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], None],
        max_batch: int = 32,
        max_wait: float = 0.004,
        on_the_way: Callable[[], int] = lambda: 1,
    ) -> None:
        self._run, self._max_batch, self._max_wait, self._on_the_way = run, max_batch, max_wait, on_the_way
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()  # bounded by Limits.queued_images
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def __enter__(self) -> Batcher[Item]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()

    def put(self, item: Item) -> None:
        """Add an item; never blocks."""
        self._queue.put(item)

    def _work(self) -> None:
        more = True
        while more:
            batch: list[Item] = []
            more = self._collect(batch)
            if batch:
                self._run(batch)

    def _collect(self, batch: list[Item]) -> bool:
        """Fill a batch; return False at the end of the queue."""
        end: float | None = None
        while len(batch) < self._max_batch:
            wait = None if end is None else max(0.0, end - time.monotonic()) if self._on_the_way() else 0.0
            try:
                item = self._queue.get(timeout=wait)
            except queue.Empty:
                return True
            if item is None:
                return False
            batch.append(item)
            end = end or time.monotonic() + self._max_wait
        return True
