"""Events: dispatch, order, acknowledgements of handlers, listeners of a socket, middlewares."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from limpet_adapters.counters import counters
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket
from raw_clients import eventually
from socketio_fakes import peers, running, settled


class TestAcknowledgements:
    @pytest.mark.parametrize(
        ("returned", "expected"),
        [
            (None, b"[]"),
            ("ok", b'["ok"]'),
            (0, b"[0]"),
            (False, b"[false]"),
            ([1, 2], b"[[1,2]]"),
            ((1, "2", {"3": [False]}), b'[1,"2",{"3":[false]}]'),
            ((), b"[]"),
        ],
    )
    async def test_are_what_the_handler_returns(self, returned: object, expected: bytes) -> None:
        io = Server()

        @io.on("plain")
        def plain(socket: Socket) -> object:
            return returned

        @io.on("async")
        async def slow(socket: Socket) -> object:
            await asyncio.sleep(0)
            return returned

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'2456["plain"]')
            assert peer.take() == [b"3456" + expected]
            peer.text(b'27["async"]', b'2["plain"]', b'2["async"]')
            await settled()
            assert peer.take() == [b"37" + expected]

    async def test_in_another_namespace_with_binary(self) -> None:
        io = Server()

        @io.of("/a").on("echo")
        def echo(socket: Socket, *args: object) -> tuple[object, ...]:
            return args

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect("/a")
            peer.text(
                b'52-/a,789["echo",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
            )
            assert peer.take() == []
            peer.binary(b"one", b"two")
            assert peer.take() == [
                (
                    b'62-/a,789[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]',
                    b"one",
                    b"two",
                )
            ]

    async def test_are_not_sent_when_the_handler_fails(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        io = Server()

        @io.on("plain")
        def plain(socket: Socket) -> None:
            raise RuntimeError("plain broke")

        @io.on("async")
        async def slow(socket: Socket) -> None:
            raise RuntimeError("async broke")

        @io.on("unsendable")
        def unsendable(socket: Socket) -> object:
            return {1}

        counter = 'limpet_handler_errors_total{kind="event"}'
        before = counters[counter]
        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'21["plain"]', b'22["async"]', b'23["unsendable"]')
            await settled()
            assert peer.take() == []
            assert peer.ended is None
        assert counters[counter] == before + 3
        assert "plain broke" in caplog.text
        assert "async broke" in caplog.text
        assert "set" in caplog.text

    async def test_come_from_the_first_handler(self) -> None:
        io = Server()
        order: list[int] = []

        @io.on("x")
        def first(socket: Socket) -> int:
            order.append(1)
            return 1

        @io.on("x")
        def second(socket: Socket) -> int:
            order.append(2)
            return 2

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'25["x"]')
            assert peer.take() == [b"35[1]"]
            assert order == [1, 2]

    async def test_are_not_sent_to_who_has_left(self) -> None:
        io = Server()
        gate = asyncio.Event()

        @io.on("x")
        async def slow(socket: Socket) -> int:
            await gate.wait()
            return 1

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'21["x"]', b"1")
            gate.set()
            await settled()
            assert peer.take() == []

    async def test_of_wrapped_coroutine_functions(self) -> None:
        io = Server()

        async def slow(extra: int, socket: Socket) -> int:
            await asyncio.sleep(0)
            return extra

        io.on("partial", functools.partial(slow, 3))
        io.on("lambda", lambda socket: slow(4, socket))
        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'21["partial"]', b'22["lambda"]')
            await settled()
            assert peer.take() == [b"31[3]", b"32[4]"]


class TestArguments:
    @pytest.mark.parametrize("packet", [b'21["x"]', b'21["x",1]', b'21["x",1,2,3,4]'])
    async def test_wrong_number_of_them_does_not_reach_the_handler(
        self, packet: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        io = Server()
        called: list[object] = []

        @io.on("x")
        async def x(socket: Socket, one: int, two: int, three: int = 3) -> None:
            called.append((one, two, three))

        counter = 'limpet_events_refused_total{reason="wrong number of arguments"}'
        before = counters[counter]
        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(packet, packet)
            await settled()
            assert peer.take() == []
            assert peer.ended is None
            peer.text(b'22["x",1,2]')
            await settled()
            assert called == [(1, 2, 3)]
            assert peer.take() == [b"32[]"]
        assert counters[counter] == before + 2
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1  # a client cannot fill the log

    def test_handler_that_nobody_can_call(self) -> None:
        with pytest.raises(TypeError, match="keyword argument 'needed'"):
            Server().on("x", lambda socket, *, needed: None)
        with pytest.raises(TypeError, match="callable"):
            Server().on("x", 3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="string"):
            Server().on(3)  # type: ignore[call-overload]


class TestOrder:
    async def test_events_start_in_order_and_interleave(self) -> None:
        io = Server()
        log: list[str] = []

        @io.on("x")
        async def x(socket: Socket, name: str) -> None:
            log.append(f"{name} starts")
            await asyncio.sleep(0.01 if name == "a" else 0)
            log.append(f"{name} ends")

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'2["x","a"]', b'2["x","b"]')
            await asyncio.sleep(0.05)
        assert log == ["a starts", "b starts", "b ends", "a ends"]

    @pytest.mark.parametrize("by", ["server", "handler"])
    async def test_ordered_ones_run_one_after_the_other(self, by: str) -> None:
        io = Server(ordered=by == "server")
        log: list[str] = []
        ordered = True if by == "handler" else None

        @io.on("slow", ordered=ordered)
        async def slow(socket: Socket) -> int:
            log.append("slow starts")
            await asyncio.sleep(0.01)
            log.append("slow ends")
            return 1

        @io.on("quick", ordered=ordered)
        def quick(socket: Socket) -> int:
            log.append("quick")
            return 2

        @io.on("broken", ordered=ordered)
        def broken(socket: Socket) -> None:
            raise RuntimeError

        async with running(io):
            one, two = peers(io, 2)
            one.connect()
            two.connect()
            one.text(b'21["slow"]', b'2["broken"]', b'22["quick"]', b'23["slow"]')
            two.text(b'21["quick"]')
            await settled()
            assert two.take() == [b"31[2]"]  # others do not wait
            await eventually(lambda: len(one.session.sent) == 3, 15)
            assert one.take() == [b"31[1]", b"32[2]", b"33[1]"]
            one.text(b'24["quick"]')
            await settled()
            assert one.take() == [b"34[2]"]
        assert log[-4:] == ["quick", "slow starts", "slow ends", "quick"]

    async def test_a_plain_handler_that_raises_what_was_cancelled(self) -> None:
        io = Server()

        @io.on("x")
        def x(socket: Socket) -> None:
            answer = asyncio.get_running_loop().create_future()
            answer.cancel()
            answer.result()

        io.on("connect", x)
        io.on("disconnect", x)
        async with running(io):
            (peer,) = peers(io, 1)
            socket = peer.connect()
            socket.on_any_outgoing(lambda *args: x(socket))
            peer.text(b'21["x"]')
            socket.emit("y")
            assert peer.take() == [b'2["y"]']
            peer.text(b"1")
            assert not io.sockets

    async def test_a_cancelled_wait_does_not_stop_those_behind_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        io = Server(ordered=True)

        @io.on("x")
        async def x(socket: Socket, cancel: bool) -> str:
            answer = asyncio.get_running_loop().create_future()
            if cancel:
                answer.cancel()
            else:
                answer.set_result("done")
            return str(await answer)

        async with running(io):
            (peer,) = peers(io, 1)
            socket = peer.connect()
            peer.text(b'21["x",true]', b'22["x",false]')
            await settled()
            assert peer.take() == [b'32["done"]']
            assert socket._unfinished == 0
        assert "handler of 'x' failed" in caplog.text

    @pytest.mark.parametrize("ordered", [True, False])
    async def test_too_many_pending_end_the_session(self, ordered: bool) -> None:
        io = Server(max_pending_events=3, ordered=ordered)
        gate = asyncio.Event()

        @io.on("x")
        async def x(socket: Socket) -> None:
            await gate.wait()

        async with running(io):
            (peer,) = peers(io, 1)
            peer.connect()
            peer.text(b'2["x"]', b'2["x"]', b'2["x"]')
            await settled()
            gate.set()
            await settled()
            gate.clear()
            peer.text(b'2["x"]', b'2["x"]', b'2["x"]')
            assert not peer.session.closed
            peer.text(b'2["x"]')
            assert peer.session.closed_with == "forced close"
            gate.set()


class TestListeners:
    async def test_of_one_socket(self) -> None:
        io = Server()
        got: list[object] = []
        io.on("x", lambda socket, value: got.append(("all", value)))
        async with running(io):
            one, two = peers(io, 2)
            first = one.connect()
            two.connect()

            @first.on("x")
            async def mine(value: int) -> None:
                got.append(("mine", value))

            @first.once("y")
            def only_once() -> str:
                got.append("y")
                return "ack"

            one.text(b'2["x",1]', b'21["y"]', b'22["y"]')
            two.text(b'2["x",2]', b'2["y"]')
            await settled()
            got.remove(("mine", 1))  # when a coroutine begins is Python's: from 3.12 on at once
            assert got == [("all", 1), "y", ("all", 2)]
            assert one.take() == [b'31["ack"]']
            first.off("x", mine)
            first.off("nothing")
            one.text(b'2["x",3]')
            await settled()
            assert got[-1] == ("all", 3)
            first.on("z", lambda: got.append("z"))
            first.off()
            one.text(b'2["z"]')
            assert got[-1] == ("all", 3)

    async def test_once_and_off_of_a_namespace(self) -> None:
        io = Server()
        got: list[str] = []

        @io.once("x")
        def once(socket: Socket) -> None:
            got.append("once")

        def always(socket: Socket) -> None:
            got.append("always")

        io.on("x", always)
        io.once("connect", lambda socket: got.append("connect"))
        async with running(io):
            one, two = peers(io, 2)
            one.connect()
            two.connect()
            one.text(b'2["x"]')
            two.text(b'2["x"]')
            assert got == ["connect", "once", "always", "always"]
            io.off("x", always)
            one.text(b'2["x"]')
            io.on("x", always)
            io.off("x")
            one.text(b'2["x"]')
            io.on("x", always)
            io.off()
            one.text(b'2["x"]')
            assert len(got) == 4

    @pytest.mark.parametrize("by", ["io", "socket"])
    async def test_a_catch_all_listener_throws_a_client_out(self, by: str) -> None:
        io = Server()
        got: list[object] = []
        io.on("secret", lambda socket: got.append("secret"))
        async with running(io):
            (peer,) = peers(io, 1)
            socket = peer.connect()
            socket.on("secret", lambda: got.append("own"))
            if by == "io":
                io.on_any(lambda socket, *args: socket.disconnect())
            else:
                socket.on_any(lambda *args: socket.disconnect())
            peer.text(b'21["secret"]')
            assert peer.take() == [b"1"]
            assert got == []

    async def test_catch_all(self) -> None:
        io = Server()
        got: list[object] = []
        everything = io.on_any(lambda socket, event, *args: got.append(("io", event, args)))
        io.on("x", lambda socket, value: got.append("handler"))
        async with running(io):
            (peer,) = peers(io, 1)
            socket = peer.connect()
            mine = socket.on_any(lambda event, *args: got.append(("own", event, args)))
            peer.text(b'2["x",1]', b'2["unknown"]')
            assert got == [
                ("io", "x", (1,)),
                ("own", "x", (1,)),
                "handler",
                ("io", "unknown", ()),
                ("own", "unknown", ()),
            ]
            got.clear()
            io.off_any(everything)
            socket.off_any(mine)
            peer.text(b'2["x",1]')
            assert got == ["handler"]

    async def test_catch_all_of_what_is_sent(self) -> None:
        io = Server()
        got: list[object] = []
        namespace = io.of("/a")

        @namespace.on_any_outgoing
        async def everything(socket: Socket, event: str, *args: object) -> None:
            got.append(("io", event, args))

        namespace.on("ask", lambda socket: "answer")
        async with running(io):
            (peer,) = peers(io, 1)
            socket = peer.connect("/a")
            mine = socket.on_any_outgoing(lambda event, *args: got.append(("own", event, args)))
            socket.emit("one", 1)
            namespace.emit("two", b"!", 2)
            peer.text(b'2/a,1["ask"]')  # acknowledgements are not shown
            await settled()
            assert ("own", "one", (1,)) in got
            assert ("io", "one", (1,)) in got
            assert ("own", "two", (b"!", 2)) in got
            assert ("io", "two", (b"!", 2)) in got
            assert len(got) == 4
            namespace.off_any_outgoing(everything)
            socket.off_any_outgoing(mine)
            namespace.emit("three")
            await settled()
            assert len(got) == 4
            assert namespace.watched_sockets == 0
            socket.on_any_outgoing(mine)
            socket.disconnect()
            assert namespace.watched_sockets == 0

    async def test_middlewares_of_a_socket(self, caplog: pytest.LogCaptureFixture) -> None:
        io = Server()
        got: list[object] = []

        @io.on("x")
        def x(socket: Socket, value: object) -> str:
            got.append(value)
            return "ok"

        async with running(io):
            (peer,) = peers(io, 1)
            socket = peer.connect()

            @socket.use
            async def check(packet: list[Any]) -> None:
                await asyncio.sleep(0)
                if packet[1] == "bad":
                    raise PermissionError(packet[1])
                packet[1] = packet[1].upper()

            counter = 'limpet_events_refused_total{reason="middleware"}'
            before = counters[counter]
            peer.text(b'21["x","good"]', b'22["x","bad"]')
            await settled()
            assert got == ["GOOD"]
            assert peer.take() == [b'31["ok"]']
            assert counters[counter] == before + 1


async def test_binary_event() -> None:
    io = Server()
    got: list[object] = []
    io.on("x", lambda socket, *args: got.append(args))
    async with running(io):
        (peer,) = peers(io, 1)
        socket = peer.connect()
        peer.text(b'51-["x",{"a":{"_placeholder":true,"num":0}}]')
        peer.binary(b"\x00\xff")
        assert got == [({"a": b"\x00\xff"},)]
        socket.emit("y", {"b": b"\x01"})
        assert peer.take() == [(b'51-["y",{"b":{"_placeholder":true,"num":0}}]', b"\x01")]


async def test_emit_is_not_awaitable() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        with pytest.raises(TypeError, match="synchronous"):
            await socket.emit("x")  # type: ignore[misc]
        with pytest.raises(TypeError, match="without await"):
            await io.emit("x")  # type: ignore[misc]
        assert peer.take() == [b'2["x"]', b'2["x"]']  # but it was sent


@pytest.mark.parametrize("event", ["connect", "connect_error", "disconnect", "newListener"])
async def test_reserved_names_are_refused(event: str) -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        for emit in (socket.emit, io.emit, io.to("a").emit, socket.volatile.emit):
            with pytest.raises(ValueError, match="reserved"):
                emit(event)
        with pytest.raises(ValueError, match="reserved"):
            await socket.emit_with_ack(event)
        with pytest.raises(TypeError, match="string"):
            socket.emit(3)  # type: ignore[arg-type]


async def test_send() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        socket.send("a")
        io.send("b")
        socket.volatile.send("c")
        io.to(socket.id).send("d")
        assert peer.take() == [b'2["message","%c"]' % letter for letter in b"abcd"]


async def test_volatile() -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        socket = peer.connect()
        counter = 'limpet_packets_dropped_total{reason="volatile"}'
        before = counters[counter]
        peer.session.writable = False
        socket.volatile.emit("lost")
        io.volatile.emit("lost")
        socket.emit("kept")
        peer.session.writable = True
        socket.volatile.emit("sent")
        assert peer.take() == [b'2["kept"]', b'2["sent"]']
        assert counters[counter] == before + 1
