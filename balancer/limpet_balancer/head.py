"""What a balancer reads of a request: its target, the path's class, and the session id in it.

The session id is taken from the query of the Engine.IO path and from nowhere else in the bytes:
not from another path, a header, a body. It is decoded as the worker decodes it: percent signs
and plus, the last of several values wins, an empty one is none.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

HEAD_END: Final = b"\r\n\r\n"
_SLASH: Final = 47
_AMPERSAND: Final = 38
_LONGEST_KEY: Final = 9
"""Characters of ``sid`` with each letter percent-encoded."""
_LONGEST_VALUE: Final = 3 * 20
"""Characters of a valid id with each letter percent-encoded; a longer one is no id."""


class Place(Enum):
    """Which part of the site a request is for."""

    ENGINE = "engine"
    OTHER = "other"
    HEALTH = "health"


class Request(NamedTuple):
    """What routing needs of a request."""

    method: bytes
    place: Place
    sid: str | None
    """As the client sent it, decoded; it may be malformed. None on other paths and when empty."""


_OPENING: Final = Request(b"GET", Place.ENGINE, None)
"""What opens a session: the most frequent request, made once."""


class BadRequestLine(Exception):  # noqa: N818 - the field's name for it
    """The bytes do not open with an HTTP/1 request line."""


def sid_in(query: bytes) -> str | None:
    """Return the session id in a query string; None when there is none or it is empty."""
    if b"%" not in query:
        at = query.find(b"sid")
        if at < 0:
            return None
        # One plain "sid=": by far the most frequent form, found without splitting.
        if (
            query.startswith(b"sid=", at)
            and (at == 0 or query[at - 1] == _AMPERSAND)
            and query.find(b"sid", at + 4) < 0
        ):
            end = query.find(b"&", at)
            value = query[at + 4 :] if end < 0 else query[at + 4 : end]
            return value.replace(b"+", b" ").decode("utf-8", "replace") or None
    found = b""
    for field in query.split(b"&"):
        key, _, value = field.partition(b"=")
        if len(key) <= _LONGEST_KEY and unquote_to_bytes(key) == b"sid":
            found = value
    if len(found) <= _LONGEST_VALUE:
        found = unquote_to_bytes(found.replace(b"+", b" "))
    return found.decode("utf-8", "replace") or None


class RequestReader:
    """Reads request lines for one site.

    Args:
        engine_path: the Engine.IO path; it and everything below it is ``Place.ENGINE``.
        health_path: answered by the balancer for GET and HEAD; empty for none.
    """

    __slots__ = ("_engine", "_engine_below", "_health")

    def __init__(self, engine_path: str, health_path: str) -> None:
        self._engine = engine_path.rstrip("/").encode()
        self._engine_below = self._engine + b"/"
        self._health = health_path.encode()

    def read(self, data: bytes) -> Request:
        """Return what the first request line says; the rest of the bytes is not looked at.

        Raises:
            BadRequestLine: there is no complete HTTP/1 request line.
        """
        end = data.find(b"\r\n")
        if end == 0:  # RFC 9112 §2.2: empty lines ahead of a request are skipped
            data = data.lstrip(b"\r\n")
            end = data.find(b"\r\n")
        if end < 0:
            raise BadRequestLine("no line end")
        method, _, rest = data[:end].partition(b" ")
        target, _, version = rest.rpartition(b" ")
        if not target or not version.startswith(b"HTTP/1."):
            raise BadRequestLine("no HTTP/1 request line")
        if target[0] != _SLASH or b"#" in target:
            target = _origin_form(target)
        path, _, query = target.partition(b"?")
        if path.startswith(self._engine_below) or path == self._engine:
            sid = sid_in(query)
            if sid is None and method == b"GET":
                return _OPENING
            return Request(method, Place.ENGINE, sid)
        if path == self._health and path and method in {b"GET", b"HEAD"}:
            return Request(method, Place.HEALTH, None)
        return Request(method, Place.OTHER, None)


def _origin_form(target: bytes) -> bytes:
    """Return path and query of a target: a proxy may send the whole URL; a fragment is none."""
    if target[0] != _SLASH:
        _, found, rest = target.partition(b"://")
        if found:
            at = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
            target = rest[at:]
            if not target.startswith(b"/"):
                target = b"/" + target
    return target.partition(b"#")[0] if b"#" in target else target


def head_end(data: bytes, start: int = 0) -> bool:
    """Say whether a request head is complete; a search that begins at ``start`` suffices."""
    if data.startswith((b"\r", b"\n")):
        return HEAD_END in data.lstrip(b"\r\n")
    return data.find(HEAD_END, max(0, start - 3)) >= 0


def may_be_http(data: bytes) -> bool:
    """Say whether bytes can still become a request: not so for TLS or another protocol."""
    begin = data.lstrip(b"\r\n") if data.startswith((b"\r", b"\n")) else data
    return not begin or begin[:1].isalpha()
