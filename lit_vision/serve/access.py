"""Access to a server: a token, the sessions that it opens, and the Host and Origin that a request may name.

A token stands in the address that is printed once, behind `#`, which browsers do not send. The page sends it by POST
and gets a cookie for it, so that it is in no query, no log and no history. Programs send it as `Authorization: Bearer`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from http.cookies import CookieError, SimpleCookie

from lit_vision.errors import UsageError

TOKEN_VARIABLE = "LIT_VISION_TOKEN"
_SHORTEST_TOKEN = 20  # characters that a token of the user's own must have
_MOST_SESSIONS = 100  # the oldest ends when another begins


class Access:
    """Decides who may come in.

    Args:
        host: the address that the server listens on. Any but a loopback address needs a token.
        hosts: further names that a request may give as Host: those of a proxy.
        require_token: ask for a token on a loopback address too, where other users of the machine could come in.

    Raises:
        UsageError: the environment variable LIT_VISION_TOKEN holds a short token.
    """

    def __init__(self, host: str = "127.0.0.1", hosts: Iterable[str] = (), require_token: bool = False) -> None:
        self.is_loopback = is_loopback(host)
        self.token = _token() if require_token or not self.is_loopback else None
        self.cookie = f"lit_vision_{secrets.token_hex(4)}"  # cookies of all ports of a machine are one jar
        own = {"localhost", *hosts} | (set() if self.is_loopback else {socket.gethostname()})
        self._hosts = {name.lower() for name in own}
        self._sessions: deque[str] = deque(maxlen=_MOST_SESSIONS)  # digests: a dump of the memory opens nothing

    def allows_host(self, host: str) -> bool:
        """True if a Host header names this server.

        A page of another origin can point its own name at this address (DNS rebinding) and would then be of the same
        origin as this server, so names have to be known. Addresses in digits cannot be pointed elsewhere. The port is
        not compared: a tunnel may have another one.
        """
        name = _without_port(host).lower()
        if name in self._hosts:
            return True
        return is_loopback(name) if self.is_loopback else _is_address(name)

    def allows_origin(self, headers: Mapping[str, str], is_page: bool) -> bool:
        """True if a request is not of a foreign page.

        Args:
            headers: of the request.
            is_page: the request is for a page without content of its own, which a link elsewhere may open.
        """
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            return False  # also "null", the origin of sandboxed frames and local files
        return is_page or headers.get("sec-fetch-site", "none") in ("same-origin", "none")

    def open_session(self, token: object) -> str | None:
        """Return the secret of a new session for the right token; None for a wrong one."""
        if self.token is None or not isinstance(token, str) or not _same(token, self.token):
            return None
        session = secrets.token_urlsafe(32)
        self._sessions.append(_digest(session))
        return session

    def set_cookie(self, session: str) -> str:
        """Return the value of Set-Cookie that stores a session where no script and no other site can use it."""
        return f"{self.cookie}={session}; HttpOnly; SameSite=Strict; Path=/"

    def is_known(self, headers: Mapping[str, str]) -> bool:
        """True if no token is needed, or the request has it or a session's cookie."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self.token):
            return True
        try:
            cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return self.cookie in cookies and _digest(cookies[self.cookie].value) in self._sessions


def is_loopback(host: str) -> bool:
    """True for an address or name that only this machine reaches."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    """Return the name of `name:port` or the address of `[address]:port`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _token() -> str:
    """Return the token of the environment, or a random one."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        return secrets.token_urlsafe(32)
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{TOKEN_VARIABLE}: is no token of at least {_SHORTEST_TOKEN} visible ASCII characters; unset it to get a "
            "random one"
        )
    return token


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _digest(session: str) -> str:
    return hashlib.sha256(session.encode("utf-8", "surrogateescape")).hexdigest()
