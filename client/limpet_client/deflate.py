"""The client's end of permessage-deflate (RFC 7692), without context from message to message."""

from __future__ import annotations

import zlib
from typing import Any, Final

from limpet_client.errors import TransportError
from limpet_worker.websocket.frames import INVALID_DATA, TOO_BIG, FrameError

OFFER: Final = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
"""What is asked for. Context would compress better and cost each connection up to 300 KiB."""
_TAIL: Final = b"\x00\x00\xff\xff"
_RAW: Final = -zlib.MAX_WBITS


class Deflate:
    """Compresses and expands messages as a server agreed to."""

    __slots__ = ("_context", "_keeps_context")

    def __init__(self, keeps_context: bool = False) -> None:
        self._keeps_context = keeps_context
        """Whether the server's messages refer to those before."""
        self._context: Any = None
        """The decompressor that lasts; None without context."""

    def inflate(self, data: bytes, limit: int) -> bytes:
        """Return a message.

        Raises:
            FrameError: it is broken, or larger than ``limit``.
        """
        expander = self._context or zlib.decompressobj(_RAW)
        if self._keeps_context:
            self._context = expander
        try:
            message: bytes = expander.decompress(data + _TAIL, limit + 1)
        except zlib.error:
            raise FrameError(INVALID_DATA, "message cannot be expanded") from None
        if len(message) > limit:
            raise FrameError(TOO_BIG, "message too big")
        return message

    def deflate(self, message: bytes) -> bytes:
        """Return a message compressed."""
        compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _RAW)
        return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def agreed(extensions: str) -> Deflate | None:
    """Return what the server's ``Sec-WebSocket-Extensions`` asks for; None when it is empty.

    Raises:
        TransportError: something else than we offered.
    """
    if not extensions:
        return None
    name, *parameters = (part.strip() for part in extensions.split(";"))
    keeps_context = True
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key == "server_no_context_takeover" and not value:
            keeps_context = False
        elif key == "server_max_window_bits" and value.strip('"').isdigit():
            pass  # a smaller window than ours can be read like ours
        elif key != "client_no_context_takeover" or value:
            name = ""
    if name != "permessage-deflate":
        raise TransportError(f"websocket: extensions that were not offered: {extensions[:100]!r}")
    return Deflate(keeps_context)
