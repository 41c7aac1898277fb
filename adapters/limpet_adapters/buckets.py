"""Topics of the bus: rooms hashed into buckets, and the places that are no room.

A topic is three bytes, ``number 2 | version and space 1``, and a ZeroMQ subscription is a prefix
match: since all topics have one length, none is a prefix of another. Sentinels alone are longer and
have a space of their own, the last in byte order, so that a SUB that connects again, which repeats
its subscriptions in that order, still sends its sentinel last.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

VERSION: Final = 1
"""Version of the frames; frames of another version have other topics and are never subscribed."""

ROOMS: Final = 0
"""Space of the rooms: the number is a hash of namespace and room."""
CLUSTER: Final = 1
"""Space of what every worker reads."""
HUB: Final = 2
"""Space of what the hub says to all: beats."""
INBOX: Final = 3
"""Space of single workers: the number is part of the worker id; two may share one."""
SENTINEL: Final = 15
"""Space of the subscriptions that only say: those before me are in force."""

SPACES: Final = frozenset({ROOMS, CLUSTER, HUB, INBOX})
"""Spaces that messages are sent to."""

TOPIC_SIZE: Final = 3
MOST_BUCKETS: Final = 65_536
DEFAULT_BUCKETS: Final = 1_024


def topic(space: int, number: int = 0) -> bytes:
    """Return the topic of a space (see above) and a number of 16 bits."""
    return number.to_bytes(2, "big") + bytes((VERSION << 4 | space,))


CLUSTER_TOPIC: Final = topic(CLUSTER)
HUB_TOPIC: Final = topic(HUB)
_SENTINELS: Final = topic(SENTINEL, 0xFFFF)


def inbox(worker_id: int) -> bytes:
    """Return the topic that one worker reads, and seldom another too."""
    return topic(INBOX, worker_id & 0xFFFF)


def sentinel(worker_id: int) -> bytes:
    """Return what a worker subscribes last; nothing is ever sent to it."""
    return _SENTINELS + worker_id.to_bytes(8, "big")


def sentinel_of(subscribed: bytes) -> int | None:
    """Return the worker id of a sentinel, None when the topic is something else."""
    if len(subscribed) != TOPIC_SIZE + 8 or not subscribed.startswith(_SENTINELS):
        return None
    return int.from_bytes(subscribed[TOPIC_SIZE:], "big")


class Buckets:
    """Hashes the rooms of one namespace into topics, alike in every process.

    Args:
        namespace: its name.
        count: how many buckets there are, 1 to 65,536; the same in the whole cluster. More buckets
            mean fewer messages of other rooms, and more memory for subscriptions.

    Raises:
        ValueError: count is out of range.
    """

    __slots__ = ("_count", "_seed", "whole")

    def __init__(self, namespace: str, count: int = DEFAULT_BUCKETS) -> None:
        check(count)
        self._count = count
        self._seed = crc32(namespace.encode("utf-8", "surrogatepass") + b"\x00")
        self.whole = self.topic("")
        """Where messages to the whole namespace go."""

    def topic(self, room: str) -> bytes:
        """Return the topic of a room."""
        number = crc32(room.encode("utf-8", "surrogatepass"), self._seed) % self._count
        return topic(ROOMS, number)


def check(count: int) -> None:
    """Refuse a number of buckets that is out of range.

    Raises:
        ValueError: with the option, its value and what would be right.
    """
    if not 1 <= count <= MOST_BUCKETS:
        raise ValueError(f"buckets={count}: expected 1 to {MOST_BUCKETS}")
