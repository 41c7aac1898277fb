"""The end of sockets: who wanted it, what handlers see, what is left."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from limpet_worker.socketio.client import Client
from limpet_worker.socketio.errors import Disconnected
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket
from socketio_fakes import FakeSession, Peer, peers, running, settled


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda peer, socket: peer.text(b"1"), "client namespace disconnect"),
        (lambda peer, socket: socket.disconnect(), "server namespace disconnect"),
        pytest.param(
            lambda peer, socket: socket.disconnect(close=True),
            "server namespace disconnect",
            id="close",
        ),
        (lambda peer, socket: peer.text(b"7"), "forced close"),
        (lambda peer, socket: peer.session.close("transport close"), "transport close"),
        (lambda peer, socket: peer.session.close("transport error"), "transport error"),
        (lambda peer, socket: peer.session.close("ping timeout"), "ping timeout"),
        (lambda peer, socket: peer.session.close("parse error"), "parse error"),
    ],
)
async def test_reasons(end: Any, reason: str) -> None:
    io = Server()
    log: list[object] = []

    @io.on("disconnecting")
    def leaving(socket: Socket, why: str) -> None:
        log.append(("disconnecting", why, "room" in io.of("/").adapter.rooms, socket.connected))
        socket.disconnect()  # changes nothing

    @io.on("disconnect")
    def left(socket: Socket, why: str) -> None:
        log.append(("disconnect", why, "room" in io.of("/").adapter.rooms, socket.connected))
        assert socket.id not in io.sockets

    io.on("disconnect", lambda socket: log.append("short"))
    async with running(io):
        (peer,) = peers(io, 1)
        socket = peer.connect()
        socket.join("room")
        socket.on("disconnect", lambda why: log.append(("own", why)))
        end(peer, socket)
        assert log == [
            ("disconnecting", reason, True, True),
            ("disconnect", reason, False, False),
            "short",
            ("own", reason),
        ]
        peer.session.close("transport close")
        socket.disconnect()
        assert len(log) == 4
        assert socket.gone


async def test_async_handlers_see_the_last_rooms() -> None:
    io = Server()
    seen: list[object] = []

    @io.on("disconnecting")
    async def leaving(socket: Socket, why: str) -> None:
        seen.append(set(socket.rooms) - {socket.id})

    async with running(io):
        (peer,) = peers(io, 1)
        peer.connect().join("room")
        peer.text(b"1")
        await settled()
        assert seen == [{"room"}]


async def test_by_the_server_leaves_the_connection_open() -> None:
    io = Server()
    io.of("/a")
    async with running(io):
        (peer,) = peers(io, 1)
        root, other = peer.connect(), peer.connect("/a")
        other.disconnect()
        assert peer.take() == [b"1/a,"]
        assert peer.ended is None
        assert root.connected
        other.emit("x")
        assert peer.take() == []
        assert peer.connect("/a").id != other.id


async def test_close_disconnects_from_all_namespaces() -> None:
    io = Server()
    io.of("/a")
    async with running(io):
        (peer,) = peers(io, 1)
        root, other = peer.connect(), peer.connect("/a")
        other.disconnect(close=True)
        assert peer.take() == [b"1", b"1/a,"]
        assert peer.ended == "forced server close"
        assert root.gone
        assert other.gone


async def test_handlers_that_fail_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    io = Server()

    @io.on("disconnecting")
    def broken(socket: Socket, why: str) -> None:
        raise RuntimeError("first")

    @io.on("disconnect")
    async def broken_too(socket: Socket, why: str) -> None:
        raise RuntimeError("second")

    async with running(io):
        (peer,) = peers(io, 1)
        peer.connect().join("room")
        peer.session.close("transport close")
        await settled()
        assert not io.sockets
        assert not io.of("/").adapter.rooms
    assert "first" in caplog.text
    assert "second" in caplog.text


async def test_a_client_that_left_is_freed_without_the_garbage_collector() -> None:
    io = Server()
    io.of("/a")

    def alive() -> list[object]:
        return [one for one in gc.get_objects() if isinstance(one, (Client, Socket))]

    @io.on("x")
    async def x(socket: Socket) -> None:
        await asyncio.sleep(0)
        socket.data["x"] = socket.handshake.auth

    gc.collect()
    gc.disable()
    try:
        async with running(io):
            before = len(alive())
            for number in range(3):
                peer = Peer(io, number)
                socket = peer.connect()
                socket.join("a")
                peer.connect("/a")
                socket.on("y", lambda: None)
                peer.text(b'2["x"]', b'21["x"]')
                await settled()
                waiting = asyncio.create_task(socket.emit_with_ack("z"))
                await settled()
                peer.session.close("transport close")
                assert peer.client.sockets == []
                with pytest.raises(Disconnected):
                    await waiting
                del peer, socket, waiting
            assert not io.sockets
            assert not io._waiting
            await settled()
            assert len(alive()) == before
    finally:
        gc.enable()


async def test_sessions_that_come_too_late_are_closed() -> None:
    io = Server()
    async with running(io):
        await io.close()
        peer = Peer.__new__(Peer)
        peer.session = FakeSession()
        peer.session.sink = _Sink()
        io._on_session(peer.session)  # type: ignore[arg-type]
        assert peer.ended == "server shutting down"


class _Sink:
    def on_close(self, reason: str) -> None:
        pass


class TestShutdown:
    async def test_sends_no_disconnect_packets(self) -> None:
        io = Server()
        log: list[str] = []

        @io.on("disconnect")
        async def left(socket: Socket, why: str) -> None:
            await asyncio.sleep(0.01)
            log.append(why)

        @io.on_startup
        async def begin(server: Server) -> None:
            assert server is io
            log.append("begin")

        io.on_shutdown(lambda: log.append("end 1"))

        @io.on_shutdown
        async def end() -> None:
            log.append("end 2")

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            engine = io.engine
            engine.sessions["0"] = peer.session  # type: ignore[assignment]
        assert peer.take() == []
        assert peer.ended == "server shutting down"
        assert log == ["begin", "server shutting down", "end 2", "end 1"]
        await io.close()
        assert len(log) == 4

    async def test_cancels_handlers_that_take_too_long(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        io = Server()
        ended = asyncio.Event()

        @io.on("x")
        async def forever(socket: Socket) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'2["x"]')
            await settled()
            await io.close(grace=0.01)
            assert ended.is_set()
        assert "cancelled" in caplog.text

    async def test_startup_that_fails_closes_again(self) -> None:
        io = Server()
        log: list[str] = []

        @io.on_startup
        def broken() -> None:
            raise RuntimeError("no database")

        io.on_shutdown(lambda: log.append("end"))
        with pytest.raises(RuntimeError, match="no database"):
            async with running(io):
                pass
        assert log == ["end"]

    async def test_runs_once_at_a_time_and_again_later(self) -> None:
        io = Server()
        async with running(io):
            with pytest.raises(RuntimeError, match="already"):
                async with running(io):
                    pass
        async with running(io):
            Peer(io, 0).connect()
