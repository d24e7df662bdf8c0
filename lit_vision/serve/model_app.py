"""The routes of lit-vision serve: predictions and features of uploaded images, search, and what the page asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lit_vision.errors import UserError
from lit_vision.predict.inference import check_ranges
from lit_vision.predict.shared_space import check_texts
from lit_vision.predict.tasks import results_with_options
from lit_vision.results.overlays import color_of_class
from lit_vision.serve.access import Access
from lit_vision.serve.app import make_app
from lit_vision.serve.guard import Guard, Limits, PlainJSONResponse, busy_error
from lit_vision.serve.metrics import Metrics
from lit_vision.serve.pictures import thumbnail
from lit_vision.serve.predictor import INCLUDES, Predictor, Wanted
from lit_vision.serve.text_search import DEFAULT_RESULTS, LONGEST_TEXT, MOST_RESULTS, TextSearch
from lit_vision.serve.uploads import Upload, read_uploads

PAGES = {"/": "try.html", "/api": "api.html", "/openapi.json": "openapi.json"}
OPTIONS = {"top_k": int, "min_score": float}  # of the predict command that a request may give
_PATHS = (*PAGES, "/v1/predict", "/v1/embed", "/v1/search", "/v1/model", "/healthz", "/metrics", "/session")
_Found = TypeVar("_Found")


class ModelApp:
    """Answers requests with a predictor.

    Args:
        predictor: runs the model.
        limits: bounds of requests.
        index_root: the folder that the names of the predictor's index are relative to; None if its images are not
            shown.
        text_search: of the predictor's index; None if it cannot be searched by words.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        index_root: Path | None = None,
        text_search: TextSearch | None = None,
    ) -> None:
        self.predictor, self.limits, self.index_root, self.text_search = predictor, limits, index_root, text_search
        self.waiting = 0  # images and texts that were let in and are not answered
        self.metrics = Metrics(_PATHS, lambda: self.waiting)
        predictor.observe_batch = self.metrics.observe_batch

    def app(self, access: Access) -> Guard:
        """Return the ASGI app."""
        routes = [
            Route("/v1/model", self.model),
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/v1/embed", self.embed, methods=["POST"]),
            Route("/v1/search", self.search),
            Route("/v1/index/{number:int}", self.index_image),
            Route("/metrics", self.show_metrics),
        ]
        return make_app(routes, PAGES, access, self.limits, self.metrics.observe_request)

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        metadata = self.predictor.model.metadata
        background = metadata.options.get("background")
        return PlainJSONResponse(
            {
                "name": self.predictor.model.path.name,
                "task": metadata.task,
                "runtime": self.predictor.model.runtime,
                "classes": metadata.class_names,
                "colors": ["#{:02x}{:02x}{:02x}".format(*color_of_class(i)) for i in range(len(metadata.class_names))],
                "background": background,
                "size": metadata.size,
                "weights": metadata.weights,
                "license": metadata.license,
                "predicts": self.predictor.predicts,
                "embeds": self.predictor.embeds,
                "include": self.predictor.includes,
                "options": self._options(),
                "indexed": len(self.predictor.index.names) if self.predictor.index is not None else 0,
                "index_images": self.index_root is not None,
                "searches": self.text_search is not None,
                "limits": {
                    "images": self.limits.images,
                    "bytes": self.limits.body_bytes,
                    "pixels": self.limits.pixels,
                },
            }
        )

    def _options(self) -> dict[str, Any]:
        """Return the options that apply to the model's task, with their defaults."""
        if not self.predictor.predicts:
            return {}
        _, options = results_with_options(self.predictor.model, {})
        return {name: options[name] for name in OPTIONS if name in options}

    async def predict(self, request: Request) -> Response:
        """Answer with the predictions of the images in the body."""
        model = self.predictor.model
        include = self._include(request)
        if not self.predictor.predicts and not include & {"neighbors", "restored"}:
            if "restored" in self.predictor.includes:
                raise HTTPException(404, "this model restores images; use /v1/predict?include=restored")
            raise HTTPException(404, f"this model returns {model.metadata.task} and no predictions; use /v1/embed")
        options = _options_of(request.query_params)
        if self.predictor.predicts:
            _checked(lambda: results_with_options(model, options))
        elif options:
            raise HTTPException(400, f"{min(options)}: this model has no predictions")
        return await self._answer(request, Wanted(options, include))

    async def embed(self, request: Request) -> Response:
        """Answer with the features of the images in the body."""
        if not self.predictor.embeds:
            task = self.predictor.model.metadata.task
            raise HTTPException(404, f"this model is for {task} and has no features; use /v1/predict")
        return await self._answer(request, Wanted(features=True))

    def _include(self, request: Request) -> frozenset[str]:
        """Return the names that the request's `include` lists."""
        names = [name for name in request.query_params.get("include", "").split(",") if name]
        for name in names:
            if name not in INCLUDES:
                raise HTTPException(400, f"include: {name[:50]!r} is none of {', '.join(INCLUDES)}")
            if name not in self.predictor.includes:
                raise HTTPException(
                    400, f"include: this server has no {name}, only {', '.join(self.predictor.includes)}"
                )
        return frozenset(names)

    async def _answer(self, request: Request, wanted: Wanted) -> Response:
        """Run the images of the body; 422 if none of them can be read."""
        uploads = await read_uploads(request, self.limits)
        if self.waiting + len(uploads) > self.limits.queued_images:
            raise busy_error()
        self.waiting += len(uploads)
        try:
            answers = await self._run(uploads, wanted)
        finally:
            self.waiting -= len(uploads)
        readable = any("error" not in answer for answer in answers)
        return PlainJSONResponse({"results": answers}, 200 if readable else 422)

    async def _run(self, uploads: list[Upload], wanted: Wanted) -> list[dict[str, Any]]:
        futures: list[Future[dict[str, Any]]] = [self.predictor.submit(upload, wanted) for upload in uploads]
        try:
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        except UserError as error:  # of the model: its outputs are not finite
            raise HTTPException(500, str(error)) from None

    async def search(self, request: Request) -> Response:
        """Answer with the images of the index that are nearest to the words of the query."""
        if self.text_search is None:
            raise HTTPException(
                404, "this server has no search by words; it takes --index and a model of images and captions"
            )
        text, top_k = _question_of(request.query_params)
        if self.waiting >= self.limits.queued_images:
            raise busy_error()
        self.waiting += 1
        try:
            found = await asyncio.wrap_future(self.text_search.submit(text, top_k))
        finally:
            self.waiting -= 1
        return PlainJSONResponse({"results": found})

    async def index_image(self, request: Request) -> Response:
        """Answer with a small picture of an image of the index, by its number."""
        number, index = request.path_params["number"], self.predictor.index
        if self.index_root is None or index is None or not 0 <= number < len(index.names):
            raise HTTPException(404, "no such image")
        found = await run_in_threadpool(thumbnail, self.index_root, index.names[number])
        if found is None:
            raise HTTPException(404, "the image is not below --index_root, or cannot be read")
        return Response(found, media_type="image/jpeg")

    async def show_metrics(self, request: Request) -> Response:
        """Answer with Prometheus' text."""
        return Response(self.metrics.text(), headers={"Content-Type": Metrics.media_type})


def _options_of(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the options in a query.

    Raises:
        HTTPException: 400 for a value that is no number or out of range.
    """
    found: dict[str, Any] = {}
    for name, kind in OPTIONS.items():
        if (text := query.get(name)) is not None:
            try:
                found[name] = kind(text)
            except ValueError:
                raise HTTPException(400, f"{name}: is not a number") from None
    _checked(lambda: check_ranges(found))
    return found


def _question_of(query: Mapping[str, str]) -> tuple[str, int]:
    """Return the words of a query and the number of images that it asks for.

    Raises:
        HTTPException: 400 for no words, too many, or a number out of range.
    """
    (text,) = _checked(lambda: check_texts([query.get("text", "")], "text"))
    if len(text) > LONGEST_TEXT:
        raise HTTPException(400, f"text: has {len(text)} characters; give at most {LONGEST_TEXT}")
    given = {"top_k": query["top_k"]} if "top_k" in query else {}
    top_k: int = _options_of(given).get("top_k", DEFAULT_RESULTS)
    if top_k > MOST_RESULTS:
        raise HTTPException(400, f"top_k: give at most {MOST_RESULTS}")
    return text, top_k


def _checked(check: Callable[[], _Found]) -> _Found:
    """Return what `check` returns; turn its UserError, whose flag is that of the command line, into an answer."""
    try:
        return check()
    except UserError as error:
        raise HTTPException(400, str(error).removeprefix("--")) from None
