"""The hub's ring and the worker's queue: bounded, oldest first, and honest about what is gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_adapters import ring, wire
from limpet_adapters.buckets import ROOMS, topic
from limpet_adapters.outgoing import Outgoing, Waiting
from limpet_adapters.ring import Answer, Published, Ring


def publish(kept: Ring, published: Published, size: int = 0) -> bytes:
    published.sequence += 1
    frame = wire.frame(published.topic, wire.BROADCAST, 1, 1, bytes(size))
    frame = wire.stamped(frame, 9, published.sequence)
    kept.add(published, frame)
    return frame


def test_frames_are_found_by_number() -> None:
    kept = Ring()
    one, two = Published(topic(ROOMS, 1)), Published(topic(ROOMS, 2))
    frames = [publish(kept, one if n % 2 else two) for n in range(20)]
    assert kept.find(one, 3, 5) == Answer([frames[5], frames[7], frames[9]], 5)
    assert kept.find(two, 10, 30) == Answer([frames[18]], 30)
    assert kept.find(two, 11, 12) == Answer([], 12)
    assert kept.find(two, 5, 4) == Answer([], 4)


def test_numbers_may_have_holes() -> None:
    kept = Ring()
    published = Published(topic(ROOMS, 1))
    first = publish(kept, published)
    published.sequence += 5  # nobody was subscribed
    last = publish(kept, published)
    assert kept.find(published, 1, 7) == Answer([first, last], 7)
    assert kept.find(published, 2, 6) == Answer([], 6)


def test_bytes_are_bounded() -> None:
    kept = Ring(limit=1000)
    published = Published(topic(ROOMS, 1))
    frames = [publish(kept, published, 68) for _ in range(25)]  # 100 bytes each
    assert len(kept) == 10
    assert kept.size == 1000
    assert kept.find(published, 1, 25).frames == frames[15:]
    publish(kept, published, 5000)
    assert len(kept) == kept.size == 0


def test_time_is_bounded() -> None:
    kept = Ring(seconds=30)
    published = Published(topic(ROOMS, 1))
    for second in range(100):
        publish(kept, published)
        kept.expire(float(second))
        assert len(kept) <= 30
    assert kept.find(published, 1, 100).frames[0][24:32] == (71).to_bytes(8, "big")
    kept.expire(1000.0)
    assert len(kept) == kept.size == 0
    publish(kept, published)
    kept.expire(1001.0)
    assert len(kept) == 1


def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "ANSWER_BYTES", 250)
    kept = Ring()
    published = Published(topic(ROOMS, 1))
    frames = [publish(kept, published, 68) for _ in range(5)]
    assert kept.find(published, 1, 5) == Answer(frames[:2], 2)
    assert kept.find(published, 4, 5) == Answer(frames[3:], 5)
    monkeypatch.setattr(ring, "ANSWER_BYTES", 10)
    assert kept.find(published, 1, 5) == Answer(frames[:1], 1)  # one at least


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300), st.floats(0, 5)), max_size=100),
    st.integers(32, 2000),
)
def test_the_ring_is_the_tail_of_what_was_sent(
    steps: list[tuple[int, int, float]], limit: int
) -> None:
    kept = Ring(limit=limit, seconds=10)
    all_published = [Published(topic(ROOMS, n)) for n in range(4)]
    sent: list[tuple[Published, bytes]] = []
    now = 0.0
    for which, size, passed in steps:
        sent.append((all_published[which], publish(kept, all_published[which], size)))
        now += passed
        if passed:
            kept.expire(now)
        assert kept.size <= limit
    tail = sent[len(sent) - len(kept) :]
    assert kept.size == sum(len(frame) for _, frame in tail)
    for published in all_published:
        assert kept.find(published, 1, 1000).frames == [f for p, f in tail if p is published]


def waiting(since: float, size: int) -> Waiting:
    return Waiting(since, b"t", wire.BROADCAST, bytes(size))


def test_the_queue_drops_the_oldest_and_says_how_many() -> None:
    queue = Outgoing(limit=100, seconds=5)
    assert queue.put(waiting(0, 60)) == 0
    assert queue.put(waiting(1, 30)) == 0
    assert queue.put(waiting(2, 90)) == 2
    assert (len(queue), queue.size) == (1, 90)
    assert queue.put(waiting(3, 500)) == 1  # one message always has room
    assert queue.first().since == 3
    assert queue.expire(7.9) == 0
    assert queue.expire(8.0) == 1
    assert (len(queue), queue.size) == (0, 0)
    assert queue.expire(9.0) == 0
