"""The stock python-socketio client against two workers behind one port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import socketio
from socketio.exceptions import ConnectionError as Refused

from harness import RunningCluster

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

Connect = Callable[..., Awaitable[socketio.AsyncClient]]


@pytest.fixture
async def connect(interop_cluster: RunningCluster) -> AsyncIterator[Connect]:
    clients: list[socketio.AsyncClient] = []

    async def connect(**options: object) -> socketio.AsyncClient:
        client = socketio.AsyncClient(reconnection=False)
        clients.append(client)
        await client.connect(interop_cluster.url, wait_timeout=10, **options)
        return client

    yield connect
    for client in clients:
        await client.disconnect()
        await client.shutdown()


async def _apart(connect: Connect) -> tuple[socketio.AsyncClient, socketio.AsyncClient]:
    """Return two clients that two different workers own."""
    first = await connect(transports=["websocket"])
    pid = (await first.call("whoami"))["pid"]
    for _ in range(50):
        other = await connect(transports=["websocket"])
        if (await other.call("whoami"))["pid"] != pid:
            return first, other  # who stays makes the other worker the next one's choice
    raise AssertionError("every connection went to one worker")


@pytest.mark.parametrize("transports", [["polling"], ["websocket"], None])
async def test_events_and_acks_over_each_transport(
    connect: Connect, transports: list[str] | None
) -> None:
    client = await connect(transports=transports)
    got: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
    client.on("replied", lambda *args: got.put_nowait(args))
    value = {"text": "Ünïcode ✓ 🐚", "list": [1, 2.5, None, True]}
    assert await client.call("echo", value) == value
    await client.emit("reply", ("one", 2, value))
    assert await asyncio.wait_for(got.get(), 10) == ("one", 2, value)
    client.on("question", lambda question: question * 2)
    assert await client.call("ask me", 21) == 42
    wanted = "polling" if transports == ["polling"] else "websocket"
    assert (await client.call("whoami"))["transport"] == wanted


@pytest.mark.parametrize("transports", [["polling"], ["websocket"]])
async def test_binary_both_ways(connect: Connect, transports: list[str]) -> None:
    client = await connect(transports=transports)
    data = bytes(n % 251 for n in range(50_000))
    assert await client.call("echo", {"first": data, "list": [b"\x01", "text"]}) == {
        "first": data,
        "list": [b"\x01", "text"],
    }


async def test_rooms_across_workers(connect: Connect) -> None:
    one, two = await _apart(connect)
    heard: dict[str, asyncio.Queue[object]] = {"one": asyncio.Queue(), "two": asyncio.Queue()}
    one.on("said", heard["one"].put_nowait)
    two.on("said", heard["two"].put_nowait)
    assert await one.call("join", "reef") != await two.call("join", "reef")
    for n in range(50):
        await (one if n % 2 else two).emit("say", ("reef", n))
        assert await asyncio.wait_for(heard["one"].get(), 10) == n
        assert await asyncio.wait_for(heard["two"].get(), 10) == n


async def test_a_refused_namespace(connect: Connect) -> None:
    with pytest.raises(Refused, match="/admin"):
        await connect(namespaces=["/admin"])
    client = await connect(namespaces=["/admin"], auth={"token": "secret"})
    assert await client.call("echo", "in", namespace="/admin") == "in"


async def test_disconnected_by_the_server(connect: Connect) -> None:
    client = await connect()
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    client.on("disconnect", gone.set_result)
    await client.emit("kick me", True)
    assert await asyncio.wait_for(gone, 10) == "server disconnect"
