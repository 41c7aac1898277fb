"""The list that all adapters share, on the ZeroMQ adapter with its nodes in separate processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import pytest_asyncio

from adapters.conformance import AdapterConformance, CutOffConformance, Node, Received
from bus_processes import Child, Host, host
from limpet_adapters.contract import BroadcastOptions
from limpet_adapters.packet import EncodedPacket

pytestmark = pytest.mark.processes


class ProcessNode:
    """A node that is told over its stdin what to do."""

    def __init__(self, running: Host, child: Child) -> None:
        self._host = running
        self._child = child

    async def add(self, namespace: str) -> str:
        return cast(str, await self._child.do("add", namespace=namespace))

    async def remove(self, id_: str) -> None:
        await self._child.do("remove", socket=id_)

    async def join(self, id_: str, rooms: list[str]) -> None:
        await self._child.do("join", socket=id_, rooms=rooms)

    async def leave(self, id_: str, room: str) -> None:
        await self._child.do("leave", socket=id_, room=room)

    async def rooms_of(self, id_: str) -> Collection[str]:
        return cast(list[str], await self._child.do("join", socket=id_, rooms=[]))

    async def broadcast(
        self, namespace: str, packet: EncodedPacket, options: BroadcastOptions
    ) -> None:
        await self._child.do(
            "emit",
            namespace=namespace,
            text=packet.text.decode(),
            attachments=[attachment.hex() for attachment in packet.attachments],
            rooms=sorted(options.rooms),
            except_rooms=sorted(options.except_rooms),
            local=options.local,
            volatile=options.volatile,
        )

    async def received(self, id_: str) -> list[Received]:
        got = await self._child.do("received", socket=id_, count=1, within=1.0)
        return [
            Received(text, tuple(map(bytes.fromhex, attachments)), volatile)
            for text, attachments, volatile in got
        ]

    async def cut_off(self) -> None:
        await self._host.hub.kill()


@asynccontextmanager
async def three(**options: Any) -> AsyncIterator[list[Node]]:
    async with host(3, linger=0, **options) as running:
        yield [ProcessNode(running, child) for child in running.nodes]


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=[1, 65_536])
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[list[Node]]:
    async with three(buckets=request.param) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def fresh_nodes() -> AsyncIterator[list[Node]]:
    async with three() as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
class TestZeroMQ(AdapterConformance, CutOffConformance):
    pass
