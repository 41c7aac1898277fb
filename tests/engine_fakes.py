"""A loop, a clock, a connection and a sink that tests of Engine.IO drive by hand."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import cast

from limpet_worker.engineio.options import EngineOptions
from limpet_worker.engineio.server import EngineServer
from limpet_worker.engineio.session import HandshakeRequest, Session
from limpet_worker.websocket.frames import TEXT, FrameParser, encode
from limpet_worker.websocket.transport import WebSocketConnection

MASK = b"\x11\x22\x33\x44"


class FakeHandle:
    """What the fake loop gives for a call."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """Runs callbacks when it is told; its time is what it is told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ready: deque[FakeHandle] = deque()
        self.timers: list[tuple[float, int, FakeHandle]] = []
        self._numbers = count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> FakeHandle:
        handle = FakeHandle(callback)
        self.ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[[], object]) -> FakeHandle:
        handle = FakeHandle(callback)
        heapq.heappush(self.timers, (self.now + delay, next(self._numbers), handle))
        return handle

    def turn(self) -> None:
        """Run what is ready now, not what that makes ready."""
        for _ in range(len(self.ready)):
            handle = self.ready.popleft()
            if not handle.cancelled:
                handle.callback()

    def settle(self) -> None:
        """Run until nothing is ready."""
        while self.ready:
            self.turn()

    def sleep(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.now + seconds
        self.settle()
        while self.timers and self.timers[0][0] <= end:
            when, _, handle = heapq.heappop(self.timers)
            self.now = max(self.now, when)
            if not handle.cancelled:
                handle.callback()
            self.settle()
        self.now = end


class FakeTransport(asyncio.Transport):
    """A connection that keeps what is written; ``room`` is what its kernel takes."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None
        self.writes: list[bytes] = []
        self.closed = self.aborted = self.ended = False
        self.high = 0
        self.room: int | None = None
        self.broken = False

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    @property
    def connection(self) -> WebSocketConnection:
        return cast("WebSocketConnection", self.protocol)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.broken:
            raise RuntimeError("broken")
        assert not self.closed
        assert not self.ended
        self.writes.append(bytes(data))
        if self.room is not None:
            self.room -= len(data)
            if self.room < 0:
                self.connection.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    # --- the client's side -----------------------------------------------

    def receive(self, *packets: str | bytes) -> None:
        """Hand in text and binary frames, all in one read."""
        frames = []
        for packet in packets:
            if isinstance(packet, str):
                frames.append(encode(TEXT, packet.encode(), MASK))
            else:
                frames.append(encode(2, packet, MASK))
        self.connection.data_received(b"".join(frames))

    def drain(self) -> None:
        """Let the kernel have taken everything."""
        self.room = None
        self.connection.resume_writing()

    def lose(self, error: Exception | None = None) -> None:
        self.connection.connection_lost(error)

    def take(self) -> list[str | bytes | tuple[str, object]]:
        """Return the frames that were written since the last call, without the 101."""
        data = self.written
        self.writes.clear()
        _, marker, rest = data.partition(b"\r\n\r\n")
        reader = ClientReader()
        reader.feed(rest if marker else data)
        return reader.events


class ClientReader(FrameParser):
    """A client's reader: events as a list."""

    __slots__ = ("events",)

    from_client = False

    def __init__(self, limit: int = 1 << 30) -> None:
        super().__init__(limit)
        self.events: list[str | bytes | tuple[str, object]] = []

    def on_text(self, payload: bytes) -> None:
        self.events.append(payload.decode())

    def on_binary(self, payload: bytes) -> None:
        self.events.append(payload)

    def on_ping(self, payload: bytes) -> None:
        self.events.append(("ping", payload))

    def on_pong(self, payload: bytes) -> None:
        self.events.append(("pong", payload))

    def on_close_frame(self, code: int, reason: str) -> None:
        self.events.append(("close", code))


class RecordingSink:
    """Keeps what it is told."""

    def __init__(self, session: Session, *, echo: bool = False) -> None:
        self.session = session
        self.echo = echo
        self.events: list[tuple[str, object]] = []

    def on_text(self, data: bytes) -> None:
        self.events.append(("text", data))
        if self.echo:
            self.session.send_text(data)

    def on_binary(self, data: bytes) -> None:
        self.events.append(("binary", data))
        if self.echo:
            self.session.send(data)

    def on_upgrade(self) -> None:
        self.events.append(("upgrade", None))

    def on_close(self, reason: str) -> None:
        self.events.append(("close", reason))

    @property
    def reasons(self) -> list[object]:
        return [value for kind, value in self.events if kind == "close"]


REFUSED = b"400"
"""Stands for the answer that a session is unknown."""


class Poll:
    """A GET."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def respond(self, payload: bytes) -> None:
        self.payloads.append(payload)

    def refuse(self) -> None:
        self.payloads.append(REFUSED)

    @property
    def payload(self) -> bytes | None:
        assert len(self.payloads) <= 1, "answered twice"
        return self.payloads[0] if self.payloads else None


RESPONSE = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Rig:
    """An Engine.IO server on a fake loop, and its clients."""

    def __init__(self, *, echo: bool = False, **options: object) -> None:
        self.loop = FakeLoop()
        self.sinks: dict[str, RecordingSink] = {}
        self.echo = echo
        self.numbers = count()
        self.engine = EngineServer(
            EngineOptions(**options),  # type: ignore[arg-type]
            self.on_session,
            lambda: f"{next(self.numbers):020d}",
            loop=cast("asyncio.AbstractEventLoop", self.loop),
        )

    def on_session(self, session: Session) -> RecordingSink:
        sink = self.sinks[session.sid] = RecordingSink(session, echo=self.echo)
        return sink

    @staticmethod
    def request() -> HandshakeRequest:
        return HandshakeRequest(
            target="/socket.io/", path="/socket.io/", query={}, headers={}, address=("host", 1)
        )

    def sink(self, session: Session) -> RecordingSink:
        return self.sinks[session.sid]

    def polling(self) -> Session:
        """Open a polling session and fetch its open packet."""
        session = self.engine.open(self.request())
        assert self.poll(session).payload is not None
        self.loop.settle()
        return session

    def websocket(self) -> tuple[Session, FakeTransport]:
        """Open a WebSocket session and read its open packet."""
        transport = FakeTransport()
        session = self.engine.open_websocket(self.request(), transport, RESPONSE)
        transport.take()
        return session, transport

    @staticmethod
    def poll(session: Session) -> Poll:
        poll = Poll()
        assert session.polling is not None
        assert session.polling.poll(poll)
        return poll

    @staticmethod
    def post(session: Session, body: bytes) -> bool:
        assert session.polling is not None
        return session.polling.post(body)

    def candidate(self, session: Session, *packets: str) -> FakeTransport:
        """Connect a WebSocket with the sid of a session."""
        transport = FakeTransport()
        extra = b"".join(encode(TEXT, packet.encode(), MASK) for packet in packets)
        self.engine.upgrade_websocket(session, transport, RESPONSE, extra)
        return transport

    def upgraded(self) -> tuple[Session, FakeTransport]:
        """Open a polling session and change it over to WebSocket."""
        session = self.polling()
        transport = self.candidate(session, "2probe", "5")
        assert transport.take() == ["3probe"]
        return session, transport
