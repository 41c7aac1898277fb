"""Transports over real sockets: polling, WebSocket, the upgrade, TLS, proxies, what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from client_proxies import between, certificate, deaf_server
from client_rig import Heard, NewClient
from client_servers import ClientServer
from limpet_client.client import Client
from limpet_client.errors import ConnectError, NotSent, SendBufferFull, TransportError

# The first of them may have to install the official server.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

POLLING: dict[str, Any] = {"transports": ["polling"]}
WEBSOCKET: dict[str, Any] = {"transports": ["websocket"]}
UPGRADE: dict[str, Any] = {}
EACH = pytest.mark.parametrize("options", [POLLING, WEBSOCKET, UPGRADE], ids=["poll", "ws", "up"])

Spawn = Callable[..., ClientServer]


async def upgraded(client: Any) -> None:
    async with asyncio.timeout(15):
        while client.transport_name != "websocket":
            await asyncio.sleep(0.005)


@EACH
async def test_large_and_small_both_ways(
    server: ClientServer, options: dict[str, Any], new_client: NewClient
) -> None:
    async with new_client(server.url, **options) as client:
        values = ["", "x" * 70_000, "ü" * 1000, {"a": [b"\0" * 70_000, b"", None]}, 2**53, 1.5]
        for value in values:
            assert await client.emit_with_ack("echo", value) == value
        assert await client.emit_with_ack("values", *values) == tuple(values)


@EACH
async def test_nothing_is_lost_or_reordered(
    server: ClientServer, options: dict[str, Any], new_client: NewClient
) -> None:
    client, got = new_client(server.url, **options), Heard()
    client.on("mirrored", lambda number, data: got(number, data))  # noqa: PLW0108 - no offset
    await client.connect()
    for number in range(300):
        client.emit("mirror", number, bytes((number % 256,)) * 10)
        if number % 10 == 0:
            await asyncio.sleep(0)
    calls = await got.wait(300)
    assert calls == [(number, bytes((number % 256,)) * 10) for number in range(300)]


async def test_upgrades_under_traffic(server: ClientServer, new_client: NewClient) -> None:
    async with between(lambda _head: ("127.0.0.1", server.port), slow=0.05) as way:
        client, got, up = new_client(f"http://127.0.0.1:{way.port}"), Heard(), Heard()
        client.on("mirrored", lambda number: got(number))  # noqa: PLW0108 - takes no offset
        client.manager.on("upgrade", up)
        await client.connect()
        assert client.transport_name == "polling"
        sent = 0
        while not up.calls or sent < 200:
            client.emit("mirror", sent)
            sent += 1
            await asyncio.sleep(0.001)
            assert sent < 15_000
        assert client.transport_name == "websocket"
        assert await got.wait(sent) == [(number,) for number in range(sent)]
        assert (await client.emit_with_ack("whoami"))["transport"] == "websocket"
        await client.close()


async def test_no_upgrade_unless_wanted(server: ClientServer, new_client: NewClient) -> None:
    client = new_client(server.url, upgrade=False)
    await client.connect()
    await client.emit_with_ack("echo", 1)
    await asyncio.sleep(0.05)
    assert client.transport_name == "polling"


async def test_remembers_the_upgrade(server: ClientServer, new_client: NewClient) -> None:
    client = new_client(server.url, remember_upgrade=True)
    await client.connect()
    await upgraded(client)
    await client.disconnect()
    await client.connect()
    assert client.transport_name == "websocket"


async def test_posts_fit(spawn: Spawn, new_client: NewClient) -> None:
    small = spawn("node", {"maxHttpBufferSize": 2000})
    client = new_client(small.url, **POLLING)
    await client.connect()
    answers = [asyncio.create_task(client.emit_with_ack("echo", "x" * 500)) for _ in range(20)]
    assert await asyncio.gather(*answers) == ["x" * 500] * 20


@pytest.mark.parametrize("threshold", [0, 1024])
async def test_compression(spawn: Spawn, threshold: int, new_client: NewClient) -> None:
    compressing = spawn("node", {"perMessageDeflate": {"threshold": threshold}})
    address = ("127.0.0.1", compressing.port)
    async with between(lambda _head: address) as counting:
        url = f"http://127.0.0.1:{counting.port}"
        client = new_client(url, compression_threshold=threshold, **WEBSOCKET)
        await client.connect()
        connection = client.manager.connection
        assert connection is not None
        transport: Any = connection.session.transport
        assert transport.extension is not None
        text = "compress me " * 10_000
        assert await client.emit_with_ack("echo", text) == text
        assert await client.compress(False).emit_with_ack("echo", text) == text
        assert await client.emit_with_ack("echo", b"\0" * 100_000) == b"\0" * 100_000
        assert await client.emit_with_ack("echo", "short") == "short"
        await client.disconnect()
        plain = new_client(url, per_message_deflate=False, **WEBSOCKET)
        await plain.connect()
        assert await plain.emit_with_ack("echo", text) == text
        assert b"permessage-deflate" in counting.heads[0]
        assert b"permessage-deflate" not in counting.heads[1]


@EACH
async def test_headers_and_cookies(
    spawn: Spawn, options: dict[str, Any], new_client: NewClient
) -> None:
    sticky = spawn("node", {"cookie": True})
    client = new_client(
        sticky.url, extra_headers={"X-Test": "ü".encode().hex()}, cookies={"mine": "1"}, **options
    )
    await client.connect()
    headers = (await client.emit_with_ack("getHandshake"))["headers"]
    assert headers["x-test"] == "c3bc"
    assert headers["cookie"] == "mine=1"
    await client.disconnect()
    await client.connect()
    again = (await client.emit_with_ack("getHandshake"))["headers"]["cookie"]
    # Only the answer to a polling handshake sets one.
    assert ("io=" in again) is (options is not WEBSOCKET)


@EACH
async def test_a_session_of_the_users(
    server: ClientServer, options: dict[str, Any], new_client: NewClient
) -> None:
    headers = {"X-From": "session"}
    async with aiohttp.ClientSession(headers=headers) as session:
        client = new_client(server.url, http_session=session, cookies={"mine": "2"}, **options)
        await client.connect()
        handshake = await client.emit_with_ack("getHandshake")
        assert handshake["headers"]["x-from"] == "session"
        assert handshake["headers"]["cookie"] == "mine=2"
        await client.close()
        assert not session.closed


@EACH
async def test_tls(
    server: ClientServer, options: dict[str, Any], tmp_path: Path, new_client: NewClient
) -> None:
    serving, trusting = certificate(tmp_path)
    async with between(lambda _head: ("127.0.0.1", server.port), serving) as tls:
        url = f"https://127.0.0.1:{tls.port}"
        client = new_client(url, ssl=trusting, **options)
        await client.connect()
        data = b"x" * 300_000
        assert await client.emit_with_ack("echo", data) == data
        await client.close()
        with pytest.raises(ConnectError, match="certificate"):
            await new_client(url, **options).connect()
        unchecked = new_client(url, ssl=False, **options)
        await unchecked.connect()
        await unchecked.close()


@EACH
@pytest.mark.parametrize("secure", [False, True])
async def test_proxy(
    server: ClientServer,
    options: dict[str, Any],
    secure: bool,
    tmp_path: Path,
    new_client: NewClient,
) -> None:
    serving, trusting = certificate(tmp_path)
    real = ("127.0.0.1", server.port)
    async with between(lambda _head: real, serving) as tls:
        target = ("127.0.0.1", tls.port) if secure else real
        async with between(lambda _head: target) as proxy:
            client = new_client(
                f"{'https' if secure else 'http'}://127.0.0.1:{target[1]}",
                ssl=trusting,
                proxy=f"http://127.0.0.1:{proxy.port}",
                proxy_headers={"X-For-The-Proxy": "yes"},
                **options,
            )
            await client.connect()
            assert await client.emit_with_ack("echo", b"x" * 100_000) == b"x" * 100_000
            await client.close()
            first = proxy.heads[0]
            assert first.startswith(b"CONNECT" if secure else b"GET http://")
            assert b"X-For-The-Proxy: yes" in first or not secure


async def test_a_way_without_websockets(server: ClientServer, new_client: NewClient) -> None:
    def decide(head: bytes) -> tuple[str, int] | None:
        return None if b"Upgrade: websocket" in head else ("127.0.0.1", server.port)

    async with between(decide) as way:
        url = f"http://127.0.0.1:{way.port}"
        client = new_client(url)
        await client.connect()
        for number in range(20):
            assert await client.emit_with_ack("echo", number) == number
        assert client.transport_name == "polling"
        await client.close()
        with pytest.raises(TransportError):
            await new_client(url, **WEBSOCKET).connect()
        either = new_client(url, transports=["websocket", "polling"], try_all_transports=True)
        await either.connect()
        assert either.transport_name == "polling"
        await either.close()


@EACH
async def test_the_network_is_cut(
    server: ClientServer, options: dict[str, Any], new_client: NewClient
) -> None:
    async with between(lambda _head: ("127.0.0.1", server.port)) as way:
        url = f"http://127.0.0.1:{way.port}"
        client, gone = new_client(url, reconnection_delay=0.01, **options), Heard()
        client.on("disconnect", gone)
        await client.connect()
        if options is UPGRADE:
            await upgraded(client)
        asking = asyncio.create_task(client.emit_with_ack("unknown"))
        await asyncio.sleep(0.02)
        there = way.decide
        way.decide = lambda _head: None  # else a poll that is not there yet would go another way
        way.cut()
        with pytest.raises(ConnectionError):
            await asking
        way.decide = there
        assert await client.emit_with_ack("echo", 1) == 1
        reason, error = gone.calls[0]
        assert reason in {"transport close", "transport error"}
        assert isinstance(error, TransportError)
        await client.close()


class Silent:
    """A server that says hello, and then what it is told to."""

    def __init__(self) -> None:
        self.hello: dict[str, Any] = {
            "sid": "s" * 20,
            "upgrades": [],
            "pingInterval": 5000,
            "pingTimeout": 5000,
            "maxPayload": 1000,
        }
        self.polls: list[bytes] = []
        """Answers to the polls after the first; none: it lasts."""
        self.frames: list[bytes | str] = []
        self.probe = ""
        """What a WebSocket that asks is answered, before it is closed; empty: it is not one."""
        self.posts: list[bytes] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        hello = f"0{json.dumps(self.hello)}"
        if request.query["transport"] == "websocket":
            socket = web.WebSocketResponse(max_msg_size=0)
            await socket.prepare(request)
            if self.probe:
                await socket.receive_str()
                await socket.send_str(self.probe)
                await socket.close()
                return socket
            await socket.send_str(hello)
            for frame in self.frames:
                await (
                    socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame)
                )
            async for message in socket:
                self.posts.append(str(message.data).encode())
            return socket
        if request.method == "POST":
            self.posts.append(await request.read())
            return web.Response(text="ok")
        if "sid" not in request.query:
            return web.Response(text=hello)
        if not self.polls:
            await asyncio.sleep(1)
        return web.Response(body=self.polls.pop(0) if self.polls else b"6")


@pytest.fixture
async def silent(new_client: NewClient) -> AsyncIterator[tuple[Silent, str]]:
    del new_client  # whose tests for tasks come when this has ended
    one = Silent()
    app = web.Application()
    app.router.add_route("*", "/socket.io/", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield one, f"http://{host}:{port}"
    await runner.cleanup()


@pytest.mark.parametrize("options", [POLLING, WEBSOCKET], ids=["poll", "ws"])
async def test_a_server_that_falls_silent(
    silent: tuple[Silent, str], options: dict[str, Any], new_client: NewClient
) -> None:
    one, url = silent
    one.hello |= {"pingInterval": 1000, "pingTimeout": 1500}
    one.polls = [b'40{"sid":"abc"}']
    one.frames = ['40{"sid":"abc"}']
    client, gone = new_client(url, reconnection=False, **options), Heard()
    client.on("disconnect", gone)
    await client.connect()
    started = asyncio.get_running_loop().time()
    assert await gone.wait() == [("ping timeout", None)]
    assert asyncio.get_running_loop().time() - started < 10
    await client.close()


@pytest.mark.parametrize("probe", ["3probe", "4what", "3"])
async def test_an_upgrade_that_fails(
    silent: tuple[Silent, str], probe: str, new_client: NewClient
) -> None:
    one, url = silent
    one.hello |= {"upgrades": ["websocket"]}
    one.probe = probe
    one.polls = [b'40{"sid":"abc"}', b"6", *(b'42["event",%d]' % number for number in range(20))]
    client, got = new_client(url), Heard()
    client.on("event", got)
    await client.connect()
    client.emit("hello")
    assert await got.wait(20) == [(number,) for number in range(20)]
    assert client.transport_name == "polling"
    async with asyncio.timeout(15):
        while b'42["hello"]' not in b"".join(one.posts):
            await asyncio.sleep(0.01)
    await client.close()


async def test_a_server_that_does_not_read(
    new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limpet_client.connection._CLOSE_TIMEOUT", 0.3)
    async with deaf_server() as url:
        client = new_client(url, max_buffered_bytes=10_000_000, **WEBSOCKET)
        await client.connect()

        async def emit_much() -> None:
            for _ in range(1000):
                client.emit("large", b"x" * 100_000)
                await asyncio.sleep(0)

        with pytest.raises(SendBufferFull):
            await emit_much()
        with pytest.raises(NotSent):
            await client.volatile.emit_with_ack("small")
        started = asyncio.get_running_loop().time()
        await client.close()  # what waits cannot go: it is not waited for without an end
        assert 0.2 < asyncio.get_running_loop().time() - started < 15


@pytest.mark.parametrize(
    ("polls", "reason"),
    [
        ([b'40{"sid":"abc"}', b"7what"], "parse error"),
        ([b'40{"sid":"abc"}', b"b===="], "parse error"),
        ([b'40{"sid":"abc"}', b"42["], "parse error"),
        ([b'40{"sid":"abc"}', b"1"], "transport close"),
        ([b'40{"sid":"abc"}', b"x" * 2000], "transport error"),
    ],
)
async def test_polls_that_cannot_be_read(
    silent: tuple[Silent, str], polls: list[bytes], reason: str, new_client: NewClient
) -> None:
    one, url = silent
    one.polls = polls
    client = new_client(url, reconnection=False, max_message_size=1000, **POLLING)
    gone = Heard()
    client.on("disconnect", gone)
    await client.connect()
    assert (await gone.wait())[0][0] == reason
    await client.close()


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (['40{"sid":"abc"}', "7what"], "parse error"),
        (['40{"sid":"abc"}', b"binary of nothing"], "parse error"),
        (['40{"sid":"abc"}', '451-["x",{"_placeholder":true,"num":0}]', '42["y"]'], "parse error"),
        (['40{"sid":"abc"}', "4" + "x" * 2000], "transport error"),
    ],
)
async def test_frames_that_cannot_be_read(
    silent: tuple[Silent, str], frames: list[bytes | str], reason: str, new_client: NewClient
) -> None:
    one, url = silent
    one.frames = frames
    client = new_client(url, reconnection=False, max_message_size=1000, **WEBSOCKET)
    gone = Heard()
    client.on("disconnect", gone)
    client.connect()
    assert (await gone.wait())[0][0] == reason
    await client.close()


@pytest.mark.parametrize("options", [POLLING, WEBSOCKET], ids=["poll", "ws"])
async def test_a_status_is_told(
    server: ClientServer, options: dict[str, Any], new_client: NewClient
) -> None:
    if server.kind == "limpet" or options is POLLING:  # Node ends the connection without a word
        client = new_client(server.url, path="/nowhere/", **options)
        with pytest.raises(TransportError) as caught:
            await client.connect()
        assert caught.value.description == 404
    wrong = new_client(server.url, query={"sid": "x" * 20}, **options)
    with pytest.raises(TransportError) as caught:
        await wrong.connect()
    assert caught.value.description == 400
    assert "Session ID unknown" in caught.value.context


async def test_polling_says_goodbye(silent: tuple[Silent, str], new_client: NewClient) -> None:
    one, url = silent
    one.polls = [b'40{"sid":"abc"}']
    client = new_client(url, **POLLING)
    await client.connect()
    client.emit("last words")
    await client.close()
    assert b"".join(one.posts).endswith(b'42["last words"]\x1e411')


@EACH
async def test_other_loops(server: ClientServer, options: dict[str, Any], tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")
    serving, trusting = certificate(tmp_path)

    async def talk(url: str) -> None:
        async with Client(url, ssl=trusting, **options) as client:
            if options is UPGRADE:
                await upgraded(client)
            assert await client.emit_with_ack("echo", b"x" * 300_000) == b"x" * 300_000

    def run(url: str) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(talk(url))

    await asyncio.to_thread(run, server.url)
    async with between(lambda _head: ("127.0.0.1", server.port), serving) as tls:
        await asyncio.to_thread(run, f"https://127.0.0.1:{tls.port}")


async def test_a_slow_consumer_is_told(server: ClientServer, new_client: NewClient) -> None:
    client, gone = new_client(server.url, max_pending_events=10, reconnection=False), Heard()
    client.on("disconnect", gone)

    @client.on("item")
    async def never(_number: int, _text: str) -> None:
        await asyncio.sleep(3600)

    await client.connect()
    client.emit("items", 20, "x")
    reason, error = (await gone.wait())[0]
    assert reason == "slow consumer"
    assert isinstance(error, TransportError)
    await client.close()
    await client.manager.finish(0)
