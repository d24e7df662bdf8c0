"""Metrics of a server in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts requests, images and batches.

    Args:
        paths: that are counted by name; all others count as "other", or a client could fill the memory with names.
        waiting: returns the number of images that wait or run.
    """

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, paths: Collection[str], waiting: Callable[[], int]) -> None:
        self._paths = frozenset(paths)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU seconds, open files
        registry, space = self._registry, "lit_vision"
        self._requests = Counter(
            "requests", "Requests by path and status.", ("path", "status"), registry=registry, namespace=space
        )
        self._seconds = Histogram(
            "request_seconds",
            "Time from a request to its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
            namespace=space,
        )
        self._batches = Histogram(
            "batch_images",
            "Images that ran through the model together.",
            buckets=_IMAGES,
            registry=registry,
            namespace=space,
        )
        Gauge("waiting_images", "Images that wait or run.", registry=registry, namespace=space).set_function(waiting)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        path = path if path in self._paths else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def observe_batch(self, images: int) -> None:
        """Count a batch."""
        self._batches.observe(images)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
