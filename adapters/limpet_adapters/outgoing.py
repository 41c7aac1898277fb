"""What a worker could not hand to the hub yet: a queue bounded in bytes and in time."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

QUEUE_SECONDS: Final = 5.0
"""How long a message waits for the hub."""
QUEUE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of messages that wait for the hub."""


class Waiting(NamedTuple):
    """A message without its counter: numbers are given when a message leaves, without gaps."""

    since: float
    topic: bytes
    kind: int
    payload: bytes


class Outgoing:
    """Messages in the order they were sent; the oldest give way, and are counted by the caller."""

    __slots__ = ("_limit", "_queue", "_seconds", "size")

    def __init__(self, limit: int = QUEUE_BYTES, seconds: float = QUEUE_SECONDS) -> None:
        self._limit = limit
        self._seconds = seconds
        self._queue: deque[Waiting] = deque()
        self.size = 0
        """Bytes of the payloads that wait."""

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, message: Waiting) -> int:
        """Queue a message; return how many older ones had to go for it."""
        self._queue.append(message)
        self.size += len(message.payload)
        dropped = 0
        while self.size > self._limit and len(self._queue) > 1:
            self.pop()
            dropped += 1
        return dropped

    def first(self) -> Waiting:
        """Return the oldest message; there must be one."""
        return self._queue[0]

    def pop(self) -> None:
        """Take the oldest message out."""
        self.size -= len(self._queue.popleft().payload)

    def expire(self, now: float) -> int:
        """Drop what waited for too long, ``now`` in monotonic seconds; return how many."""
        dropped = 0
        while self._queue and self._queue[0].since <= now - self._seconds:
            self.pop()
            dropped += 1
        return dropped
