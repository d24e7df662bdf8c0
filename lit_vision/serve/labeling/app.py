"""The routes of lit-vision label."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lit_vision.errors import UserError
from lit_vision.serve.access import Access
from lit_vision.serve.app import make_app
from lit_vision.serve.guard import Guard, Limits, PlainJSONResponse
from lit_vision.serve.labeling.events import AnswerConflictError, LabelingError, as_json
from lit_vision.serve.labeling.exports import EXPORTS
from lit_vision.serve.labeling.learner import Learner
from lit_vision.serve.labeling.outcome import write_outcome
from lit_vision.serve.labeling.review import Review
from lit_vision.serve.labeling.session import Labeling
from lit_vision.serve.pictures import PREVIEW_SIDE, THUMBNAIL_SIDE

PAGES = {"/": "label.html"}
LIMITS = Limits(body_bytes=100_000, held_bytes=10_000_000)  # an answer has a few hundred bytes
SIDES = (PREVIEW_SIDE, THUMBNAIL_SIDE)
MOST_IMAGES = 100  # of an answer to /next and /similar
_MOST_HELD = 1000  # numbers that a browser may say it holds
T = TypeVar("T")


class LabelApp:
    """Answers the page's requests with a labeling.

    Args:
        labeling: images, answers and order.
        learner: that learns along.
    """

    def __init__(self, labeling: Labeling, learner: Learner) -> None:
        self.labeling, self.learner = labeling, learner
        self.review = Review(labeling, learner.features)

    def app(self, access: Access, limits: Limits = LIMITS) -> Guard:
        """Return the ASGI app."""
        routes = [
            Route("/v1/label/state", self.state),
            Route("/v1/label/next", self.next),
            Route("/v1/label/images/{number:int}", self.picture),
            Route("/v1/label/item/{number:int}", self.item),
            Route("/v1/label/answers", self.answer, methods=["POST"]),
            Route("/v1/label/undo", self.undo, methods=["POST"]),
            Route("/v1/label/classes", self.classes, methods=["POST"]),
            Route("/v1/label/review", self.review_page),
            Route("/v1/label/similar/{number:int}", self.similar),
            Route("/v1/label/export/{name}", self.export),
            Route("/v1/label/finish", self.finish, methods=["POST"]),
        ]
        return make_app(routes, PAGES, access, limits)

    async def state(self, request: Request) -> Response:
        """Answer with counts, classes, the model's state and accuracy."""
        return PlainJSONResponse(await run_in_threadpool(self.labeling.state))

    async def next(self, request: Request) -> Response:
        """Answer with the next images to label."""
        count = _number(request, "count", 1, 1, MOST_IMAGES)
        texts = [text for text in request.query_params.get("skip", "").split(",") if text]
        if len(texts) > _MOST_HELD or not all(text.isascii() and text.isdigit() and len(text) < 12 for text in texts):
            raise HTTPException(400, f"skip: give at most {_MOST_HELD} numbers, separated by commas")
        images = await run_in_threadpool(self.labeling.next, count, {int(text) for text in texts})
        return PlainJSONResponse({"images": images})

    async def item(self, request: Request) -> Response:
        """Answer with one image's path and answer."""
        return PlainJSONResponse(await _run(self.labeling.item, request.path_params["number"]))

    async def picture(self, request: Request) -> Response:
        """Answer with one image as a JPEG."""
        side = _number(request, "side", PREVIEW_SIDE, 1, PREVIEW_SIDE)
        if side not in SIDES:
            raise HTTPException(400, f"side: must be one of {', '.join(map(str, SIDES))}")
        made, blake2b = await _run(self.labeling.picture, request.path_params["number"], side)
        return Response(made, media_type="image/jpeg", headers={"ETag": f'"{blake2b}"'})

    async def answer(self, request: Request) -> Response:
        """Store an answer; 409 with the present one if another browser was faster, 410 if the file has changed."""
        body = await _body(request, number=int, kind=str, id=str)
        labels, replaces, seen = body.get("labels") or [], body.get("replaces"), body.get("seen")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise HTTPException(400, "labels: give a list of names")
        if not isinstance(replaces, (str, type(None))):
            raise HTTPException(400, "replaces: give the id of an answer, or null")
        if not isinstance(seen, (str, type(None))):
            raise HTTPException(400, "seen: give the ETag of the image without its quotes, or null")
        try:
            number = await _run(self.labeling.number_of, body["number"], body.get("path"))
            answer = await _run(self.labeling.answer, number, body["kind"], labels, body["id"], replaces, seen)
        except AnswerConflictError as error:
            return _conflict(error)
        return PlainJSONResponse({"answer": as_json(answer), "state": await run_in_threadpool(self.labeling.state)})

    async def undo(self, request: Request) -> Response:
        """Take an answer back."""
        body = await _body(request, id=str)
        try:
            number, previous = await _run(self.labeling.undo, body["id"])
        except AnswerConflictError as error:
            return _conflict(error)
        return PlainJSONResponse({"number": number, "answer": as_json(previous)})

    async def classes(self, request: Request) -> Response:
        """Add or rename a class."""
        body = await _body(request)
        if "add" in body:
            await _run(self.labeling.add_class, body["add"])
        elif isinstance(body.get("rename"), str):
            merge = body.get("merge") is True
            await _run(self.labeling.rename_class, body["rename"], body.get("to"), merge)
        else:
            raise HTTPException(400, 'body: give {"add": NAME} or {"rename": NAME, "to": NAME}')
        return PlainJSONResponse({"classes": await run_in_threadpool(self.labeling.class_list)})

    async def review_page(self, request: Request) -> Response:
        """Answer with images to look at again."""
        page = _number(request, "page", 0, 0, 10_000)
        return PlainJSONResponse(await _run(self.review.page, request.query_params.get("kind", "wrong"), page))

    async def similar(self, request: Request) -> Response:
        """Answer with the images that are most similar to one."""
        count = _number(request, "count", 24, 1, MOST_IMAGES)
        return PlainJSONResponse({"images": await _run(self.review.similar, request.path_params["number"], count)})

    async def export(self, request: Request) -> Response:
        """Answer with a file of all labels."""
        if (name := request.path_params["name"]) not in EXPORTS:
            raise HTTPException(404, f"there is no such export, only {', '.join(EXPORTS)}")
        file_name, media_type, function = EXPORTS[name]
        content = await _run(function, self.labeling)
        return Response(
            content, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{file_name}"'}
        )

    async def finish(self, request: Request) -> Response:
        """Write the table of labels and the model."""
        await _body(request)
        try:
            done = await _run(write_outcome, self.labeling, self.learner)
        except UserError as error:
            raise HTTPException(507, str(error)) from None
        return PlainJSONResponse({"files": [str(file) for file in done.files], "lines": done.lines, "next": done.next})


async def _run(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function on another thread; its LabelingError becomes an answer."""
    try:
        return await run_in_threadpool(function, *arguments)
    except AnswerConflictError:
        raise
    except LabelingError as error:
        raise HTTPException(error.status, str(error)) from None


def _conflict(error: AnswerConflictError) -> Response:
    return PlainJSONResponse({"error": str(error), "answer": as_json(error.answer)}, 409)


async def _body(request: Request, **wanted: type) -> dict[str, Any]:
    """Return the JSON object of a body, which must have some values of some types.

    Raises:
        HTTPException: 415 for another content type, which a form of another site could send; 400 for other content.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Content-Type: send application/json")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "body: is not valid JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "body: give a JSON object")
    for name, kind in wanted.items():
        if type(body.get(name)) is not kind:  # True is an int
            raise HTTPException(400, f"{name}: is missing or of another type")
    return body


def _number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """Return a number of the query."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        raise HTTPException(400, f"{name}: give a number from {low} to {high}")
    return int(text)
