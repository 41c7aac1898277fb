"""Connecting and reconnecting: the block "connection" of the official client's suite."""

from __future__ import annotations

import asyncio
import socket as sockets
from datetime import datetime
from typing import Any

import pytest

from client_rig import Heard, NewClient, closed_port, cut
from client_servers import ClientServer
from limpet_client.backoff import Backoff
from limpet_client.client import Client
from limpet_client.errors import ConnectError, TransportError

# The first of them may have to install the official server.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

DATA = b"asdfasdf"


async def test_connects(server: ClientServer, new_client: NewClient) -> None:
    """should connect to localhost"""
    client, hi = new_client(server.url), Heard()
    client.on("hi", hi)
    client.connect()
    client.emit("hi")
    await hi.wait()


async def test_does_not_connect_by_itself(server: ClientServer, new_client: NewClient) -> None:
    """should not connect when autoConnect option set to false"""
    client = new_client(server.url, auto_connect=False)
    other = client.of("/foo")
    await asyncio.sleep(0.05)
    assert client.manager.connection is None
    await client.connect()
    await asyncio.sleep(0.05)
    assert not other.active
    await other.connect()
    assert other.connected


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [("/", "/", {}), ("/?woot", "/", {}), ("/", "/", {"path": "/foo"})],
)
async def test_two_connections(
    server: ClientServer, first: str, second: str, options: dict[str, Any], new_client: NewClient
) -> None:
    """should start two connections with same path
    should start two connections with same path and different querystrings
    should start two connections with different paths
    """
    one, two = new_client(server.url + first), new_client(server.url + second, **options)
    assert one.manager is not two.manager


async def test_one_connection_for_namespaces(server: ClientServer, new_client: NewClient) -> None:
    """should start a single connection with different namespaces"""
    client = new_client(f"{server.url}/foo")
    bar = client.of("/bar")
    assert bar.manager is client.manager
    await client.connect()
    await bar.connect()
    assert client.nsp == "/foo"
    assert await client.emit_with_ack("getId") == client.id


async def test_answers(server: ClientServer, new_client: NewClient) -> None:
    """should work with acks"""
    client, got = new_client(server.url), Heard()
    client.on("ack", lambda: (5, {"test": True}))
    client.on("got it", got)
    client.connect()
    client.emit("ack")
    await got.wait()


async def test_date_in_an_answer(server: ClientServer, new_client: NewClient) -> None:
    """should receive date with ack"""
    client = new_client(server.url)
    client.connect()
    date = await client.emit_with_ack("getAckDate", {"test": True})
    assert datetime.fromisoformat(date).tzinfo is not None


async def test_false(server: ClientServer, new_client: NewClient) -> None:
    """should work with false"""
    client, got = new_client(server.url), Heard()
    client.on("false", got)
    client.connect()
    client.emit("false")
    assert (await got.wait())[0][0] is False


async def test_utf8(server: ClientServer, new_client: NewClient) -> None:
    """should receive utf8 multibyte characters"""
    client, got = new_client(server.url), Heard()
    client.on("takeUtf8", got)
    client.connect()
    client.emit("getUtf8")
    texts = ["てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "utf8 — string"]
    assert [call[0] for call in await got.wait(5)] == texts


async def test_namespace_after_the_connection(server: ClientServer, new_client: NewClient) -> None:
    """should connect to a namespace after connection established"""
    client = new_client(server.url)
    await client.connect()
    foo, connected = client.of("/foo"), Heard()
    foo.on("connect", connected)
    await connected.wait()
    assert foo.id != client.id


async def test_namespace_after_the_end(server: ClientServer, new_client: NewClient) -> None:
    """should open a new namespace after connection gets closed"""
    client, connected = new_client(server.url), Heard()

    @client.on("disconnect")
    def disconnected() -> None:
        foo = client.of("/foo")
        foo.on("connect", connected)
        foo.connect()

    await client.connect()
    client.disconnect()
    await connected.wait()


async def test_reconnects(server: ClientServer, new_client: NewClient) -> None:
    """should reconnect by default"""
    client, reconnected = new_client(server.url, reconnection_delay=0.01), Heard()
    client.manager.on("reconnect", reconnected)
    await client.connect()
    cut(client)
    assert await reconnected.wait() == [(1,)]
    assert client.manager.backoff.attempts == 0


async def test_reconnects_when_told(server: ClientServer, new_client: NewClient) -> None:
    """should reconnect manually"""
    client, connected = new_client(server.url), Heard()
    client.on("connect", connected)
    client.once("disconnect", client.connect)
    await client.connect()
    client.disconnect()
    await connected.wait(2)


async def test_reconnects_again(server: ClientServer, new_client: NewClient) -> None:
    """should reconnect automatically after reconnecting manually"""
    client, reconnected = new_client(server.url, reconnection_delay=0.01), Heard()
    client.manager.on("reconnect", reconnected)
    await client.connect()
    await client.disconnect()
    await client.connect()
    cut(client)
    await reconnected.wait()


async def test_attempts_after_failed_ones(server: ClientServer, new_client: NewClient) -> None:
    """should attempt reconnects after a failed reconnect"""
    client = new_client(
        f"{server.url}/timeout", timeout=0, reconnection_attempts=2, reconnection_delay=0.01
    )
    attempts, failed = Heard(), Heard()

    @client.manager.once("reconnect_failed")
    def again() -> None:
        client.manager.on("reconnect_attempt", attempts)
        client.manager.on("reconnect_failed", failed)
        client.manager._open(on_attempt=False)

    client.connect()
    await failed.wait()
    assert attempts.calls == [(1,), (2,)]


async def test_delays_grow(
    server: ClientServer, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """reconnect delay should increase every time"""
    drawn: list[float] = []
    draw = Backoff.next

    def drawing(self: Backoff) -> float:
        drawn.append(draw(self))
        return drawn[-1]

    monkeypatch.setattr(Backoff, "next", drawing)
    client = new_client(
        f"{server.url}/timeout",
        timeout=0,
        reconnection_attempts=3,
        reconnection_delay=0.05,
        randomization_factor=0.2,
    )
    loop, failed = asyncio.get_running_loop(), Heard()
    errors: list[float] = []
    delays: list[float] = []
    client.manager.on("error", lambda: errors.append(loop.time()))
    client.manager.on("reconnect_attempt", lambda: delays.append(loop.time() - errors[-1]))
    client.manager.on("reconnect_failed", failed)
    client.connect()
    await failed.wait()
    assert len(drawn) == len(delays) == 3
    assert drawn == sorted(set(drawn))
    # What was waited may be longer, on a slow machine by more than the next one is longer.
    for told, waited in zip(drawn, delays, strict=True):
        assert waited >= told - 0.001


async def test_no_attempt_after_disconnecting(server: ClientServer, new_client: NewClient) -> None:
    """should not reconnect when force closed"""
    client, attempts = new_client(server.url, timeout=0, reconnection_delay=0.01), Heard()
    failed = Heard()
    client.manager.on("reconnect_attempt", attempts)
    client.manager.once("error", client.disconnect)
    client.manager.once("error", failed)
    client.connect()
    await failed.wait()
    await asyncio.sleep(0.05)
    assert not attempts.calls


async def test_attempts_stop_with_disconnecting(
    server: ClientServer, new_client: NewClient
) -> None:
    """should stop reconnecting when force closed"""
    client, attempts = new_client(server.url, timeout=0, reconnection_delay=0.01), Heard()
    client.manager.on("reconnect_attempt", client.disconnect)
    client.manager.on("reconnect_attempt", attempts)
    client.connect()
    await attempts.wait()
    await asyncio.sleep(0.05)
    assert len(attempts.calls) == 1


async def test_attempts_after_stopping(server: ClientServer, new_client: NewClient) -> None:
    """should reconnect after stopping reconnection"""
    client, attempts = new_client(server.url, timeout=0, reconnection_delay=0.01), Heard()

    @client.manager.once("reconnect_attempt")
    def again() -> None:
        client.manager.on("reconnect_attempt", attempts)
        client.disconnect()
        client.connect()

    client.connect()
    await attempts.wait()


async def test_one_stops_another_goes_on(server: ClientServer, new_client: NewClient) -> None:
    """should stop reconnecting on a socket and keep to reconnect on another"""
    client, first, second = new_client(server.url, reconnection_delay=0.01), Heard(), Heard()
    other = client.of("/asd")
    await client.connect()
    await other.connect()

    @client.manager.once("reconnect_attempt")
    def stop_one() -> None:
        client.on("connect", first)
        other.on("connect", second)
        client.disconnect()

    cut(client)
    await second.wait()
    await asyncio.sleep(0.05)
    assert not first.calls


async def test_two_attempts_in_vain(server: ClientServer, new_client: NewClient) -> None:
    """should try to reconnect twice and fail when requested two attempts with immediate timeout
    and reconnect enabled
    """
    await two_attempts(new_client(server.url, timeout=0, **TWICE))


async def test_wrong_address(new_client: NewClient) -> None:
    """should try to reconnect twice and fail when requested two attempts with incorrect address
    and reconnect enabled
    """
    await two_attempts(new_client(f"http://127.0.0.1:{closed_port()}", **TWICE))


TWICE = {"reconnection_attempts": 2, "reconnection_delay": 0.01}


async def two_attempts(client: Client) -> None:
    attempts, failed = Heard(), Heard()
    client.manager.on("reconnect_attempt", attempts)
    client.manager.on("reconnect_failed", failed)
    client.connect()
    await failed.wait()
    assert attempts.calls == [(1,), (2,)]


async def test_events_of_reconnecting(server: ClientServer, new_client: NewClient) -> None:
    """should fire reconnect_* events on manager
    should fire reconnecting (on manager) with attempts number when reconnecting twice
    """
    client = new_client(f"{server.url}/timeout_socket", timeout=0, **TWICE)
    told: list[tuple[Any, ...]] = []
    failed = Heard()
    for event in ("error", "reconnect_attempt", "reconnect_error", "reconnect"):
        client.manager.on(event, lambda *args, event=event: told.append((event, *map(str, args))))
    client.manager.on("reconnect_failed", failed)
    client.connect()
    await failed.wait()
    await asyncio.sleep(0)
    assert told == [
        ("error", "timeout"),
        ("reconnect_attempt", "1"),
        ("error", "timeout"),
        ("reconnect_error", "timeout"),
        ("reconnect_attempt", "2"),
        ("error", "timeout"),
        ("reconnect_error", "timeout"),
    ]


async def test_no_attempt_without_need(server: ClientServer, new_client: NewClient) -> None:
    """should not try to reconnect and should form a connection when connecting to correct port
    with default timeout
    """
    client, attempts = new_client(f"{server.url}/valid", reconnection_delay=0.01), Heard()
    client.manager.on("reconnect_attempt", attempts)
    await client.connect()
    await asyncio.sleep(0.05)
    assert not attempts.calls


async def test_one_connects_while_another_leaves(
    server: ClientServer, new_client: NewClient
) -> None:
    """should connect while disconnecting another socket"""
    client = new_client(f"{server.url}/foo")
    await client.connect()
    other = client.of("/asd")
    client.disconnect()
    async with asyncio.timeout(15):
        await other.connect()


async def test_old_server(server: ClientServer, new_client: NewClient) -> None:
    """should emit a connect_error event when reaching a Socket.IO server in v2.x"""
    client, errors = new_client(server.url), Heard()
    client.on("connect_error", errors)
    client.connect()
    client.manager.on_text(b"0")
    assert "Socket.IO 2" in str(errors.calls[0][0])


async def test_one_of_two_leaves(server: ClientServer, new_client: NewClient) -> None:
    """should not close the connection when disconnecting a single socket"""
    client, gone, closed = new_client(f"{server.url}/foo"), Heard(), Heard()
    await client.connect()
    other = client.of("/asd")
    await other.connect()
    other.on("disconnect", gone)
    client.manager.on("close", closed)
    await client.disconnect()
    await asyncio.sleep(0.05)
    assert not gone.calls
    assert not closed.calls
    await other.disconnect()
    assert gone.calls == [("io client disconnect", None)]
    assert closed.calls == [("forced close", None)]


async def test_reconnection_can_be_turned_off(new_client: NewClient) -> None:
    """should stop trying to reconnect"""
    client = new_client(f"http://127.0.0.1:{closed_port()}", reconnection_delay=0.01)
    errors, attempts = Heard(), Heard()

    @client.manager.once("reconnect_error")
    def turn_off() -> None:
        client.manager.reconnection = False
        client.manager.on("reconnect_attempt", attempts)
        errors()

    client.connect()
    await errors.wait()
    await asyncio.sleep(0.05)
    assert not attempts.calls


async def test_without_reconnection(new_client: NewClient) -> None:
    """should not try to reconnect with incorrect port when reconnection disabled"""
    client = new_client(f"http://127.0.0.1:{closed_port()}", reconnection=False)
    errors, attempts = Heard(), Heard()
    client.manager.on("error", errors)
    client.manager.on("reconnect_attempt", attempts)
    client.connect()
    await errors.wait()
    await asyncio.sleep(0.05)
    assert not attempts.calls
    assert isinstance(errors.calls[0][0], TransportError)


async def test_another_socket_between_attempts(new_client: NewClient) -> None:
    """should still try to reconnect twice after opening another socket asynchronously"""
    client = new_client(f"http://127.0.0.1:{closed_port()}", **TWICE)
    asyncio.get_running_loop().call_later(0.01, client.of, "/room2")
    await two_attempts(client)


async def test_dates(server: ClientServer, new_client: NewClient) -> None:
    """should emit date as string
    should emit date in object
    """
    client, date, nested = new_client(server.url), Heard(), Heard()
    client.on("takeDate", date)
    client.on("takeDateObj", nested)
    client.connect()
    client.emit("getDate")
    client.emit("getDateObj")
    assert datetime.fromisoformat((await date.wait())[0][0]).tzinfo
    assert datetime.fromisoformat((await nested.wait())[0][0]["date"]).tzinfo


async def test_gets_binary(server: ClientServer, new_client: NewClient) -> None:
    """should get binary data (as an ArrayBuffer)"""
    client, got = new_client(server.url), Heard()
    client.on("doge", got)
    client.connect()
    client.emit("doge")
    assert (await got.wait())[0][0] == DATA


@pytest.mark.parametrize("transports", [["polling"], ["websocket"]])
async def test_sends_binary(
    server: ClientServer, transports: list[str], new_client: NewClient
) -> None:
    """should send binary data (as an ArrayBuffer)
    should send binary data (as an ArrayBuffer) mixed with json
    should send events with ArrayBuffers in the correct order
    """
    client = new_client(server.url, transports=transports)
    alone, mixed, ordered = Heard(), Heard(), Heard()
    client.on("buffack", alone)
    client.on("jsonbuff-ack", mixed)
    client.on("abuff2-ack", ordered)
    client.connect()
    client.emit("buffa", DATA)
    client.emit("jsonbuff", {"hello": "lol", "message": bytearray(DATA), "goodbye": "gotcha"})
    client.emit("abuff1", memoryview(DATA))
    client.emit("abuff2", "please arrive second")
    for heard in (alone, mixed, ordered):
        await heard.wait()


async def test_reopens(server: ClientServer, new_client: NewClient) -> None:
    """should reopen a cached socket"""
    client, connected = new_client(server.url), Heard()
    other = client.of("/asd")
    other.on("connect", connected)

    @other.once("disconnect")
    def again() -> None:
        assert client.of("/asd") is other
        assert other.active

    await client.connect()
    await connected.wait()
    other.disconnect()
    await connected.wait(2)


async def test_does_not_reopen(
    server: ClientServer, new_client: NewClient, sent: list[Any]
) -> None:
    """should not reopen a cached but active socket
    should not reopen an already active socket
    """
    client = new_client(server.url)

    @client.manager.once("open")
    def again() -> None:
        foo = client.of("/foo")
        assert client.of("/foo") is foo
        assert client.of("/") is client
        client.connect()
        foo.connect()

    await client.connect()
    await client.of("/foo").connect()
    client.disconnect()
    client.of("/foo").disconnect()
    assert [packet for packet, _ in sent] == [b"0/foo,", b"0", b"1", b"1/foo,"]


async def test_what_cannot_be_read(server: ClientServer, new_client: NewClient) -> None:
    """should close the engine upon decoding exception"""
    client, gone, back = new_client(server.url, reconnection_delay=0.01), Heard(), Heard()
    client.on("disconnect", gone)
    client.manager.on("reconnect", back)
    await client.connect()
    first = client.manager.connection
    client.manager.on_text(b"bad")
    await back.wait()
    assert client.manager.connection is not first
    assert gone.calls[0][0] == "parse error"


async def test_awaited_connect_raises_and_gives_up(new_client: NewClient) -> None:
    client = new_client(f"http://127.0.0.1:{closed_port()}", reconnection_delay=0.01)
    with pytest.raises(TransportError):
        await client.connect()
    assert not client.active
    assert not client.manager.trying


async def test_awaited_connect_tries_again_when_told(new_client: NewClient) -> None:
    client = new_client(f"http://127.0.0.1:{closed_port()}", **TWICE)
    attempts = Heard()
    client.manager.on("reconnect_attempt", attempts)
    with pytest.raises(ConnectError):
        await client.connect(retry=True)
    assert attempts.calls == [(1,), (2,)]


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_cancelled_connect_gives_up(
    transport: str, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limpet_client.connection._CLOSE_TIMEOUT", 60)
    with sockets.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = new_client(url, transports=[transport])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.connect()
        assert not client.active
        async with asyncio.timeout(15):  # what was under way is not waited for
            await client.close()
