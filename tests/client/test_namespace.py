"""A namespace's core, with a connection that is a list: buffers, answers, retries, recovery."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from limpet_adapters.packet import EncodedPacket
from limpet_client.errors import (
    AckTimeout,
    ConnectError,
    Disconnected,
    NotSent,
    SendBufferFull,
    TransportError,
)
from limpet_client.namespace import NamespaceCore
from limpet_worker.socketio.packet import decode


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A core, and the connection and the listener it has, in one."""

    def __init__(self, name: str = "/", **options: Any) -> None:
        self.core = NamespaceCore(name, self, self, **options)
        self.writable = True
        self.alive = True
        self.full = False
        self.sent: list[bytes | EncodedPacket] = []
        self.heard: list[Any] = []
        self.timers: dict[int, Timer] = {}

    def send(self, packet: bytes | EncodedPacket, *, compress: bool = True) -> None:
        assert compress
        self.sent.append(packet)

    def on_event(self, arguments: list[Any], id_: int | None) -> None:
        self.heard.append((*arguments, id_) if id_ is not None else tuple(arguments))

    def on_outgoing(self, arguments: tuple[object, ...]) -> None: ...

    def on_connect(self) -> None:
        self.heard.append("connect")

    def on_connect_error(self, error: ConnectError) -> None:
        self.heard.append(("connect_error", str(error), error.data))

    def on_disconnect(self, reason: str, error: TransportError | None) -> None:
        self.heard.append(("disconnect", reason))

    def on_idle(self) -> None:
        self.heard.append("idle")

    def start_timer(self, seconds: float, id_: int) -> object:
        assert seconds
        timer = self.timers[id_] = Timer()
        return timer

    def gets(self, packet: bytes) -> None:
        self.core.on_packet(decode(packet))

    def connect(self, answer: bytes = b'0{"sid":"a"}') -> Rig:
        self.core.active = True
        self.core.ask(None)
        self.gets(answer)
        self.sent.clear()
        self.heard.clear()
        return self


class Answers(list[Any]):
    """What came as answers: types of errors, or values."""

    def __call__(self, error: Exception | None, values: list[Any]) -> None:
        self.append(type(error) if error is not None else values)


def test_connecting() -> None:
    rig = Rig("/chat")
    rig.core.active = True
    rig.core.ask({"token": 1})
    rig.core.ask({"token": 1})
    assert rig.sent == [b'0/chat,{"token":1}']
    rig.gets(b'0/chat,{"sid":"abc"}')
    assert rig.heard == ["connect"]
    assert (rig.core.sid, rig.core.connected, rig.core.recovered) == ("abc", True, False)


def test_what_came_before_is_handed_on_first_then_what_waits_is_sent() -> None:
    rig = Rig()
    rig.core.emit(("a", 1))
    rig.core.emit(("b", b"x"))
    rig.core.active = True
    rig.core.ask(None)
    rig.gets(b'2["early"]')
    rig.gets(b'27["early, please answer"]')
    assert rig.heard == []
    rig.gets(b'0{"sid":"abc"}')
    assert rig.heard == [("early",), ("early, please answer", 7), "connect"]
    first, second = rig.sent[1:]
    assert first == b'2["a",1]'
    assert isinstance(second, EncodedPacket)


def test_a_refusal() -> None:
    rig = Rig()
    answers = Answers()
    rig.core.active = True
    rig.core.ask(None)
    rig.core.emit(("a",), answers)
    rig.gets(b'4{"message":"no","data":[1]}')
    assert rig.heard == ["idle", ("connect_error", "no", [1])]
    assert not rig.core.active
    assert not answers  # it has not been sent: the next connection may
    rig.connect()
    rig.gets(b'30["yes"]')
    assert answers == [["yes"]]


@pytest.mark.parametrize("packet", [b"4", b'4"text"', b"4{}", b'4{"message":null}'])
def test_refusals_of_other_servers(packet: bytes) -> None:
    rig = Rig()
    rig.core.active = True
    rig.core.ask(None)
    rig.gets(packet)
    assert rig.heard[1][0] == "connect_error"


def test_disconnected_while_it_connects() -> None:
    rig = Rig("/x")
    rig.core.active = True
    rig.core.ask(None)
    rig.core.disconnect()
    rig.gets(b'0/x,{"sid":"abc"}')
    assert rig.sent == [b"0/x,", b"1/x,"]
    assert not rig.core.connected


def test_disconnected_and_connected_while_it_connects() -> None:
    rig = Rig()
    rig.core.active = True
    rig.core.ask(None)
    rig.core.disconnect()
    rig.core.active = True
    rig.core.ask(None)
    rig.gets(b'0{"sid":"abc"}')
    assert rig.sent == [b"0"]  # a second CONNECT would end the connection
    assert rig.core.connected


def test_answers() -> None:
    rig, answers = Rig().connect(), Answers()
    rig.core.emit(("a",), answers)
    rig.core.emit(("b",), answers, seconds=1.0)
    rig.gets(b'31["late"]')
    rig.gets(b"30[]")
    rig.gets(b'30["twice"]')
    rig.gets(b'399["unknown"]')
    rig.gets(b"3")
    assert answers == [["late"], []]
    assert rig.timers[1].cancelled


def test_an_answer_that_does_not_come() -> None:
    rig, answers = Rig(ack_timeout=1.0).connect(), Answers()
    rig.core.emit(("a",), answers)
    rig.core.expire(0)
    rig.core.expire(0)
    rig.gets(b"30[1]")
    assert answers == [AckTimeout]


def test_what_was_sent_is_answered_with_an_error_and_what_waits_is_kept() -> None:
    rig, answers = Rig().connect(), Answers()
    rig.core.emit(("sent",), answers)
    rig.alive = False
    rig.core.emit(("waits",), answers)
    rig.core.on_lost("transport close", None)
    assert rig.heard == [("disconnect", "transport close")]
    assert answers == [Disconnected]
    rig.alive = True
    rig.core.ask(None)
    rig.gets(b'0{"sid":"b"}')
    rig.gets(b"31[1]")
    assert answers == [Disconnected, [1]]


def test_lost_while_it_connects() -> None:
    rig = Rig()
    rig.core.active = True
    rig.core.ask(None)
    rig.gets(b'2["early"]')
    rig.core.on_lost("transport close", None)
    assert rig.heard == [("connect_error", "transport close", None)]
    rig.core.ask(None)
    rig.gets(b'0{"sid":"b"}')
    assert rig.heard[1:] == ["connect"]


def test_volatile() -> None:
    rig, answers = Rig(), Answers()
    rig.core.emit(("a",), volatile=True)
    rig.connect()
    rig.core.emit(("b",), volatile=True)
    rig.writable = False
    rig.core.emit(("c",), volatile=True)
    rig.core.emit(("d",), answers, volatile=True)
    assert rig.sent == [b'2["b"]']
    assert answers == [NotSent]


def test_limits() -> None:
    rig = Rig(limit=2)
    rig.core.emit(("a",))
    rig.core.emit(("b",))
    with pytest.raises(SendBufferFull, match="2 events wait"):
        rig.core.emit(("c",))
    rig.connect()
    rig.full = True
    with pytest.raises(SendBufferFull):
        rig.core.emit(("d",), Answers())
    assert not rig.core.acks
    retrying = Rig(limit=1, retries=1)
    retrying.core.emit(("a",))
    with pytest.raises(SendBufferFull):
        retrying.core.emit(("b",))


def test_the_servers_disconnect() -> None:
    rig = Rig().connect()
    rig.gets(b"1")
    assert rig.heard == ["idle", ("disconnect", "io server disconnect")]
    assert not rig.core.active
    rig.gets(b'2["late"]')
    rig.gets(b"1")
    assert len(rig.heard) == 2


def test_recovery() -> None:
    rig = Rig().connect(b'0{"sid":"a","pid":"p"}')
    rig.gets(b'2["x","1","offset-1"]')
    rig.gets(b'21["wants an answer","text"]')  # has no offset
    rig.gets(b'2["name only"]')
    rig.gets(b'2["volatile",5]')
    rig.core.on_lost("transport close", None)
    rig.core.ask({"token": 1})
    assert rig.sent == [b'0{"pid":"p","offset":"offset-1","token":1}']
    rig.heard.clear()
    rig.gets(b'2["missed","offset-2"]')
    rig.gets(b'0{"sid":"a","pid":"p"}')
    assert rig.core.recovered
    assert rig.heard == [("missed", "offset-2"), "connect"]
    assert rig.core.offset == "offset-2"


def test_no_recovery() -> None:
    rig = Rig().connect(b'0{"sid":"a","pid":"p"}')
    rig.core.on_lost("transport close", None)
    rig.core.ask(None)
    assert rig.sent == [b'0{"pid":"p"}']
    rig.gets(b'0{"sid":"b","pid":"q"}')
    assert not rig.core.recovered


def test_retries_one_at_a_time() -> None:
    rig, answers = Rig(retries=2).connect(), Answers()
    rig.core.emit(("a",), answers)
    rig.core.emit(("b",), answers)
    assert rig.sent == [b'20["a"]']
    for id_ in (0, 1, 2):
        rig.core.expire(id_)
    assert rig.sent == [b'20["a"]', b'21["a"]', b'22["a"]', b'23["b"]']
    rig.gets(b"30[1]")  # too late
    rig.gets(b"33[2]")
    assert answers == [AckTimeout, [2]]
    assert rig.core.queued == 0


def test_a_retry_with_a_full_buffer_fails_like_one_without_an_answer() -> None:
    rig, answers = Rig(retries=1).connect(), Answers()
    rig.full = True
    rig.core.emit(("a",), answers)
    assert answers == [SendBufferFull]
    assert rig.core.queued == 0


def test_giving_up_answers_all() -> None:
    rig, answers = Rig(), Answers()
    rig.core.emit(("waits",), answers)
    rig.core.give_up()
    assert answers == [Disconnected]
    retrying = Rig(retries=1).connect()
    retrying.core.emit(("in flight",), answers)
    retrying.core.emit(("queued",), answers)
    retrying.core.give_up()
    assert answers == [Disconnected] * 3
    assert not retrying.core.acks


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class AnyLife(RuleBasedStateMachine):
    """Whatever happens, each answer is called once, and events go out in order."""

    retries = 0

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(retries=self.retries)
        self.answered: dict[int, int] = {}
        self.number = 0

    @rule()
    def emit(self) -> None:
        number = self.number
        self.number += 1

        def answer(error: Exception | None, values: list[Any]) -> None:
            assert (error is None) == (values == ["ok"])
            self.answered[number] = self.answered.get(number, 0) + 1

        self.rig.core.emit(("event", number), answer, seconds=1.0)

    @rule()
    def connect(self) -> None:
        self.rig.core.active = True
        self.rig.core.ask(None)
        self.rig.gets(b'0{"sid":"a"}')

    @rule()
    def refuse(self) -> None:
        if not self.rig.core.connected:
            self.rig.gets(b'4{"message":"no"}')

    @rule()
    def lose(self) -> None:
        self.rig.core.on_lost("transport close", None)

    @rule()
    def kick(self) -> None:
        self.rig.gets(b"1")

    @rule()
    def disconnect(self) -> None:
        self.rig.core.disconnect()

    @rule()
    def acknowledge(self) -> None:
        if self.rig.core.connected and self.rig.core.acks:
            self.rig.gets(b'3%d["ok"]' % min(self.rig.core.acks))

    @rule()
    def expire(self) -> None:
        if self.rig.core.acks:
            self.rig.core.expire(max(self.rig.core.acks))

    @invariant()
    def answers_come_once(self) -> None:
        assert all(count == 1 for count in self.answered.values())

    @invariant()
    def order_holds(self) -> None:
        texts = [packet for packet in self.rig.sent if isinstance(packet, bytes)]
        events = [decode(text).data[1] for text in texts if text.startswith(b"2")]
        first_times = list(dict.fromkeys(events))
        assert first_times == sorted(first_times)

    def teardown(self) -> None:
        self.rig.core.give_up()
        assert sorted(self.answered) == list(range(self.number))
        assert not self.rig.core.acks
        assert all(count == 1 for count in self.answered.values())


class AnyLifeWithRetries(AnyLife):
    retries = 2


TestAnyLife = AnyLife.TestCase
TestAnyLifeWithRetries = AnyLifeWithRetries.TestCase
