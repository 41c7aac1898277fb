"""Connecting to namespaces: answers, middlewares, dynamic namespaces, time-outs, presence."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Generator
from typing import Any

import pytest

from limpet_adapters.contract import BroadcastOptions, Joined
from limpet_adapters.counters import counters
from limpet_adapters.memory import MemoryAdapter
from limpet_adapters.packet import EncodedPacket
from limpet_worker.socketio.errors import ConnectionRefused, NotStarted
from limpet_worker.socketio.namespace import Namespace
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket
from raw_clients import eventually
from socketio_fakes import Peer, peers, running, settled


async def test_answers_with_a_new_id() -> None:
    async with running(Server()) as io:
        one, two = peers(io, 2)
        first, second = one.connect(), two.connect()
        assert first.id != second.id
        assert first.connected
        assert set(io.sockets) == {first.id, second.id}


async def test_connect_handlers_may_take_auth() -> None:
    io = Server()
    seen: list[Any] = []
    io.on("connect", lambda socket: seen.append(socket.id))

    @io.on("connection")
    async def connected(socket: Socket, auth: dict[str, Any]) -> None:
        socket.emit("auth", auth)

    async with running(io):
        (peer,) = peers(io, 1)
        peer.text(b'0{"token":"abc"}')
        await settled()
        _, event = peer.take()
        assert event == b'2["auth",{"token":"abc"}]'
        assert seen == [next(iter(io.sockets))]


async def test_unknown_namespace() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        peer.text(b"0/random,")
        assert peer.take() == [b'4/random,{"message":"Invalid namespace"}']
        peer.text(b"0/?token=1,{}")
        assert peer.take() == [b'4/?token=1,{"message":"Invalid namespace"}']
        assert peer.ended is None
        peer.connect()


async def test_several_namespaces_share_the_connection() -> None:
    io = Server()
    io.of("admin")
    async with running(io):
        (peer,) = peers(io, 1)
        root, admin = peer.connect(auth=b'{"a":1}'), peer.connect("/admin", b'{"b":2}')
        assert root.id != admin.id
        assert root.handshake.auth == {"a": 1}
        assert admin.handshake.auth == {"b": 2}
        assert admin.client is root.client
        admin.emit("x")
        assert peer.take() == [b'2/admin,["x"]']


async def test_handshake() -> None:
    async with running(Server()) as io:
        socket = Peer(io, 0).connect()
        handshake = socket.handshake
        assert handshake.query["token"] == "t"
        assert handshake.headers["host"] == "here"
        assert handshake.address == "192.0.2.7"
        assert handshake.url.startswith("/socket.io/?EIO=4")
        assert handshake.xdomain
        assert not handshake.secure
        assert handshake.issued == 1_700_000_000.25
        assert handshake.auth is socket.handshake.auth
        whole = handshake.as_dict()
        assert whole["issued"] == 1_700_000_000_250
        socket.emit("handshake", whole)
        assert socket.transport_name == "websocket"


class TestMiddlewares:
    async def test_run_in_order_before_the_answer(self) -> None:
        io = Server()
        order: list[str] = []

        @io.use
        async def first(socket: Socket) -> None:
            await asyncio.sleep(0)
            order.append("first")
            socket.user = "ada"
            assert not socket.connected

        @io.use
        def second(socket: Socket) -> None:
            order.append("second")

        io.on("connect", lambda socket: order.append("connect"))
        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0")
            assert peer.take() == []
            await settled()
            assert peer.socket().user == "ada"
            assert order == ["first", "second", "connect"]

    async def test_refuse_with_message_and_data(self) -> None:
        io = Server()

        @io.use
        def no(socket: Socket) -> None:
            raise ConnectionRefused("not authorized", {"retry": False})

        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0")
            await settled()
            assert peer.take() == [b'4{"message":"not authorized","data":{"retry":false}}']
            assert peer.ended is None
            assert not io.sockets
            peer.text(b"0")  # it may try again
            await settled()
            assert len(peer.take()) == 1

    async def test_other_exceptions_tell_the_client_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        io = Server()

        @io.use
        def broken(socket: Socket) -> None:
            raise RuntimeError("secret")

        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0")
            await settled()
            assert peer.take() == [b'4{"message":"Internal server error"}']
        assert "secret" in caplog.text

    async def test_refusal_with_data_that_cannot_be_sent(self) -> None:
        io = Server()

        @io.use
        def no(socket: Socket) -> None:
            raise ConnectionRefused("no", {1})

        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0")
            await settled()
            assert peer.take() == [b'4{"message":"no"}']

    async def test_client_that_leaves_meanwhile(self) -> None:
        io = Server()
        gate = asyncio.Event()
        connected: list[Socket] = []

        @io.use
        async def slow(socket: Socket) -> None:
            await gate.wait()

        io.on("connect", connected.append)
        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0")
            await settled()
            peer.session.close("transport close")
            gate.set()
            await settled()
            assert not io.sockets
            assert not connected

    async def test_rooms_joined_in_one_are_entered_with_the_connection(self) -> None:
        io = Server()

        @io.use
        async def enter(socket: Socket) -> None:
            await socket.join(["a", "b"])
            socket.leave("b")
            io.to("a").emit("early")

        async with running(io):
            peer = Peer(io, 0)
            socket = await peer.connect_slowly()
            assert peer.take() == []
            assert set(socket.rooms) == {socket.id, "a"}
            io.to("a").emit("late")
            assert peer.take() == [b'2["late"]']

    async def test_what_one_emits_comes_before_the_answer(self) -> None:
        io = Server()

        @io.use
        def session(socket: Socket) -> None:
            socket.emit("session", "s1")

        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0")
            await settled()
            assert peer.take()[0] == b'2["session","s1"]'

    async def test_second_connect_while_the_first_is_processed_ends_the_session(self) -> None:
        io = Server()
        gate = asyncio.Event()

        @io.use
        async def slow(socket: Socket) -> None:
            await gate.wait()

        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0", b"0")
            assert peer.ended == "forced close"
            gate.set()
            await settled()
            assert not io.sockets

    async def test_event_before_the_answer_ends_the_session(self) -> None:
        io = Server()

        @io.use
        async def slow(socket: Socket) -> None:
            await asyncio.sleep(0)

        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0", b'2["x"]')
            assert peer.ended == "forced close"


class TestDynamicNamespaces:
    async def test_pattern(self) -> None:
        io = Server()
        orgs = io.of(re.compile(r"/org-\d+"))
        made: list[Namespace] = []
        io.on("new_namespace", made.append)

        @orgs.on("name")
        def name(socket: Socket) -> str:
            return socket.nsp.name

        async with running(io):
            one, two, three = peers(io, 3)
            await one.connect_slowly("/org-1")
            await two.connect_slowly("/org-1")
            await three.connect_slowly("/org-2")
            assert [namespace.name for namespace in made] == ["/org-1", "/org-2"]
            one.text(b'2/org-1,1["name"]')
            assert one.take() == [b'3/org-1,1["/org-1"]']
            orgs.emit("all")
            assert one.take() == two.take() == [b'2/org-1,["all"]']
            assert three.take() == [b'2/org-2,["all"]']
            io.of("/org-2").emit("one")
            assert one.take() == []
            assert three.take() == [b'2/org-2,["one"]']

    async def test_pattern_matches_whole_names(self) -> None:
        io = Server()
        io.of(re.compile(r"/org-\d+"))
        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0/org-1x,")
            await settled()
            assert peer.take() == [b'4/org-1x,{"message":"Invalid namespace"}']

    async def test_function_is_asked_with_auth(self) -> None:
        io = Server()

        async def allowed(name: str, auth: dict[str, Any]) -> bool:
            await asyncio.sleep(0)
            return auth.get("key") == name

        io.of(allowed)
        async with running(io):
            (peer,) = peers(io, 1)
            await peer.connect_slowly("/a", b'{"key":"/a"}')
            peer.text(b'0/b,{"key":"/a"}')
            await settled()
            assert peer.take() == [b'4/b,{"message":"Invalid namespace"}']

    async def test_function_that_fails_refuses(self, caplog: pytest.LogCaptureFixture) -> None:
        io = Server()

        def broken(name: str, auth: dict[str, Any]) -> bool:
            raise RuntimeError("broken")

        io.of(broken)
        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0/a,")
            await settled()
            assert peer.take() == [b'4/a,{"message":"Invalid namespace"}']
        assert "broken" in caplog.text

    async def test_concurrent_first_connections_make_it_once(self) -> None:
        io = Server()
        gate = asyncio.Event()

        async def allowed(name: str, auth: dict[str, Any]) -> bool:
            await gate.wait()
            return True

        io.of(allowed)
        made: list[Namespace] = []
        io.on("new_namespace", made.append)
        async with running(io):
            both = peers(io, 2)
            for peer in both:
                peer.text(b"0/a,")
            gate.set()
            await settled()
            assert both[0].socket("/a").nsp is both[1].socket("/a").nsp
            assert len(made) == 1

    async def test_ends_with_its_last_socket(self) -> None:
        io = Server()
        parent = io.of(re.compile("/.*"))
        async with running(io):
            one, two = peers(io, 2)
            await one.connect_slowly("/a")
            second = await two.connect_slowly("/a")
            one.text(b"1/a,")
            assert "/a" in io.namespaces
            second.disconnect()
            await settled()
            assert "/a" not in io.namespaces
            assert not parent.children
            await one.connect_slowly("/a")

    async def test_ends_when_its_first_client_is_refused(self) -> None:
        io = Server()
        parent = io.of(re.compile("/.*"))

        @parent.use
        async def no(socket: Socket) -> None:
            raise ConnectionRefused

        async with running(io):
            (peer,) = peers(io, 1)
            peer.text(b"0/a,")
            await settled()
            assert peer.take() == [b'4/a,{"message":"Connection refused"}']
            assert set(io.namespaces) == {"/"}

    async def test_stays_when_the_app_names_it(self) -> None:
        io = Server()
        io.of(re.compile("/.*"))
        async with running(io):
            (peer,) = peers(io, 1)
            socket = await peer.connect_slowly("/a")
            io.of("/a")
            socket.disconnect()
            assert "/a" in io.namespaces

    async def test_limit_per_client(self) -> None:
        io = Server(max_namespaces=2)
        io.of(re.compile("/.*"))
        async with running(io):
            (peer,) = peers(io, 1)
            await peer.connect_slowly("/1")
            await peer.connect_slowly("/2")
            peer.text(b"0/3,")
            assert peer.take() == [b'4/3,{"message":"Too many namespaces"}']
            peer.text(b"1/1,")
            await peer.connect_slowly("/3")


class TestConnectTimeout:
    async def test_closes_clients_of_no_namespace(self) -> None:
        async with running(Server(connect_timeout=0.05)) as io:
            silent, joined, refused = peers(io, 3)
            joined.connect()
            refused.text(b"0/no,")
            await asyncio.sleep(0.15)
            assert silent.ended == "forced close"
            assert refused.ended == "forced close"
            assert joined.ended is None

    async def test_begins_anew_when_the_last_namespace_is_left(self) -> None:
        async with running(Server(connect_timeout=0.05)) as io:
            (peer,) = peers(io, 1)
            peer.connect()
            await asyncio.sleep(0.1)
            peer.text(b"1")
            assert peer.ended is None
            await asyncio.sleep(0.15)
            assert peer.ended == "forced close"

    async def test_each_client_has_its_own_deadline(self) -> None:
        loop = asyncio.get_running_loop()

        async def ended(peer: Peer) -> float:
            async with asyncio.timeout(5):
                while peer.ended is None:
                    await asyncio.sleep(0.001)
            return loop.time()

        async with running(Server(connect_timeout=0.2)) as io:
            first_made = loop.time()
            first = asyncio.create_task(ended(Peer(io, 0)))
            await asyncio.sleep(0.12)
            second_made = loop.time()
            second = asyncio.create_task(ended(Peer(io, 1)))
            # Timers may be a little early, and as late as the machine is slow.
            assert await first - first_made >= 0.199
            assert await second - second_made >= 0.199


class Reports:
    """Remembers what presence is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def connected(
        self, namespace: str, socket_id: str, user: object, transport: str, at: float
    ) -> None:
        assert at > 1_600_000_000
        self.told.append(("connected", namespace, socket_id, user, transport))

    def disconnected(self, namespace: str, socket_id: str) -> None:
        self.told.append(("disconnected", namespace, socket_id))

    def joined(self, namespace: str, socket_id: str, room: str) -> None:
        self.told.append(("joined", namespace, socket_id, room))

    def left(self, namespace: str, socket_id: str, room: str) -> None:
        self.told.append(("left", namespace, socket_id, room))

    def changed(
        self, namespace: str, socket_id: str, *, user: object = None, transport: str | None = None
    ) -> None:
        self.told.append(("changed", namespace, socket_id, user, transport))


async def test_presence_is_told() -> None:
    io = Server()
    reports = Reports()

    @io.use
    async def enter(socket: Socket) -> None:
        socket.join("early")

    async with running(io, reports):
        peer = Peer(io, 0)
        peer.session.transport_name = "polling"
        socket = await peer.connect_slowly()
        id_ = socket.id
        socket.join(["a", "a", id_])
        socket.join("a")
        socket.user = "ada"
        socket.leave("a")
        socket.leave("never")
        peer.session.transport_name = "websocket"
        peer.client.on_upgrade()
        socket.user = None
        peer.session.close("transport close")
    assert reports.told == [
        ("connected", "/", id_, id_, "polling"),
        ("joined", "/", id_, "early"),
        ("joined", "/", id_, "a"),
        ("changed", "/", id_, "ada", None),
        ("left", "/", id_, "a"),
        ("changed", "/", id_, None, "websocket"),
        ("changed", "/", id_, id_, None),
        ("disconnected", "/", id_),
    ]


async def test_refusal_in_a_connect_handler_disconnects(caplog: pytest.LogCaptureFixture) -> None:
    io = Server()

    @io.on("connect")
    async def too_late(socket: Socket) -> None:
        raise ConnectionRefused("no")

    async with running(io):
        (peer,) = peers(io, 1)
        peer.text(b"0")
        await settled()
        assert peer.take()[1:] == [b"1"]
        assert not io.sockets
    assert "middleware" in caplog.text


async def test_error_in_a_connect_handler_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    io = Server()

    @io.on("connect")
    def broken(socket: Socket) -> None:
        raise RuntimeError("broken")

    before = counters['limpet_handler_errors_total{kind="lifecycle"}']
    async with running(io):
        (peer,) = peers(io, 1)
        peer.connect()
    assert "broken" in caplog.text
    assert counters['limpet_handler_errors_total{kind="lifecycle"}'] == before + 1
    assert all(record.levelno <= logging.ERROR for record in caplog.records)


def test_nothing_to_broadcast_to_before_the_start() -> None:
    io = Server()
    with pytest.raises(NotStarted):
        io.emit("x")
    with pytest.raises(NotStarted):
        _ = io.engine


def test_names_of_namespaces() -> None:
    io = Server()
    assert io.of("chat") is io.of("/chat")
    with pytest.raises(ValueError, match="comma"):
        io.of("/a,b")
    with pytest.raises(TypeError, match="pattern"):
        io.of(7)  # type: ignore[call-overload]


@pytest.mark.parametrize("close", [False, True])
async def test_a_middleware_that_disconnects_refuses(close: bool) -> None:
    io = Server()
    connected: list[str] = []
    io.on("connect", lambda socket: connected.append(socket.id))

    @io.use
    async def bouncer(socket: Socket) -> None:
        await asyncio.sleep(0)
        socket.disconnect(close)

    async with running(io):
        (peer,) = peers(io, 1)
        peer.text(b"0")
        await settled()
        assert peer.take() == ([] if close else [b'4{"message":"Connection refused"}'])
        assert (peer.ended is not None) is close
        assert not connected
        assert not io.sockets


async def test_one_refused_does_not_take_the_namespace_from_the_next() -> None:
    io = Server()
    rooms = io.of(re.compile("/room-.*"))

    @rooms.use
    def only_friends(socket: Socket) -> None:
        if not socket.handshake.auth.get("friend"):
            raise ConnectionRefused("no")

    class Slowly:
        def __await__(self) -> Generator[object, None, None]:
            return asyncio.sleep(0.01).__await__()

    class SlowToBeReady(MemoryAdapter):
        def ready(self) -> Joined:
            return Joined(Slowly())

    async with running(io, adapter=SlowToBeReady):
        one, two = peers(io, 2)
        one.text(b"0/room-1,{}")
        two.text(b'0/room-1,{"friend":1}')
        await eventually(lambda: one.session.sent and two.session.sent, 15)
        assert one.take() == [b'4/room-1,{"message":"no"}']
        assert two.socket("/room-1").connected


async def test_the_last_ones_handlers_still_reach_other_workers() -> None:
    io = Server()
    rooms = io.of(re.compile("/room-.*"))
    published: list[bytes] = []

    class Bus(MemoryAdapter):
        def broadcast(self, packet: EncodedPacket, options: BroadcastOptions) -> None:
            super().broadcast(packet, options)
            published.append(packet.text)

    @rooms.on("disconnect")
    async def gone(socket: Socket, reason: str) -> None:
        await asyncio.sleep(0.01)
        socket.nsp.emit("gone", reason)

    async with running(io, adapter=Bus):
        one, two = peers(io, 2)
        await one.connect_slowly("/room-1")
        one.text(b"1/room-1,")
        await settled()
        assert "/room-1" not in io.namespaces
        await two.connect_slowly("/room-1")  # made anew meanwhile
        await eventually(lambda: published, 15)
        assert published == [b'2/room-1,["gone","client namespace disconnect"]']
        assert two.take() == published
        two.text(b"1/room-1,")
        await eventually(lambda: len(published) == 2, 15)


async def test_endless_names_make_no_namespace() -> None:
    io = Server()
    io.of(re.compile("/.*"))
    async with running(io):
        (peer,) = peers(io, 1)
        name = b"/" + b"a" * 1024
        peer.text(b"0" + name + b",")
        await settled()
        assert peer.take() == [b"4" + name + b',{"message":"Invalid namespace"}']
        assert peer.ended is None
        assert list(io.namespaces) == ["/"]


async def test_a_middleware_whose_wait_is_cancelled_refuses() -> None:
    io = Server()

    @io.use
    async def broken(socket: Socket) -> None:
        answer = asyncio.get_running_loop().create_future()
        answer.cancel()
        await answer

    async with running(io):
        (peer,) = peers(io, 1)
        peer.text(b"0")
        await settled()
        assert peer.take() == [b'4{"message":"Internal server error"}']
