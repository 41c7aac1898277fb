"""The WebSocket transport: asyncio hands it bytes, it hands Engine.IO packets to its session.

A connection is one of three things at a time: it carries a session; it is the candidate that
a polling session may change to; or it is closing, and whatever still comes is read and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from limpet_adapters.counters import count
from limpet_worker.websocket.frames import (
    NO_STATUS,
    PONG,
    FrameError,
    FrameParser,
    close_frame,
    encode,
)

if TYPE_CHECKING:
    from limpet_worker.engineio.server import EngineServer
    from limpet_worker.engineio.session import Session

HIGH_WATER: Final = 65_536
"""Bytes in the transport's own buffer at which we stop writing; the rest waits in the outbox."""
LOW_WATER: Final = 16_384
"""Bytes at which we go on. uvloop's own default is 16 bytes."""

_PROBE_ANSWER_FRAME: Final = b"\x81\x063probe"
_MESSAGE: Final = b"4"


class WebSocketConnection(FrameParser):
    """A server's end of a WebSocket, after its handshake."""

    __slots__ = ("candidate_of", "closing", "engine", "paused", "session", "tick", "wire")

    def __init__(self, engine: EngineServer) -> None:
        super().__init__(engine.options.max_http_buffer_size)
        self.engine = engine
        self.wire: asyncio.Transport | None = None
        """The connection; None before it is made and after it is lost."""
        self.session: Session | None = None
        """The session that this carries; None for a candidate, and when closing."""
        self.candidate_of: Session | None = None
        """The session that this wants to carry; None once it does, and when closing."""
        self.closing = False
        """Whether a close frame has been sent: nothing may follow it."""
        self.paused = False
        """Whether the transport has more than it can send."""
        self.tick = 0
        """Where this is on the timer wheel; the wheel's."""

    # --- asyncio's side --------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection (a stream transport)."""
        # uvloop's transports are no subclass of asyncio's: a cast, not a check.
        wire = self.wire = cast("asyncio.Transport", transport)
        wire.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)

    def data_received(self, data: bytes) -> None:
        """Take the bytes of one read; all frames in them are handled at once."""
        engine = self.engine
        engine.traffic.websocket_bytes_in += len(data)
        flusher = engine.flusher
        flusher.hold()
        try:
            self.feed(data)
        except FrameError as error:
            self._refuse(error)
        finally:
            flusher.release()

    def eof_received(self) -> bool | None:
        """Know that the client sends no more: the transport closes itself."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Know that the connection has ended."""
        self.wire = None
        self.closing = True
        self.engine.goodbyes.discard(self)
        self.engine.wheel.cancel(self)
        self._detach()

    def pause_writing(self) -> None:
        """Leave further packets in the session's outbox."""
        self.paused = True
        if self.session is not None:
            self.session.blocked = True

    def resume_writing(self) -> None:
        """Go on writing."""
        self.paused = False
        if self.session is not None:
            self.session.unblock()

    # --- the frames' side ------------------------------------------------

    def on_text(self, payload: bytes) -> None:
        """Take a text frame: a packet of the session, or of the upgrade."""
        self.engine.traffic.websocket_in += 1
        session = self.session
        if session is None:
            if self.candidate_of is not None:
                self.candidate_of.candidate_packet(self, payload)
        elif payload[:1] == _MESSAGE:
            if session.grace:
                session.refresh()
            session.sink.on_text(payload[1:])
        else:
            session.receive(payload)

    def on_binary(self, payload: bytes) -> None:
        """Take a binary message."""
        self.engine.traffic.websocket_in += 1
        session = self.session
        if session is not None:
            if session.grace:
                session.refresh()
            session.sink.on_binary(payload)
        elif self.candidate_of is not None:
            self.candidate_of.candidate_packet(self, b"")

    def on_ping(self, payload: bytes) -> None:
        """Answer a ping frame, together with what else goes out in this turn."""
        frame = encode(PONG, payload)
        if self.session is not None:
            self.session.enqueue(frame)
        elif self.wire is not None and not self.closing and not self.paused:
            self.wire.write(frame)

    def on_pong(self, payload: bytes) -> None:
        """Ignore a pong frame: we send no ping frames (RFC 6455 section 5.5.3)."""

    def on_close_frame(self, code: int, reason: str) -> None:
        """Answer the client's close frame, or know that it has answered ours; then hang up."""
        wire = self.wire
        if wire is None:
            return
        if not self.closing:
            self.closing = True
            wire.write(close_frame(None if code == NO_STATUS else code))
        self._hang_up(wire)
        self._detach()

    # --- the session's side ----------------------------------------------

    def carry(self, session: Session) -> None:
        """Hand what comes from now on to this session."""
        self.session = session
        if self.candidate_of is not None:
            self.candidate_of = None
            self.engine.wheel.cancel(self)  # the upgrade was in time

    def answer_probe(self) -> None:
        """Send ``3probe``."""
        if self.wire is not None and not self.closing:
            self.wire.write(_PROBE_ANSWER_FRAME)

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Forget the session, send a close frame, and wait for the client's.

        Without a code, as stock servers close sessions, the client sees 1005.
        """
        self.session = self.candidate_of = None
        wire = self.wire
        if wire is None or self.closing:
            return
        self.closing = True
        wire.write(close_frame(code, reason))
        self._limit_closing()

    def abort(self) -> None:
        """Forget the session and drop the connection."""
        self.session = self.candidate_of = None
        self.closing = self.muted = True
        if self.wire is not None:
            self.wire.abort()

    def on_deadline(self, now: float) -> float | None:
        """End an upgrade, or a closing handshake, that takes too long."""
        session = self.candidate_of
        if session is not None:
            count("limpet_upgrades_total", result="timeout")
            session.candidate_lost(self)
            self.close()
        elif self.wire is not None:
            count("limpet_connections_aborted_total", reason="close timeout")
            self.wire.abort()
        return None

    # --- ending ----------------------------------------------------------

    def _refuse(self, error: FrameError) -> None:
        """Fail the connection (RFC 6455 section 7.1.7): say why, read no more."""
        count("limpet_websockets_failed_total", code=str(error.code))
        self.muted = True
        wire = self.wire
        if wire is None:
            return
        if not self.closing:
            self.closing = True
            wire.write(close_frame(error.code, error.reason))
        if wire.can_write_eof():
            # Not closed: with bytes unread that would reset the connection, and the client
            # might never see the close frame. What still comes is read and dropped.
            wire.write_eof()
            self._limit_closing()
        else:
            self._hang_up(wire)
        self._detach("transport error")

    def _hang_up(self, wire: asyncio.Transport) -> None:
        """Close the connection as soon as all is written, or after ``close_timeout``."""
        wire.close()
        self._limit_closing()

    def _limit_closing(self) -> None:
        engine = self.engine
        engine.goodbyes.add(self)
        engine.arm(self, engine.clock() + engine.options.close_timeout)

    def _detach(self, reason: str = "transport close") -> None:
        """Tell the session that this is lost to it."""
        session = self.session
        candidate_of = self.candidate_of
        self.session = self.candidate_of = None
        if session is not None:
            session.fail(reason)
        elif candidate_of is not None:
            count("limpet_upgrades_total", result="closed")
            candidate_of.candidate_lost(self)


class WebSocketTransport(WebSocketConnection, asyncio.Protocol):
    """For uvloop, which reads into a buffer of its own."""

    __slots__ = ()


class BufferedWebSocketTransport(WebSocketConnection, asyncio.BufferedProtocol):
    """For asyncio's own loops, which would allocate 256 KiB for each read."""

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all connections of the loop share."""
        return self.engine.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read into it."""
        self.data_received(bytes(self.engine.receive_buffer[:nbytes]))


def connection_factory(
    loop: asyncio.AbstractEventLoop,
) -> Callable[[EngineServer], WebSocketTransport | BufferedWebSocketTransport]:
    """Return the class of connections that suits a loop."""
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return WebSocketTransport
    return BufferedWebSocketTransport
