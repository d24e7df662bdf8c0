"""Search of an index by words, on a thread of its own, for the page and /v1/search."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from lit_vision.predict.ann_index import ApproximateNeighbors
from lit_vision.predict.runtimes import Model
from lit_vision.predict.search import NearestNeighbors
from lit_vision.predict.shared_space import text_vectors

LONGEST_TEXT = 1000  # characters
MOST_RESULTS = 1000
DEFAULT_RESULTS = 24


class TextSearch:
    """Finds images of an index by words. Use it as a context manager, which ends its thread.

    Args:
        model: of images and captions, loaded with `shared_space`; the index was made with it.
        names: of the images of the index.
        neighbors: of the features of the index, from `open_neighbors`.

    Raises:
        UserError: the model cannot encode texts, or its tokenizer is missing.
    """

    def __init__(self, model: Model, names: list[str], neighbors: NearestNeighbors | ApproximateNeighbors) -> None:
        self._model, self._names, self._neighbors = model, names, neighbors
        text_vectors(model, ["a"])  # what fails, fails at the start
        self._thread = ThreadPoolExecutor(1, "texts")

    def __enter__(self) -> TextSearch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def submit(self, text: str, top_k: int) -> Future[list[dict[str, Any]]]:
        """Return the future list of the images that are nearest to a text: {"number", "path", "score"}, best first."""
        return self._thread.submit(self._search, text, top_k)

    def _search(self, text: str, top_k: int) -> list[dict[str, Any]]:
        (rows,) = self._neighbors.top(text_vectors(self._model, [text]), top_k)
        return [{"number": row, "path": self._names[row], "score": round(score, 6)} for row, score in rows]
