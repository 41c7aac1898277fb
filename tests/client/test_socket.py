"""Emitting and listening: the block "socket" of the official client's suite."""

from __future__ import annotations

import asyncio
import socket as sockets
from typing import Any

import pytest

from client_rig import Heard, NewClient, closed_port, cut
from client_servers import ClientServer
from limpet_client.errors import AckTimeout, ConnectError, Disconnected, NotSent

# The first of them may have to install the official server.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


@pytest.mark.parametrize("namespace", ["/", "/foo"])
async def test_id(server: ClientServer, namespace: str, new_client: NewClient) -> None:
    """should have an accessible socket id equal to the server-side socket id (default namespace)
    should have an accessible socket id equal to the server-side socket id (custom namespace)
    """
    client = new_client(server.url + namespace)
    client.connect()
    id_ = await client.emit_with_ack("getId")
    assert client.id == id_
    assert client.manager.connection is not None
    assert client.manager.connection.session.sid != id_


async def test_no_id_afterwards(server: ClientServer, new_client: NewClient) -> None:
    """clears socket.id upon disconnection"""
    client, ids = new_client(server.url), Heard()
    client.on("disconnect", lambda: ids(client.id))
    await client.connect()
    assert client.id
    await client.disconnect()
    assert ids.calls == [(None,)]


async def test_no_error_when_disconnected_early(
    server: ClientServer, new_client: NewClient
) -> None:
    """doesn't fire an error event if we force disconnect in opening state"""
    client, errors = new_client(server.url, timeout=0.05), Heard()
    client.manager.on("error", errors)
    client.on("connect_error", errors)
    client.connect()
    client.disconnect()
    await asyncio.sleep(0.1)
    assert not errors.calls


async def test_error_without_a_server(new_client: NewClient) -> None:
    """fire a connect_error event when the connection cannot be established"""
    client, errors = new_client(f"http://127.0.0.1:{closed_port()}"), Heard()
    client.on("connect_error", errors)
    client.connect()
    [(error,)] = await errors.wait()
    assert isinstance(error, ConnectError)
    assert not error.refused
    assert client.active


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_error_when_it_takes_too_long(
    server: ClientServer, transport: str, new_client: NewClient
) -> None:
    """fire a connect_error event on open timeout (polling)
    fire a connect_error event on open timeout (websocket)
    """
    client, errors = new_client(server.url, transports=[transport], timeout=0), Heard()
    client.on("connect_error", errors)
    client.connect()
    [(error,)] = await errors.wait()
    assert error.message == "timeout"


async def test_no_error_once_connected(server: ClientServer, new_client: NewClient) -> None:
    """doesn't fire a connect_error event when the connection is already established"""
    client, errors, connected = new_client(server.url, reconnection_delay=0.01), Heard(), Heard()
    client.on("connect_error", errors)
    client.on("connect", connected)
    await client.connect()
    cut(client)
    await connected.wait(2)
    assert not errors.calls


async def test_another_id_afterwards(server: ClientServer, new_client: NewClient) -> None:
    """should change socket.id upon reconnection"""
    client, ids = new_client(f"{server.url}/asd", reconnection_delay=0.01), Heard()
    await client.connect()
    first = client.id
    client.manager.on("reconnect_attempt", lambda: ids(client.id))
    client.on("connect", lambda: ids(client.id))
    cut(client)
    (before,), (after,) = await ids.wait(2)
    assert before is None
    assert after not in (None, first)


async def test_compression(
    server: ClientServer, new_client: NewClient, sent: list[tuple[Any, bool]]
) -> None:
    """should enable compression by default
    should disable compression
    """
    client = new_client(server.url)
    await client.connect()
    client.emit("hi")
    client.compress(False).emit("hi")
    assert sent[-2:] == [(b'2["hi"]', True), (b'2["hi"]', False)]


async def test_query(server: ClientServer, new_client: NewClient) -> None:
    """query option: should accept an object (default namespace)
    query option: should accept a query string (default namespace)
    """
    client = new_client(f"{server.url}/?c=d", query={"e": "f"})
    await client.connect()
    query = (await client.emit_with_ack("getHandshake"))["query"]
    assert (query["c"], query["e"]) == ("d", "f")


async def test_query_of_a_namespace(server: ClientServer, new_client: NewClient) -> None:
    """query option: should accept an object
    query option: should accept a query string
    query option: should properly encode the parameters
    """
    client, got = new_client(f"{server.url}/abc?b=c&d=e", query={"a": "b", "&a": "&=?a"}), Heard()
    client.on("handshake", got)
    await client.connect()
    query = (await got.wait())[0][0]["query"]
    assert {key: query[key] for key in ("a", "b", "d", "&a")} == {
        "a": "b",
        "b": "c",
        "d": "e",
        "&a": "&=?a",
    }


async def token() -> dict[str, str]:
    return {"a": "b"}


@pytest.mark.parametrize("auth", [{"a": "b"}, lambda: {"a": "b"}, token])
async def test_auth(server: ClientServer, auth: Any, new_client: NewClient) -> None:
    """auth option: should accept an object
    auth option: should accept an function
    """
    client, got = new_client(f"{server.url}/abc", auth=auth), Heard()
    client.on("handshake", got)
    client.connect()
    handshake = (await got.wait())[0][0]
    assert handshake["auth"] == {"a": "b"}
    assert "a" not in handshake["query"]


async def test_auth_is_asked_each_time(server: ClientServer, new_client: NewClient) -> None:
    asked = iter(range(10))
    client, got = (
        new_client(f"{server.url}/abc", auth=lambda: {"n": next(asked)}, reconnection_delay=0.01),
        Heard(),
    )
    client.on("handshake", got)
    await client.connect()
    await got.wait()
    cut(client)
    first, second = await got.wait(2)
    assert (first[0]["auth"]["n"], second[0]["auth"]["n"]) == (0, 1)


@pytest.mark.parametrize("auth", [lambda: 1 / 0, {"a": object()}])
async def test_auth_that_fails(server: ClientServer, auth: Any, new_client: NewClient) -> None:
    client = new_client(server.url, auth=auth)
    with pytest.raises(ConnectError, match="auth"):
        await client.connect()
    assert not client.active


async def test_refusal(server: ClientServer, new_client: NewClient) -> None:
    """should fire an error event on middleware failure from custom namespace"""
    client, errors = new_client(f"{server.url}/no"), Heard()
    client.on("connect_error", errors)
    client.connect()
    [(error,)] = await errors.wait()
    assert str(error) == error.message == "Auth failed (custom namespace)"
    assert error.refused
    if server.kind == "node":
        assert error.data == {"hint": "never"}


async def test_no_attempt_after_a_refusal(server: ClientServer, new_client: NewClient) -> None:
    """should not try to reconnect after a middleware failure"""
    client, errors = new_client(f"{server.url}/no", reconnection_delay=0.01), Heard()
    client.on("connect_error", errors)
    client.connect()
    await errors.wait()
    await asyncio.sleep(0.05)
    assert len(errors.calls) == 1
    assert not client.active
    assert not client.manager.trying


async def test_refusal_is_raised(server: ClientServer, new_client: NewClient) -> None:
    with pytest.raises(ConnectError, match="Auth failed \\(main namespace\\)"):
        await new_client(server.url, query={"fail": "1"}).connect(retry=True)
    with pytest.raises(ConnectError, match="Invalid namespace") as caught:
        async with new_client(f"{server.url}/nowhere"):
            pass
    assert caught.value.refused


async def test_again_after_a_refusal(server: ClientServer, new_client: NewClient) -> None:
    client = new_client(server.url)
    await client.connect()
    other = client.of("/no")
    with pytest.raises(ConnectError):
        await other.connect()
    with pytest.raises(ConnectError):
        await other.connect()
    assert client.connected


async def test_disconnects_and_connects(server: ClientServer, new_client: NewClient) -> None:
    """should properly disconnect then reconnect"""
    client, gone, connected = new_client(server.url, transports=["websocket"]), Heard(), Heard()
    client.on("disconnect", gone)
    client.on("connect", connected)
    await client.connect()
    client.disconnect()
    await client.connect()
    await asyncio.sleep(0.05)
    assert gone.calls == [("io client disconnect", None)]
    assert len(connected.calls) == 2


async def test_reserved_names(server: ClientServer, new_client: NewClient) -> None:
    """should throw on reserved event"""
    client = new_client(server.url)
    for name in ("connect", "connect_error", "disconnect", "disconnecting", "newListener"):
        with pytest.raises(ValueError, match=f'"{name}" is a reserved event name'):
            client.emit(name, "goodbye")
        with pytest.raises(ValueError, match="reserved"):
            await client.emit_with_ack(name)


async def test_order(server: ClientServer, new_client: NewClient) -> None:
    """should emit events in order"""
    client, answers = new_client(server.url), Heard()
    client.on("connect", lambda: client.emit("echo", "second", ack=answers))
    client.emit("echo", "first", ack=answers)
    client.connect()
    assert await answers.wait(2) == [(None, "first"), (None, "second")]


async def test_answer(server: ClientServer, new_client: NewClient) -> None:
    """should emit an event and wait for the acknowledgement"""
    client = new_client(server.url)
    await client.connect()
    assert await client.emit_with_ack("echo", 123) == 123
    assert await client.emit_with_ack("values", 1, b"2", None) == (1, b"2", None)
    assert await client.emit_with_ack("values") is None


async def test_volatile_without_a_connection(server: ClientServer, new_client: NewClient) -> None:
    """should discard a volatile packet when the socket is not connected"""
    client, dropped = new_client(server.url), Heard()
    client.volatile.emit("getId", ack=dropped)
    [(error,)] = dropped.calls
    assert isinstance(error, NotSent)
    client.connect()
    assert await client.emit_with_ack("getId") == client.id


async def test_volatile_behind_another(server: ClientServer, new_client: NewClient) -> None:
    """should discard a volatile packet when the pipe is not ready"""
    client, answers, dropped = new_client(server.url), Heard(), Heard()

    @client.on("connect")
    def emit_both() -> None:
        client.emit("getId", ack=answers)
        client.volatile.emit("getId", ack=dropped)

    client.connect()
    assert await answers.wait() == [(None, client.id)]
    assert isinstance(dropped.calls[0][0], NotSent)
    client.emit("hi")
    with pytest.raises(NotSent):
        await client.volatile.emit_with_ack("getId")


async def test_volatile_alone(server: ClientServer, new_client: NewClient) -> None:
    """should send a volatile packet when the socket is connected and the pipe is ready"""
    client = new_client(server.url, upgrade=False)
    await client.connect()
    async with asyncio.timeout(15):
        while True:
            try:
                assert await client.volatile.emit_with_ack("getId") == client.id
            except NotSent:
                await asyncio.sleep(0.01)
            else:
                break


async def test_any(server: ClientServer, new_client: NewClient) -> None:
    """onAny: should call listener"""
    client, got = new_client(f"{server.url}/abc"), Heard()
    client.on_any(got)
    client.connect()
    event, handshake, *_ = (await got.wait())[0]
    assert event == "handshake"
    assert isinstance(handshake, dict)


async def test_any_in_order(server: ClientServer, new_client: NewClient) -> None:
    """onAny: should prepend listener"""
    client, order = new_client(f"{server.url}/abc"), Heard()
    client.on("handshake", lambda *_: order("handler"))
    client.on_any(lambda *_: order("last"))
    client.prepend_any(lambda *_: order("second"))
    client.prepend_any(lambda *_: order("first"))
    client.connect()
    assert await order.wait(4) == [("first",), ("second",), ("last",), ("handler",)]


async def test_any_no_more(server: ClientServer, new_client: NewClient) -> None:
    """onAny: should remove listener"""
    client, removed, got = new_client(f"{server.url}/abc"), Heard(), Heard()
    client.on_any(removed)
    client.off_any(removed)
    assert client.listeners_any() == []
    client.on_any(got)
    client.connect()
    await got.wait()
    assert not removed.calls


async def test_any_outgoing(server: ClientServer, new_client: NewClient) -> None:
    """onAnyOutgoing: should call listener
    onAnyOutgoing: should call listener with binary data
    """
    client, got = new_client(f"{server.url}/abc"), Heard()
    client.on_any_outgoing(got)
    client.emit("early", 1)
    assert not got.calls
    await client.connect()
    client.emit("my-event", "123")
    client.emit("my-event", b"\1\2\3")
    client.volatile.emit("dropped")
    assert got.calls == [("early", 1), ("my-event", "123"), ("my-event", b"\1\2\3")]


async def test_any_outgoing_in_order(server: ClientServer, new_client: NewClient) -> None:
    """onAnyOutgoing: should prepend listener"""
    client, order = new_client(f"{server.url}/abc"), Heard()
    client.on_any_outgoing(lambda *_: order("last"))
    client.prepend_any_outgoing(lambda *_: order("second"))
    client.prepend_any_outgoing(lambda *_: order("first"))
    client.emit("my-event", "123")
    await client.connect()
    assert order.calls == [("first",), ("second",), ("last",)]


async def test_any_outgoing_no_more(server: ClientServer, new_client: NewClient) -> None:
    """onAnyOutgoing: should remove listener"""
    client, removed, got = new_client(f"{server.url}/abc"), Heard(), Heard()
    client.on_any_outgoing(removed)
    client.off_any_outgoing(removed)
    assert client.listeners_any_outgoing() == []
    client.on_any_outgoing(got)
    client.emit("my-event", "123")
    await client.connect()
    assert len(got.calls) == 1
    assert not removed.calls


async def test_timeout_without_a_connection(new_client: NewClient) -> None:
    """should timeout after the given delay when socket is not connected"""
    client, answers = new_client("http://127.0.0.1:1"), Heard()
    client.timeout(0.01).emit("event", ack=answers)
    assert client.core.send_buffer
    [(error,)] = await answers.wait()
    assert isinstance(error, AckTimeout)
    assert not client.core.send_buffer
    assert not client.core.acks


async def test_timeout(server: ClientServer, new_client: NewClient) -> None:
    """should timeout when the server does not acknowledge the event
    should timeout when the server does not acknowledge the event (promise)
    """
    client, answers = new_client(server.url), Heard()
    await client.connect()
    client.timeout(0.02).emit("unknown", ack=answers)
    with pytest.raises(AckTimeout):
        await client.timeout(0.02).emit_with_ack("unknown")
    assert isinstance((await answers.wait())[0][0], AckTimeout)


async def test_late_answer(server: ClientServer, new_client: NewClient) -> None:
    """should timeout when the server does not acknowledge the event in time"""
    client, answers = new_client(server.url), Heard()
    await client.connect()
    client.timeout(0).emit("echo", 42, ack=answers)
    await client.emit_with_ack("echo", 43)
    assert [type(error) for (error,) in answers.calls] == [AckTimeout]


async def test_answer_in_time(server: ClientServer, new_client: NewClient) -> None:
    """should not timeout when the server does acknowledge the event
    should not timeout when the server does acknowledge the event (promise)
    """
    client, answers = new_client(server.url), Heard()
    client.connect()
    client.timeout(30).emit("echo", 42, ack=answers)
    assert await client.timeout(30).emit_with_ack("echo", 42) == 42
    assert answers.calls == [(None, 42)]


async def test_default_timeout(server: ClientServer, new_client: NewClient) -> None:
    """should use the default timeout value"""
    client = new_client(server.url, ack_timeout=0.05)
    await client.connect()
    with pytest.raises(AckTimeout):
        await client.emit_with_ack("unknown")


async def test_disconnected_before_the_answer(server: ClientServer, new_client: NewClient) -> None:
    """should not ack upon disconnection (callback)
    should ack with an error upon disconnection (callback & timeout)
    should ack with an error upon disconnection (callback & ackTimeout)
    """
    # Ours tells in each case: a callback is called exactly once.
    client, answers = new_client(server.url, ack_timeout=10), Heard()
    plain = client.of("/asd", ack_timeout=None)
    await client.connect()
    await plain.connect()
    client.emit("echo", "a", ack=answers)
    client.timeout(10).emit("echo", "a", ack=answers)
    plain.emit("echo", "a", ack=answers)
    client.disconnect()
    plain.disconnect()
    assert [type(error) for (error,) in answers.calls] == [Disconnected] * 3
    assert not client.core.acks
    assert not plain.core.acks


async def test_disconnected_before_the_result(server: ClientServer, new_client: NewClient) -> None:
    """should ack with an error upon disconnection (promise)
    should ack with an error upon disconnection (promise & timeout)
    """
    client = new_client(server.url)
    await client.connect()
    asking = [
        asyncio.create_task(client.emit_with_ack("unknown")),
        asyncio.create_task(client.timeout(10).emit_with_ack("unknown")),
    ]
    await asyncio.sleep(0)
    client.disconnect()
    for task in asking:
        with pytest.raises(Disconnected):
            await task


async def test_unsent_is_kept(server: ClientServer, new_client: NewClient) -> None:
    """should not discard an unsent ack (callback)"""
    client, answers = new_client(server.url), Heard()
    await client.connect()
    client.disconnect()
    client.emit("echo", "a", ack=answers)
    await asyncio.sleep(0.02)
    assert not answers.calls
    client.connect()
    assert await answers.wait() == [(None, "a")]


async def test_closing_answers_the_unsent_too(server: ClientServer, new_client: NewClient) -> None:
    client, answers = new_client(server.url), Heard()
    await client.connect()
    client.disconnect()
    client.emit("echo", "a", ack=answers)
    await client.close()
    assert isinstance(answers.calls[0][0], Disconnected)


async def test_slept(server: ClientServer, new_client: NewClient) -> None:
    """throttled timer: should buffer the event and send it upon reconnection"""
    client, gone = new_client(server.url, reconnection_delay=0.01), Heard()
    client.on("disconnect", gone)
    await client.connect()
    assert client.manager.connection is not None
    client.manager.connection.session.deadline = 0.0  # the process slept
    answer = asyncio.create_task(client.emit_with_ack("echo", "123"))
    await asyncio.sleep(0)
    assert client.core.send_buffer
    assert await answer == "123"
    assert gone.calls[0][0] == "ping timeout"


async def test_slept_though_a_ping_waited(server: ClientServer, new_client: NewClient) -> None:
    client, gone = new_client(server.url, reconnection_delay=0.01), Heard()
    client.on("disconnect", gone)
    await client.connect()
    assert client.manager.connection is not None
    session = client.manager.connection.session
    session.deadline = 0.0
    answers = Heard()
    client.emit("echo", "123", ack=answers)
    assert session.transport is not None
    session.on_text(session.transport, b"2")  # it came while the process slept
    assert await answers.wait() == [(None, "123")]
    assert gone.calls[0][0] == "ping timeout"


async def test_cancelled_wait_leaves_nothing(server: ClientServer, new_client: NewClient) -> None:
    client = new_client(server.url)
    await client.connect()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.emit_with_ack("unknown")
    assert not client.core.acks


async def test_reasons(server: ClientServer, new_client: NewClient) -> None:
    client, gone, connected = new_client(server.url, reconnection_delay=0.01), Heard(), Heard()
    client.on("disconnect", gone)
    client.on("connect", connected)
    await client.connect()
    client.emit("end it")
    await connected.wait(2)
    assert gone.calls[0][0] == "transport close"
    for close in (False, True):
        client.emit("kick me", close)
        await gone.wait(len(gone.calls) + 1)
        assert gone.calls[-1][0] == "io server disconnect"
        assert not client.active
        await asyncio.sleep(0.05)
        assert not client.connected
        await client.connect()


async def test_events_before_the_connection(server: ClientServer, new_client: NewClient) -> None:
    client, order = new_client(f"{server.url}/early"), Heard()
    client.on("early", lambda number: order("early", number))
    client.on("connect", lambda: order("connect"))
    client.connect()
    assert await order.wait(2) == [("early", 1), ("connect",)]


async def test_handlers_answer(server: ClientServer, new_client: NewClient) -> None:
    client = new_client(server.url)
    await client.connect()

    async def twice(number: int) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        return number * 2, b"x"

    client.on("question", twice)
    assert await client.emit_with_ack("ask me", 21) == (42, b"x")
    client.off("question", twice)
    client.once("question", lambda number: {"got": number})
    assert await client.emit_with_ack("ask me", 1) == {"got": 1}
    assert client.listeners("question") == []


async def test_middlewares(server: ClientServer, new_client: NewClient) -> None:
    client, got = new_client(server.url), Heard()

    @client.use
    async def slow(packet: list[Any]) -> None:
        if packet[1] == "drop":
            raise ValueError("not this one")
        await asyncio.sleep(0.01 if packet[1] == "slow" else 0)
        packet[1] = packet[1].upper()

    client.on("mirrored", lambda text: got(text))  # noqa: PLW0108 - takes no offset
    await client.connect()
    for text in ("slow", "drop", "fast"):
        client.emit("mirror", text)
    assert await got.wait(2) == [("SLOW",), ("FAST",)]


async def test_ordered_handlers(server: ClientServer, new_client: NewClient) -> None:
    client, done = new_client(server.url, ordered=True), Heard()

    @client.on("item")
    async def item(number: int, _text: str) -> None:
        await asyncio.sleep(0.005 * (3 - number))
        done(number)

    await client.connect()
    client.emit("items", 3, "x")
    assert await done.wait(3) == [(0,), (1,), (2,)]


async def test_iteration(server: ClientServer, new_client: NewClient) -> None:
    handled = Heard()
    async with new_client(server.url) as client:
        client.on("hi", handled)
        client.emit("items", 100, "x")
        client.emit("hi")
        await client.emit_with_ack("echo", "all of these came before anybody iterates")
        numbers = []
        async for event, args in client:
            assert event == "item"
            numbers.append(args[0])
            if len(numbers) == 100:
                client.emit("kick me", False)
        assert numbers == list(range(100))
        assert handled.calls


async def test_iteration_goes_on_after_a_reconnection(
    server: ClientServer, new_client: NewClient
) -> None:
    async with new_client(server.url, reconnection_delay=0.01) as client:
        gone = Heard()
        client.on("disconnect", gone)
        client.emit("items", 1, "x")
        count = 0
        async with asyncio.timeout(15):
            async for _event, _args in client:
                count += 1
                if count == 1:
                    cut(client)
                    await gone.wait()  # a request under way may have to end before
                    client.emit("items", 1, "x")
                else:
                    break


async def test_what_cannot_be_sent_is_said_at_once(new_client: NewClient) -> None:
    client = new_client("http://127.0.0.1:1", retries=1)
    with pytest.raises(TypeError, match="object"):
        client.emit("x", object())
    with pytest.raises(TypeError, match="string"):
        client.emit(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="synchronous"):
        await client.emit("x")  # type: ignore[misc]


async def test_silent_server(new_client: NewClient) -> None:
    with sockets.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectError, match="timeout"):
            await new_client(url, timeout=0.05).connect()
