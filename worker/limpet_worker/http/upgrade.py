"""The opening handshake of RFC 6455, server side: what is asked for, and the bytes of the 101."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha1
from typing import Final

from limpet_worker.http.request import Head

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# 16 bytes in base64. Stray low bits in the last character are let pass, as stock servers do.
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==").fullmatch


def asks_websocket(head: Head) -> bool:
    """Return whether the request is an upgrade to WebSocket (the key is not looked at)."""
    return (
        head.upgrade
        and head.method == b"GET"
        and b"websocket" in head.headers.get(b"upgrade", b"").lower()
        and not head.http10
    )


def handshake_fault(headers: Mapping[bytes, bytes]) -> str:
    """Return what is wrong with the opening handshake: "", "version" or "key".

    RFC 6455 section 4.2.1, fields 5 and 6.
    """
    if headers.get(b"sec-websocket-version") != b"13":
        return "version"
    if not _KEY(headers.get(b"sec-websocket-key", b"")):
        return "key"
    return ""


def accept(key: bytes) -> bytes:
    """Return ``Sec-WebSocket-Accept`` for a client's key (RFC 6455 section 4.2.2, step 5.4)."""
    return b64encode(sha1(key + _GUID).digest())  # noqa: S324 # the RFC's choice, no secret


def switching(key: bytes, extra: bytes) -> bytes:
    """Return the whole 101 response; ``extra`` are finished header lines, for example CORS."""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept(key) + b"\r\n" + extra + b"\r\n"
    )
