"""What the balancer answers itself, and how it closes without cutting the answer off."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Final

from limpet_adapters.counters import count

_LINGER: Final = 2.0
"""Seconds a refused client may take to read the answer and close."""
_LINGERING_LIMIT: Final = 256
_DISCARDED_LIMIT: Final = 1 << 20


def response(status: str, body: dict[str, object], *extra: str, head_only: bool = False) -> bytes:
    """Return an HTTP/1.1 response with a JSON body that ends the connection."""
    content = json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        *extra,
        "Connection: close",
        "\r\n",
    ]
    return "\r\n".join(lines).encode() + (b"" if head_only else content)


def unavailable(reason: str) -> bytes:
    """Return the answer for a connection that nobody can take: try again soon."""
    body: dict[str, object] = {"status": 503, "title": "Service Unavailable", "reason": reason}
    return response("503 Service Unavailable", body, "Retry-After: 2")


BAD_REQUEST: Final = response("400 Bad Request", {"status": 400, "title": "Bad Request"})
HEAD_TIMEOUT: Final = response("408 Request Timeout", {"status": 408, "title": "Request Timeout"})
HEAD_TOO_LARGE: Final = response(
    "431 Request Header Fields Too Large",
    {"status": 431, "title": "Request Header Fields Too Large"},
)


class Closing:
    """Connections that have been answered and wait for the client to close.

    Closing with unread bytes makes the kernel send a reset, which can destroy the answer on its
    way: so the rest of the request is read and thrown away, for a while.
    """

    __slots__ = ("_loop", "_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[socket.socket, tuple[float, int]] = {}
        """Until when, and how many bytes may still be thrown away."""

    def __len__(self) -> int:
        return len(self._open)

    def answer(self, sock: socket.socket, content: bytes, now: float) -> None:
        """Send an answer, and close when the client has."""
        try:
            sock.send(content, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        if len(self._open) >= _LINGERING_LIMIT:
            count("limpet_balancer_answers_cut_total")
            self._end(next(iter(self._open)))
        self._open[sock] = (now + _LINGER, _DISCARDED_LIMIT)
        self._loop.add_reader(sock.fileno(), self._discard, sock)

    def expire(self, now: float) -> None:
        """Close those that have had their time."""
        while self._open:
            sock, (until, _) = next(iter(self._open.items()))
            if now < until:
                return
            self._end(sock)

    def close(self) -> None:
        """Close all."""
        for sock in list(self._open):
            self._end(sock)

    def _discard(self, sock: socket.socket) -> None:
        until, left = self._open[sock]
        try:
            count = len(sock.recv(65_536, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count == 0 or count >= left:
            self._end(sock)
        else:
            self._open[sock] = (until, left - count)

    def _end(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock.fileno())
        del self._open[sock]
        sock.close()
