"""Options of the server, what is refused, what is lazy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from limpet_adapters.contract import JOINED, Joined
from limpet_adapters.memory import MemoryAdapter
from limpet_worker.errors import OptionError
from limpet_worker.presence import PresenceUnavailable
from limpet_worker.single import serving
from limpet_worker.socketio.server import Server
from socketio_fakes import peers, running, settled


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("connect_timeout", 0),
        ("connect_timeout", "45"),
        ("connect_timeout", True),
        ("max_attachments", 0),
        ("max_attachments", 1.5),
        ("max_attached_bytes", -1),
        ("max_namespaces", 0),
        ("max_pending_events", True),
        ("ordered", 1),
        ("cleanup_empty_child_namespaces", None),
        ("ping_interval", -1),
        ("transports", ["carrier pigeon"]),
        ("path", "socket.io"),
        ("max_sessions", 0),
        ("path", Path("/socket.io/")),
        ("path", "/socket io/"),
        ("transports", [[]]),
        ("cookie", {"flavour": "chocolate"}),
        ("cookie", {1: 2}),
    ],
)
def test_wrong_options_are_named(option: str, value: object) -> None:
    given: dict[str, Any] = {option: value}
    with pytest.raises(OptionError, match=option):
        Server(**given)


def test_unknown_options_are_refused() -> None:
    given: dict[str, Any] = {"pingInterval": 25_000}
    with pytest.raises(TypeError, match="pingInterval"):
        Server(**given)


def test_options_reach_the_engine() -> None:
    io = Server(
        path="/ws/",
        transports=["websocket"],
        ping_interval=3,
        cors_allowed_origins=["https://a.example"],
        cors_credentials=True,
    )
    assert io.options.path == "/ws/"
    assert io.options.transports == ("websocket",)
    assert io.options.cors is not None
    assert io.options.cors.credentials
    assert Server().options.cors is None


def test_app_is_made_when_asked_for() -> None:
    io = Server()
    assert not io.has_app
    assert isinstance(io.app, web.Application)
    assert io.app is io.app
    assert io.has_app


async def test_presence_needs_a_worker() -> None:
    io = Server()
    with pytest.raises(PresenceUnavailable):
        await io.presence.list("room")


async def test_data_and_user_are_the_apps() -> None:
    async with running(Server()) as io:
        one, two = peers(io, 2)
        first, second = one.connect(), two.connect()
        first.data["a"] = 1
        assert first.data == {"a": 1}
        assert second.data == {}
        assert first.user is None
        first.user = "ada"
        assert first.user == "ada"
        assert repr(first) == f"<Socket {first.id} of />"


async def test_handlers_of_the_servers_own_events() -> None:
    io = Server()
    gaps: list[object] = []

    @io.on("bus_gap")
    async def gap(what: dict[str, object]) -> None:
        gaps.append(what)

    def broken(what: object) -> None:
        raise RuntimeError

    io.on("bus_gap", broken)
    async with running(io):
        io.tell("bus_gap", {"count": 3})
        await io.tasks.finish(1.0)
        assert gaps == [{"count": 3}]
        io.off("bus_gap")
        io.tell("bus_gap", {})
        assert len(gaps) == 1


class SlowAdapter(MemoryAdapter):
    """Needs the word of the test before it hears the other workers."""

    gate: asyncio.Event

    def ready(self) -> Joined:
        return JOINED if self.gate.is_set() else Joined(Waiting(self.gate))


class Waiting:
    """Can be awaited by several."""

    def __init__(self, gate: asyncio.Event) -> None:
        self._gate = gate

    def __await__(self) -> Generator[object, None, None]:
        yield from self._gate.wait().__await__()


async def test_nobody_enters_a_namespace_before_it_hears_the_other_workers() -> None:
    io = Server()
    io.of(re.compile("/room-.*"))
    gate = SlowAdapter.gate = asyncio.Event()
    gate.set()
    async with running(io, adapter=SlowAdapter):
        gate.clear()
        late = io.of("/late")
        one, two, three = peers(io, 3)
        one.text(b"0/room-1,")
        two.text(b"0/room-1,")
        three.text(b"0/late,")
        await settled()
        assert one.take() == two.take() == three.take() == []
        three.session.close("transport close")
        gate.set()
        await settled()
        assert one.socket("/room-1").connected
        assert two.socket("/room-1").connected
        assert not late.sockets
        one.text(b"0/late,")
        assert one.socket("/late").connected  # without any detour now


async def test_close_while_a_client_waits_for_its_namespace() -> None:
    io = Server()
    io.of(re.compile("/room-.*"))
    gate = SlowAdapter.gate = asyncio.Event()
    gate.set()
    async with running(io, adapter=SlowAdapter):
        gate.clear()
        (peer,) = peers(io, 1)
        peer.text(b"0/room-1,")
        await settled()
        asyncio.get_running_loop().call_later(0.01, gate.set)
        await io.close(grace=0.05)
        assert set(io.namespaces) == {"/"}


async def test_start_waits_until_namespaces_are_ready() -> None:
    io = Server()
    gate = SlowAdapter.gate = asyncio.Event()
    started: list[bool] = []
    io.on_startup(lambda: started.append(gate.is_set()))
    asyncio.get_running_loop().call_later(0.01, gate.set)
    async with running(io, adapter=SlowAdapter):
        assert started == [True]


async def test_the_server_stands_for_its_main_namespace() -> None:
    io = Server()
    got: list[str] = []
    incoming = io.on_any(lambda socket, event: got.append(f"in {event}"))
    outgoing = io.on_any_outgoing(lambda socket, event: got.append(f"out {event}"))
    handler = io.once("x", lambda socket: got.append("once"))
    async with running(io):
        (peer,) = peers(io, 1)
        socket = peer.connect()
        peer.text(b'2["x"]', b'2["x"]')
        socket.emit("y")
        assert got == ["in x", "once", "in x", "out y"]
        io.off_any(incoming)
        io.off_any_outgoing(outgoing)
        io.on("x", handler)
        io.off("x", handler)
        peer.text(b'2["x"]')
        socket.emit("y")
        assert len(got) == 4
    assert repr(io.of("/")) == "<Namespace />"
    assert repr(io.of(re.compile("/.*"))) == "<ParentNamespace /.*>"


async def test_a_site_that_does_not_start_ends_the_server() -> None:
    io = Server()
    ended: list[str] = []
    io.on_shutdown(lambda: ended.append("shutdown"))

    async def broken(app: web.Application) -> None:
        raise RuntimeError("no database")

    io.app.on_startup.append(broken)
    with pytest.raises(RuntimeError, match="no database"):
        async with serving(io, "127.0.0.1", 0):
            pass
    assert ended == ["shutdown"]
