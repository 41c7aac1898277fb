"""Acknowledgements that the server asks clients for."""

from __future__ import annotations

import asyncio

import pytest

from limpet_worker.socketio.errors import AckTimeout, Disconnected
from limpet_worker.socketio.server import Server
from socketio_fakes import peers, running, settled


async def test_answers_of_every_shape() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        for values, expected in (
            (b"[]", None),
            (b"[1]", 1),
            (b"[[1]]", [1]),
            (b'[1,"2"]', (1, "2")),
        ):
            waiting = asyncio.create_task(socket.emit_with_ack("x", "y"))
            await settled()
            (packet,) = peer.take()
            assert isinstance(packet, bytes)
            id_ = packet[1:].partition(b"[")[0]
            assert packet == b'2%b["x","y"]' % id_
            peer.text(b"3" + id_ + values)
            assert await waiting == expected
        assert socket.acks == {}


async def test_ids_count_up_from_zero_in_each_namespace() -> None:
    io = Server()
    io.of("/a")
    async with running(io):
        one, two = peers(io, 2)
        sockets = [one.connect(), two.connect(), one.connect("/a")]
        waiting = [asyncio.create_task(socket.emit_with_ack("x")) for socket in sockets]
        await settled()
        assert one.take() == [b'20["x"]', b'2/a,0["x"]']
        assert two.take() == [b'21["x"]']
        one.text(b"30[]", b"3/a,0[]")
        two.text(b"31[]")
        await asyncio.gather(*waiting)


async def test_binary_both_ways() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        waiting = asyncio.create_task(socket.emit_with_ack("x", b"in"))
        await settled()
        assert peer.take() == [(b'51-0["x",{"_placeholder":true,"num":0}]', b"in")]
        peer.text(b'61-0[{"_placeholder":true,"num":0}]')
        peer.binary(b"out")
        assert await waiting == b"out"


async def test_timeout_and_late_answer() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        with pytest.raises(AckTimeout, match=r"'x' within 0\.01 s"):
            await socket.timeout(0.01).emit_with_ack("x")
        assert socket.acks == {}
        peer.text(b"30[1]")
        assert peer.ended is None
        with pytest.raises(TimeoutError):
            await socket.volatile.timeout(0.01).emit_with_ack("x")


async def test_second_and_unknown_answers_are_ignored() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        waiting = asyncio.create_task(socket.emit_with_ack("x"))
        await settled()
        peer.text(b"39[9]", b"30[1]", b"30[2]")
        assert await waiting == 1
        peer.text(b"30[3]")
        assert peer.ended is None


@pytest.mark.parametrize("end", ["client", "server", "transport"])
async def test_disconnect_while_waiting(end: str) -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        waiting = [asyncio.create_task(socket.emit_with_ack("x")) for _ in range(2)]
        await settled()
        if end == "client":
            peer.text(b"1")
        elif end == "server":
            socket.disconnect()
        else:
            peer.session.close("transport close")
        for one in waiting:
            with pytest.raises(Disconnected, match="socket has been disconnected"):
                await one
        with pytest.raises(ConnectionError):
            await socket.emit_with_ack("x")


async def test_cancelled_wait_leaves_nothing() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        waiting = asyncio.create_task(socket.emit_with_ack("x"))
        await settled()
        waiting.cancel()
        await settled()
        assert socket.acks == {}
        peer.text(b"30[]")
        assert peer.ended is None


async def test_what_cannot_be_sent_is_not_waited_for() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        with pytest.raises(TypeError, match="set"):
            await socket.emit_with_ack("x", {1})
        assert socket.acks == {}
        assert peer.take() == []


async def test_no_future_exists_unless_asked_for() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        socket.emit("x")
        assert socket.acks is None
