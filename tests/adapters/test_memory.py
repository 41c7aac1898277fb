"""The adapter of one process: the list that all adapters share, and its own bookkeeping."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.conformance import AdapterConformance, CutOffConformance, Node, Received
from limpet_adapters.contract import JOINED, BroadcastOptions
from limpet_adapters.identity import IdFactory, WorkerAddress
from limpet_adapters.memory import MemoryAdapter
from limpet_adapters.packet import EncodedPacket


class Socket:
    def __init__(self, id_: str) -> None:
        self.id = id_
        self.joined: Collection[str] = ()
        self.received: list[Received] = []


def deliver(members: Collection[Socket], packet: EncodedPacket, volatile: bool) -> None:
    for member in members:
        member.received.append(Received(packet.text.decode(), packet.attachments, volatile))


class MemoryNode:
    """The process itself."""

    def __init__(self) -> None:
        self._adapters: dict[str, MemoryAdapter] = {}
        self._sockets: dict[str, tuple[MemoryAdapter, Socket]] = {}
        self._new_id = IdFactory(WorkerAddress(1, 2, 3))

    def _adapter(self, namespace: str) -> MemoryAdapter:
        if namespace not in self._adapters:
            self._adapters[namespace] = MemoryAdapter(namespace, deliver)
        return self._adapters[namespace]

    async def add(self, namespace: str) -> str:
        adapter, socket = self._adapter(namespace), Socket(self._new_id())
        await adapter.ready()
        adapter.add(socket)
        self._sockets[socket.id] = (adapter, socket)
        return socket.id

    async def remove(self, id_: str) -> None:
        adapter, socket = self._sockets.pop(id_)
        adapter.remove(socket)

    async def join(self, id_: str, rooms: list[str]) -> None:
        adapter, socket = self._sockets[id_]
        await adapter.join(socket, rooms)

    async def leave(self, id_: str, room: str) -> None:
        adapter, socket = self._sockets[id_]
        adapter.leave(socket, room)

    async def rooms_of(self, id_: str) -> Collection[str]:
        adapter, socket = self._sockets[id_]
        return adapter.rooms_of(socket)

    async def broadcast(
        self, namespace: str, packet: EncodedPacket, options: BroadcastOptions
    ) -> None:
        self._adapter(namespace).broadcast(packet, options)

    async def received(self, id_: str) -> list[Received]:
        _, socket = self._sockets[id_]
        received, socket.received = socket.received, []
        return received

    async def cut_off(self) -> None:
        pass  # there is nobody else


@pytest.fixture
def nodes() -> list[Node]:
    return [MemoryNode()]


@pytest.fixture
def fresh_nodes() -> list[Node]:
    return [MemoryNode()]


@pytest.mark.asyncio(loop_scope="module")
class TestMemory(AdapterConformance, CutOffConformance):
    pass


def adapter_with(*sockets: Socket) -> MemoryAdapter:
    adapter = MemoryAdapter("/", deliver)
    for socket in sockets:
        adapter.add(socket)
    return adapter


def test_own_rooms_cost_nothing() -> None:
    a = Socket("a")
    adapter = adapter_with(a)
    assert not adapter.rooms
    assert adapter.sockets == {"a": a}
    assert adapter.rooms_of(a) == ("a",)
    assert adapter.join(a, ["a"]) is JOINED
    assert not adapter.rooms
    assert a.joined == ()


def test_rooms_end_with_their_last_member() -> None:
    a, b = Socket("a"), Socket("b")
    adapter = adapter_with(a, b)
    adapter.join(a, ["r"])
    adapter.join(b, ["r"])
    adapter.leave(a, "r")
    assert adapter.rooms == {"r": {b}}
    adapter.remove(b)
    adapter.remove(b)
    assert not adapter.rooms
    assert adapter.rooms_of(b) == ()
    assert b.joined == ()


async def test_close_forgets_everything() -> None:
    a = Socket("a")
    adapter = adapter_with(a)
    adapter.join(a, ["r"])
    await adapter.close()
    assert not adapter.sockets
    assert not adapter.rooms
    assert a.joined == ()


def test_strangers_are_not_removed() -> None:
    a, twin = Socket("a"), Socket("a")
    adapter = adapter_with(a)
    adapter.remove(twin)
    assert adapter.sockets == {"a": a}


names = st.sampled_from(["a", "b", "c", "r1", "r2", "r3"])
rooms = st.frozensets(names, max_size=3)
steps = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "join", "leave"]), st.sampled_from("abc"), names),
    max_size=40,
)


@given(steps, rooms, rooms)
def test_selects_as_a_simple_model_does(
    history: list[tuple[str, str, str]], to: frozenset[str], but: frozenset[str]
) -> None:
    sockets = {name: Socket(name) for name in "abc"}
    adapter = MemoryAdapter("/", deliver)
    model: dict[str, set[str]] = {}
    for step, name, room in history:
        socket = sockets[name]
        if step == "add":
            adapter.add(socket)
            model.setdefault(name, {name})
        elif step == "remove":
            adapter.remove(socket)
            model.pop(name, None)
        elif name in model and step == "join":
            adapter.join(socket, [room])
            model[name].add(room)
        elif name in model and room != name:
            adapter.leave(socket, room)
            model[name].discard(room)
        for other, its in sockets.items():
            assert set(adapter.rooms_of(its)) == model.get(other, set())
    expected = sorted(
        name for name, inside in model.items() if (not to or to & inside) and not but & inside
    )
    chosen: list[Any] = list(adapter.select(BroadcastOptions(to, but)))
    assert sorted(socket.id for socket in chosen) == expected
