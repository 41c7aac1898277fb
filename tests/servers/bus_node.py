"""A worker that has adapters alone, for tests: told on stdin what to do, answers on stdout.

Usage: bus_node.py RUN_DIRECTORY SLOT [OPTIONS_OF_BUS_AS_JSON]

Three more options take the place of limits in seconds, for tests in which a slow machine must not
reach them: ``barrier``, how long a join waits, ``hold``, how long frames wait for missing ones, and
``queue``, how long a message waits for the hub.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import uvloop

from limpet_adapters import bus
from limpet_adapters.bus import Bus
from limpet_adapters.contract import BroadcastOptions
from limpet_adapters.control import ControlClient, Hello
from limpet_adapters.counters import counters
from limpet_adapters.identity import IdFactory, WorkerAddress, new_worker_id
from limpet_adapters.outgoing import QUEUE_SECONDS, Outgoing
from limpet_adapters.packet import EncodedPacket
from limpet_adapters.rundir import RunDirectory, Slot
from limpet_adapters.sequence import HOLD_SECONDS
from limpet_adapters.zeromq import ZeroMQAdapter


class Socket:
    __slots__ = ("id", "joined", "received")

    def __init__(self, socket_id: str) -> None:
        self.id = socket_id
        self.joined: Collection[str] = ()
        self.received: list[Any] = []


class Node:
    """One worker of a test: sockets by id in namespaces, and what each of them received."""

    def __init__(self, rundir: RunDirectory, slot: Slot, options: dict[str, Any]) -> None:
        worker_id = new_worker_id()
        self.address = WorkerAddress(7, slot.number, slot.incarnation)
        self.new_id = IdFactory(self.address)
        self.control = ControlClient(
            rundir.hub,
            Hello(
                worker_id=worker_id,
                node=7,
                slot=slot.number,
                incarnation=slot.incarnation,
                pid=os.getpid(),
            ),
        )
        bus.BARRIER_SECONDS = options.pop("barrier", bus.BARRIER_SECONDS)  # type: ignore[misc]
        queue = options.pop("queue", QUEUE_SECONDS)
        hold = options.pop("hold", HOLD_SECONDS)
        self.bus = Bus(rundir, self.control, worker_id, self.address, **options)
        self.bus.sequencer._hold_seconds = hold
        self.bus._outgoing = Outgoing(seconds=queue)
        self.gaps: list[dict[str, object]] = []
        self.bus.on_gap = self.gaps.append
        self.adapters: dict[str, ZeroMQAdapter] = {}
        self.sockets: dict[str, tuple[ZeroMQAdapter, Socket]] = {}

    def deliver(self, members: Collection[Socket], packet: EncodedPacket, volatile: bool) -> None:
        for member in members:
            member.received.append(
                [packet.text.decode(), [a.hex() for a in packet.attachments], volatile]
            )

    def adapter(self, namespace: str) -> ZeroMQAdapter:
        if namespace not in self.adapters:
            self.adapters[namespace] = self.bus.adapter(namespace, self.deliver)
        return self.adapters[namespace]

    async def do_ready(self) -> bool:
        await asyncio.wait_for(self.bus.ready.wait(), 20)
        return True

    async def do_is_ready(self) -> bool:
        return self.bus.ready.is_set()

    async def do_add(self, namespace: str = "/", rooms: list[str] | None = None) -> str:
        adapter = self.adapter(namespace)
        await adapter.ready()
        socket = Socket(self.new_id())
        adapter.add(socket)
        self.sockets[socket.id] = (adapter, socket)
        if rooms:
            await adapter.join(socket, rooms)
        return socket.id

    async def do_join(self, socket: str, rooms: list[str], wait: bool = True) -> list[str]:
        adapter, member = self.sockets[socket]
        joined = adapter.join(member, rooms)
        if wait:
            await joined
        return list(adapter.rooms_of(member))

    async def do_leave(self, socket: str, room: str) -> None:
        adapter, member = self.sockets[socket]
        adapter.leave(member, room)

    async def do_remove(self, socket: str) -> None:
        adapter, member = self.sockets.pop(socket)
        adapter.remove(member)

    async def do_emit(
        self,
        *,
        text: str | list[str],
        rooms: list[str] | None = None,
        except_rooms: list[str] | None = None,
        namespace: str = "/",
        attachments: list[str] | None = None,
        local: bool = False,
        volatile: bool = False,
        every: float = 0.0,
    ) -> None:
        for one in [text] if isinstance(text, str) else text:
            self.adapter(namespace).broadcast(
                EncodedPacket(one.encode(), tuple(bytes.fromhex(a) for a in attachments or ())),
                BroadcastOptions(
                    frozenset(rooms or ()),
                    frozenset(except_rooms or ()),
                    local=local,
                    volatile=volatile,
                ),
            )
            if every:
                await asyncio.sleep(every)

    async def do_flood(self, room: str, count: int, size: int = 0, every: int = 50) -> None:
        """Send numbers, as fast as it goes while other work still has its turn."""
        fill = "x" * size
        for number in range(count):
            self.adapter("/").broadcast(
                EncodedPacket(f"{number}{fill}".encode()), BroadcastOptions(frozenset({room}))
            )
            if not number % every:
                await asyncio.sleep(0)

    async def do_received(
        self, socket: str, count: int = 0, within: float = 10.0
    ) -> list[list[object]]:
        """Return what a socket received, and forget it; wait for so many messages first."""
        _, member = self.sockets[socket]
        try:
            async with asyncio.timeout(within):
                while len(member.received) < count:
                    await asyncio.sleep(0.002)
        except TimeoutError:
            pass
        received, member.received = member.received, []
        return received

    async def do_count(self, socket: str, count: int) -> int:
        """Wait until a socket received so many messages, and forget them."""
        return len(await self.do_received(socket, count, 30))

    async def do_numbers(self, socket: str, count: int = 0, within: float = 10.0) -> list[str]:
        """Return the texts alone, without fill."""
        return [str(m[0]).rstrip("x") for m in await self.do_received(socket, count, within)]

    async def do_gaps(self, count: int = 0, within: float = 10.0) -> list[dict[str, object]]:
        try:
            async with asyncio.timeout(within):
                while len(self.gaps) < count:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pass
        return self.gaps

    async def do_stats(self) -> dict[str, int]:
        return self.bus.stats() | {"incomplete": counters["limpet_join_barrier_incomplete_total"]}

    async def do_close(self, namespace: str) -> None:
        await self.adapters.pop(namespace).close()

    async def run(self) -> None:
        self.control.start()
        print(json.dumps({"ready": self.bus.worker_id}), flush=True)
        reader = asyncio.StreamReader(limit=1 << 26)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        tasks: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(self.answer(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for adapter in self.adapters.values():
            await adapter.close()
        await self.bus.close()
        await self.control.close()

    async def answer(self, command: dict[str, Any]) -> None:
        number, what = command.pop("number"), command.pop("do")
        try:
            reply = {"number": number, "answer": await getattr(self, f"do_{what}")(**command)}
        except Exception as error:
            reply = {"number": number, "error": repr(error)}
        print(json.dumps(reply), flush=True)


async def main() -> None:
    rundir = RunDirectory(Path(sys.argv[1]))
    slot = Slot(rundir, int(sys.argv[2]))
    await Node(rundir, slot, json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}).run()


if __name__ == "__main__":
    uvloop.run(main())
