"""What the hub sent lately, kept for repairs: bounded in bytes and in time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from typing import Final, NamedTuple

from limpet_adapters.wire import sequence_of

RING_BYTES: Final = 64 * 1024 * 1024
"""Bytes of frames that are kept."""
RING_SECONDS: Final = 30.0
"""How long frames are kept."""
ANSWER_BYTES: Final = 8 * 1024 * 1024
"""Bytes of frames in one answer; one frame is returned however long it is."""


class Published:
    """What the hub knows of one topic."""

    __slots__ = ("changed", "frames", "sequence", "subscribed", "topic")

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.sequence = 0
        """Number of the last frame."""
        self.subscribed = False
        """Somebody reads the topic."""
        self.changed = False
        """A frame was sent since the last beat."""
        self.frames: deque[bytes] = deque()
        """The latest frames, oldest first; owned by the ring."""


class Answer(NamedTuple):
    """What there is of the frames asked for."""

    frames: list[bytes]
    through: int
    """What lies before or at this number and is not in ``frames`` is not kept any more."""


class Ring:
    """Frames of all topics in the order they were sent; the oldest go first."""

    __slots__ = ("_limit", "_marks", "_order", "_seconds", "_start", "size")

    def __init__(self, limit: int = RING_BYTES, seconds: float = RING_SECONDS) -> None:
        self._limit = limit
        self._seconds = seconds
        self._order: deque[Published] = deque()
        self._start = 0  # how many frames have left the ring
        self._marks: deque[tuple[float, int]] = deque()  # time, how many had come by then
        self.size = 0
        """Bytes of the frames that are kept."""

    def __len__(self) -> int:
        return len(self._order)

    def add(self, published: Published, frame: bytes) -> None:
        """Keep a frame of a topic."""
        published.frames.append(frame)
        self._order.append(published)
        self.size += len(frame)
        while self.size > self._limit:
            self._drop()

    def expire(self, now: float) -> None:
        """Let go of what is too old; to be called regularly, ``now`` in monotonic seconds."""
        marks = self._marks
        marks.append((now, self._start + len(self._order)))
        while marks and marks[0][0] <= now - self._seconds:
            _, come = marks.popleft()
            while self._start < come:
                self._drop()

    @staticmethod
    def find(published: Published, first: int, last: int) -> Answer:
        """Return what is kept of a topic's frames from ``first`` to ``last``."""
        frames = list(published.frames)
        chosen = frames[
            bisect_left(frames, first, key=sequence_of) : bisect_right(
                frames, last, key=sequence_of
            )
        ]
        size = 0
        for at, frame in enumerate(chosen):
            size += len(frame)
            if size > ANSWER_BYTES and at:
                return Answer(chosen[:at], sequence_of(chosen[at - 1]))
        return Answer(chosen, last)

    def _drop(self) -> None:
        self.size -= len(self._order.popleft().frames.popleft())
        self._start += 1
