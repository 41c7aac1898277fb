"""The WebSocket transport over real connections, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import socket
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import cast

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from engine_fakes import MASK, ClientReader, RecordingSink
from limpet_worker.engineio.options import EngineOptions
from limpet_worker.engineio.server import EngineServer
from limpet_worker.engineio.session import HandshakeRequest, Session
from limpet_worker.websocket.frames import BINARY, CONTINUATION, PING, TEXT, encode
from limpet_worker.websocket.transport import (
    BufferedWebSocketTransport,
    WebSocketTransport,
    connection_factory,
)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


class Door(asyncio.Protocol):
    """Just enough of a front door: every request is a WebSocket handshake."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.transport: asyncio.Transport | None = None
        self.head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.service.transports.append(self.transport)

    def data_received(self, data: bytes) -> None:
        self.head += data
        head, end, extra = self.head.partition(b"\r\n\r\n")
        if not end or self.transport is None:
            return
        key = next(
            (
                line[19:]
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"sec-websocket-key")
            ),
            b"",
        )
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        response = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        engine = self.service.engine
        if b"sid=" in head.split(b"\r\n")[0]:
            (session,) = engine.sessions.values()
            engine.upgrade_websocket(session, self.transport, response, extra)
        else:
            request = HandshakeRequest(target="/", path="/", query={}, headers={}, address="")
            engine.open_websocket(request, self.transport, response, extra)


class Service:
    """An Engine.IO server that echoes, on a port of its own."""

    def __init__(self, **options: object) -> None:
        self.sinks: list[RecordingSink] = []
        self.transports: list[asyncio.Transport] = []
        self.engine = EngineServer(
            EngineOptions(**options),  # type: ignore[arg-type]
            self.on_session,
            lambda: f"{len(self.sinks):020d}",
        )
        self.address = ("", 0)

    def on_session(self, session: Session) -> RecordingSink:
        self.sinks.append(RecordingSink(session, echo=True))
        return self.sinks[-1]

    async def closed(self) -> object:
        """Wait for the end of the first session; return its reason."""
        async with asyncio.timeout(15):
            while not self.sinks or not self.sinks[0].reasons:
                await asyncio.sleep(0.002)
        return self.sinks[0].reasons[0]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.address[1]}/"


@asynccontextmanager
async def serve(**options: object) -> AsyncIterator[Service]:
    service = Service(**options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Door(service), "127.0.0.1", 0)
    service.address = server.sockets[0].getsockname()
    yield service
    service.engine.close_all(discard=True)
    service.engine.stop()
    server.close()
    for transport in service.transports:  # that its client has gone may not be known yet
        transport.abort()
    await asyncio.sleep(0.01)


@asynccontextmanager
async def client(service: Service, path: str = "") -> AsyncIterator[ClientConnection]:
    async with connect(
        service.url + path, compression=None, max_size=None, ping_interval=None, proxy=None
    ) as websocket:
        if not path:
            assert str(await websocket.recv()).startswith('0{"sid":')
        yield websocket


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run an async function on one kind of loop."""

    def runner(function: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await function()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as each:
            each.run(limited())

    return runner


Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_each_loop_has_its_kind_of_protocol() -> None:
    for name, make in LOOPS.items():
        loop = make()
        expected = WebSocketTransport if name == "uvloop" else BufferedWebSocketTransport
        assert connection_factory(loop) is expected
        loop.close()
    assert not hasattr(WebSocketTransport, "__dict__") or "__dict__" not in dir(
        WebSocketTransport.__new__(WebSocketTransport)
    )
    assert not hasattr(BufferedWebSocketTransport.__new__(BufferedWebSocketTransport), "__dict__")


@pytest.mark.parametrize("size", [0, 10, 125, 126, 5000, 65_535, 65_536, 999_000])
def test_echo(run: Run, size: int) -> None:
    async def check() -> None:
        async with serve() as service, client(service) as websocket:
            text = "é" * (size // 2)
            await websocket.send("4" + text)
            assert await websocket.recv() == "4" + text
            data = b"\xff" * size
            await websocket.send(data)
            assert await websocket.recv() == data

    run(check)


def test_many_messages_both_ways_at_once(run: Run) -> None:
    async def check() -> None:
        async with serve() as service, client(service) as websocket:

            async def send() -> None:
                for number in range(3000):
                    await websocket.send(f"4{number}" + "x" * (number % 200))

            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                for number in range(3000):
                    assert await websocket.recv() == f"4{number}" + "x" * (number % 200)

    run(check)


def test_ping_frames_are_answered_between_messages(run: Run) -> None:
    async def check() -> None:
        async with serve() as service, client(service) as websocket:
            answer = await websocket.ping(b"hello")
            await websocket.send("4a")
            assert await websocket.recv() == "4a"
            await answer

    run(check)


def test_fragments(run: Run) -> None:
    async def check() -> None:
        async with serve() as service, client(service) as websocket:
            await websocket.send(["4", "a", "", "b" * 70_000])
            assert await websocket.recv() == "4a" + "b" * 70_000

    run(check)


@pytest.mark.parametrize("code", [1000, 1001, 4000])
def test_the_client_closes(run: Run, code: int) -> None:
    async def check() -> None:
        async with serve() as service, client(service) as websocket:
            await websocket.close(code, "bye")
            assert websocket.close_code == code
            assert await service.closed() == "transport close"

    run(check)


def test_the_server_closes(run: Run) -> None:
    async def check() -> None:
        async with serve() as service, client(service) as websocket:
            session = service.sinks[0].session
            session.send("last")
            session.close()
            assert await websocket.recv() == "4last"
            with pytest.raises(ConnectionClosed):
                await websocket.recv()
            assert websocket.close_code == 1005
            assert await service.closed() == "forced close"

    run(check)


def test_a_message_too_big(run: Run) -> None:
    async def check() -> None:
        async with serve(max_http_buffer_size=1000) as service, client(service) as websocket:
            await websocket.send("4" + "x" * 999)
            assert len(await websocket.recv()) == 1000
            await websocket.send("4" + "x" * 3_000_000)
            with pytest.raises(ConnectionClosed):
                await websocket.recv()
            assert websocket.close_code == 1009
            assert await service.closed() == "transport error"

    run(check)


def test_what_the_client_drops(run: Run) -> None:
    async def check() -> None:
        async with serve() as service, client(service) as websocket:
            websocket.transport.abort()
            assert await service.closed() == "transport close"
            assert service.engine.sessions == {}

    run(check)


def test_heartbeat(run: Run) -> None:
    async def check() -> None:
        async with (
            serve(ping_interval=0.1, ping_timeout=20.0) as service,
            client(service) as websocket,
        ):
            for _ in range(3):
                assert await websocket.recv() == "2"
                await websocket.send("3")
        async with (
            serve(ping_interval=0.1, ping_timeout=0.1) as service,
            client(service) as websocket,
        ):
            assert await websocket.recv() == "2"
            assert await service.closed() == "ping timeout"

    run(check)


def test_upgrade(run: Run) -> None:
    async def check() -> None:
        async with serve() as service:
            request = HandshakeRequest(target="/", path="/", query={}, headers={}, address="")
            session = service.engine.open(request)
            async with client(service, f"?sid={session.sid}") as websocket:
                await websocket.send("2probe")
                assert await websocket.recv() == "3probe"
                session.out = None  # the open packet, which a poll would have taken
                session.send("queued")
                await websocket.send("5")
                await websocket.send("4a")
                assert [await websocket.recv(), await websocket.recv()] == ["4queued", "4a"]
                async with client(service, f"?sid={session.sid}") as second:
                    with pytest.raises(ConnectionClosed):
                        await second.recv()
                    assert second.close_code == 1005

    run(check)


# --- bytes by hand -------------------------------------------------------


async def raw(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, and read up to the open packet."""
    reader, writer = await asyncio.open_connection(*service.address)
    writer.write(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    head = await reader.readexactly(2)
    size = head[1]
    if size == 126:
        size = struct.unpack("!H", await reader.readexactly(2))[0]
    await reader.readexactly(size)
    return reader, writer


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (encode(TEXT, b"4a"), 1002, "transport error"),
        (b"\xff" * 100, 1002, "transport error"),
        (encode(TEXT, b"4\xff", MASK), 1007, "transport error"),
        (encode(TEXT, b"x", MASK), 1005, "parse error"),
        (encode(TEXT, b"", MASK), 1005, "parse error"),
        (encode(TEXT, b"1", MASK), 1005, "transport close"),
        (
            b"\x82\xff" + struct.pack("!Q", 1_000_001) + MASK + bytes(200_000),
            1009,
            "transport error",
        ),
        (encode(8, b"\x03", MASK), 1002, "transport error"),
    ],
)
def test_bad_bytes(run: Run, data: bytes, code: int, reason: str) -> None:
    async def check() -> None:
        async with serve() as service:
            reader, writer = await raw(service)
            writer.write(data)
            parser = ClientReader()
            # The client sees the close frame, however much it has sent behind.
            while not parser.events:
                chunk = await reader.read(65_536)
                assert chunk
                parser.feed(chunk)
            assert parser.events == [("close", code)]
            assert await service.closed() == reason
            if code != 1005:
                assert await reader.read() == b""  # ended by the server
            writer.close()
            await writer.wait_closed()

    run(check)


def test_frames_in_tiny_segments(run: Run) -> None:
    async def check() -> None:
        async with serve() as service:
            reader, writer = await raw(service)
            stream = (
                encode(TEXT, b"4he", MASK, final=False)
                + encode(PING, b"p", MASK)
                + encode(CONTINUATION, b"llo", MASK)
                + encode(BINARY, b"x" * 200, MASK)
            )
            for at in range(0, len(stream), 7):
                writer.write(stream[at : at + 7])
                await asyncio.sleep(0)
            parser = ClientReader()
            while len(parser.events) < 3:
                parser.feed(await reader.read(1000))
            assert parser.events == [("pong", b"p"), "4hello", b"x" * 200]
            writer.close()
            await writer.wait_closed()

    run(check)


def test_a_client_that_does_not_read_is_dropped(run: Run) -> None:
    async def check() -> None:
        async with serve(hard_limit=2 << 20) as service:
            reader, writer = await raw(service)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire = cast("asyncio.Transport", writer.transport)
            wire.pause_reading()
            session = service.sinks[0].session
            sent = 0
            while not session.closed and sent < 64 << 20:
                session.send("x" * 65_536)
                sent += 65_536
                await asyncio.sleep(0)
            assert await service.closed() == "slow consumer"
            assert session.out is None
            writer.transport.abort()
            del reader

    run(check)


def test_what_a_slow_client_gets_is_whole_and_in_order(run: Run) -> None:
    async def check() -> None:
        async with serve() as service:
            reader, writer = await raw(service)
            wire = cast("asyncio.Transport", writer.transport)
            wire.pause_reading()
            session = service.sinks[0].session
            expected = [f"4{number}" + "x" * 20_000 for number in range(300)]
            for packet in expected:
                session.send(packet[1:])
                await asyncio.sleep(0)
            assert session.blocked
            wire.resume_reading()
            parser = ClientReader()
            while len(parser.events) < len(expected):
                parser.feed(await reader.read(1 << 20))
            assert parser.events == expected
            assert not session.out
            writer.close()
            await writer.wait_closed()

    run(check)
