"""What each bad packet gets: the end of the session, with its reason in a counter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpet_adapters.counters import counters
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket
from socketio_fakes import Peer, peers, running, settled


@pytest.mark.parametrize(
    ("packets", "reason"),
    [
        ([b"7"], "unknown type"),
        ([b"abc"], "unknown type"),
        ([b""], "unknown type"),
        ([b"0/x,[]"], "invalid payload"),
        ([b"0/x,null"], "invalid payload"),
        ([b'0/x,"s"'], "invalid payload"),
        ([b"0/x,{"], "invalid payload"),
        ([b"0"], "connected to the namespace already"),
        ([b"1{}"], "invalid payload"),
        ([b"2{}"], "invalid payload"),
        ([b'2"s"'], "invalid payload"),
        ([b"2[]"], "invalid payload"),
        ([b"2[false]"], "invalid payload"),
        ([b"2[null]"], "invalid payload"),
        ([b"2[{}]"], "invalid payload"),
        ([b'2["connect"]'], "invalid payload"),
        ([b'2["disconnecting"]'], "invalid payload"),
        ([b'2["newListener"]'], "invalid payload"),
        ([b"3{}"], "invalid payload"),
        ([b'5["a"]'], "illegal attachments"),
        ([b'50-["a"]'], "illegal attachments"),
        ([b'5x-["a"]'], "illegal attachments"),
        ([b'511-["a"]'], "too many attachments"),
        ([b'51-["a",{"_placeholder":true,"num":1}]', (b"x",)], "illegal attachments"),
        ([b'51-["a",{"_placeholder":true,"num":-1}]', (b"x",)], "illegal attachments"),
        ([b'51-["a",{"_placeholder":true,"num":"0"}]', (b"x",)], "illegal attachments"),
        ([b'51-["a"]', b'2["b"]'], "text while attachments are outstanding"),
        ([b'51-["a"]', (b"x" * 101,)], "attachments too large"),
        ([(b"x",)], "unexpected binary"),
        ([b'4{"message":"x"}'], "connect error from a client"),
        ([b'4"x"'], "connect error from a client"),
        ([b'2/other,["a"]'], "not connected to the namespace"),
        ([b"3/other,1[]"], "not connected to the namespace"),
        ([b"1/other,"], "not connected to the namespace"),
        ([b'29007199254740992["a"]'], "invalid ack id"),
    ],
)
async def test_ends_the_session(packets: list[bytes | tuple[bytes, ...]], reason: str) -> None:
    io = Server(max_attached_bytes=100)
    io.of("/other")
    ends: list[tuple[str, str]] = []
    told: list[object] = []
    io.on("event", lambda *_: ends.append(("event", "")))
    io.on("disconnecting", lambda socket, why: ends.append(("disconnecting", why)))
    io.on("disconnect", lambda socket, why: ends.append(("disconnect", why)))

    @io.on("client_error")
    def client_error(error: dict[str, object]) -> None:
        told.append(error["reason"])

    async with running(io):
        peer, bystander = peers(io, 2)
        peer.connect()
        bystander.connect()
        counter = f'limpet_packets_refused_total{{reason="{reason}"}}'
        before = counters[counter]
        for packet in packets:
            if isinstance(packet, tuple):
                peer.binary(*packet)
            else:
                peer.text(packet)
        assert peer.ended == "forced close"
        assert ends == [("disconnecting", "forced close"), ("disconnect", "forced close")]
        assert counters[counter] == before + 1
        assert told == [reason]
        # What is still in the pipe changes nothing.
        peer.text(b'2["event"]', b"7")
        peer.binary(b"x")
        assert counters[counter] == before + 1
        assert peer.take() == []
        assert bystander.ended is None


@pytest.mark.parametrize("packet", [b'2["a"]', b"1", b"3[]", b"7", b'51-["a"]'])
async def test_before_any_connect(packet: bytes) -> None:
    async with running(Server()) as io:
        (peer,) = peers(io, 1)
        peer.text(packet)
        if packet == b'51-["a"]':
            peer.binary(b"")
        assert peer.ended == "forced close"


@pytest.mark.parametrize(
    "packets",
    [
        [b"2"],
        [b"27"],
        [b"3[]"],
        [b"35[1]"],
        [b"37"],
        [b'2["nobody listens"]', b'29["nobody listens"]'],
        [b'2["error","spoofed"]'],
        [b'2["bus_gap",{}]', b'2["client_error",{}]', b'2["connection"]', b'2["*"]'],
        [b"2[7]"],
    ],
)
async def test_is_ignored(packets: list[bytes]) -> None:
    io = Server()
    called: list[object] = []
    for event in ("bus_gap", "client_error", "connection"):
        io.on(event, called.append)
    async with running(io):
        (peer,) = peers(io, 1)
        peer.connect()
        called.clear()
        peer.text(*packets)
        await settled()
        assert peer.ended is None
        assert peer.take() == []
        assert not called


async def test_error_is_an_event_like_others_to_who_asks_for_it() -> None:
    io = Server()
    called: list[object] = []

    @io.on("error")
    def error(socket: Socket, message: str) -> None:
        called.append(message)

    async with running(io):
        (peer,) = peers(io, 1)
        peer.connect()
        peer.text(b'2["error","mine"]')
        assert called == ["mine"]


async def test_numeric_names_are_dispatched() -> None:
    io = Server()
    called: list[object] = []
    io.on("1", lambda socket: called.append("1"))
    async with running(io):
        (peer,) = peers(io, 1)
        peer.connect()
        peer.text(b"2[1]", b'2["1"]', b"2[1.0]")
        assert called == ["1", "1", "1"]


async def test_what_comes_late_for_a_namespace_that_was_left() -> None:
    io = Server()
    called: list[object] = []
    io.on("x", called.append)
    io.of("/admin")
    async with running(io):
        (peer,) = peers(io, 1)
        peer.connect("/admin")
        peer.connect()
        peer.text(b'2["x"]', b"1", b'2["x"]', b"31[]", b"1", b'27["x"]')
        assert len(called) == 1
        assert peer.ended is None
        again = peer.connect()
        assert again.connected
        peer.text(b'2["x"]')
        assert len(called) == 2


packets = st.one_of(
    st.binary(max_size=12),
    st.lists(
        st.sampled_from(
            [
                b"0",
                b"1",
                b"2",
                b"3",
                b"5",
                b"6",
                b"1-",
                b"2-",
                b"/a,",
                b"/",
                b"7",
                b'["x"]',
                b"[]",
                b"{}",
                b'["x",{"_placeholder":true,"num":0}]',
                b'["slow"]',
                b'["many",1,2,3]',
            ]
        ),
        max_size=5,
    ).map(b"".join),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), packets), max_size=20))
async def test_no_input_raises_or_stays(stream: list[tuple[bool, bytes]]) -> None:
    io = Server()
    io.of("/a")

    @io.on("x")
    def x(socket: Socket, *args: object) -> object:
        return args

    @io.on("slow")
    async def slow(socket: Socket) -> None:
        await settled()

    io.on("many", lambda socket: None)
    async with running(io):
        peer = Peer(io, 0)
        for binary, packet in stream:
            if binary:
                peer.client.on_binary(packet)
            else:
                peer.client.on_text(packet)
        peer.session.close("transport close")
        await settled()
        await settled()
        assert not io.sockets
        assert not io.of("/a").sockets
        assert not io._waiting
        assert not io.tasks.running
        assert peer.client.sockets == []
