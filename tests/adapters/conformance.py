"""What every adapter must do: the same tests for all, whatever carries the messages.

A module of tests derives from ``AdapterConformance`` and gives it a ``nodes`` fixture: at least
one ``Node``, three where the engine has more than one process. Broadcasts with acknowledgements
and cluster requests will be further tests here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterable
from typing import NamedTuple, Protocol

import pytest_asyncio

from limpet_adapters.contract import BroadcastOptions
from limpet_adapters.packet import EncodedPacket


class Received(NamedTuple):
    """What was delivered to a socket."""

    text: str
    attachments: tuple[bytes, ...]
    volatile: bool


class Node(Protocol):
    """One worker with an adapter for each namespace, here or in another process."""

    async def add(self, namespace: str) -> str:
        """Add a new socket and return its id; wait until the namespace is ready before."""

    async def remove(self, id_: str) -> None:
        """Remove a socket: it disconnected."""

    async def join(self, id_: str, rooms: list[str]) -> None:
        """Put a socket into rooms and wait until that is in force everywhere."""

    async def leave(self, id_: str, room: str) -> None:
        """Take a socket out of a room."""

    async def rooms_of(self, id_: str) -> Collection[str]:
        """Return the rooms of a socket."""

    async def broadcast(
        self, namespace: str, packet: EncodedPacket, options: BroadcastOptions
    ) -> None:
        """Broadcast through the adapter of a namespace."""

    async def received(self, id_: str) -> list[Received]:
        """Return what a socket received since the last call; wait a little when it is nothing."""

    async def cut_off(self) -> None:
        """Take away what connects the nodes, and do not bring it back."""


class Peer(NamedTuple):
    """A socket of a test."""

    node: Node
    id: str

    async def join(self, *rooms: str) -> None:
        await self.node.join(self.id, list(rooms))

    async def leave(self, room: str) -> None:
        await self.node.leave(self.id, room)


class Space:
    """A namespace that only one test uses."""

    _numbers = itertools.count()

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.namespace = f"/test-{next(self._numbers)}"

    async def sockets(self, number: int) -> list[Peer]:
        """Return new sockets, spread evenly over the nodes."""
        owners = itertools.islice(itertools.cycle(self.nodes), number)
        return [Peer(node, await node.add(self.namespace)) for node in owners]

    async def emit(
        self,
        text: str,
        *,
        rooms: Iterable[str] = (),
        except_rooms: Iterable[str] = (),
        local: bool = False,
        volatile: bool = False,
        attachments: tuple[bytes, ...] = (),
        node: int = 0,
        namespace: str | None = None,
    ) -> None:
        options = BroadcastOptions(
            frozenset(rooms), frozenset(except_rooms), local=local, volatile=volatile
        )
        await self.nodes[node].broadcast(
            namespace or self.namespace, EncodedPacket(text.encode(), attachments), options
        )

    async def everything(self, peers: list[Peer]) -> list[list[Received]]:
        """Return what each socket received, once all that was emitted before has arrived."""
        for number in range(len(self.nodes)):
            await self.emit(f"end of {number}", node=number)
        return [await self._until_ends(peer) for peer in peers]

    async def texts(self, peers: list[Peer]) -> list[list[str]]:
        return [[one.text for one in got] for got in await self.everything(peers)]

    async def counts(self, peers: list[Peer]) -> list[int]:
        return [len(got) for got in await self.everything(peers)]

    async def _until_ends(self, peer: Peer) -> list[Received]:
        got: list[Received] = []
        async with asyncio.timeout(20):
            while sum(one.text.startswith("end of") for one in got) < len(self.nodes):
                got += await peer.node.received(peer.id)
        return [one for one in got if not one.text.startswith("end of")]


class AdapterConformance:
    """The list. Sockets are spread over the nodes, so what is said holds across them."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def space(self, nodes: list[Node]) -> Space:
        return Space(nodes)

    async def test_broadcasts_to_all_clients(self, space: Space) -> None:
        peers = await space.sockets(6)
        await space.emit("all")
        assert await space.texts(peers) == [["all"]] * 6

    async def test_broadcasts_to_all_clients_in_a_namespace(self, space: Space) -> None:
        peers = await space.sockets(3)
        other = Space(space.nodes)
        strangers = await other.sockets(3)
        await space.emit("mine")
        await space.emit("theirs", namespace=other.namespace, node=-1)
        assert await space.texts(peers) == [["mine"]] * 3
        assert await other.texts(strangers) == [["theirs"]] * 3

    async def test_broadcasts_to_all_clients_in_a_room(self, space: Space) -> None:
        a, b, c = peers = await space.sockets(3)
        await b.join("room")
        await c.join("other")
        await space.emit("x", rooms=["room"])
        assert await space.counts(peers) == [0, 1, 0]
        await a.join("room")
        await space.emit("x", rooms=["room"], node=-1)
        assert await space.counts(peers) == [1, 1, 0]

    async def test_broadcasts_to_all_clients_except_in_room(self, space: Space) -> None:
        _, b, c = peers = await space.sockets(3)
        await b.join("room")
        await space.emit("x", except_rooms=["room"])
        assert await space.counts(peers) == [1, 0, 1]
        await c.join("room", "mine")
        await space.emit("x", rooms=["room"], except_rooms=["mine", "nobody's"])
        assert await space.counts(peers) == [0, 1, 0]

    async def test_broadcasts_to_local_clients_only(self, space: Space) -> None:
        peers = await space.sockets(6)
        for node in range(len(space.nodes)):
            await space.emit("x", local=True, node=node)
            assert await space.counts(peers) == [peer.node is space.nodes[node] for peer in peers]

    async def test_broadcasts_with_several_rooms_arrive_once(self, space: Space) -> None:
        a, b, c = peers = await space.sockets(3)
        await a.join("1", "2", "3")
        await b.join("2")
        await space.emit("x", rooms=["1", "2", "3"])
        assert await space.counts(peers) == [1, 1, 0]
        await space.emit("x", rooms=["1", a.id, c.id], except_rooms=["2"])
        assert await space.counts(peers) == [0, 0, 1]

    async def test_a_socket_id_is_a_room(self, space: Space) -> None:
        peers = await space.sockets(3)
        for number, peer in enumerate(peers):
            for node in range(len(space.nodes)):
                await space.emit("x", rooms=[peer.id], node=node)
            expected = [0, 0, 0]
            expected[number] = len(space.nodes)
            assert await space.counts(peers) == expected
        await space.emit("x", except_rooms=[peers[0].id, peers[2].id], node=-1)
        assert await space.counts(peers) == [0, 1, 0]

    async def test_the_own_room_stays(self, space: Space) -> None:
        (peer,) = peers = await space.sockets(1)
        await peer.join(peer.id, "room")
        await peer.leave(peer.id)
        assert set(await peer.node.rooms_of(peer.id)) == {peer.id, "room"}
        await space.emit("x", rooms=[peer.id])
        assert await space.counts(peers) == [1]

    async def test_joining_twice_is_once_and_leaving_ends_it(self, space: Space) -> None:
        a, b, _ = peers = await space.sockets(3)
        await a.join("room", "room")
        await a.join("room")
        await b.join("room")
        await space.emit("x", rooms=["room"], node=-1)
        assert await space.counts(peers) == [1, 1, 0]
        await a.leave("room")
        await a.leave("room")
        await a.leave("never")
        await space.emit("x", rooms=["room"], node=-1)
        assert await space.counts(peers) == [0, 1, 0]
        await a.join("room")
        await space.emit("x", rooms=["room"], node=-1)
        assert await space.counts(peers) == [1, 1, 0]

    async def test_a_socket_may_be_in_many_rooms(self, space: Space) -> None:
        a, b = peers = await space.sockets(2)
        names = [f"room {number}" for number in range(40)]
        await a.join(*names)
        await b.join(names[20])
        assert set(await a.node.rooms_of(a.id)) == {a.id, *names}
        await space.emit("x", rooms=names)
        await space.emit("x", rooms=[names[39]])
        assert await space.counts(peers) == [2, 1]
        for name in names[1:]:
            await a.leave(name)
        assert set(await a.node.rooms_of(a.id)) == {a.id, names[0]}
        await space.emit("x", rooms=names[1:])
        assert await space.counts(peers) == [0, 1]

    async def test_a_removed_socket_gets_nothing(self, space: Space) -> None:
        a, b, c = await space.sockets(3)
        await a.join("room")
        await b.join("room")
        await a.node.remove(a.id)
        await space.emit("x", rooms=["room"], node=-1)
        await space.emit("x", rooms=[a.id], node=-1)
        await space.emit("x")
        assert await space.counts([b, c]) == [2, 1]

    async def test_binary_and_flags_arrive_as_they_were(self, space: Space) -> None:
        peers = await space.sockets(3)
        text = '52-["ü",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
        binary = (b"", bytes(range(256)) * 300)
        await space.emit(text, attachments=binary)
        await space.emit("2[]", volatile=True, rooms=[peer.id for peer in peers])
        expected = [Received(text, binary, False), Received("2[]", (), True)]
        assert await space.everything(peers) == [expected] * 3

    async def test_strange_room_names(self, space: Space) -> None:
        a, b, _ = peers = await space.sockets(3)
        names = ["", " ", "#", "room,with,commas", "ü" * 300, "12345678901234567890", "\x00", "/a"]
        await a.join(*names)
        await b.join("abc")
        for name in names:
            await space.emit(name, rooms=[name], node=-1)
        assert await space.texts(peers) == [names, [], []]

    async def test_the_order_of_one_publisher_holds(self, space: Space) -> None:
        peers = await space.sockets(3)
        for peer in peers:
            await peer.join("room")
        for number in range(200):
            await space.emit(str(number), rooms=["room"])
        assert await space.texts(peers) == [[str(number) for number in range(200)]] * 3

    async def test_a_join_that_was_awaited_is_in_force(self, space: Space) -> None:
        peers = await space.sockets(3)
        for number in range(30):
            peer = peers[number % 3]
            await peer.join(f"fresh {number}")
            await space.emit("x", rooms=[f"fresh {number}"], node=(number + 1) % len(space.nodes))
        assert await space.counts(peers) == [10, 10, 10]


class CutOffConformance:
    """What holds when the nodes cannot reach each other any more."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def lonely(self, fresh_nodes: list[Node]) -> Space:
        return Space(fresh_nodes)

    async def test_broadcasts_to_local_clients_even_when_publishing_fails(
        self, lonely: Space
    ) -> None:
        peers = await lonely.sockets(3)
        await peers[0].join("room")
        await lonely.nodes[0].cut_off()
        await lonely.emit("x", rooms=["room"])
        await lonely.emit("y")
        got: list[Received] = []
        async with asyncio.timeout(10):
            while len(got) < 2:
                got += await peers[0].node.received(peers[0].id)
        assert [one.text for one in got] == ["x", "y"]
