"""A session under any order of events: what was sent arrives once, in order, and it ends once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine_fakes import FakeTransport, Poll, Rig
from limpet_adapters.packet import EncodedPacket
from limpet_worker.engineio.payload import binary_of
from limpet_worker.engineio.session import Session

REASONS = {
    "forced close",
    "transport close",
    "transport error",
    "parse error",
    "ping timeout",
    "slow consumer",
}

seldom = st.integers(0, 11).map(lambda number: number == 11)
"""An end would otherwise come too soon for much to happen before."""


class SessionMachine(RuleBasedStateMachine):
    """A client that plays by the rules until it leaves, and a server that sends and closes."""

    session: Session
    wire: FakeTransport | None
    """The client's WebSocket: carries the session, or wants to."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(
            ping_interval=5.0, ping_timeout=4.0, upgrade_timeout=3.0, close_timeout=200.0
        )
        self.wire = None
        self.get: Poll | None = None
        self.sent: list[str | bytes] = []
        self.received: list[str | bytes] = []
        self.posted: list[bytes] = []
        self.number = 0
        self.carried = False
        """Whether the client has sent ``5`` or began with a WebSocket."""
        self.clean = True
        """Whether all that was sent must arrive although the session was closed."""

    @initialize(websocket=st.booleans())
    def begin(self, websocket: bool) -> None:
        if websocket:
            self.session, self.wire = self.rig.websocket()
            self.carried = True
        else:
            self.session = self.rig.polling()

    # --- what the client gets --------------------------------------------

    def take(self, event: str | bytes) -> None:
        if isinstance(event, bytes) or event.startswith("4"):
            self.received.append(event if isinstance(event, bytes) else event[1:])
        elif event == "2":
            self.answer_ping()
        else:
            assert event in {"1", "3probe", "6"}
            assert event != "6" or not self.carried

    def answer_ping(self) -> None:
        if self.carried and self.wire is not None:
            self.wire.receive("3")
        elif self.session.polling is not None:
            self.session.polling.post(b"3")

    def collect(self) -> None:
        """Read what has come."""
        get = self.get
        if get is not None and get.payload is not None:
            self.get = None
            for part in get.payload.split(b"\x1e"):
                self.take(binary_of(part) if part[:1] == b"b" else part.decode())
        if self.wire is not None:
            for event in self.wire.take():
                if isinstance(event, tuple):
                    assert event == ("close", 1005)
                else:
                    self.take(event)

    # --- rules -----------------------------------------------------------

    @rule(kind=st.sampled_from(["text", "binary", "packet", "broadcast"]))
    def send(self, kind: str) -> None:
        self.number += 1
        text = f"{self.number}"
        items: list[str | bytes] = [text]
        if kind == "binary":
            items = [text.encode()]
            self.session.send(text.encode())
        elif kind == "text":
            self.session.send(text)
        else:
            packet = EncodedPacket(text.encode(), (b"a" + text.encode(),))
            items = [text, b"a" + text.encode()]
            if kind == "packet":
                self.session.send_packet(packet)
            elif not self.session.closed:  # who has left is in no room
                self.rig.engine.flusher.broadcast([self.session], packet)
        if not self.session.closed:
            self.sent += items

    @rule()
    def turn(self) -> None:
        self.rig.loop.settle()
        self.collect()

    @rule(seconds=st.sampled_from([0.3, 2.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.rig.loop.sleep(seconds)
        self.collect()

    @precondition(lambda self: self.get is None and not self.carried)
    @rule()
    def poll(self) -> None:
        if self.session.polling is not None:
            get = self.get = Poll()
            assert self.session.polling.poll(get) or self.session.closed
            self.collect()

    @rule(count=st.integers(1, 3))
    def say(self, count: int) -> None:
        packets = [f"4said{len(self.posted) + at}" for at in range(count)]
        if self.session.closed:
            return
        self.posted += [packet[1:].encode() for packet in packets]
        if self.carried and self.wire is not None:
            self.wire.receive(*packets)
        elif self.session.polling is not None:
            assert self.session.polling.post("\x1e".join(packets).encode())

    @precondition(lambda self: self.wire is None)
    @rule()
    def try_websocket(self) -> None:
        self.wire = self.rig.candidate(self.session)
        self.collect()

    @precondition(lambda self: self.wire is not None and not self.carried)
    @rule()
    def probe(self) -> None:
        assert self.wire is not None
        self.wire.receive("2probe")
        self.collect()

    @precondition(lambda self: self.wire is not None and not self.carried and self.get is None)
    @rule()
    def upgrade(self) -> None:
        assert self.wire is not None
        self.carried = self.session.candidate is self.wire.connection
        self.wire.receive("5")
        self.collect()

    @precondition(lambda self: self.wire is not None and not self.carried)
    @rule()
    def lose_candidate(self) -> None:
        assert self.wire is not None
        self.wire.lose()
        self.collect()
        self.wire = None

    @precondition(lambda self: self.carried)
    @rule(full=st.booleans())
    def kernel(self, full: bool) -> None:
        assert self.wire is not None
        if full:
            self.wire.connection.pause_writing()
        else:
            self.wire.connection.resume_writing()
        self.collect()

    @rule(discard=st.booleans(), luck=seldom)
    def close(self, discard: bool, luck: bool) -> None:
        if not luck:
            return
        self.clean = self.clean and not discard
        self.session.close(discard=discard)
        self.collect()

    @rule(how=st.sampled_from(["packet", "junk", "lost", "abort"]), luck=seldom)
    def leave(self, how: str, luck: bool) -> None:
        if not luck:
            return
        self.clean = False
        if self.carried and self.wire is not None:
            if how == "lost":
                self.wire.lose()
            else:
                self.wire.receive("1" if how == "packet" else "?")
        elif self.session.polling is not None:
            if how == "abort" and self.get is not None:
                self.session.polling.poll_aborted(self.get)
                self.get = None
            else:
                self.session.polling.post(b"1" if how == "packet" else b"?")
        self.collect()

    # --- what always holds -----------------------------------------------

    @invariant()
    def in_order_and_once(self) -> None:
        assert self.received == self.sent[: len(self.received)]
        if hasattr(self, "session"):
            said = [data for kind, data in self.rig.sink(self.session).events if kind == "text"]
            assert said == self.posted[: len(said)]
            if not self.session.closed:
                assert said == self.posted

    @invariant()
    def it_ends_once_and_lets_go(self) -> None:
        if not hasattr(self, "session"):
            return
        events = self.rig.sink(self.session).events
        assert [kind for kind, _ in events].count("upgrade") <= 1
        reasons = self.rig.sink(self.session).reasons
        if not self.session.closed:
            assert reasons == []
            assert self.rig.engine.sessions == {self.session.sid: self.session}
            return
        assert len(reasons) == 1
        assert reasons[0] in REASONS
        assert events[-1][0] == "close"
        if self.session.sid not in self.rig.engine.sessions:
            assert self.session.out is None
            assert self.session.polling is None
            assert self.session.websocket is None
            assert self.session.wire is None
            assert self.session.candidate is None
            assert self.session.tick == 0
            assert self.get is None or self.get.payload is not None

    def teardown(self) -> None:
        """An open session delivers all; a closed one is forgotten in time."""
        if not hasattr(self, "session"):
            return
        if not self.session.closed:
            if self.carried:
                self.kernel(full=False)
            self.turn()
            for _ in range(2):
                if self.get is None and not self.carried:
                    self.poll()
                    self.turn()
            assert self.received == self.sent
            self.session.close()
            self.collect()
        elif self.clean and self.rig.sink(self.session).reasons == ["forced close"]:
            for _ in range(3):
                if self.get is None and not self.carried:
                    self.poll()
            assert self.received == self.sent
        self.rig.loop.sleep(250.0)
        assert self.rig.engine.sessions == {}
        assert self.rig.engine.stats()["websocket"] == 0
        assert not self.rig.engine.wheel
        assert not self.rig.loop.ready


def test_any_order_of_events() -> None:
    run_state_machine_as_test(
        SessionMachine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )
