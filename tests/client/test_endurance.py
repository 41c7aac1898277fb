"""What a network does: a server that is killed and comes back, under traffic, again and again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_rig import NewClient
from client_servers import ClientServer
from limpet_client.client import Client
from limpet_client.connection import Connection

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

QUICK = {"reconnection_delay": 0.02, "reconnection_delay_max": 0.1}
WAITING = 500
"""Events that may wait for their outcome; a server that starts slowly must not make them so many
that they are not through in the end."""


class Traffic:
    """Emits without a pause, and counts what became of it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.emitted = 0
        self.outcomes: dict[int, list[str]] = {}
        self.waiting = 0
        self.ends: list[str] = []
        self.connects = 0
        client.on("disconnect", self.ends.append)
        client.on("connect", self.count)

    def count(self) -> None:
        self.connects += 1

    async def run(self) -> None:
        while True:
            while self.waiting >= WAITING:
                await asyncio.sleep(0.002)
            number = self.emitted
            self.emitted += 1
            self.outcomes[number] = []
            self.waiting += 1
            self.client.emit("echo", number, ack=self.noting(number))
            await asyncio.sleep(0.002)

    def noting(self, number: int) -> Callable[..., None]:
        def note(error: Exception | None, *values: Any) -> None:
            self.waiting -= 1
            assert error is not None or values == (number,)
            self.outcomes[number].append(type(error).__name__ if error else "answer")

        return note


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def survive(server: ClientServer, new_client: NewClient, times: int) -> None:
    clients = [
        new_client(server.url, transports=["polling"], **QUICK),
        new_client(server.url, transports=["websocket"], **QUICK),
        new_client(server.url, **QUICK),
        new_client(server.url, retries=1000, ack_timeout=5, **QUICK),
    ]
    for client in clients:
        await client.connect()
    traffic = [Traffic(client) for client in clients]
    running = [asyncio.create_task(one.run()) for one in traffic]
    tasks_before = len(asyncio.all_tasks())
    descriptors_before = descriptors()
    for round_ in range(times):
        await asyncio.sleep(0.1)
        server.kill()
        await asyncio.to_thread(server.start)
        await until(lambda: all(client.connected for client in clients))
        assert all(one.connects > round_ for one in traffic)
    await asyncio.sleep(0.3)
    # What is under way just now, as an upgrade is, comes to its end.
    await until(
        lambda: (
            len(asyncio.all_tasks()) <= tasks_before + 4 and descriptors() <= descriptors_before + 4
        )
    )
    for task in running:
        task.cancel()
    await until(lambda: all(outcome for one in traffic for outcome in one.outcomes.values()))
    for one in traffic:
        assert one.connects == len(one.ends) == times
        assert set(one.ends) <= {"transport close", "transport error"}
        assert all(len(outcome) == 1 for outcome in one.outcomes.values())
        kinds = {outcome[0] for outcome in one.outcomes.values()}
        assert "answer" in kinds
        assert kinds <= {"answer", "Disconnected"}
        assert not one.client.core.acks
        assert not one.client.core.send_buffer
    assert {outcome[0] for outcome in traffic[-1].outcomes.values()} == {"answer"}
    for client in clients:
        await client.close()
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Connection)]


@pytest.mark.parametrize("kind", ["limpet", "node"])
async def test_survives_its_server(
    kind: str, spawn: Callable[..., ClientServer], new_client: NewClient
) -> None:
    await survive(spawn(kind), new_client, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["limpet", "node"])
async def test_survives_its_server_twenty_times(
    kind: str, spawn: Callable[..., ClientServer], new_client: NewClient
) -> None:
    await survive(spawn(kind), new_client, 20)
