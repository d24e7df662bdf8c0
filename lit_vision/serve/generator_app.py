"""The routes of lit-vision serve for a generator: images from noise, as one picture, and what the page asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lit_vision.errors import UserError
from lit_vision.methods.generation.sampling import AnyGenerator
from lit_vision.predict.generate import LARGEST_SEED, MICRO_BATCH, grid_of_images, make_micro_batch
from lit_vision.serve.access import Access
from lit_vision.serve.app import make_app
from lit_vision.serve.guard import Guard, Limits, PlainJSONResponse, busy_error
from lit_vision.serve.metrics import Metrics
from lit_vision.serve.pictures import png

PAGES = {"/": "generate.html", "/api": "api.html", "/openapi.json": "generate_openapi.json"}
MOST_IMAGES = MICRO_BATCH  # a request runs the network on one micro-batch, whatever its number of images
MOST_STEPS = 100  # of the sampler: each runs the network once or twice
_PATHS = (*PAGES, "/v1/generate", "/v1/model", "/healthz", "/metrics", "/session")


class GeneratorApp:
    """Answers requests with a generator, one after the other on one thread. A context manager, which ends the thread.

    Args:
        network: from `load_generator`.
        names: of its classes.
        path: of its file.
        limits: bounds of requests.
    """

    def __init__(self, network: AnyGenerator, names: Sequence[str], path: Path, limits: Limits) -> None:
        self.network, self.path, self.limits = network, path, limits
        self.names = list(names) if network.num_classes else []
        self.waiting = 0  # images of the micro-batches that wait or run
        self.metrics = Metrics(_PATHS, lambda: self.waiting)
        self._thread = ThreadPoolExecutor(1, "generator")

    def __enter__(self) -> GeneratorApp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def app(self, access: Access) -> Guard:
        """Return the ASGI app."""
        routes = [
            Route("/v1/generate", self.generate),
            Route("/v1/model", self.model),
            Route("/metrics", self.show_metrics),
        ]
        return make_app(routes, PAGES, access, self.limits, self.metrics.observe_request)

    async def model(self, request: Request) -> Response:
        """Describe the generator."""
        channels, height, width = self.network.shape
        return PlainJSONResponse(
            {
                "name": self.path.name,
                "method": self.network.method_name,
                "classes": self.names,
                "channels": channels,
                "size": [height, width],
                "steps": self.network.sampling_options.get("steps"),
                "limits": {"num": MOST_IMAGES, "steps": MOST_STEPS},
            }
        )

    async def generate(self, request: Request) -> Response:
        """Answer with a PNG of the images that the query asks for: the one that generate --grid writes."""
        query = request.query_params
        seed = _whole_number(query, "seed", 0, 0, LARGEST_SEED)
        num = _whole_number(query, "num", MOST_IMAGES, 1, MOST_IMAGES)
        numbers, options = self._classes_of(query), self._options_of(query)
        if self.waiting and self.waiting + MICRO_BATCH > self.limits.queued_images:
            raise busy_error()
        self.waiting += MICRO_BATCH
        try:
            made = self._thread.submit(self._make, seed, num, numbers, options)
            picture = await asyncio.wrap_future(made)
        except UserError:
            raise HTTPException(500, "the images are not finite; the training of this model has failed") from None
        finally:
            self.waiting -= MICRO_BATCH
        return Response(picture, media_type="image/png")

    def _make(self, seed: int, num: int, numbers: list[int] | None, options: Mapping[str, Any]) -> bytes:
        """Return the PNG; on the generator's thread."""
        self.metrics.observe_batch(num)
        return png(grid_of_images(make_micro_batch(self.network, self.path, 0, numbers, seed, **options)[:num]))

    def _classes_of(self, query: Mapping[str, str]) -> list[int] | None:
        """Return the class of a query; None for all of them in turn."""
        name = query.get("class")
        if name is None:
            return None
        if not self.names:
            raise HTTPException(400, "class: this model was trained without classes; leave it out")
        if name not in self.names:
            raise HTTPException(400, f"class: {name[:50]!r} is no class of this model; /v1/model lists them")
        return [self.names.index(name)]

    def _options_of(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the options of sampling that a query gives, with defaults for the others."""
        options = dict(self.network.sampling_options)
        if "steps" in query and "steps" not in options:
            raise HTTPException(400, f"steps: is for flow matching, and this is a {self.network.method_name}")
        if "steps" in options:
            options["steps"] = _whole_number(query, "steps", options["steps"], 1, MOST_STEPS)
        return options

    async def show_metrics(self, request: Request) -> Response:
        """Answer with Prometheus' text."""
        return Response(self.metrics.text(), headers={"Content-Type": Metrics.media_type})


def _whole_number(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return a number of a query.

    Raises:
        HTTPException: 400 for a value that is no whole number or out of range.
    """
    try:
        value = int(query.get(name, default))
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise HTTPException(400, f"{name}: give a whole number from {low} to {high}")
    return value
