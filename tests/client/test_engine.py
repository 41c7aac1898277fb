"""The session's core, with transports that are lists: states, outbox, heartbeat, upgrade."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_adapters.packet import EncodedPacket
from limpet_client.engine import (
    STATE_CLOSED,
    STATE_CLOSING,
    STATE_OPEN,
    STATE_UPGRADING,
    EngineSession,
    Message,
    Outgoing,
    packet_size,
)
from limpet_client.errors import TransportError
from limpet_client.polling import encode_payload

HELLO: dict[str, Any] = {
    "sid": "s" * 20,
    "upgrades": ["websocket"],
    "pingInterval": 300,
    "pingTimeout": 200,
    "maxPayload": 100,
}


class FakeTransport:
    """Takes packets while it is writable; a polling one is not until ``drain``."""

    def __init__(self, session: EngineSession, name: str) -> None:
        self.session = session
        self.name = name
        self.writable = True
        self.taken: list[list[Outgoing]] = []
        self.did: list[str] = []

    def write(self, packets: list[Outgoing]) -> None:
        assert "aborted" not in self.did
        assert "closed" not in self.did
        self.taken.append(packets)
        if self.name == "polling":
            self.writable = False

    def drain(self) -> None:
        self.writable = True
        self.session.on_drain(self)

    def pause(self) -> None:
        self.did.append("paused")

    def resume(self) -> None:
        self.did.append("resumed")

    def close(self) -> None:
        self.did.append("closed")

    def abort(self) -> None:
        self.did.append("aborted")

    @property
    def packets(self) -> list[bytes]:
        """Everything taken, binary ones as in a payload."""
        return [encode_payload([packet]) for packets in self.taken for packet in packets]


class Rig:
    """A session, its sink and its shell in one."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.heard: list[Any] = []
        self.wanted: list[str] = []
        self.session = EngineSession(self, self, lambda: self.now, **options)
        self.polling = FakeTransport(self.session, "polling")
        self.session.start(self.polling)

    def open(self, **changed: Any) -> Rig:
        self.session.on_text(self.polling, b"0" + json.dumps({**HELLO, **changed}).encode())
        return self

    def upgrade(self) -> FakeTransport:
        """Bring a candidate as far as its probe."""
        candidate = FakeTransport(self.session, "websocket")
        self.session.probe(candidate)
        return candidate

    def on_open(self) -> None:
        self.heard.append("open")

    def on_text(self, data: bytes) -> None:
        self.heard.append(data.decode())

    def on_binary(self, data: bytes) -> None:
        self.heard.append(data)

    def on_ping(self) -> None:
        self.heard.append("ping")

    def on_upgrade(self) -> None:
        self.heard.append("upgrade")

    def on_close(self, reason: str, error: TransportError | None) -> None:
        self.heard.append((reason, str(error) if error else None))

    def want_flush(self) -> None:
        self.wanted.append("flush")

    def want_watch(self) -> None:
        self.wanted.append("watch")

    def want_candidate(self) -> None:
        self.wanted.append("candidate")

    def another_transport(self) -> bool:
        return False


def test_opens() -> None:
    rig = Rig().open()
    assert rig.session.state == STATE_OPEN
    assert rig.session.sid == "s" * 20
    assert rig.heard == ["open"]
    assert rig.wanted == ["watch", "candidate"]


@pytest.mark.parametrize(
    ("options", "hello"),
    [({"upgrade": False}, {}), ({"transports": ["polling"]}, {}), ({}, {"upgrades": []})],
)
def test_no_candidate_unless_wanted(options: dict[str, Any], hello: dict[str, Any]) -> None:
    assert "candidate" not in Rig(**options).open(**hello).wanted


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[]", b"null", b'{"sid":"a","pingInterval":"x","pingTimeout":1}']
)
def test_a_handshake_that_cannot_be_read(payload: bytes) -> None:
    rig = Rig()
    rig.session.on_text(rig.polling, b"0" + payload)
    assert rig.heard == [("parse error", "the handshake cannot be read")]
    assert rig.polling.did == ["aborted"]


def test_messages_come_and_go() -> None:
    rig = Rig().open()
    for packet in (b"4hello", b"bAQID", b"4", b"6"):
        rig.session.on_text(rig.polling, packet)
    rig.session.on_binary(rig.polling, b"raw")
    assert rig.heard == ["open", "hello", b"\1\2\3", "", b"raw"]
    rig.session.send_text(b"a")
    rig.session.send_packet(EncodedPacket(b"b", (b"\1", b"\2")))
    assert not rig.polling.taken
    assert not rig.session.writable
    rig.session.flush()
    assert rig.polling.packets == [b"4a", b"4b", b"bAQ==", b"bAg=="]
    assert not rig.session.writable
    rig.polling.drain()
    assert rig.session.writable


@pytest.mark.parametrize("packet", [b"", b"7", b"x", b"b!", b"0{}", b"\xff"])
def test_what_is_no_packet_ends_the_session(packet: bytes) -> None:
    rig = Rig().open()
    rig.session.on_text(rig.polling, packet)
    assert rig.heard[-1][0] == "parse error"
    assert rig.session.state == STATE_CLOSED


def test_the_server_closes() -> None:
    rig = Rig().open()
    rig.session.on_text(rig.polling, b"1")
    assert rig.heard[-1] == ("transport close", "the server closed the session")


def test_heartbeat() -> None:
    rig = Rig().open()
    assert rig.session.deadline == 0.5
    rig.now = 0.4
    rig.session.on_text(rig.polling, b"2")
    rig.session.flush()
    assert rig.polling.packets == [b"3"]
    assert rig.session.check() == 0.9
    rig.now = 0.9
    rig.session.check()
    assert rig.session.state == STATE_OPEN
    rig.now = 0.91
    assert rig.session.expired
    rig.session.check()
    assert rig.heard == ["open", "ping", ("ping timeout", None)]


def test_posts_are_not_larger_than_the_server_takes() -> None:
    rig = Rig().open()
    for _ in range(10):
        rig.session.send_text(b"x" * 29)
    rig.session.send_packet(EncodedPacket(b"y", (b"z" * 200,)))
    rig.session.flush()
    while len(rig.polling.packets) < 12:
        rig.polling.drain()
    sizes = [len(encode_payload(packets)) for packets in rig.polling.taken]
    assert max(sizes[:-1]) <= 100
    assert len(rig.polling.taken[-1]) == 1  # larger alone: it has to go
    assert sizes[-1] > 100


@given(st.lists(st.integers(0, 120), min_size=1), st.integers(1, 200))
def test_any_division_keeps_the_order(sizes: list[int], limit: int) -> None:
    rig = Rig().open(maxPayload=limit)
    for number, size in enumerate(sizes):
        rig.session.send_text(str(number).encode().ljust(size))
    rig.session.flush()
    while not rig.session.writable:
        rig.polling.drain()
    assert [int(packet[1:]) for packet in rig.polling.packets] == list(range(len(sizes)))
    for packets in rig.polling.taken:
        assert len(packets) == 1 or len(encode_payload(packets)) <= limit + 1


def test_upgrade() -> None:
    rig = Rig().open()
    session = rig.session
    candidate = rig.upgrade()
    assert candidate.packets == [b"2probe"]
    session.send_text(b"by polling")
    session.flush()
    session.on_text(candidate, b"3probe")
    assert session.state == STATE_UPGRADING
    assert rig.polling.did == ["paused"]
    session.send_text(b"waits")
    session.flush()
    session.on_text(rig.polling, b"4last")
    rig.polling.drain()
    assert rig.polling.packets == [b"4by polling"]
    session.on_paused(rig.polling)
    assert session.transport is candidate
    assert candidate.packets == [b"2probe", b"5", b"4waits"]
    assert rig.polling.did == ["paused", "aborted"]
    session.on_text(candidate, b"4first")
    assert rig.heard == ["open", "last", "upgrade", "first"]


def test_a_wrong_answer_to_the_probe() -> None:
    rig = Rig().open()
    candidate = rig.upgrade()
    rig.session.on_text(candidate, b"4hello")
    assert candidate.did == ["aborted"]
    rig.session.on_text(candidate, b"3probe")
    assert rig.session.state == STATE_OPEN


@pytest.mark.parametrize("how", ["closed", "error", "too slow"])
@pytest.mark.parametrize("probed", [False, True])
def test_a_candidate_fails_alone(how: str, probed: bool) -> None:
    rig = Rig().open()
    session = rig.session
    candidate = rig.upgrade()
    if probed:
        session.on_text(candidate, b"3probe")
    session.send_text(b"waits")
    if how == "closed":
        session.on_closed(candidate, None)
    elif how == "error":
        session.on_error(candidate, TransportError("x"))
    else:
        session.drop_candidate()
    session.flush()
    assert session.state == STATE_OPEN
    assert session.transport is rig.polling
    assert rig.polling.packets == [b"4waits"]
    assert rig.polling.did == (["paused", "resumed"] if probed else [])
    session.on_paused(rig.polling)  # it came to rest before it heard that it need not
    assert session.transport is rig.polling


def test_a_second_candidate_is_not_wanted() -> None:
    rig = Rig().open()
    rig.upgrade()
    second = rig.upgrade()
    assert second.did == ["aborted"]


def test_closing_sends_what_waits() -> None:
    rig = Rig().open()
    rig.session.send_text(b"a")
    rig.session.flush()
    rig.session.send_text(b"b")
    rig.session.close()
    rig.session.send_text(b"c")
    assert rig.session.state == STATE_CLOSING
    rig.polling.drain()
    assert rig.heard == ["open"]
    rig.polling.drain()
    assert rig.polling.packets == [b"4a", b"4b"]
    assert rig.polling.did == ["closed"]
    assert rig.heard == ["open", ("forced close", None)]


def test_closing_during_an_upgrade_goes_by_polling() -> None:
    rig = Rig().open()
    candidate = rig.upgrade()
    rig.session.on_text(candidate, b"3probe")
    rig.session.send_text(b"a")
    rig.session.close()
    assert candidate.did == ["aborted"]
    rig.polling.drain()
    assert rig.polling.packets == [b"4a"]
    assert rig.polling.did == ["paused", "resumed", "closed"]


def test_closing_before_it_is_open() -> None:
    rig = Rig()
    rig.session.close()
    assert rig.polling.did == ["aborted"]
    assert rig.heard == [("forced close", None)]
    rig.session.close()
    rig.session.on_text(rig.polling, b"0{}")
    rig.session.on_error(rig.polling, TransportError("late"))
    assert len(rig.heard) == 1


def test_what_waits_is_limited() -> None:
    rig = Rig(max_buffered_bytes=100).open()
    rig.session.send_text(b"x" * 100)
    assert rig.session.full
    rig.session.flush()
    assert not rig.session.full


def test_sizes() -> None:
    for length in range(10):
        message = Message(b"x" * length, binary=True)
        assert packet_size(message) == len(encode_payload([message]))
    assert packet_size(Message(b"4abc", binary=False)) == 4


class Upgrading:
    """Both ends of an upgrade, driven by chance."""

    def __init__(self) -> None:
        self.rig = Rig().open()
        self.sent = 0
        self.candidate: FakeTransport | None = None

    def send(self) -> None:
        self.rig.session.send_text(b"%d" % self.sent)
        self.sent += 1

    def flush(self) -> None:
        self.rig.session.flush()

    def drain(self) -> None:
        if not self.rig.polling.writable and "aborted" not in self.rig.polling.did:
            self.rig.polling.drain()

    def probe(self) -> None:
        free = self.candidate is None or "aborted" in self.candidate.did
        if free and self.rig.session.transport is self.rig.polling:
            self.candidate = self.rig.upgrade()

    def answer(self) -> None:
        if self.candidate is not None:
            self.rig.session.on_text(self.candidate, b"3probe")

    def lose(self) -> None:
        session = self.rig.session
        if self.candidate is not None and session.transport is not self.candidate:
            session.on_closed(self.candidate, None)

    def rest(self) -> None:
        if self.rig.polling.writable and self.rig.session.state == STATE_UPGRADING:
            self.rig.session.on_paused(self.rig.polling)


@given(
    st.lists(
        st.sampled_from(["send", "flush", "drain", "probe", "answer", "lose", "rest"]), max_size=60
    )
)
def test_no_upgrade_loses_or_reorders(steps: list[str]) -> None:
    both = Upgrading()
    for step in steps:
        getattr(both, step)()
    both.lose()
    for _ in range(3 + both.sent):
        both.flush()
        both.drain()
    by_polling = both.rig.polling.packets
    by_websocket: list[bytes] = []
    if both.candidate is not None and both.rig.session.transport is both.candidate:
        probe, upgrade, *by_websocket = both.candidate.packets
        assert (probe, upgrade) == (b"2probe", b"5")
    assert [int(packet[1:]) for packet in by_polling + by_websocket] == list(range(both.sent))
