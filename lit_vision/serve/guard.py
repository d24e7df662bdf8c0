"""The guard: ASGI middleware around every page and route of a server.

Refuses foreign hosts and origins, requests without the token, bodies that are too long or too slow, and more requests
at once than allowed; gives every answer the headers that keep a browser from doing more with it than showing it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_vision.serve.access import Access

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
RETRY_SECONDS = 1


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        body_bytes: of the body of a request.
        held_bytes: of the bodies of all requests at a time.
        body_seconds: from the first to the last byte of a body.
        requests: at a time.
        images: of a request.
        queued_images: waiting or running at a time, of all requests.
        pixels: of an image, by its header, before it is decoded.
    """

    body_bytes: int = 32_000_000
    held_bytes: int = 256_000_000
    body_seconds: float = 30.0
    requests: int = 256
    images: int = 32
    queued_images: int = 128
    pixels: int = 50_000_000


class PlainJSONResponse(JSONResponse):
    """JSON in ASCII, as predict writes it: names of files may hold what UTF-8 has no bytes for."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Guard:
    """ASGI middleware, see the module.

    Args:
        app: what stands behind it.
        access: who may come in.
        limits: bounds of requests.
        pages: paths that are open without a token and from links elsewhere: pages without content of their own.
        open_paths: further paths, or beginnings of paths that end in "/", that need no token.
        observe: called with path, status and seconds of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limits: Limits,
        pages: Collection[str] = (),
        open_paths: Collection[str] = (),
        observe: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.app, self.access, self.limits, self.observe = app, access, limits, observe
        self.pages, self.open_paths = frozenset(pages), tuple(open_paths)
        self._requests = 0
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # there are no web sockets here, and uvicorn is told so
            return await send({"type": "websocket.close", "code": 1008})
        start = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        self._requests += 1
        body = _Body(self, receive)
        try:
            refusal = self._refusal(scope)
            await (refusal or self.app)(scope, body.receive, send_with_headers)
        finally:
            self._requests -= 1
            self._held_bytes -= body.length
            if self.observe is not None:
                self.observe(scope["path"], status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a request that is not let in; None for any other."""
        headers, path = Headers(scope=scope), scope["path"]
        is_page = path in self.pages and scope["method"] in ("GET", "HEAD")
        if not self.access.allows_host(headers.get("host", "")):
            return error_response(403, "Host: is not a name of this server; give it to --allowed_hosts")
        if not self.access.allows_origin(headers, is_page):
            return error_response(403, "Origin: a page of another site may not use this server")
        if not (is_page or self._is_open(path) or self.access.is_known(headers)):
            return error_response(
                401,
                "the token is missing or wrong; open the link that the command printed, or send Authorization: "
                "Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )
        if self._requests > self.limits.requests:
            return busy_response()
        if headers.get("content-encoding", "identity") != "identity":
            return error_response(415, "Content-Encoding: send the body as it is")
        if (length := headers.get("content-length")) and length.isdigit() and int(length) > self.limits.body_bytes:
            return error_response(413, _too_long(self.limits.body_bytes))
        return None

    def _is_open(self, path: str) -> bool:
        return any(path.startswith(p) if p.endswith("/") else path == p for p in self.open_paths)


class _Body:
    """Body of a request: counts what was read, and raises HTTPException at a limit."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self._receive = guard, receive
        self.length = 0
        self._end: float | None = None

    async def receive(self) -> Message:
        limits = self.guard.limits
        if self._end is None:
            self._end = time.monotonic() + limits.body_seconds
        try:
            message = await asyncio.wait_for(self._receive(), max(0.001, self._end - time.monotonic()))
        except (TimeoutError, asyncio.TimeoutError):  # two classes until Python 3.11
            raise HTTPException(408, f"body: did not arrive within {limits.body_seconds:g} seconds") from None
        size = len(message.get("body", b""))
        self.length += size
        self.guard._held_bytes += size
        if self.length > limits.body_bytes:
            raise HTTPException(413, _too_long(limits.body_bytes))
        if self.guard._held_bytes > limits.held_bytes:
            raise busy_error()
        return message


def _too_long(limit: int) -> str:
    return f"body: is longer than {limit} bytes; send fewer or smaller images"


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the answer to a request that failed: {"error": message}."""
    return PlainJSONResponse({"error": message}, status, headers)


def busy_error() -> HTTPException:
    """Return the error of a server that has as much to do as it may."""
    return HTTPException(503, "busy; try again", {"Retry-After": str(RETRY_SECONDS)})


def busy_response() -> JSONResponse:
    """Return the answer of a server that has as much to do as it may."""
    error = busy_error()
    return error_response(error.status_code, error.detail, dict(error.headers or {}))
