"""From polling to WebSocket: nothing is lost, doubled or reordered, and failures are harmless."""

from __future__ import annotations

import pytest

from engine_fakes import FakeTransport, Rig
from limpet_adapters.packet import EncodedPacket


@pytest.fixture
def rig() -> Rig:
    return Rig(echo=True)


def test_the_whole_dance(rig: Rig) -> None:
    session = rig.polling()
    poll = rig.poll(session)
    transport = rig.candidate(session)
    assert transport.take() == []
    assert not poll.payloads
    transport.receive("2probe")
    assert transport.take() == ["3probe"]
    assert poll.payload == b"6"  # at once
    transport.receive("5")
    assert session.transport_name == "websocket"
    assert session.polling is None
    assert rig.sink(session).events == [("upgrade", None)]
    transport.receive("4hello", b"\x01")
    rig.loop.settle()
    assert transport.take() == ["4hello", b"\x01"]  # and no stray 6
    rig.loop.sleep(25.3)
    assert transport.take() == ["2"]


def test_polls_that_come_during_an_upgrade_are_answered_at_once(rig: Rig) -> None:
    session = rig.polling()
    transport = rig.candidate(session, "2probe")
    assert transport.take() == ["3probe"]
    assert rig.poll(session).payload == b"6"
    session.send("a")
    assert rig.poll(session).payload == b"4a"
    assert session.upgrading


def test_a_probe_lets_out_what_is_queued(rig: Rig) -> None:
    session = rig.polling()
    poll = rig.poll(session)
    session.send("a")
    transport = rig.candidate(session, "2probe")
    assert poll.payload == b"4a"
    assert transport.take() == ["3probe"]


def test_what_waits_for_a_poll_goes_over_the_websocket_in_order(rig: Rig) -> None:
    session = rig.polling()
    transport = rig.candidate(session, "2probe")
    transport.take()
    session.send("a")
    session.send_packet(EncodedPacket(b'51-["b"]', (b"\x01\x02",)))
    session.send(b"\x03")
    rig.loop.settle()
    assert transport.writes == []
    transport.receive("5", "4echo")
    session.send("c")
    rig.loop.settle()
    assert transport.take() == ["4a", '451-["b"]', b"\x01\x02", b"\x03", "4echo", "4c"]


def test_what_was_queued_and_flushed_in_the_same_turn(rig: Rig) -> None:
    session = rig.polling()
    transport = rig.candidate(session, "2probe")
    transport.take()
    session.send("a")
    transport.receive("5")
    rig.loop.settle()
    assert transport.take() == ["4a"]


def test_a_poll_that_still_waits_at_the_end(rig: Rig) -> None:
    session = rig.polling()
    poll = rig.poll(session)
    session.send("a")
    transport = rig.candidate(session, "5")  # without a probe, as stock servers allow
    assert poll.payload == b"4a"
    session.send("b")
    rig.loop.settle()
    assert transport.take() == ["4b"]
    assert session.transport_name == "websocket"


def test_polling_is_over_after_an_upgrade(rig: Rig) -> None:
    session = rig.polling()
    polling = session.polling
    assert polling is not None
    rig.candidate(session, "2probe", "5")
    from engine_fakes import Poll

    assert not polling.poll(Poll())
    assert not polling.post(b"4late")
    assert not session.closed


@pytest.mark.parametrize("packets", [("2probe",), (), ("2probe", "5")])
def test_a_second_websocket_is_accepted_and_closed(rig: Rig, packets: tuple[str, ...]) -> None:
    session = rig.polling()
    first = rig.candidate(session, *packets)
    first.take()
    second = rig.candidate(session, "2probe", "5", "4hello")
    assert second.written.startswith(b"HTTP/1.1 101 ")
    assert second.take() == [("close", 1005)]
    if "5" not in packets:
        first.receive("2probe", "5")
        assert first.take() == ["3probe"]
    first.receive("4a")
    rig.loop.settle()
    assert first.take() == ["4a"]
    assert rig.sink(session).events == [("upgrade", None), ("text", b"a")]


def test_a_websocket_for_a_closed_session(rig: Rig) -> None:
    session = rig.polling()
    session.close()
    assert rig.candidate(session).take() == [("close", 1005)]


def test_upgrades_not_allowed() -> None:
    rig = Rig(allow_upgrades=False)
    assert rig.candidate(rig.polling(), "2probe").take() == [("close", 1005)]


@pytest.mark.parametrize(
    "packet", ["4hello", "", "3", "2", "6", "1", "probe", b"\x01", "5x", "2probe "]
)
@pytest.mark.parametrize("probed", [False, True])
def test_a_wrong_packet_ends_the_candidate_alone(
    rig: Rig, packet: str | bytes, probed: bool
) -> None:
    session = rig.polling()
    transport = rig.candidate(session, *(["2probe"] if probed else []))
    transport.take()
    transport.receive(packet, "5", "4late")
    assert transport.take() == [("close", 1005)]
    check_it_polls(rig)
    transport.lose()
    check_it_polls(rig)


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize("how", ["lost", "close frame", "bad frame", "eof"])
def test_a_lost_candidate(rig: Rig, how: str, probed: bool) -> None:
    session = rig.polling()
    transport = rig.candidate(session, *(["2probe"] if probed else []))
    if how == "close frame":
        transport.connection.data_received(b"\x88\x80\x00\x00\x00\x00")
    elif how == "bad frame":
        transport.connection.data_received(b"\xff\xff")
    elif how == "eof":
        assert not transport.connection.eof_received()
    if how in {"lost", "eof"}:
        transport.lose()
    check_it_polls(rig)
    if how not in {"lost", "eof"}:
        transport.lose()
    check_it_polls(rig)
    # And another WebSocket may try.
    second = rig.candidate(session, "2probe", "5")
    assert second.take() == ["3probe"]
    assert session.transport_name == "websocket"


@pytest.mark.parametrize("probed", [False, True])
def test_upgrade_timeout(rig: Rig, probed: bool) -> None:
    session = rig.polling()
    transport = rig.candidate(session, *(["2probe"] if probed else []))
    transport.take()
    rig.loop.sleep(9.5)
    assert transport.take() == []
    rig.loop.sleep(0.7)
    assert transport.take() == [("close", 1005)]
    transport.receive("5")
    check_it_polls(rig)
    seen = []
    for seconds in (10.0, 21.0):  # it never answers our close frame
        rig.loop.sleep(seconds)
        seen.append(transport.aborted)
    assert seen == [False, True]
    assert not session.closed


def test_an_upgrade_in_time_is_not_ended_later(rig: Rig) -> None:
    session, transport = rig.upgraded()
    rig.loop.sleep(24.0)
    assert not session.closed
    assert transport.take() == []


@pytest.mark.parametrize("probed", [False, True])
def test_a_session_that_ends_takes_its_candidate_along(rig: Rig, probed: bool) -> None:
    for end in ("close", "fail", "wait"):
        session = rig.polling()
        poll = None if end == "wait" else rig.poll(session)
        transport = rig.candidate(session, *(["2probe"] if probed else []))
        transport.take()
        if end == "fail":
            session.fail("ping timeout")
        else:
            session.close()
        if probed and end != "fail":  # the client has left polling: it hears of it here
            assert transport.take() == []
            transport.receive("5", "4late")
        assert transport.take() == [("close", 1005)]
        if poll is not None:
            assert poll.payload == (b"6" if probed else b"1")
        transport.receive("5", "4late")
        assert len(rig.sink(session).events) == 1
        assert transport.writes == []


def test_the_last_packets_of_a_session_closed_while_it_upgrades(rig: Rig) -> None:
    session = rig.polling()
    transport = rig.candidate(session, "2probe")
    session.send("last")
    session.close()
    assert transport.take() == ["3probe"]
    transport.receive("5")
    assert transport.take() == ["4last", ("close", 1005)]
    assert rig.engine.sessions == {}


def test_a_session_closed_while_it_upgrades_whose_candidate_fails(rig: Rig) -> None:
    session = rig.polling()
    transport = rig.candidate(session, "2probe")
    session.send("last")
    session.close()
    transport.lose()
    assert rig.poll(session).payload == b"4last"
    assert rig.poll(session).payload == b"1"
    assert rig.engine.sessions == {}


def test_the_sink_closes_on_upgrade(rig: Rig) -> None:
    session = rig.polling()
    sink = rig.sink(session)
    sink.on_upgrade = session.close  # type: ignore[method-assign]
    transport = rig.candidate(session, "2probe")
    session.send("last")
    transport.take()
    transport.receive("5", "4late")
    assert transport.take() == ["4last", ("close", 1005)]
    assert sink.events == [("close", "forced close")]
    rig.loop.settle()


def test_a_candidate_whose_kernel_is_full(rig: Rig) -> None:
    session = rig.polling()
    transport = rig.candidate(session, "2probe")
    session.send("a")
    transport.take()
    transport.connection.pause_writing()
    transport.receive("5", "4b")
    rig.loop.settle()
    assert transport.writes == []
    assert not session.writable
    transport.drain()
    rig.loop.settle()
    assert transport.take() == ["4a", "4b"]


def check_it_polls(rig: Rig) -> None:
    """See that the only session goes on by polling."""
    (session,) = rig.engine.sessions.values()
    assert session.transport_name == "polling"
    assert not session.upgrading
    poll = rig.poll(session)
    assert not poll.payloads
    rig.post(session, b"4hello")
    rig.loop.settle()
    assert poll.payload == b"4hello"
    assert rig.sink(session).events[-1] == ("text", b"hello")


def test_extra_bytes_are_read(rig: Rig) -> None:
    from engine_fakes import MASK, RESPONSE
    from limpet_worker.websocket.frames import encode

    transport = FakeTransport()
    session = rig.engine.open_websocket(
        rig.request(), transport, RESPONSE, encode(1, b"4early", MASK)
    )
    assert rig.sink(session).events == [("text", b"early")]
