"""A Socket.IO server without I/O: sessions that only record, driven by hand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

from limpet_adapters.identity import IdFactory, WorkerAddress
from limpet_adapters.packet import EncodedPacket
from limpet_worker.engineio.request import HandshakeRequest
from limpet_worker.engineio.server import EngineServer
from limpet_worker.engineio.session import Session
from limpet_worker.socketio.client import Client
from limpet_worker.socketio.context import PresenceSink, WorkerContext
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket

CONNECTED = re.compile(rb'0(?:/[^,]*,)?\{"sid":"([A-Za-z0-9_-]{20})"\}')


class FakeSession:
    """An Engine.IO session as the Socket.IO layer sees it."""

    def __init__(self, number: int = 0) -> None:
        self.sid = f"{number:020}"
        self.transport_name = "websocket"
        self.writable = True
        self.sent: list[bytes | tuple[bytes, ...]] = []
        """Texts, and packets with attachments as tuples."""
        self.closed_with: str | None = None
        self.sink: Any = None
        self.request = HandshakeRequest(
            target="/socket.io/?EIO=4&transport=websocket&token=t",
            path="/socket.io/",
            query={"EIO": "4", "transport": "websocket", "token": "t"},
            headers={"origin": "https://example.org", "host": "here"},
            address=("192.0.2.7", 40_000),
            time=1_700_000_000.25,
        )

    @property
    def closed(self) -> bool:
        return self.closed_with is not None

    def send_text(self, data: bytes) -> None:
        if not self.closed:
            self.sent.append(data)

    def send_packet(self, packet: EncodedPacket) -> None:
        if not self.closed:
            whole = (packet.text, *packet.attachments)
            self.sent.append(whole if packet.attachments else packet.text)

    def close(self, reason: str = "forced close", *, discard: bool = False) -> None:
        if self.closed_with is None:
            self.closed_with = reason
            sink, self.sink = self.sink, None
            sink.on_close(reason)

    def send_away(self, reason: str, code: int | None = None) -> None:
        self.close(reason)

    def take(self) -> list[bytes | tuple[bytes, ...]]:
        """Return what was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent


class FakeFlusher:
    """Delivers broadcasts at once."""

    def broadcast(
        self, sessions: Iterable[FakeSession], packet: EncodedPacket, volatile: bool = False
    ) -> None:
        for session in sessions:
            if not volatile or session.writable:
                session.send_packet(packet)


class Peer:
    """A client whose packets are written by the test."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.session = FakeSession(number)
        self.client: Client = server._on_session(cast(Session, self.session))
        self.session.sink = self.client

    def text(self, *packets: bytes) -> None:
        """Let packets come in, in one go."""
        for packet in packets:
            self.client.on_text(packet)

    def binary(self, *attachments: bytes) -> None:
        for attachment in attachments:
            self.client.on_binary(attachment)

    def take(self) -> list[bytes | tuple[bytes, ...]]:
        """Return what the server sent since the last call."""
        return self.session.take()

    def connect(self, namespace: str = "/", auth: bytes = b"") -> Socket:
        """Connect to a namespace without slow middlewares; return the server's socket."""
        name = b"" if namespace == "/" else namespace.encode() + b","
        self.text(b"0" + name + auth)
        return self.socket(namespace)

    async def connect_slowly(self, namespace: str = "/", auth: bytes = b"") -> Socket:
        """Connect where middlewares or functions have to run first."""
        name = b"" if namespace == "/" else namespace.encode() + b","
        self.text(b"0" + name + auth)
        await settled()
        return self.socket(namespace)

    def socket(self, namespace: str = "/") -> Socket:
        answer = self.take()[0]
        assert isinstance(answer, bytes)
        found = CONNECTED.fullmatch(answer)
        assert found is not None, answer
        return self.server.namespaces[namespace].sockets[found[1].decode()]

    @property
    def ended(self) -> str | None:
        """Why the session was closed; None while it is open."""
        return self.session.closed_with


@asynccontextmanager
async def running(
    io: Server, presence: PresenceSink | None = None, **context: Any
) -> AsyncIterator[Server]:
    """Run a server on fakes."""
    await io.start(
        WorkerContext(new_id=IdFactory(WorkerAddress(1, 2, 3)), presence=presence, **context)
    )
    io._flush = cast(EngineServer, FakeEngine()).flusher.broadcast
    try:
        yield io
    finally:
        # A handler that only has yet to begin must end, however long the machine stands still.
        await io.close(grace=10.0)


class FakeEngine:
    flusher = FakeFlusher()


def peers(io: Server, number: int) -> list[Peer]:
    return [Peer(io, index) for index in range(number)]


async def settled() -> None:
    """Let tasks run that wait for nothing but their turn."""
    for _ in range(10):
        await asyncio.sleep(0)
