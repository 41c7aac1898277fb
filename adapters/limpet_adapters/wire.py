"""The frames of the bus: one message is one ZeroMQ frame, with a header of fixed size.

``bucket 2 | version and space 1 | kind 1 | origin worker id 8 | origin counter 8 |
hub incarnation 4 | sequence 8 | payload``, all big-endian. The first three bytes are the topic
(`limpet_adapters.buckets`); the hub stamps incarnation and sequence and reads nothing behind them.
Payloads are msgpack arrays. Whatever bytes come, decoding raises `WireError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, cast

import msgspec
import zmq

from limpet_adapters.buckets import SPACES, TOPIC_SIZE, VERSION
from limpet_adapters.contract import BroadcastOptions
from limpet_adapters.packet import EncodedPacket

MESSAGE_LIMIT: Final = 16 * 1024 * 1024
"""Bytes a frame may have."""

BROADCAST: Final = 1
"""A packet for the sockets of a namespace."""
PROBE: Final = 2
"""A worker to itself: it is on the bus when it reads this."""
ACKNOWLEDGED: Final = 3
"""The hub to those who subscribe a topic: in force; carries the last sequence, takes none."""
BEAT: Final = 4
"""The hub to all, each second: what changed since the beat before."""

KINDS: Final = frozenset({BROADCAST, PROBE, ACKNOWLEDGED, BEAT})

HEADER_SIZE: Final = 32
STAMP: Final = struct.Struct(">IQ")
"""Hub incarnation and sequence, at `STAMP_AT` in a frame."""
STAMP_AT: Final = 20

_HEADER: Final = struct.Struct(">3sBQQIQ")
_ORIGIN: Final = struct.Struct(">BQQ12x")
_VOLATILE: Final = 1


class WireError(Exception):
    """The bytes are no frame of the bus; the message says what is wrong with them."""


class Header(NamedTuple):
    """What stands in front of every payload."""

    topic: bytes
    kind: int
    origin: int
    """Worker id of the sender, 0 for the hub."""
    counter: int
    """Counts the frames of the origin, from 1, without gaps."""
    incarnation: int
    """Random number of the hub's life; 0 before the hub stamped the frame."""
    sequence: int
    """Counts the frames of a topic in one life of the hub, from 1; 0 before the stamp."""


class Broadcast(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A packet, encoded once at its origin, and to whom it goes."""

    namespace: str
    rooms: frozenset[str]
    """Empty for the whole namespace."""
    except_rooms: frozenset[str]
    flags: int
    text: bytes
    attachments: tuple[bytes, ...]

    def options(self) -> BroadcastOptions:
        """Return to whom it goes, as the receiving worker's own adapter takes it."""
        volatile = bool(self.flags & _VOLATILE)
        return BroadcastOptions(self.rooms, self.except_rooms, local=True, volatile=volatile)

    def packet(self) -> EncodedPacket:
        """Return the packet, to be framed here."""
        return EncodedPacket(self.text, self.attachments)


class Beat(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the hub tells all workers each second."""

    number: int
    """Counts the beats of a life of the hub, from 1."""
    topics: tuple[tuple[bytes, int], ...]
    """Each topic that something was sent to since the beat before, with its last sequence."""
    confirmed: tuple[tuple[int, int], ...]
    """Each origin heard from since the beat before, with its last counter."""


_encode = msgspec.msgpack.Encoder().encode
_decode_broadcast = msgspec.msgpack.Decoder(Broadcast).decode
_decode_beat = msgspec.msgpack.Decoder(Beat).decode


def frame(topic: bytes, kind: int, origin: int, counter: int, payload: bytes) -> bytes:
    """Return a frame that the hub has not stamped yet."""
    return topic + _ORIGIN.pack(kind, origin, counter) + payload


def stamped(frame: bytes, incarnation: int, sequence: int) -> bytes:
    """Return a frame with the stamp of the hub."""
    return frame[:STAMP_AT] + STAMP.pack(incarnation, sequence) + frame[HEADER_SIZE:]


def header(frame: bytes) -> Header:
    """Return the header of a frame.

    Raises:
        WireError: too short, or of an unknown version, space or kind.
    """
    if len(frame) < HEADER_SIZE:
        raise WireError(f"{len(frame)} bytes; a frame has at least {HEADER_SIZE}")
    if frame[2] >> 4 != VERSION:
        raise WireError(f"version {frame[2] >> 4}; ours is {VERSION}")
    if frame[2] & 15 not in SPACES:
        raise WireError(f"unknown space {frame[2] & 15}")
    if frame[3] not in KINDS:
        raise WireError(f"unknown kind {frame[3]}")
    return Header._make(_HEADER.unpack_from(frame))


def sender(socket: zmq.Socket[bytes]) -> Callable[[bytes, int], object]:
    """Return ``send(frame, flags)`` of a socket, without what pyzmq lays over it.

    That layer serves options that a single frame has no use for, at twice the cost of the send.
    """
    return super(zmq.Socket, socket).send


def looker(socket: zmq.Socket[bytes]) -> Callable[[int], int]:
    """Return a function that gives an option of a socket, without what pyzmq lays over it.

    Asked for ``EVENTS`` it says whether more is to be read, for less than half of what it costs
    to be refused by a receive.
    """
    return cast("Callable[[int], int]", super(zmq.Socket, socket).get)


def sequence_of(frame: bytes) -> int:
    """Return the sequence of a frame that has a whole header."""
    return int.from_bytes(frame[24:32], "big")


def sent_by(frame: bytes) -> tuple[int, int]:
    """Return origin and counter of a frame that is as long as a header, whatever else it says."""
    return int.from_bytes(frame[4:12], "big"), int.from_bytes(frame[12:20], "big")


def acknowledgement(topic: bytes, incarnation: int, last: int) -> bytes:
    """Return what the hub sends to a topic that was subscribed."""
    return _HEADER.pack(topic, ACKNOWLEDGED, 0, 0, incarnation, last)


def encode_broadcast(namespace: str, packet: EncodedPacket, options: BroadcastOptions) -> bytes:
    """Return the payload of a broadcast."""
    return _encode(
        (
            namespace,
            options.rooms,
            options.except_rooms,
            _VOLATILE if options.volatile else 0,
            packet.text,
            packet.attachments,
        )
    )


def decode_broadcast(frame: bytes) -> Broadcast:
    """Return the payload of a broadcast frame.

    Raises:
        WireError: it is none.
    """
    try:
        return _decode_broadcast(memoryview(frame)[HEADER_SIZE:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"bad broadcast: {error}") from None


def encode_beat(
    number: int, topics: Iterable[tuple[bytes, int]], confirmed: Iterable[tuple[int, int]]
) -> bytes:
    """Return the payload of a beat."""
    return _encode((number, tuple(topics), tuple(confirmed)))


def decode_beat(frame: bytes) -> Beat:
    """Return the payload of a beat frame.

    Raises:
        WireError: it is none.
    """
    try:
        beat = _decode_beat(memoryview(frame)[HEADER_SIZE:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"bad beat: {error}") from None
    if any(len(topic) != TOPIC_SIZE for topic, _ in beat.topics):
        raise WireError("bad beat: a topic has three bytes")
    return beat
