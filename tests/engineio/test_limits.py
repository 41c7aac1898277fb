"""What a client does not read: bounded in bytes, packets and time; and how flushing is sliced."""

from __future__ import annotations

import pytest

from engine_fakes import Poll, Rig
from limpet_adapters.counters import counters
from limpet_adapters.packet import EncodedPacket
from limpet_worker.engineio.flush import HEAVY
from limpet_worker.engineio.session import Session

KIB = 1024
MIB = 1 << 20


@pytest.fixture
def rig() -> Rig:
    return Rig(ping_interval=1000.0, ping_timeout=1000.0)


def stuck(rig: Rig, transport_name: str) -> Session:
    """Return a session whose client takes nothing."""
    if transport_name == "polling":
        return rig.polling()
    session, transport = rig.websocket()
    transport.connection.pause_writing()
    return session


def test_a_blocked_session_is_not_written_to(rig: Rig) -> None:
    session, transport = rig.websocket()
    transport.room = 100
    session.send("x" * 200)
    rig.loop.settle()
    session.send("a")
    session.send("b")
    rig.loop.settle()
    assert transport.take() == ["4" + "x" * 200]
    transport.drain()
    assert transport.take() == ["4a", "4b"]


@pytest.mark.parametrize("name", ["websocket", "polling"])
@pytest.mark.parametrize("way", ["bytes", "packets"])
def test_over_the_soft_limit_for_too_long(rig: Rig, name: str, way: str) -> None:
    session = stuck(rig, name)
    session.send("first")
    for _ in range(1002):
        session.send("x" * 1050 if way == "bytes" else "")
    rig.loop.settle()
    assert rig.engine.stats()["slow"] == 1
    rig.loop.sleep(4.8)
    assert not session.closed
    rig.loop.sleep(0.5)
    assert rig.sink(session).reasons == ["slow consumer"]
    assert rig.engine.sessions == {}
    assert rig.engine.stats()["slow"] == 0


@pytest.mark.parametrize("name", ["websocket", "polling"])
def test_below_the_limit_nothing_happens(rig: Rig, name: str) -> None:
    session = stuck(rig, name)
    for _ in range(900):
        session.send("x" * 1000)
    rig.loop.sleep(60.0)
    assert not session.closed
    assert rig.engine.stats()["slow"] == 0


def test_back_below_the_limit_in_time(rig: Rig) -> None:
    session, transport = rig.websocket()
    for _ in range(3):
        transport.connection.pause_writing()
        for _ in range(1200):
            session.send("x")
        rig.loop.sleep(4.0)
        assert rig.engine.stats()["slow"] == 1
        transport.drain()
        assert rig.engine.stats()["slow"] == 0
        assert len(transport.take()) == 1200
    polling = rig.polling()
    for _ in range(3):
        for _ in range(1200):
            polling.send("x")
        rig.loop.sleep(4.0)
        assert (rig.poll(polling).payload or b"").count(b"4x") == 1200
    assert not session.closed
    assert not polling.closed


@pytest.mark.parametrize("name", ["websocket", "polling"])
def test_over_the_hard_limit_at_once(rig: Rig, name: str) -> None:
    session = stuck(rig, name)
    session.send("first")
    chunk = b"x" * MIB
    for _ in range(15):
        session.send(chunk)
    if name == "polling":  # base64 is longer
        assert session.over_since < 0
    else:
        assert session.over_since > 0
    for _ in range(3):
        session.send(chunk)
    assert not session.closed  # no sink is called within a send
    rig.loop.turn()
    assert rig.sink(session).reasons == ["slow consumer"]
    session.send("late")
    rig.loop.settle()
    assert rig.engine.sessions == {}


def test_a_slow_websocket_is_dropped_without_ceremony(rig: Rig) -> None:
    session, transport = rig.websocket()
    transport.take()
    transport.connection.pause_writing()
    for _ in range(18):
        session.send(b"x" * MIB)
    rig.loop.settle()
    assert transport.aborted
    assert transport.writes == []


def test_what_drains_after_the_hard_limit_does_not_save_the_session(rig: Rig) -> None:
    session, transport = rig.websocket()
    transport.connection.pause_writing()
    for _ in range(18):
        session.send(b"x" * MIB)
    transport.drain()  # packets are lost already
    rig.loop.turn()
    assert rig.sink(session).reasons == ["slow consumer"]


@pytest.mark.parametrize("name", ["websocket", "polling"])
def test_an_empty_outbox_takes_any_one_packet(rig: Rig, name: str) -> None:
    session = stuck(rig, name)
    session.send(b"x" * (20 * MIB))
    session.send("and a small one")
    rig.loop.sleep(20.0)
    assert not session.closed


def test_a_heavy_outbox_is_flushed_before_the_turn_ends(rig: Rig) -> None:
    session, transport = rig.websocket()
    for _ in range(100):
        session.send("x" * KIB)
    assert len(transport.writes) == 1
    assert 58 * KIB < len(transport.writes[0]) <= HEAVY + 2 * KIB
    rig.loop.settle()
    assert len(transport.take()) == 100


def test_memory_of_a_session_that_is_closed_but_still_broadcast_to(rig: Rig) -> None:
    session, _ = rig.websocket()
    session.close()
    waiting = rig.polling()
    waiting.send("last")
    waiting.close()
    packet = EncodedPacket(b"x" * KIB)
    for _ in range(1000):
        rig.engine.flusher.broadcast([session, waiting], packet)
    assert len(session.out or ()) < 100
    rig.loop.settle()
    assert rig.poll(waiting).payload == b"4last"
    assert rig.poll(waiting).payload == b"1"


# --- flushing ------------------------------------------------------------


def test_a_broadcast_reaches_everyone_once_and_in_order(rig: Rig) -> None:
    sessions = []
    transports = []
    for _ in range(5):
        session, transport = rig.websocket()
        sessions.append(session)
        transports.append(transport)
    poller = rig.polling()
    poll = rig.poll(poller)
    sessions.append(poller)
    sessions[0].send("before")
    first = EncodedPacket(b"2[1]")
    second = EncodedPacket(b"51-[2]", (b"\x01",))
    rig.engine.flusher.broadcast(iter(sessions), first)
    sessions[0].send("between")
    rig.engine.flusher.broadcast(sessions, second)
    rig.loop.settle()
    assert transports[0].take() == ["4before", "42[1]", "4between", "451-[2]", b"\x01"]
    for transport in transports[1:]:
        assert len(transport.writes) == 1
        assert transport.take() == ["42[1]", "451-[2]", b"\x01"]
    assert poll.payload == b"42[1]\x1e451-[2]\x1ebAQ=="


def test_a_broadcast_is_sliced_and_replies_overtake_other_clients(rig: Rig) -> None:
    pairs = [rig.websocket() for _ in range(300)]
    rig.loop.settle()
    rig.engine.flusher.broadcast([session for session, _ in pairs], EncodedPacket(b"2[]"))
    pairs[299][0].send("reply")
    rig.loop.turn()
    assert sum(bool(transport.writes) for _, transport in pairs) == 129
    assert pairs[299][1].take() == ["42[]", "4reply"]
    rig.loop.turn()
    assert sum(bool(transport.writes) for _, transport in pairs) == 128 + 128
    rig.loop.turn()
    assert all(transport.take() == ["42[]"] for _, transport in pairs[:299])
    assert pairs[299][1].take() == []
    assert not rig.loop.ready


def test_the_bulk_queue_stays_bounded(rig: Rig) -> None:
    pairs = [rig.websocket() for _ in range(200)]
    sessions = [session for session, _ in pairs]
    flusher = rig.engine.flusher
    packet = EncodedPacket(b"2[]")
    flusher._compact_at = 100
    for _ in range(100):
        flusher._compact_at = 100
        flusher.broadcast(sessions, packet)
        flusher.broadcast([], packet)
        flusher.bulk.extend(sessions)  # as when hot flushes come between broadcasts
        for session in sessions:
            session.send("x")
        rig.loop.turn()
        assert len(flusher.bulk) <= 200
    rig.loop.settle()
    assert not flusher.bulk
    for _, transport in pairs:
        assert transport.take() == ["42[]", "4x"] * 100


def test_volatile(rig: Rig) -> None:
    able, transport = rig.websocket()
    blocked, full = rig.websocket()
    full.connection.pause_writing()
    between = rig.polling()
    waiting = rig.polling()
    poll = rig.poll(waiting)
    name = 'limpet_packets_dropped_total{reason="volatile"}'
    before = counters[name]
    sessions = [able, blocked, between, waiting]
    rig.engine.flusher.broadcast(sessions, EncodedPacket(b"2[]"), volatile=True)
    rig.loop.settle()
    assert transport.take() == ["42[]"]
    assert poll.payload == b"42[]"
    assert blocked.out is None
    assert between.out is None
    assert counters[name] == before + 2


def test_a_broadcast_flushes_heavy_outboxes_and_ends_slow_ones_later(rig: Rig) -> None:
    session, transport = rig.websocket()
    slow = stuck(rig, "websocket")
    packet = EncodedPacket(b"x" * MIB)
    for _ in range(20):
        rig.engine.flusher.broadcast([session, slow], packet)
        assert len(session.out or b"") < 3 * MIB
    assert rig.sink(slow).reasons == []
    rig.loop.settle()
    assert rig.sink(slow).reasons == ["slow consumer"]
    assert len(transport.take()) == 20


def test_a_transport_that_raises_does_not_starve_the_others(rig: Rig) -> None:
    pairs = [rig.websocket() for _ in range(4)]
    pairs[1][1].broken = True
    for session, _ in pairs:
        session.send("a")
    rig.sinks[pairs[1][0].sid].events.clear()
    pairs[1][1].connection.closing = True  # its close frame could not be written either
    rig.loop.settle()
    assert [transport.take() for _, transport in pairs] == [["4a"], [], ["4a"], ["4a"]]
    assert rig.sink(pairs[1][0]).reasons == ["transport error"]


def test_the_poll_of_a_broadcast_is_not_answered_twice(rig: Rig) -> None:
    session = rig.polling()
    poll = rig.poll(session)
    rig.engine.flusher.broadcast([session], EncodedPacket(b"2[1]"))
    session.send("a")
    rig.loop.settle()
    assert poll.payload == b"42[1]\x1e4a"
    later = Poll()
    assert session.polling is not None
    assert session.polling.poll(later)
    rig.loop.settle()
    assert later.payload is None


def test_a_queue_that_shrank_by_itself_is_not_slow(rig: Rig) -> None:
    session = stuck(rig, "polling")
    for _ in range(1100):
        session.send("x")
    assert rig.engine.stats()["slow"] == 1
    session.out = None
    rig.loop.sleep(0.2)
    assert rig.engine.stats()["slow"] == 0
    assert session.over_since == 0.0


def test_a_session_that_ends_while_it_is_slow(rig: Rig) -> None:
    session = stuck(rig, "polling")
    for _ in range(17):
        session.send(b"x" * MIB)
    session.fail("transport error")
    rig.loop.settle()
    assert rig.sink(session).reasons == ["transport error"]
