"""Order and losses: whatever is lost, doubled or late, each frame comes once and in order or is
counted."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limpet_adapters import wire
from limpet_adapters.buckets import ROOMS, topic
from limpet_adapters.sequence import Loss, Request, Sequencer, Stream

TOPIC = topic(ROOMS, 5)


def frame(sequence: int, size: int = 0) -> bytes:
    return wire.stamped(wire.frame(TOPIC, wire.BROADCAST, 1, 1, bytes(size)), 9, sequence)


def numbers(frames: list[bytes]) -> list[int]:
    return [wire.sequence_of(one) for one in frames]


class Reader:
    """A sequencer with one stream, told and answered in numbers."""

    def __init__(self, last: int = 10, **options: float) -> None:
        self.core = Sequencer(**options)  # type: ignore[arg-type]
        self.stream = self.core.subscribe(TOPIC)
        self.core.acknowledged(self.stream, last, 0.0)

    def take(self, sequence: int, now: float = 0.0, size: int = 0) -> list[int]:
        return numbers(self.core.received(self.stream, frame(sequence, size), now))

    def repair(self, sequences: list[int], through: int, now: float = 0.0) -> list[int]:
        frames = [frame(sequence) for sequence in sequences]
        return numbers(self.core.repaired(self.stream, frames, through, now))

    def asked(self) -> list[tuple[int, int]]:
        requests, self.core.requests = self.core.requests, []
        return [(request.first, request.last) for request in requests]


def test_counting_starts_at_the_acknowledgement() -> None:
    core = Sequencer()
    stream = core.subscribe(TOPIC)
    assert stream.next == 0
    assert numbers(core.received(stream, frame(7), 0)) == [7]  # was subscribed, not confirmed yet
    assert core.received(stream, frame(7), 0) == []
    core.revealed(stream, 100, 0)
    assert not core.requests
    core.acknowledged(stream, 9, 0)
    assert stream.confirmed
    assert numbers(core.received(stream, frame(10), 0)) == [10]
    assert (core.gaps, core.losses, core.deadline()) == (0, [], inf)


def test_later_frames_wait_for_the_missing_ones() -> None:
    reader = Reader(10)
    assert reader.take(11) == [11]
    assert reader.take(14, now=1) == []
    assert reader.asked() == [(12, 13)]
    assert reader.take(15) == []
    assert reader.take(11) == []
    assert reader.asked() == []
    assert reader.core.deadline() == pytest.approx(1.25)
    assert reader.repair([12, 13], 13) == [12, 13, 14, 15]
    assert reader.take(16) == [16]
    assert reader.core.losses == []
    assert (reader.core.gaps, reader.core.repaired_frames, reader.core.doubles) == (1, 2, 1)
    assert reader.core.deadline() == inf


def test_a_beat_reveals_a_lost_tail() -> None:
    reader = Reader(10)
    reader.core.revealed(reader.stream, 10, 0)
    assert reader.asked() == []
    reader.core.revealed(reader.stream, 12, 0)
    assert reader.asked() == [(11, 12)]
    assert reader.take(13) == []
    reader.core.revealed(reader.stream, 15, 0)
    assert reader.asked() == []  # one request at a time
    assert reader.repair([11, 12], 12) == [11, 12, 13]
    assert reader.asked() == [(14, 15)]
    assert reader.repair([14], 15) == [14]
    assert reader.core.losses == [Loss(TOPIC, 15, 15)]
    assert reader.take(16) == [16]


def test_an_acknowledgement_of_another_subscriber_reveals_too() -> None:
    reader = Reader(10)
    reader.core.acknowledged(reader.stream, 11, 0)
    assert reader.asked() == [(11, 11)]


def test_what_the_answer_lacks_is_lost_at_once() -> None:
    reader = Reader(0)
    assert reader.take(5) == []
    assert reader.take(8) == []
    assert reader.asked() == [(1, 4)]
    assert reader.repair([3], 4) == [3, 5]
    assert reader.core.losses == [Loss(TOPIC, 1, 2), Loss(TOPIC, 4, 4)]
    assert reader.asked() == [(6, 7)]
    assert reader.repair([6, 7], 7) == [6, 7, 8]


def test_an_answer_in_parts_is_continued() -> None:
    reader = Reader(0)
    reader.take(9)
    assert reader.asked() == [(1, 8)]
    assert reader.repair([1, 2, 3], 3, now=0.2) == [1, 2, 3]
    assert reader.asked() == [(4, 8)]
    assert reader.core.deadline() == pytest.approx(0.45)  # it moves: time begins anew
    assert reader.repair([4, 5, 6, 7, 8], 8) == [4, 5, 6, 7, 8, 9]


def test_waiting_ends_in_time() -> None:
    reader = Reader(0)
    reader.take(3, now=5)
    reader.take(6, now=5.1)
    assert reader.core.expired(5.2) == []
    assert numbers(reader.core.expired(5.25)) == [3, 6]
    assert reader.core.losses == [Loss(TOPIC, 1, 2), Loss(TOPIC, 4, 5)]
    assert [loss.frames for loss in reader.core.losses] == [2, 2]
    assert reader.repair([1, 2], 2) == []  # too late: they were counted
    assert reader.take(7) == [7]


def test_held_bytes_are_bounded() -> None:
    reader = Reader(0, hold_bytes=1000)
    assert reader.take(2, size=500) == []
    assert reader.take(4, size=500) == [2, 4]
    assert [(loss.first, loss.last) for loss in reader.core.losses] == [(1, 1), (3, 3)]
    both = Sequencer(hold_bytes_all=1000)
    one, two = both.subscribe(TOPIC), both.subscribe(topic(ROOMS, 6))
    for stream in (one, two):
        both.acknowledged(stream, 0, 0)
    assert both.received(one, frame(2, 600), 0) == []
    assert numbers(both.received(two, frame(2, 600), 0)) == [2]
    assert numbers(both.repaired(one, [frame(1)], 1, 0)) == [1, 2]


def test_answers_for_a_topic_that_was_left_are_ignored() -> None:
    reader = Reader(0)
    reader.take(3)
    reader.core.unsubscribe(TOPIC)
    assert reader.repair([1, 2], 2) == []
    assert reader.core.deadline() == inf
    again = reader.core.subscribe(TOPIC)
    reader.core.acknowledged(again, 7, 0)
    assert numbers(reader.core.received(again, frame(8), 0)) == [8]


def test_another_life_of_the_hub_begins_anew() -> None:
    reader = Reader(10)
    reader.take(13)
    assert numbers(reader.core.restart()) == [13]
    assert reader.core.losses == [Loss(TOPIC, 11, 12)]
    assert reader.repair([11, 12], 12) == []
    stream = reader.core.streams[TOPIC]
    assert not stream.confirmed
    reader.core.acknowledged(stream, 0, 0)
    assert numbers(reader.core.received(stream, frame(1), 0)) == [1]


class Bus(RuleBasedStateMachine):
    """A hub, a way that loses, doubles and swaps, and a sequencer; checked against what was sent.

    Every frame sent after the acknowledgement is delivered once and in order, or counted as lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.core = Sequencer(hold_bytes=2000)
        self.now = 0.0
        self.sent = 0
        self.kept_from = 1  # what the ring has
        self.way: list[int] = []
        self.start = 0
        self.delivered: list[int] = []
        self.lost: list[int] = []
        self.requests: list[Request] = []
        self.stream: Stream

    @initialize(before=st.integers(0, 3))
    def subscribe(self, before: int) -> None:
        self.stream = self.core.subscribe(TOPIC)
        self.sent = self.start = before
        self.core.acknowledged(self.stream, before, self.now)

    def take(self, frames: list[bytes]) -> None:
        self.delivered += numbers(frames)
        for loss in self.core.losses:
            assert loss.topic == TOPIC
            self.lost += range(loss.first, loss.last + 1)
        self.core.losses.clear()
        self.requests += self.core.requests
        self.core.requests.clear()

    @rule(amount=st.integers(1, 5))
    def send(self, amount: int) -> None:
        for _ in range(amount):
            self.sent += 1
            self.way.append(self.sent)

    @precondition(lambda self: self.way)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.way.pop(data.draw(st.integers(0, len(self.way) - 1)))

    @precondition(lambda self: self.way)
    @rule(data=st.data())
    def double(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.way) - 1))
        self.way.insert(data.draw(st.integers(0, len(self.way))), self.way[at])

    @precondition(lambda self: len(self.way) > 1)
    @rule(data=st.data())
    def swap(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.way) - 2))
        self.way[at : at + 2] = self.way[at + 1], self.way[at]

    @precondition(lambda self: self.way)
    @rule(amount=st.integers(1, 8), size=st.integers(0, 500))
    def arrive(self, amount: int, size: int) -> None:
        for _ in range(min(amount, len(self.way))):
            sequence = self.way.pop(0)
            self.take(self.core.received(self.stream, frame(sequence, size), self.now))

    @rule()
    def beat(self) -> None:
        self.core.revealed(self.stream, self.sent, self.now)
        self.take([])

    @precondition(lambda self: self.requests)
    @rule(most=st.integers(1, 6))
    def answer(self, most: int) -> None:
        request = self.requests.pop(0)
        chosen = range(max(request.first, self.kept_from), request.last + 1)[:most]
        through = request.last if len(chosen) < most else chosen[-1]
        frames = [frame(sequence) for sequence in chosen]
        self.take(self.core.repaired(request.stream, frames, through, self.now))

    @precondition(lambda self: self.requests)
    @rule()
    def lose_answer(self) -> None:
        self.requests.pop(0)

    @rule(amount=st.integers(1, 5))
    def forget(self, amount: int) -> None:
        self.kept_from = min(self.kept_from + amount, self.sent + 1)

    @rule(seconds=st.floats(0.01, 0.3))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.core.expired(self.now))

    @invariant()
    def in_order_once_or_counted(self) -> None:
        assert self.delivered == sorted(set(self.delivered))
        assert sorted(self.delivered + self.lost) == list(
            range(self.start + 1, self.start + 1 + len(self.delivered) + len(self.lost))
        )

    @invariant()
    def waiting_is_bounded(self) -> None:
        deadline = self.core.deadline()
        assert deadline == inf or self.now < deadline <= self.now + 0.25 + 1e-9

    def teardown(self) -> None:
        self.way.clear()
        self.beat()
        self.now += 1
        self.take(self.core.expired(self.now))
        assert sorted(self.delivered + self.lost) == list(range(self.start + 1, self.sent + 1))
        assert self.core.deadline() == inf
        assert not self.stream.held


Bus.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestBus = Bus.TestCase
