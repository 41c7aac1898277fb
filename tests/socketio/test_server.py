"""Options of the server, what is refused, what is lazy."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from limpet_worker.errors import OptionError
from limpet_worker.presence import PresenceUnavailable
from limpet_worker.socketio.server import Server
from socketio_fakes import peers, running


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
