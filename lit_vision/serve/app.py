"""The app that the pages share: static files, signing in, errors as JSON, and the guard around all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lit_vision.serve.access import Access
from lit_vision.serve.guard import Guard, Limits, PlainJSONResponse, error_response

_MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_LONGEST_TOKEN = 1000  # bytes of the body that signs in


def static_files() -> dict[str, tuple[bytes, str]]:
    """Return content and media type of the files in static/, by name: what is not listed cannot be asked for."""
    folder = files("lit_vision.serve") / "static"
    found = [entry for entry in folder.iterdir() if entry.name.rpartition(".")[2] in _MEDIA_TYPES]
    return {entry.name: (entry.read_bytes(), _MEDIA_TYPES[entry.name.rpartition(".")[2]]) for entry in found}


def make_app(
    routes: Sequence[Route],
    pages: Mapping[str, str],
    access: Access,
    limits: Limits,
    observe: Callable[[str, int, float], None] | None = None,
) -> Guard:
    """Return an ASGI app: pages, their static files, /session, /healthz and further routes, behind the guard.

    Args:
        routes: of the command; their answers need the token.
        pages: {path: file in static/}; a page holds nothing that needs the token, its script asks for it.
        access: who may come in.
        limits: bounds of requests.
        observe: called with path, status and seconds of each request.
    """
    static = static_files()

    def file_response(name: str) -> Response:
        if name not in static:
            raise HTTPException(404, "no such file")
        content, media_type = static[name]
        return Response(content, media_type=media_type)

    async def static_file(request: Request) -> Response:
        return file_response(request.path_params["name"])

    def page(name: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            return file_response(name)

        return answer

    async def session(request: Request) -> Response:
        """Exchange the token for a cookie."""
        opened = access.open_session(await _token_of(request)) if access.token else ""
        if opened is None:
            return error_response(401, "token: is wrong; open the link that the command printed")
        headers = {"Set-Cookie": access.set_cookie(opened)} if opened else {}
        return PlainJSONResponse({"signed_in": True}, headers=headers)

    async def healthz(request: Request) -> Response:
        return PlainJSONResponse({"status": "ok"})

    app = Starlette(
        routes=[
            *(Route(path, page(name)) for path, name in pages.items()),
            Route("/static/{name}", static_file),
            Route("/session", session, methods=["POST"]),
            Route("/healthz", healthz),
            *routes,
        ],
        exception_handlers={HTTPException: _http_error, Exception: _unexpected},
    )
    app.router.redirect_slashes = False
    return Guard(app, access, limits, pages, ("/static/", "/session", "/healthz"), observe)


async def _token_of(request: Request) -> object:
    """Return the token in the body of a request, {"token": ...}; None if there is none."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_TOKEN:
            return None
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return values.get("token") if isinstance(values, dict) else None


def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise TypeError("not an HTTPException")
    return error_response(error.status_code, error.detail, dict(error.headers or {}))


def _unexpected(request: Request, error: Exception) -> Response:
    """Answer without the traceback, which goes to the log."""
    return error_response(500, "failed; the server's output says why")
