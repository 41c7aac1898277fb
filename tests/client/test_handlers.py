"""What an application registers: handlers that fail, wait or are async, and who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from client_rig import Heard, NewClient, closed_port
from client_servers import ClientServer
from limpet_client.errors import ConnectError, TransportError
from limpet_client.manager import Manager

# The first of them may have to install the official server.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


async def test_failures_are_logged_and_end_nothing(
    server: ClientServer, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client(server.url)

    def fail(*_: Any) -> None:
        raise RuntimeError("plain")

    async def fail_later(*_: Any) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("async")

    for event in ("connect", "mirrored", "question"):
        client.on(event, fail)
        client.on(event, fail_later)
    for register in (client.on_any, client.on_any_outgoing):
        register(fail)
        register(fail_later)
    for event in ("open", "packet"):
        client.manager.on(event, fail)
        client.manager.on(event, fail_later)
    await client.connect()
    client.emit("mirror", 1)
    client.emit("echo", 1, ack=fail)
    client.emit("echo", 1, ack=fail_later)
    asking = asyncio.create_task(client.emit_with_ack("ask me", 1))
    kinds = ("connect", "mirrored", "question", "open", "packet", "*", "echo")

    def missing() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        return [kind for kind in kinds if sum(repr(kind) in text for text in texts) < 2]

    async with asyncio.timeout(15):
        while missing():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)
    assert client.connected
    assert not asking.done()  # what fails acknowledges nothing
    asking.cancel()


async def test_async_callbacks_of_answers(server: ClientServer, new_client: NewClient) -> None:
    client, got = new_client(server.url), Heard()

    async def answered(error: Exception | None, value: int) -> None:
        await asyncio.sleep(0)
        got(error, value)

    await client.connect()
    client.emit("echo", 7, ack=answered)
    assert await got.wait() == [(None, 7)]


async def test_what_cannot_be_acknowledged_is_logged(
    server: ClientServer, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client(server.url)
    client.on("question", lambda _question: object())
    await client.connect()
    client.emit("ask me", 1, ack=lambda *_: None)
    async with asyncio.timeout(15):
        while "object is neither JSON nor bytes" not in caplog.text:
            await asyncio.sleep(0.01)


async def test_connects_anew_when_refused(server: ClientServer, new_client: NewClient) -> None:
    client, connected = new_client(server.url, query={"fail": "1"}, auth={"try": 1}), Heard()
    refused: list[str] = []

    @client.on("connect_error")
    def other_credentials(error: ConnectError) -> None:
        refused.append(error.message)
        if len(refused) < 3:
            client.auth = {"try": len(refused)}
            client.connect()
        else:
            connected()

    client.connect()
    await connected.wait()
    assert refused == ["Auth failed (main namespace)"] * 3


async def test_once_is_once_and_off_is_off(server: ClientServer, new_client: NewClient) -> None:
    client, first, never = new_client(server.url), Heard(), Heard()
    client.once("mirrored", first)

    @client.on("mirrored")
    def decorated(*_: Any) -> None:
        never()

    client.off("mirrored", decorated)
    await client.connect()
    client.emit("mirror", 1)
    client.emit("mirror", 2)
    await client.emit_with_ack("echo", 1)
    assert len(first.calls) == 1
    client.on("mirrored", never)
    client.off()
    client.emit("mirror", 3)
    await client.emit_with_ack("echo", 1)
    assert not never.calls
    with pytest.raises(TypeError, match="string"):
        client.on(1, never)  # type: ignore[call-overload]


async def test_the_managers_events(server: ClientServer, new_client: NewClient) -> None:
    client, heard = new_client(server.url, transports=["websocket"]), Heard()
    manager = client.manager
    manager.once("open", heard)
    manager.on("ping", heard)
    manager.off("ping", heard)

    @manager.on("close")
    async def closed(reason: str) -> None:
        heard(reason)

    with pytest.raises(ValueError, match="no event 'opened'"):
        manager.on("opened", heard)
    await client.connect()
    await client.disconnect()
    await client.connect()
    manager.disconnect()
    await heard.wait(3)
    assert heard.calls == [(), ("forced close",), ("forced close",)]
    assert "closed" in repr(manager)


async def test_the_manager_disconnects(server: ClientServer, new_client: NewClient) -> None:
    client, gone = new_client(server.url), Heard()
    client.on("disconnect", gone)
    await client.connect()
    client.manager.disconnect()
    assert gone.calls == [("forced close", None)]
    await asyncio.sleep(0.05)
    assert not client.connected
    await client.connect()
    assert client.connected


async def test_pings_are_told(spawn: Callable[..., ClientServer], new_client: NewClient) -> None:
    client, pings = new_client(spawn("node", {"pingInterval": 50}).url), Heard()
    client.manager.on("ping", pings)
    await client.connect()
    await pings.wait(2)


async def test_a_session_that_its_owner_closed(server: ClientServer, new_client: NewClient) -> None:
    async with aiohttp.ClientSession() as session:
        client = new_client(server.url, http_session=session)
    with pytest.raises(TransportError, match="closed"):
        await client.connect()


async def test_a_manager_alone(server: ClientServer) -> None:
    manager = Manager(server.url, reconnection_delay=0.01)
    foo = manager.socket("foo")
    assert foo.nsp == "/foo"
    trying = [manager.trying]
    await foo.connect()
    assert await foo.emit_with_ack("getId") == foo.id
    assert [*trying, manager.trying] == [False, True]
    assert manager.transport_name in {"polling", "websocket"}
    await foo.disconnect()
    assert manager.transport_name == ""


async def test_turning_reconnection_off_ends_the_attempts(new_client: NewClient) -> None:
    client = new_client(f"http://127.0.0.1:{closed_port()}", reconnection_delay=5)
    errors = Heard()
    client.on("connect_error", errors)
    client.connect()
    await errors.wait()
    await asyncio.sleep(0)
    trying = [client.manager.trying]
    client.manager.reconnection = False
    assert [*trying, client.manager.trying] == [True, False]
    with pytest.raises(ConnectError):
        await client.connect(retry=True)
