"""The WebSocket transport of a client: asyncio hands it bytes, it hands packets to the session."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, cast

from limpet_client.deflate import Deflate, agreed
from limpet_client.engine import Message, Outgoing
from limpet_client.errors import TransportError
from limpet_worker.websocket.frames import (
    BINARY,
    CLOSE,
    NO_STATUS,
    PONG,
    TEXT,
    FrameError,
    FrameParser,
    encode,
)

if TYPE_CHECKING:
    from limpet_client.engine import EngineSession

_HIGH_WATER: Final = 65_536
_LOW_WATER: Final = 16_384
_CLOSE_TIMEOUT: Final = 2.0
"""Seconds for the server to answer a close frame."""
_COMPRESSED: Final = 0x40
"""First reserved bit of a frame: the message is compressed."""


class WebSocketTransport(FrameParser):
    """The client's end of a WebSocket, after its handshake. No task and no timer of its own."""

    __slots__ = (
        "_deflate",
        "_on_end",
        "_paused",
        "_session",
        "_threshold",
        "_timer",
        "closing",
        "wire",
    )

    name: ClassVar[str] = "websocket"
    from_client: ClassVar[bool] = False

    def __init__(
        self,
        session: EngineSession,
        extensions: str,
        limit: int,
        threshold: int,
        on_end: Callable[[WebSocketTransport], None],
    ) -> None:
        super().__init__(limit)
        self._session: EngineSession | None = session
        """What this carries, or wants to; None when nothing is to be told any more."""
        self._deflate: Deflate | None = agreed(extensions)
        """None: the server does not compress, so we do not."""
        self.extension = self._deflate
        self._threshold = threshold
        self._on_end = on_end
        self._paused = False
        """Whether the transport has more than it can send."""
        self._timer: asyncio.TimerHandle | None = None
        """For the server's answer to our close frame; None while it is not waited for."""
        self.wire: asyncio.Transport | None = None
        """The connection; None before it is made and after it is lost."""
        self.closing = False
        """Whether a close frame has been sent: nothing may follow it."""

    # --- asyncio's side ---------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection (a stream transport)."""
        wire = self.wire = cast("asyncio.Transport", transport)
        wire.set_write_buffer_limits(high=_HIGH_WATER, low=_LOW_WATER)

    def data_received(self, data: bytes) -> None:
        """Take the bytes of one read; all frames in them are handled at once."""
        try:
            self.feed(data)
        except FrameError as error:
            self.muted = True
            self._say_close(error.code.to_bytes(2) + error.reason.encode())
            self._fail(TransportError(f"websocket: {error.reason}", description=error.code))

    def eof_received(self) -> bool | None:
        """Know that the server sends no more: the transport closes itself."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Know that the connection has ended."""
        self.wire = None
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        session, self._session = self._session, None
        if session is not None:
            text = str(exc) if exc is not None else "the connection was lost"
            session.on_closed(self, TransportError(f"websocket: {text}", description=1006))
        self._on_end(self)

    def pause_writing(self) -> None:
        """Leave further packets in the session's outbox."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on writing."""
        self._paused = False
        if self._session is not None:
            self._session.on_drain(self)

    # --- the frames' side -------------------------------------------------

    def on_text(self, payload: bytes) -> None:
        """Take a text frame: a packet."""
        if self._session is not None:
            self._session.on_text(self, payload)

    def on_binary(self, payload: bytes) -> None:
        """Take a binary message."""
        if self._session is not None:
            self._session.on_binary(self, payload)

    def on_ping(self, payload: bytes) -> None:
        """Answer a ping frame."""
        if self.wire is not None and not self.closing:
            self.wire.write(encode(PONG, payload, os.urandom(4)))

    def on_pong(self, payload: bytes) -> None:
        """Ignore a pong frame: we send no ping frames."""

    def on_close_frame(self, code: int, reason: str) -> None:
        """Answer the server's close frame, or know that it has answered ours."""
        self._say_close(b"" if code == NO_STATUS else code.to_bytes(2))
        if self.wire is not None:
            self.wire.close()
        session, self._session = self._session, None
        if session is not None:
            text = f"websocket: closed with code {code}" + (f", {reason}" if reason else "")
            session.on_closed(self, TransportError(text, description=code))

    # --- the session's side -----------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether packets would leave at this instant."""
        return self.wire is not None and not self.closing and not self._paused

    def write(self, packets: list[Outgoing]) -> None:
        """Send packets, all with one system call."""
        if self.wire is not None and not self.closing:
            self.wire.write(b"".join(map(self._framed, packets)))

    def pause(self) -> None:
        """Never asked for: nothing follows a WebSocket."""

    def resume(self) -> None:
        """Never asked for."""

    def close(self) -> None:
        """Forget the session, send a close frame, wait a while for the server's."""
        self._session = None
        self._say_close(b"")
        if self.wire is not None:
            self._timer = asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT, self.abort)

    def abort(self) -> None:
        """Forget the session and drop the connection."""
        self._session = None
        self.closing = self.muted = True
        if self.wire is not None:
            self.wire.abort()

    # --- inside -----------------------------------------------------------

    def _framed(self, packet: Outgoing) -> bytes:
        if isinstance(packet, Message):
            opcode, data, compress = BINARY if packet.binary else TEXT, packet.data, packet.compress
        else:
            opcode, data, compress = TEXT, packet, True
        if compress and self._deflate is not None and len(data) >= self._threshold:
            return encode(opcode | _COMPRESSED, self._deflate.deflate(data), os.urandom(4))
        return encode(opcode, data, os.urandom(4))

    def _say_close(self, payload: bytes) -> None:
        if self.wire is not None and not self.closing:
            self.wire.write(encode(CLOSE, payload, os.urandom(4)))
        self.closing = True

    def _fail(self, error: TransportError) -> None:
        session, self._session = self._session, None
        if self.wire is not None:
            self.wire.close()
        if session is not None:
            session.on_error(self, error)


class StreamTransport(WebSocketTransport, asyncio.Protocol):
    """For uvloop, which reads into a buffer of its own."""

    __slots__ = ()


class BufferedTransport(WebSocketTransport, asyncio.BufferedProtocol):
    """For asyncio's own loops, which would allocate 256 KiB for each read."""

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all connections of the thread share."""
        return _shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read into it."""
        self.data_received(bytes(_shared.buffer[:nbytes]))


class _Shared(threading.local):
    """One buffer for each thread: each has a loop of its own."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(65_536))


_shared: Final = _Shared()


def transport_class(loop: asyncio.AbstractEventLoop) -> type[StreamTransport | BufferedTransport]:
    """Return the class of transports that suits a loop."""
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return StreamTransport
    return BufferedTransport
