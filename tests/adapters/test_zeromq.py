"""The ZeroMQ adapter across real processes: what the list that all adapters share leaves open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bus_processes import Child, Host, host

pytestmark = pytest.mark.processes


class Cluster:
    """Three nodes with one socket each in ``/``; the third also has one in ``/custom``."""

    def __init__(self, running: Host, sockets: list[str], custom: str) -> None:
        self.host = running
        self.nodes: list[Child] = list(running.nodes)
        self.sockets = sockets
        self.custom = custom

    async def join(self, number: int, *rooms: str) -> None:
        await self.nodes[number].do("join", socket=self.sockets[number], rooms=list(rooms))

    async def emit(self, number: int, text: str | list[str], **options: Any) -> None:
        await self.nodes[number].do("emit", text=text, **options)

    async def received(self) -> list[list[str]]:
        """Return what each socket received, after all that was emitted before arrived."""
        for number in range(3):
            await self.emit(number, f"end {number}", rooms=["never", *self.sockets])
        got: list[list[str]] = []
        for node, socket in zip(self.nodes, self.sockets, strict=True):
            texts: list[str] = []
            async with asyncio.timeout(20):
                while sum(text.startswith("end") for text in texts) < 3:
                    texts += await node.do("numbers", socket=socket, count=1)
            got.append([text for text in texts if not text.startswith("end")])
        return got

    async def custom_received(self) -> list[str]:
        texts: list[str] = await self.nodes[2].do("numbers", socket=self.custom, within=0)
        return texts


@asynccontextmanager
async def cluster(**options: Any) -> AsyncIterator[Cluster]:
    async with host(3, **options) as running:
        sockets = [await node.do("add") for node in running.nodes]
        custom = await running.nodes[2].do("add", namespace="/custom")
        yield Cluster(running, sockets, custom)


@pytest.mark.parametrize("buckets", [1, 65_536])
async def test_the_number_of_buckets_changes_nothing(buckets: int) -> None:
    async with cluster(buckets=buckets, linger=0) as c:
        # broadcasts to all clients
        await c.emit(0, "all")
        assert await c.received() == [["all"]] * 3
        assert await c.custom_received() == []
        # broadcasts to all clients in a namespace
        await c.emit(0, "custom", namespace="/custom")
        assert await c.nodes[2].do("numbers", socket=c.custom, count=1) == ["custom"]
        assert await c.received() == [[]] * 3
        # broadcasts to all clients in a room
        await c.join(1, "room1")
        await c.emit(0, "room", rooms=["room1"])
        assert await c.received() == [[], ["room"], []]
        # broadcasts to all clients except in room
        await c.join(2, "room2")
        await c.emit(0, "except", except_rooms=["room1"])
        assert await c.received() == [["except"], [], ["except"]]
        await c.emit(1, "both", rooms=["room1", "room2"], except_rooms=["room2", "other"])
        assert await c.received() == [[], ["both"], []]
        # broadcasts to local clients only
        await c.emit(0, "local", local=True)
        assert await c.received() == [["local"], [], []]


async def test_leaving_disconnecting_and_closing_end_delivery() -> None:
    async with cluster(linger=0) as c:
        before = (await c.nodes[1].do("stats"))["topics"]
        await c.join(1, "left", "kept")
        await c.nodes[1].do("leave", socket=c.sockets[1], room="left")
        assert (await c.nodes[1].do("stats"))["topics"] == before + 1
        await c.emit(0, "left", rooms=["left"])
        await c.emit(0, "kept", rooms=["kept"])
        assert await c.received() == [[], ["kept"], []]
        await c.nodes[2].do("close", namespace="/custom")
        await c.emit(0, "closed", namespace="/custom")
        await c.nodes[1].do("remove", socket=c.sockets[1])
        assert (await c.nodes[1].do("stats"))["topics"] <= before
        socket = await c.nodes[1].do("add")
        c.sockets[1] = socket
        await c.emit(0, "kept", rooms=["kept"])
        assert await c.received() == [[], [], []]


async def test_a_dead_worker_harms_nobody_and_its_successor_gets_nothing_of_it() -> None:
    async with cluster() as c:
        dead = c.sockets[1]
        await c.nodes[1].kill()
        await c.emit(0, "to the dead", rooms=[dead])
        await c.emit(0, "all")
        assert await c.nodes[2].do("numbers", socket=c.sockets[2], count=1) == ["all"]
        successor = await c.host.start_node(1)
        c.nodes[1] = successor
        c.sockets[1] = await successor.do("add")
        await c.emit(0, "to the dead", rooms=[dead])
        await c.emit(2, "again")
        assert await c.received() == [["all", "again"], ["again"], ["again"]]
