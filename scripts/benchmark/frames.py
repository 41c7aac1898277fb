"""The client's half of RFC 6455 and of Socket.IO's text form, as much as the generator needs."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = b"\x37\xfa\x21\x3d"
"""One key for all frames: a server must unmask with it as with any other, and what is masked
with it can be prepared in pieces whose lengths are multiples of four."""

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

ENGINE_PING: Final = b"\x81\x01" + b"2"
"""Engine.IO's ping as the server frames it."""


def masked(data: bytes) -> bytes:
    """Return data masked from the key's first byte on."""
    size = len(data)
    key = int.from_bytes((MASK * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")


def head(size: int, opcode: int = TEXT) -> bytes:
    """Return the head (with the key) of a client's frame of so many bytes."""
    first = bytes((0x80 | opcode,))
    if size < 126:
        return first + bytes((0x80 | size,)) + MASK
    if size < 65536:
        return first + b"\xfe" + size.to_bytes(2, "big") + MASK
    return first + b"\xff" + size.to_bytes(8, "big") + MASK


def frame(data: bytes, opcode: int = TEXT) -> bytes:
    """Return one client's frame."""
    return head(len(data), opcode) + masked(data)


def server_frame(data: bytes, opcode: int = TEXT) -> bytes:
    """Return the frame in which a server sends data (unmasked, in one piece)."""
    size = len(data)
    first = bytes((0x80 | opcode,))
    if size < 126:
        return first + bytes((size,)) + data
    if size < 65536:
        return first + b"\x7e" + size.to_bytes(2, "big") + data
    return first + b"\x7f" + size.to_bytes(8, "big") + data


ENGINE_PONG: Final = frame(b"3")


class FrameReader:
    """Cuts a server's byte stream into messages; keeps what is not complete yet."""

    __slots__ = ("_need", "_parts", "pending")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.pending = 0
        """Bytes kept of a frame that is not complete."""
        self._need = 2

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the (opcode, payload) of every frame that is complete with these bytes.

        Raises:
            ValueError: a masked or fragmented frame, which no server here sends.
        """
        self._parts.append(data)
        self.pending += len(data)
        if self.pending < self._need:
            return []  # joining a large message at every chunk would be quadratic
        data = b"".join(self._parts)
        messages: list[tuple[int, bytes]] = []
        position, end = 0, len(data)
        while True:
            self._need = 2
            if end - position < 2:
                break
            first, size = data[position], data[position + 1]
            start = position + 2
            if size > 127 or not first & 0x80 or not first & 0x0F:
                raise ValueError(f"frame starts with {data[position : position + 2].hex()}")
            if size > 125:
                start += 2 if size == 126 else 8
                self._need = start - position
                if end < start:
                    break
                size = int.from_bytes(data[position + 2 : start], "big")
            self._need = start - position + size
            if end - position < self._need:
                break
            messages.append((first & 0x0F, data[start : start + size]))
            position = start + size
        rest = data[position:]
        self._parts = [rest] if rest else []
        self.pending = len(rest)
        return messages


_UPGRADE: Final = (
    "GET {path}?EIO=4&transport=websocket{sid} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def upgrade_request(host: str, port: int, path: str, sid: str = "") -> bytes:
    """Return the request that opens a WebSocket, for a session that exists when sid is given."""
    parameter = f"&sid={sid}" if sid else ""
    return _UPGRADE.format(host=host, port=port, path=path, sid=parameter).encode("ascii")


def polling_get(host: str, port: int, path: str, sid: str = "") -> bytes:
    """Return a polling GET: the handshake, or with a sid the poll."""
    parameter = f"&sid={sid}" if sid else ""
    return (
        f"GET {path}?EIO=4&transport=polling{parameter} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
    ).encode("ascii")


def polling_post_head(host: str, port: int, path: str, sid: str, size: int) -> bytes:
    """Return the head of a polling POST whose body has so many bytes."""
    return (
        f"POST {path}?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {size}\r\n\r\n"
    ).encode("ascii")


_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength:[ \t]*([0-9]+)")
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSES: Final = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


class ResponseReader:
    """Reads the answers of one HTTP/1.1 connection, one at a time."""

    __slots__ = ("_buffer", "closes")

    def __init__(self) -> None:
        self._buffer = b""
        self.closes = False
        """Whether the last answer ends the connection."""

    def feed(self, data: bytes) -> tuple[int, bytes] | None:
        """Return (status, body) when these bytes complete the answer, else None.

        Raises:
            ValueError: the bytes are no HTTP answer, or more came than one answer.
        """
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return None
        top, start = data[:end], end + 4
        if not top.startswith(b"HTTP/1.1 "):
            raise ValueError(f"no HTTP answer: {top[:40]!r}")
        status = int(top[9:12])
        length = _LENGTH.search(top)
        if length is not None:
            body = data[start : start + int(length[1])]
            done = len(body) == int(length[1])
            rest = data[start + len(body) :]
        elif _CHUNKED.search(top):
            body, rest, done = _unchunk(data[start:])
        else:
            body, rest, done = b"", data[start:], True
        if not done:
            self._buffer = data
            return None
        if rest:
            raise ValueError(f"bytes after the answer: {rest[:40]!r}")
        self._buffer = b""
        self.closes = _CLOSES.search(top) is not None
        return status, body


def _unchunk(data: bytes) -> tuple[bytes, bytes, bool]:
    """Return (body, what follows, complete) of a chunked body."""
    body = b""
    while True:
        line, found, rest = data.partition(b"\r\n")
        if not found:
            return body, b"", False
        size = int(line.partition(b";")[0], 16)
        if len(rest) < size + 2:
            return body, b"", False
        if size == 0:
            return body, rest[2:], True
        body += rest[:size]
        data = rest[size + 2 :]
