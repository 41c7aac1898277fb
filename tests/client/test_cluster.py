"""The Python client against a cluster of two workers behind one port."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from client_rig import Heard, NewClient
from harness import RunningCluster
from limpet_client.errors import ConnectError, Disconnected

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

EACH = pytest.mark.parametrize(
    "options",
    [{"transports": ["polling"]}, {"transports": ["websocket"]}, {}],
    ids=["poll", "ws", "up"],
)


async def apart(new_client: NewClient, url: str, **options: Any) -> list[Any]:
    """Return two clients that two different workers own."""
    clients: dict[int, Any] = {}
    for _ in range(50):
        client = new_client(url, **options)
        await client.connect()
        clients[(await client.emit_with_ack("whoami"))["pid"]] = client
        if len(clients) == 2:
            return list(clients.values())
    raise AssertionError("every connection went to one worker")


@EACH
async def test_rooms_across_workers(
    interop_cluster: RunningCluster, options: dict[str, Any], new_client: NewClient
) -> None:
    ada, grace = await apart(new_client, interop_cluster.url, **options)
    said = Heard()
    grace.on("said", said)
    for client in (ada, grace):
        await client.emit_with_ack("join", "harbour")
    ada.emit("say others", "harbour", "Hello", b"\1\2")
    assert await said.wait() == [("Hello", b"\1\2")]
    ada.on("question", lambda number: number * 2)
    assert await ada.emit_with_ack("ask me", 21) == 42


@EACH
async def test_namespaces(
    interop_cluster: RunningCluster, options: dict[str, Any], new_client: NewClient
) -> None:
    client = new_client(interop_cluster.url, **options)
    await client.connect()
    admin = client.of("/admin", auth={"token": "wrong"})
    with pytest.raises(ConnectError, match="wrong token") as caught:
        await admin.connect()
    assert caught.value.data == {"hint": "ask the admin"}
    admin.auth = {"token": "secret"}
    await admin.connect()
    assert await admin.emit_with_ack("echo", b"x") == b"x"
    assert client.connected


@EACH
async def test_a_worker_is_killed(
    spawn_cluster: Callable[..., RunningCluster], options: dict[str, Any], new_client: NewClient
) -> None:
    cluster = spawn_cluster("servers.interop_app:io", 2)
    client, ended = new_client(cluster.url, reconnection_delay=0.1, **options), Heard()
    client.on("disconnect", ended)
    await client.connect()
    pid = (await client.emit_with_ack("whoami"))["pid"]
    waiting = asyncio.create_task(client.emit_with_ack("never"))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Disconnected):
        await waiting
    assert ended.calls[0][0] in {"transport close", "transport error"}
    async with asyncio.timeout(20):
        assert (await client.emit_with_ack("whoami"))["pid"] != pid
    await client.close()
