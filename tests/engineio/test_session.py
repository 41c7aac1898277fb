"""Sessions on fakes: messages, heartbeat, closing, over both transports."""

from __future__ import annotations

import pytest

from engine_fakes import MASK, REFUSED, RESPONSE, FakeTransport, Poll, Rig
from limpet_adapters.packet import EncodedPacket
from limpet_worker.engineio.session import Session
from limpet_worker.websocket.frames import CLOSE, PING, PONG, TEXT, encode


@pytest.fixture
def rig() -> Rig:
    return Rig(ping_interval=25.0, ping_timeout=20.0)


# --- opening -------------------------------------------------------------


def test_polling_open_packet(rig: Rig) -> None:
    session = rig.engine.open(rig.request())
    poll = rig.poll(session)
    assert poll.payload == (
        b'0{"sid":"00000000000000000000","upgrades":["websocket"],'
        b'"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}'
    )
    assert session.transport_name == "polling"
    assert not session.closed
    assert rig.engine.sessions == {session.sid: session}


def test_websocket_open_packet_goes_out_with_the_101(rig: Rig) -> None:
    transport = FakeTransport()
    session = rig.engine.open_websocket(rig.request(), transport, RESPONSE)
    assert len(transport.writes) == 1
    assert transport.writes[0].startswith(RESPONSE)
    (packet,) = transport.take()
    assert str(packet).startswith('0{"sid":"00000000000000000000","upgrades":[],')
    assert session.transport_name == "websocket"
    assert transport.high == 65_536


@pytest.mark.parametrize("options", [{"allow_upgrades": False}, {"transports": ("polling",)}])
def test_no_upgrades(options: dict[str, object]) -> None:
    rig = Rig(**options)  # type: ignore[arg-type]
    assert b'"upgrades":[]' in (rig.poll(rig.engine.open(rig.request())).payload or b"")


def test_what_the_sink_sends_first_follows_the_open_packet() -> None:
    rig = Rig()
    plain = rig.on_session

    def greet(session: Session) -> object:
        session.send("hello")
        return plain(session)

    rig.engine._on_session = greet  # type: ignore[assignment]
    transport = FakeTransport()
    rig.engine.open_websocket(rig.request(), transport, RESPONSE)
    assert len(transport.writes) == 1
    assert transport.take()[1:] == ["4hello"]
    poll = rig.poll(rig.engine.open(rig.request()))
    assert (poll.payload or b"").split(b"\x1e")[1:] == [b"4hello"]


def test_a_sink_that_cannot_be_made(rig: Rig) -> None:
    def fail(session: Session) -> object:
        raise LookupError("no")

    rig.engine._on_session = fail  # type: ignore[assignment]
    transport = FakeTransport()
    with pytest.raises(LookupError):
        rig.engine.open_websocket(rig.request(), transport, RESPONSE)
    assert transport.aborted
    assert transport.writes == []
    with pytest.raises(LookupError):
        rig.engine.open(rig.request())
    assert rig.engine.sessions == {}
    assert rig.engine.stats() == {"sessions": 0, "polling": 0, "websocket": 0, "slow": 0}


def test_a_session_closed_before_it_has_a_sink(rig: Rig) -> None:
    plain = rig.on_session

    def refuse(session: Session) -> object:
        session.close()
        return plain(session)

    rig.engine._on_session = refuse  # type: ignore[assignment]
    transport = FakeTransport()
    session = rig.engine.open_websocket(rig.request(), transport, RESPONSE)
    assert rig.sink(session).events == [("close", "forced close")]
    assert transport.take()[1:] == [("close", 1005)]


def test_full() -> None:
    rig = Rig(max_sessions=1)
    assert not rig.engine.full
    rig.polling()
    assert rig.engine.full


# --- messages ------------------------------------------------------------


def test_websocket_messages(rig: Rig) -> None:
    session, transport = rig.websocket()
    transport.receive("4hello", b"\x01\x02", "4", "4é€")
    assert rig.sink(session).events == [
        ("text", b"hello"),
        ("binary", b"\x01\x02"),
        ("text", b""),
        ("text", "é€".encode()),
    ]


def test_replies_of_one_turn_leave_in_one_write(rig: Rig) -> None:
    session, transport = rig.websocket()
    session.send("a")
    session.send(b"\x01")
    session.send_text(b"b")
    session.send_packet(EncodedPacket(b"2[]", (b"\x02",)))
    assert transport.writes == []
    rig.loop.turn()
    assert len(transport.writes) == 1
    assert transport.take() == ["4a", b"\x01", "4b", "42[]", b"\x02"]


def test_polling_messages(rig: Rig) -> None:
    session = rig.polling()
    assert rig.post(session, b"4a\x1ebAQID\x1e4\x1e4" + "€".encode())
    assert rig.sink(session).events == [
        ("text", b"a"),
        ("binary", b"\x01\x02\x03"),
        ("text", b""),
        ("text", "€".encode()),
    ]


def test_a_poll_takes_all_that_is_queued() -> None:
    rig = Rig(echo=True)
    session = rig.polling()
    rig.post(session, b"4test1\x1e4test2\x1ebAQIDBA==")
    rig.loop.settle()
    assert rig.poll(session).payload == b"4test1\x1e4test2\x1ebAQIDBA=="


def test_a_poll_that_waits_is_answered_once_per_turn() -> None:
    rig = Rig(echo=True)
    session = rig.polling()
    poll = rig.poll(session)
    rig.post(session, b"4a\x1e4b")
    assert not poll.payloads
    rig.loop.settle()
    assert poll.payload == b"4a\x1e4b"
    session.send("c")
    rig.loop.settle()
    assert rig.poll(session).payload == b"4c"


def test_writable(rig: Rig) -> None:
    session = rig.polling()
    seen = [session.writable]
    poll = rig.poll(session)
    seen.append(session.writable)
    session.send("a")
    seen.append(session.writable)  # a second packet would go out with the same answer
    rig.loop.settle()
    assert poll.payload == b"4a"
    seen.append(session.writable)
    assert seen == [False, True, True, False]

    other, transport = rig.websocket()
    seen = [other.writable]
    transport.connection.pause_writing()
    seen.append(other.writable)
    transport.connection.resume_writing()
    seen.append(other.writable)
    other.close()
    seen.append(other.writable)
    assert seen == [True, False, True, False]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        ("abc", "parse error"),
        ("", "parse error"),
        ("7", "parse error"),
        ("2", "transport error"),
        ("2probe", "transport error"),
        ("1", "transport close"),
        ("b!", "parse error"),
    ],
)
def test_packets_that_end_a_session(rig: Rig, packet: str, reason: str) -> None:
    session, transport = rig.websocket()
    transport.receive("4before", packet, "4after")
    assert rig.sink(session).events == [("text", b"before"), ("close", reason)]
    assert transport.take() == [("close", 1005)]
    assert session.sid not in rig.engine.sessions

    session = rig.polling()
    poll = rig.poll(session)
    assert rig.post(session, f"4before\x1e{packet}\x1e4after".encode())
    assert rig.sink(session).events == [("text", b"before"), ("close", reason)]
    assert poll.payload == (b"6" if packet == "1" else b"1")
    assert session.sid not in rig.engine.sessions
    assert session.polling is None


@pytest.mark.parametrize("packet", ["0", "5", "6", "3", "3probe"])
def test_packets_that_do_nothing(rig: Rig, packet: str) -> None:
    session, transport = rig.websocket()
    transport.receive(packet)
    assert rig.sink(session).events == []
    assert transport.writes == []
    polling = rig.polling()
    rig.post(polling, packet.encode())
    assert rig.sink(polling).events == []


def test_a_post_that_is_not_utf8(rig: Rig) -> None:
    session = rig.polling()
    assert rig.post(session, b"4a\x1e4\xff\x1e4b")
    assert rig.sink(session).events == [("text", b"a"), ("close", "parse error")]


def test_what_a_stock_client_had_buffered_comes_in_one_post(rig: Rig) -> None:
    session = rig.polling()
    assert rig.post(session, b"\x1e".join(b"4%d" % number for number in range(10_000)))
    assert rig.sink(session).reasons == []
    assert rig.sink(session).events == [("text", b"%d" % number) for number in range(10_000)]


def test_too_many_packets_in_a_post() -> None:
    rig = Rig(max_payload_packets=3)
    session = rig.polling()
    assert rig.post(session, b"4a\x1e4b\x1e4c")
    assert rig.sink(session).reasons == []
    assert rig.post(session, b"4a\x1e4b\x1e4c\x1e4d")
    assert rig.sink(session).events[3:] == [
        ("text", b"a"),
        ("text", b"b"),
        ("text", b"c"),
        ("close", "parse error"),
    ]


def test_base64_over_websocket(rig: Rig) -> None:
    session, transport = rig.websocket()
    transport.receive("bAQID")
    assert rig.sink(session).events == [("binary", b"\x01\x02\x03")]


# --- polling rules -------------------------------------------------------


def test_duplicate_poll(rig: Rig) -> None:
    session = rig.polling()
    first = rig.poll(session)
    polling = session.polling
    assert polling is not None
    second = Poll()
    assert not polling.poll(second)
    assert first.payload == b"1"
    assert second.payload is None
    assert rig.sink(session).reasons == ["transport error"]
    assert not polling.poll(Poll())
    assert not polling.post(b"4a")
    assert session.sid not in rig.engine.sessions


def test_cancelled_poll(rig: Rig) -> None:
    session = rig.polling()
    answered = Poll()
    poll = rig.poll(session)
    polling = session.polling
    assert polling is not None
    polling.poll_aborted(answered)  # not the one that waits
    assert rig.sink(session).reasons == []
    polling.poll_aborted(poll)
    assert not poll.payloads
    assert rig.sink(session).reasons == ["transport error"]
    assert session.sid not in rig.engine.sessions


def test_a_responder_that_raises_ends_its_own_session_only(rig: Rig) -> None:
    class Broken(Poll):
        def respond(self, payload: bytes) -> None:
            raise OSError("gone")

    bad = rig.polling()
    good = rig.polling()
    assert bad.polling is not None
    bad.polling.poll(Broken())
    poll = rig.poll(good)
    bad.send("a")
    good.send("b")
    rig.loop.settle()
    assert poll.payload == b"4b"
    assert rig.sink(bad).reasons == ["transport error"]


# --- heartbeat -----------------------------------------------------------


def test_websocket_heartbeat(rig: Rig) -> None:
    session, transport = rig.websocket()
    for _ in range(3):
        rig.loop.sleep(24.8)
        assert transport.take() == []
        rig.loop.sleep(0.6)
        assert transport.take() == ["2"]
        transport.receive("3")
    rig.loop.sleep(24.8)
    assert transport.take() == []
    rig.loop.sleep(0.6 + 19.5)
    assert transport.take() == ["2"]
    assert not session.closed
    rig.loop.sleep(1.0)
    assert rig.sink(session).reasons == ["ping timeout"]
    assert transport.take() == [("close", 1005)]


def test_the_next_ping_counts_from_the_pong(rig: Rig) -> None:
    _, transport = rig.websocket()
    rig.loop.sleep(25.3)
    rig.loop.sleep(15.0)
    transport.take()
    transport.receive("3")
    rig.loop.sleep(24.8)
    assert transport.take() == []
    rig.loop.sleep(0.5)
    assert transport.take() == ["2"]


@pytest.mark.parametrize(("interval", "timeout"), [(0.3, 0.2), (5.0, 20.0), (20.0, 5.0)])
def test_any_relation_of_interval_and_timeout(interval: float, timeout: float) -> None:
    rig = Rig(ping_interval=interval, ping_timeout=timeout)
    session, transport = rig.websocket()
    slack = rig.engine.wheel.granularity * 2.5
    for _ in range(4):
        rig.loop.sleep(interval - slack)
        assert transport.take() == []
        rig.loop.sleep(2 * slack)
        assert transport.take() == ["2"]
        rig.loop.sleep(timeout / 2)
        transport.receive("3")
        rig.loop.sleep(0)
    rig.loop.sleep(interval + timeout - slack)
    assert not session.closed
    rig.loop.sleep(3 * slack)
    assert rig.sink(session).reasons == ["ping timeout"]


def test_polling_heartbeat(rig: Rig) -> None:
    session = rig.polling()
    poll = rig.poll(session)
    rig.loop.sleep(25.3)
    assert poll.payload == b"2"
    rig.post(session, b"3")
    poll = rig.poll(session)
    rig.loop.sleep(25.3)
    assert poll.payload == b"2"
    rig.loop.sleep(20.5)
    assert rig.sink(session).reasons == ["ping timeout"]
    assert session.sid not in rig.engine.sessions


def test_another_packet_prolongs_the_wait_for_a_pong_once(rig: Rig) -> None:
    session, transport = rig.websocket()
    rig.loop.sleep(25.3)
    rig.loop.sleep(15.0)
    transport.receive("4still here")
    rig.loop.sleep(15.0)
    assert not session.closed
    transport.receive("4and again")
    rig.loop.sleep(5.4)
    assert rig.sink(session).reasons == ["ping timeout"]


def test_a_binary_packet_prolongs_it_too(rig: Rig) -> None:
    session, transport = rig.websocket()
    rig.loop.sleep(40.0)
    transport.receive(b"x")
    rig.loop.sleep(18.0)
    assert not session.closed


def test_after_a_stall_what_lies_unread_is_read_first(rig: Rig) -> None:
    session, transport = rig.websocket()
    rig.loop.sleep(25.3)
    rig.loop.now += 60.0  # the process was stopped; the pong came meanwhile
    rig.loop.sleep(0.0)
    assert not session.closed
    transport.receive("3")
    rig.loop.sleep(1.0)
    assert not session.closed


def test_time_stands_still_without_sessions(rig: Rig) -> None:
    session, transport = rig.websocket()
    assert rig.loop.timers
    transport.lose()
    assert session.closed
    rig.loop.sleep(1.0)
    assert not rig.loop.timers
    rig.websocket()
    assert rig.loop.timers
    rig.engine.stop()
    rig.engine.stop()


def test_an_error_in_one_end_does_not_stop_the_time(rig: Rig) -> None:
    first, _ = rig.websocket()

    def fail(reason: str) -> None:
        raise RuntimeError("sink")

    rig.sink(first).on_close = fail  # type: ignore[method-assign]
    second, _ = rig.websocket()
    with pytest.raises(RuntimeError):
        rig.loop.sleep(50.0)
    rig.loop.sleep(1.0)
    assert first.closed
    assert rig.sink(second).reasons == ["ping timeout"]


# --- closing -------------------------------------------------------------


def test_close_websocket(rig: Rig) -> None:
    session, transport = rig.websocket()
    session.send("last")
    session.close()
    assert rig.sink(session).events == [("close", "forced close")]
    assert transport.take() == ["4last", ("close", 1005)]
    session.send("late")
    session.send(b"late")
    session.send_packet(EncodedPacket(b"2"))
    session.close()
    rig.loop.settle()
    assert transport.writes == []
    assert rig.engine.sessions == {}
    transport.connection.data_received(b"\x88\x80\x00\x00\x00\x00")
    assert transport.closed
    assert transport.writes == []
    transport.lose()
    assert len(rig.sink(session).events) == 1


def test_close_and_discard(rig: Rig) -> None:
    session, transport = rig.websocket()
    session.send("last")
    session.close("server shutting down", discard=True)
    assert transport.take() == [("close", 1005)]
    polling = rig.polling()
    poll = rig.poll(polling)
    polling.send("last")
    polling.close(discard=True)
    assert poll.payload == b"1"
    other = rig.polling()
    other.send("last")
    other.close(discard=True)
    rig.loop.settle()
    assert rig.engine.sessions == {}


def test_close_polling_that_waits(rig: Rig) -> None:
    session = rig.polling()
    poll = rig.poll(session)
    session.close()
    assert poll.payload == b"1"
    assert rig.sink(session).reasons == ["forced close"]
    assert rig.engine.sessions == {}
    session = rig.polling()
    poll = rig.poll(session)
    session.send("last")
    session.close()
    assert poll.payload == b"4last"  # a client that reads 1 beside it may act on that first
    assert rig.poll(session).payload == b"1"
    assert rig.engine.sessions == {}


def test_an_end_that_raises_does_not_stop_the_others(rig: Rig) -> None:
    class Broken(Poll):
        def respond(self, payload: bytes) -> None:
            raise RuntimeError

    def broken(reason: str) -> None:
        raise RuntimeError

    bad, good = rig.polling(), rig.polling()
    assert bad.polling is not None
    bad.polling.poll(Broken())
    rig.sink(bad).on_close = broken  # type: ignore[method-assign]
    poll = rig.poll(good)
    bad.send("a")
    good.send("b")
    rig.loop.settle()
    assert poll.payload == b"4b"
    assert list(rig.engine.sessions.values()) == [good]


def test_whatever_happens_in_a_flush_the_next_one_comes(rig: Rig) -> None:
    class Hopeless(Poll):
        def respond(self, payload: bytes) -> None:
            raise KeyboardInterrupt

    bad, good = rig.polling(), rig.polling()
    assert bad.polling is not None
    bad.polling.poll(Hopeless())
    bad.send("a")
    with pytest.raises(KeyboardInterrupt):
        rig.loop.settle()
    poll = rig.poll(good)
    good.send("b")
    rig.loop.settle()
    assert poll.payload == b"4b"


class Pipelined(Poll):
    """A GET behind which the same client sent another, read when the first is answered."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.behind = Poll()

    def respond(self, payload: bytes) -> None:
        super().respond(payload)
        if self.session.polling is None or not self.session.polling.poll(self.behind):
            self.behind.respond(b"refused")


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("way", ["close", "discard", "fail", "leave"])
def test_no_poll_is_left_waiting_by_the_end(rig: Rig, way: str, queued: bool) -> None:
    session = rig.polling()
    poll = Pipelined(session)
    assert session.polling is not None
    session.polling.poll(poll)
    if queued:
        session.send("last")
    if way == "fail":
        session.fail("transport error")
    elif way == "leave":
        rig.post(session, b"1")
    else:
        session.close(discard=way == "discard")
    rig.loop.settle()
    assert (
        poll.payload
        == {
            "close": b"4last" if queued else b"1",
            "discard": b"1",
            "fail": b"1",
            "leave": b"6",
        }[way]
    )
    assert poll.behind.payload == (b"1" if way == "close" and queued else b"refused")
    assert len(rig.sink(session).reasons) == 1
    assert rig.engine.sessions == {}


def test_no_poll_is_left_waiting_by_an_upgrade(rig: Rig) -> None:
    session = rig.polling()
    poll = Pipelined(session)
    assert session.polling is not None
    session.polling.poll(poll)
    transport = rig.candidate(session, "5")
    assert poll.payload == b"6"
    assert poll.behind.payload == b"6"
    session.send("there")
    rig.loop.settle()
    assert transport.take() == ["4there"]


def test_close_between_polls(rig: Rig) -> None:
    session = rig.polling()
    session.send("a")
    session.send("last")
    session.close()
    assert session.closed
    assert rig.sink(session).reasons == ["forced close"]
    rig.loop.sleep(26.0)  # no ping
    rig.post(session, b"4late\x1e3\x1eabc")
    assert rig.poll(session).payload == b"4a\x1e4last"
    assert rig.poll(session).payload == b"1"
    assert len(rig.sink(session).events) == 1
    assert rig.engine.sessions == {}


def test_the_last_poll_never_comes(rig: Rig) -> None:
    session = rig.polling()
    session.close()
    rig.loop.sleep(29.8)
    assert rig.engine.sessions
    rig.loop.sleep(0.5)
    assert rig.engine.sessions == {}
    assert rig.sink(session).reasons == ["forced close"]
    rig.loop.sleep(1.0)
    assert not rig.loop.timers


@pytest.mark.parametrize("way", ["discard", "post", "fail"])
def test_a_closing_session_ends_early(rig: Rig, way: str) -> None:
    session = rig.polling()
    session.close()
    if way == "discard":
        session.close(discard=True)
    elif way == "post":
        rig.post(session, b"1")
    else:
        session.fail("transport error")
    assert rig.engine.sessions == {}
    assert rig.sink(session).reasons == ["forced close"]


def test_sent_away(rig: Rig) -> None:
    session, transport = rig.websocket()
    session.send("last")
    session.send_away("server shutting down", 1012)
    session.send_away("again", 1000)
    assert transport.take() == ["4last", ("close", 1012)]
    assert rig.sink(session).reasons == ["server shutting down"]
    assert rig.engine.goodbyes == {transport.connection}
    transport.connection.data_received(b"\x88\x80\x00\x00\x00\x00")
    transport.lose()
    assert rig.engine.goodbyes == set()


def test_sent_away_while_it_polls(rig: Rig) -> None:
    # Never the packet 1, after which stock Python clients stay away: this poll, or the next one,
    # is for a session that is unknown.
    idle, told = rig.polling(), rig.polling()
    polls = rig.poll(idle), rig.poll(told)
    told.send("a")
    told.send(b"b")
    for session in (idle, told):
        session.send_away("server shutting down")
        assert rig.sink(session).reasons == ["server shutting down"]
    assert [poll.payload for poll in polls] == [REFUSED, b"4a\x1ebYg=="]
    assert rig.engine.sessions == {}


def test_sent_away_between_polls(rig: Rig) -> None:
    idle, told, late = rig.polling(), rig.polling(), rig.polling()
    for session in (told, late):
        session.send("a")
        session.send("last")
    for session in (idle, told, late):
        session.send_away("server shutting down")
        assert rig.sink(session).reasons == ["server shutting down"]
    assert rig.engine.sessions == {told.sid: told, late.sid: late}
    rig.engine.flusher.broadcast([told], EncodedPacket(b"2late"))
    rig.loop.settle()
    assert rig.poll(told).payload == b"4a\x1e4last"
    assert rig.engine.sessions == {late.sid: late}
    rig.loop.sleep(30.5)
    assert rig.engine.sessions == {}


def test_sent_away_while_it_changes_over(rig: Rig) -> None:
    waiting, probed = rig.polling(), rig.polling()
    candidate = rig.candidate(waiting)
    assert rig.candidate(probed, "2probe").take() == ["3probe"]
    probed.send("last")
    for session in (waiting, probed):
        session.send_away("server shutting down", 1012)
    assert candidate.take() == [("close", 1005)]
    assert rig.engine.sessions == {probed.sid: probed}  # it fetches the rest its own way
    assert rig.poll(probed).payload == b"4last"


def test_close_all(rig: Rig) -> None:
    session, transport = rig.websocket()
    waiting = rig.polling()
    poll = rig.poll(waiting)
    between = rig.polling()
    between.send("last")
    rig.engine.close_all()
    assert transport.take() == [("close", 1005)]
    assert poll.payload == REFUSED
    for each in (session, waiting, between):
        assert rig.sink(each).reasons == ["server shutting down"]
    assert rig.engine.sessions == {between.sid: between}
    rig.engine.close_all(discard=True)
    assert rig.engine.sessions == {}


def test_close_within_a_message(rig: Rig) -> None:
    session, transport = rig.websocket()

    class Closing(type(rig.sink(session))):  # type: ignore[misc]
        def on_text(self, data: bytes) -> None:
            super().on_text(data)
            self.session.close()

    session.sink = sink = Closing(session)
    transport.receive("4a", "4b")
    assert sink.events == [("text", b"a"), ("close", "forced close")]
    assert transport.take() == [("close", 1005)]


def test_stats(rig: Rig) -> None:
    rig.websocket()
    rig.polling()
    session, transport = rig.upgraded()
    assert rig.engine.stats() == {"sessions": 3, "polling": 1, "websocket": 2, "slow": 0}
    transport.lose()
    assert rig.engine.stats() == {"sessions": 2, "polling": 1, "websocket": 1, "slow": 0}
    assert session.closed


def test_nothing_holds_an_ended_session(rig: Rig) -> None:
    import gc
    import sys

    gc.collect()
    gc.disable()
    try:
        for make in (rig.websocket, rig.upgraded):
            session, transport = make()
            transport.lose()
            rig.sinks.clear()
            connection = transport.connection
            transport.protocol = None
            rig.loop.settle()
            assert sys.getrefcount(connection) == 2
            assert sys.getrefcount(session) == 2
    finally:
        gc.enable()


# --- the WebSocket itself ------------------------------------------------


def test_control_frames(rig: Rig) -> None:
    session, transport = rig.websocket()
    connection = transport.connection
    rig.sink(session).on_text = lambda data: session.send("x")  # type: ignore[method-assign]
    connection.data_received(
        encode(PING, b"a", MASK) + encode(PONG, b"", MASK) + encode(TEXT, b"4", MASK)
    )
    assert len(transport.writes) == 1  # the answers to one read leave together, at its end
    assert transport.take() == [("pong", b"a"), "4x"]
    polling = rig.polling()
    candidate = rig.candidate(polling)
    candidate.connection.data_received(encode(PING, b"b", MASK))
    assert candidate.take() == [("pong", b"b")]
    candidate.connection.pause_writing()
    candidate.connection.data_received(encode(PING, b"c", MASK))
    candidate.connection.resume_writing()
    assert candidate.take() == []


def test_the_client_closes_first(rig: Rig) -> None:
    session, transport = rig.websocket()
    transport.connection.data_received(encode(CLOSE, b"\x03\xe9going", MASK))
    assert transport.take() == [("close", 1001)]
    assert transport.closed
    assert not transport.aborted
    assert rig.sink(session).reasons == ["transport close"]
    rig.loop.sleep(31.0)  # the rest could not be written
    assert transport.aborted


@pytest.mark.parametrize("eof", [True, False])
def test_a_broken_frame(rig: Rig, eof: bool) -> None:
    session, transport = rig.websocket()
    transport.can_write_eof = lambda: eof  # type: ignore[method-assign]
    transport.connection.data_received(b"\xff\xff\xff")
    assert transport.take() == [("close", 1002)]
    assert (transport.ended, transport.closed) == (eof, not eof)
    assert rig.sink(session).reasons == ["transport error"]
    transport.connection.data_received(b"\xff" * 1000)
    transport.lose()
    transport.connection.data_received(b"late")
    transport.connection.close()
    transport.connection.abort()
    assert len(rig.sink(session).events) == 1


def test_a_broken_frame_after_our_close_frame(rig: Rig) -> None:
    session, transport = rig.websocket()
    session.close()
    transport.take()
    transport.connection.data_received(b"\xff\xff\xff")
    assert transport.take() == []
    assert transport.ended


def test_an_error_in_the_sink_is_not_hidden(rig: Rig) -> None:
    session, transport = rig.websocket()
    session.sink = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        transport.receive("4a")  # asyncio closes the connection


def test_what_comes_before_there_is_a_sink_and_after_the_end(rig: Rig) -> None:
    session, _ = rig.websocket()
    session.close()
    session.sink.on_text(b"")
    session.sink.on_binary(b"")
    session.sink.on_upgrade()
    session.sink.on_close("")
    assert rig.sink(session).events == [("close", "forced close")]


def test_a_pong_that_is_too_late_already(rig: Rig) -> None:
    session = rig.polling()
    assert not session.expire()
    rig.loop.sleep(25.3)
    assert not session.expire()
    rig.loop.now += 20.5
    assert session.expire()
    assert rig.sink(session).reasons == ["ping timeout"]
    assert session.on_deadline(rig.loop.now) is None


def test_logs_show_no_secret(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "limpet")
    session, _ = rig.upgraded()
    assert session.sid[:6] in caplog.text
    assert session.sid not in caplog.text
