"""Rooms and broadcasts through the operators of server, namespace and socket."""

from __future__ import annotations

import pytest

from limpet_adapters.contract import BroadcastOptions
from limpet_adapters.packet import EncodedPacket
from limpet_worker.socketio.broadcast import room_names
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket
from socketio_fakes import Peer, peers, running


def got(clients: list[Peer]) -> list[int]:
    """Return how many packets each got since the last call."""
    return [len(peer.take()) for peer in clients]


async def test_selections() -> None:
    async with running(Server()) as io:
        clients = peers(io, 4)
        a, b, c, d = (peer.connect() for peer in clients)
        a.join("r1")
        b.join(["r1", "r2"])
        c.join("r2")
        for operator, expected in (
            (io, [1, 1, 1, 1]),
            (io.to("r1"), [1, 1, 0, 0]),
            (io.in_("r1"), [1, 1, 0, 0]),
            (io.to("r1", "r2"), [1, 1, 1, 0]),
            (io.to(["r1", "r2"]), [1, 1, 1, 0]),
            (io.to("r1").to("r2"), [1, 1, 1, 0]),
            (io.to("r1").in_("r2"), [1, 1, 1, 0]),
            (io.except_("r1"), [0, 0, 1, 1]),
            (io.to("r1").except_("r2"), [1, 0, 0, 0]),
            (io.to("r1").except_(b.id), [1, 0, 0, 0]),
            (io.except_([a.id, "r2"]), [0, 0, 0, 1]),
            (io.to(d.id), [0, 0, 0, 1]),
            (io.to(d.id, "r2"), [0, 1, 1, 1]),
            (io.to("nobody"), [0, 0, 0, 0]),
            (io.to([]), [0, 0, 0, 0]),
            (io.to([]).to("r1"), [1, 1, 0, 0]),
            (io.to("r1").to([]), [1, 1, 0, 0]),
            (io.to([]).except_("r1").volatile, [0, 0, 0, 0]),
            (io.local, [1, 1, 1, 1]),
            (io.local.to("r1"), [1, 1, 0, 0]),
            (io.volatile, [1, 1, 1, 1]),
            (io.timeout(1).to("r2"), [0, 1, 1, 0]),
            (a.broadcast, [0, 1, 1, 1]),
            (a.to("r1"), [0, 1, 0, 0]),
            (a.to("r1").to("r2"), [0, 1, 1, 0]),
            (a.in_("r1").except_("r2"), [0, 0, 0, 0]),
            (a.except_("r2"), [0, 0, 0, 1]),
            (a.local, [0, 1, 1, 1]),
            (a.volatile, [1, 0, 0, 0]),
            (a.volatile.broadcast, [0, 1, 1, 1]),
            (a.volatile.to("r1"), [0, 1, 0, 0]),
            (a.timeout(1), [1, 0, 0, 0]),
            (a.timeout(1).to("r1"), [0, 1, 0, 0]),
            (a, [1, 0, 0, 0]),
        ):
            operator.emit("x", 1)
            assert got(clients) == expected


async def test_operators_are_immutable() -> None:
    async with running(Server()) as io:
        clients = peers(io, 2)
        a, b = (peer.connect() for peer in clients)
        a.join("r1")
        b.join("r2")
        base = io.to("r1")
        base.to("r2")
        base.except_("r1")
        base.emit("x")
        assert got(clients) == [1, 0]


async def test_a_socket_may_join_the_room_of_another() -> None:
    async with running(Server()) as io:
        clients = peers(io, 3)
        a, b, _ = (peer.connect() for peer in clients)
        b.join(a.id)
        io.to(a.id).emit("x")
        assert got(clients) == [1, 1, 0]
        io.except_(a.id).emit("x")
        assert got(clients) == [0, 0, 1]
        clients[0].text(b"1")
        io.to(a.id).emit("x")
        assert got(clients) == [0, 1, 0]


async def test_rooms_of_a_socket() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        assert socket.rooms == {socket.id}
        await socket.join("a")
        await socket.join(["b", "c"])
        await socket.leave(["b", "never"])
        socket.leave(socket.id)
        assert socket.rooms == {socket.id, "a", "c"}
        names = [f"room {number}" for number in range(50)]
        socket.join(names)
        assert socket.rooms == {socket.id, "a", "c", *names}
        socket.leave(names)
        assert socket.rooms == {socket.id, "a", "c"}
        assert set(io.of("/").adapter.rooms) == {"a", "c"}
        socket.disconnect()
        assert socket.rooms == {socket.id, "a", "c"}  # those it was in
        assert not io.of("/").adapter.rooms
        await socket.join("d")
        await socket.leave("a")
        assert not io.of("/").adapter.rooms


async def test_namespaces_are_apart() -> None:
    io = Server()
    chat = io.of("/chat")
    async with running(io):
        (peer,) = peers(io, 1)
        root, other = peer.connect(), peer.connect("/chat")
        root.join("r")
        other.join("r")
        chat.to("r").emit("x")
        assert peer.take() == [b'2/chat,["x"]']
        io.to("r").emit("x")
        assert peer.take() == [b'2["x"]']
        io.to(other.id).emit("x")
        assert peer.take() == []


async def test_binary_is_encoded_once_for_all() -> None:
    io = Server()
    sent: list[EncodedPacket] = []
    async with running(io):
        clients = peers(io, 3)
        for peer in clients:
            peer.connect()
        adapter = io.of("/").adapter
        deliver = adapter.deliver  # type: ignore[attr-defined]

        def spy(members: list[Socket], packet: EncodedPacket, volatile: bool) -> None:
            sent.append(packet)
            deliver(members, packet, volatile)

        adapter.deliver = spy  # type: ignore[attr-defined]
        io.emit("x", b"1")
        assert len(sent) == 1
        for peer in clients:
            assert peer.take() == [(b'51-["x",{"_placeholder":true,"num":0}]', b"1")]


@pytest.mark.parametrize("room", [7, None, b"r", ["a", 7]])
def test_rooms_are_strings(room: object) -> None:
    with pytest.raises(TypeError, match="room"):
        room_names((room,))  # type: ignore[arg-type]


def test_options_are_everybody_by_default() -> None:
    options = BroadcastOptions()
    assert not options.rooms
    assert not options.except_rooms
    assert not options.local
    assert not options.volatile
