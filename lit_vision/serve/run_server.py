"""Run an app on one socket until SIGTERM or Ctrl-C; requests that came in before are answered."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lit_vision.errors import UserError
from lit_vision.serve.access import Access
from lit_vision.serve.guard import Guard

HEADER_SECONDS = 10.0  # for the headers of a request
DRAIN_SECONDS = 30  # for the requests that run when the server is stopped


class _Protocol(H11Protocol):
    """Connections that are closed if the headers of a request take longer than HEADER_SECONDS.

    uvicorn limits their length, but would wait for them without end.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        """Start the time when headers are awaited, end it when they are complete."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Args:
        host: an address, or a name of this machine.
        port: 0 for a free one.

    Raises:
        UserError: the port is taken or not allowed, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({reason}); give another port (0: a free one)"
        ) from None
    return listener


def address_of(listener: socket.socket, host: str, token: str | None) -> str:
    """Return the address to open in a browser; with a token, the link that signs in."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{listener.getsockname()[1]}/" + (f"#token={token}" if token else "")


def make_server(app: Guard) -> uvicorn.Server:
    """Return a server of an app, which stops at SIGTERM or Ctrl-C when the requests that run are answered."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # it would list addresses of clients
        server_header=False,
        proxy_headers=False,
        limit_concurrency=None,  # the guard's, whose answers have all headers
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return uvicorn.Server(config)


def run_server(
    app: Guard, access: Access, listener: socket.socket, host: str, begin: Callable[[], None] | None = None
) -> None:
    """Print the address and answer requests until a signal.

    Args:
        app: to run.
        access: who may come in.
        listener: of `listen`.
        host: that it listens on.
        begin: called when the address is printed: starts work in the background.

    Raises:
        SystemExit: with code 143 after SIGTERM. KeyboardInterrupt: after Ctrl-C. Both when all requests are answered.
    """
    before = signal.signal(signal.SIGTERM, _leave)  # uvicorn stops first, then raises the signal again
    try:
        print(address_of(listener, host, access.token), flush=True)
        if begin is not None:
            begin()
        make_server(app).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()


def _leave(number: int, frame: FrameType | None) -> Any:
    raise SystemExit(143)
