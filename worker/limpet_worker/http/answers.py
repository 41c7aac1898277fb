"""The bytes of every answer to an Engine.IO polling request, from parts that are built once."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import orjson

from limpet_worker.http.checks import Refusal
from limpet_worker.http.compression import LARGEST, compress, negotiate
from limpet_worker.http.request import Head

_POLL: Final = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/plain; charset=UTF-8\r\n"
    b"cache-control: no-store\r\n"
    b"Content-Length: %d\r\n"
)
_POSTED: Final = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/html\r\n"
    b"cache-control: no-store\r\n"
    b"Content-Length: 2\r\n"
)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"

RETRY_AFTER: Final = 1
"""Seconds that a client is asked to wait when no worker can serve it."""


def poll(payload: bytes, lines: bytes, head: Head, threshold: int | None) -> bytes:
    """Return the answer to a GET: the payload, compressed when it pays and the client can.

    Args:
        payload: the packets, finished.
        lines: finished header lines (date, CORS, cookie, ``Connection``).
        head: the request.
        threshold: bytes from which on a payload is compressed; None: never.
    """
    size = len(payload)
    if threshold is not None and threshold <= size <= LARGEST:
        encoding = negotiate(head.headers.get(b"accept-encoding", b""))
        if encoding:
            payload = compress(payload, encoding)
            size = len(payload)
            lines += b"Content-Encoding: " + encoding.encode("ascii") + b"\r\n"
    # Old Internet Explorer guesses at types unless it is told not to (a stock server's habit).
    agent = head.headers.get(b"user-agent", b"")
    if b";MSIE" in agent or b"Trident/" in agent:
        lines += b"X-XSS-Protection: 0\r\n"
    return b"".join((_POLL % size, lines, b"\r\n", payload))


def posted(lines: bytes) -> bytes:
    """Return the answer to a POST whose packets were taken."""
    return _POSTED + lines + b"\r\nok"


def refused(refusal: Refusal, lines: bytes) -> bytes:
    """Return the answer to a polling request that is turned away."""
    return _answer(refusal.status, b"application/json", lines, refusal.body)


def refused_websocket(refusal: Refusal, lines: bytes) -> bytes:
    """Return the answer to a refused WebSocket handshake: its text, always with status 400."""
    return _answer(400, b"text/html", lines, refusal.message.encode("utf-8"))


def bad_handshake(fault: str, lines: bytes) -> bytes:
    """Return the answer to an opening handshake with a wrong ``version`` or ``key``."""
    if fault == "version":
        # RFC 6455 section 4.4: the client is told which version there is.
        lines = b"Sec-WebSocket-Version: 13\r\n" + lines
    text = b"Missing or invalid Sec-WebSocket-" + fault.capitalize().encode("ascii")
    return _answer(400, b"text/html", lines, text)


def unavailable(message: str, lines: bytes) -> bytes:
    """Return the 503 of a request that another moment, or another worker, could serve."""
    body = orjson.dumps({"code": 503, "message": message})
    return _answer(503, b"application/json", b"Retry-After: %d\r\n" % RETRY_AFTER + lines, body)


def empty(status: int, lines: bytes) -> bytes:
    """Return an answer without a body."""
    return _answer(status, b"", lines, b"")


def file(content_type: str, content: bytes, lines: bytes) -> bytes:
    """Return the answer to a GET of a file."""
    return _answer(200, content_type.encode("ascii"), lines, content)


def not_modified(lines: bytes) -> bytes:
    """Return the answer to a GET of a file that the client has already."""
    return b"HTTP/1.1 304 Not Modified\r\n" + lines + b"\r\n"


def preflight(lines: bytes) -> bytes:
    """Return the answer to a CORS preflight."""
    return b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n" + lines + b"\r\n"


def plain(status: int, text: str, lines: bytes) -> bytes:
    """Return an answer with a line of text."""
    return _answer(status, b"text/plain; charset=utf-8", lines, text.encode("utf-8"))


def _answer(status: int, content_type: bytes, lines: bytes, body: bytes) -> bytes:
    kind = b"Content-Type: " + content_type + b"\r\n" if content_type else b""
    return b"".join(
        (
            b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode("ascii")),
            kind,
            b"Content-Length: %d\r\n" % len(body),
            lines,
            b"\r\n",
            body,
        )
    )
