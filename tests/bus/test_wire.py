"""Frames and topics: what goes in comes out, and no bytes raise anything but WireError."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_adapters import buckets, wire
from limpet_adapters.buckets import Buckets
from limpet_adapters.contract import BroadcastOptions
from limpet_adapters.packet import EncodedPacket
from limpet_adapters.wire import WireError

TOPICS = st.builds(buckets.topic, st.sampled_from(sorted(buckets.SPACES)), st.integers(0, 65_535))
U64 = st.integers(0, 2**64 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PACKETS = st.builds(
    EncodedPacket, st.binary(), st.lists(st.binary(max_size=50), max_size=4).map(tuple)
)
OPTIONS = st.builds(
    BroadcastOptions,
    st.frozensets(NAMES, max_size=4),
    st.frozensets(NAMES, max_size=4),
    volatile=st.booleans(),
)


@given(
    TOPICS,
    st.sampled_from(sorted(wire.KINDS)),
    st.tuples(U64, U64),
    st.tuples(st.integers(0, 2**32 - 1), U64),
)
def test_header_round_trip(
    topic: bytes, kind: int, source: tuple[int, int], stamp: tuple[int, int]
) -> None:
    (origin, counter), (incarnation, sequence) = source, stamp
    frame = wire.frame(topic, kind, origin, counter, b"payload")
    assert wire.header(frame) == (topic, kind, origin, counter, 0, 0)
    stamped = wire.stamped(frame, incarnation, sequence)
    assert wire.header(stamped) == (topic, kind, origin, counter, incarnation, sequence)
    assert wire.sequence_of(stamped) == sequence
    assert stamped[wire.HEADER_SIZE :] == b"payload"
    acknowledgement = wire.acknowledgement(topic, incarnation, sequence)
    assert wire.header(acknowledgement) == (topic, wire.ACKNOWLEDGED, 0, 0, incarnation, sequence)


@given(NAMES, PACKETS, OPTIONS)
def test_broadcast_round_trip(
    namespace: str, packet: EncodedPacket, options: BroadcastOptions
) -> None:
    payload = wire.encode_broadcast(namespace, packet, options)
    message = wire.decode_broadcast(
        wire.frame(buckets.CLUSTER_TOPIC, wire.BROADCAST, 1, 2, payload)
    )
    assert message.namespace == namespace
    assert message.packet().text == packet.text
    assert message.packet().attachments == packet.attachments
    got = message.options()
    assert (got.rooms, got.except_rooms) == (options.rooms, options.except_rooms)
    assert (got.volatile, got.local) == (options.volatile, True)  # it goes no further


@given(
    st.integers(0, 2**63),
    st.lists(st.tuples(TOPICS, U64), max_size=5),
    st.lists(st.tuples(U64, U64), max_size=5),
)
def test_beat_round_trip(
    number: int, topics: list[tuple[bytes, int]], confirmed: list[tuple[int, int]]
) -> None:
    payload = wire.encode_beat(number, topics, confirmed)
    beat = wire.decode_beat(wire.frame(buckets.HUB_TOPIC, wire.BEAT, 0, 0, payload))
    assert beat == wire.Beat(number, tuple(topics), tuple(confirmed))


@given(st.binary(max_size=300))
def test_any_bytes_raise_wire_errors_only(data: bytes) -> None:
    with contextlib.suppress(WireError):
        wire.header(data)
    for decode in (wire.decode_broadcast, wire.decode_beat):
        for frame in (data, bytes(wire.HEADER_SIZE) + data):
            with contextlib.suppress(WireError):
                decode(frame)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | NAMES,
        lambda inner: st.lists(inner, max_size=7) | st.dictionaries(NAMES, inner, max_size=3),
    )
)
def test_any_msgpack_raises_wire_errors_only(value: object) -> None:
    frame = bytes(wire.HEADER_SIZE) + msgspec.msgpack.encode(value)
    for decode in (wire.decode_broadcast, wire.decode_beat):
        with contextlib.suppress(WireError):
            decode(frame)


def test_nesting_does_not_exhaust_the_stack() -> None:
    for decode in (wire.decode_broadcast, wire.decode_beat):
        with pytest.raises(WireError):
            decode(bytes(wire.HEADER_SIZE) + b"\x91" * 1_000_000)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(2, 0x20, "version 2"), (2, 0x1E, "unknown space 14"), (3, 0, "unknown kind 0")],
)
def test_errors_say_what_is_wrong(at: int, value: int, message: str) -> None:
    frame = bytearray(wire.frame(buckets.CLUSTER_TOPIC, wire.PROBE, 1, 1, b""))
    frame[at] = value
    with pytest.raises(WireError, match=message):
        wire.header(bytes(frame))
    with pytest.raises(WireError, match="31 bytes; a frame has at least 32"):
        wire.header(bytes(frame[:31]))
    with pytest.raises(WireError, match="three bytes"):
        wire.decode_beat(bytes(wire.HEADER_SIZE) + wire.encode_beat(1, [(b"\0\0", 1)], []))


# --- topics ------------------------------------------------------------------


def test_buckets_are_the_same_in_every_process() -> None:
    # these may never change: processes of different age must agree
    assert Buckets("/").topic("lobby") == bytes.fromhex("00e110")
    assert Buckets("/chat", 65_536).topic("lobby") == bytes.fromhex("a0c510")
    assert Buckets("/", 1).topic("lobby") == b"\0\0\x10"
    assert Buckets("/").whole == Buckets("/").topic("")


def test_rooms_spread_over_the_buckets() -> None:
    hashed = Buckets("/chat", 1024)
    sizes: dict[bytes, int] = {}
    for number in range(10_240):
        topic = hashed.topic(f"room {number}")
        sizes[topic] = sizes.get(topic, 0) + 1
    assert len(sizes) == 1024
    assert max(sizes.values()) < 40
    other = Buckets("/other", 1024)
    assert sum(hashed.topic(f"{n}") == other.topic(f"{n}") for n in range(1000)) < 20


@given(st.text(), st.text(), st.integers(1, 65_536))
def test_any_name_has_a_topic(namespace: str, room: str, count: int) -> None:
    topic = Buckets(namespace, count).topic(room)
    assert len(topic) == buckets.TOPIC_SIZE
    assert int.from_bytes(topic[:2], "big") < count


@given(U64, TOPICS)
def test_no_topic_opens_another_and_sentinels_come_last(worker_id: int, topic: bytes) -> None:
    sentinel = buckets.sentinel(worker_id)
    assert buckets.sentinel_of(sentinel) == worker_id
    assert sentinel > topic
    assert not sentinel.startswith(topic)
    assert buckets.sentinel_of(topic) is None
    assert buckets.sentinel_of(topic + bytes(8)) is None
    assert len(buckets.inbox(worker_id)) == buckets.TOPIC_SIZE


@pytest.mark.parametrize("count", [0, -1, 65_537])
def test_a_wrong_number_of_buckets_is_named(count: int) -> None:
    with pytest.raises(ValueError, match=rf"buckets={count}: expected 1 to 65536"):
        Buckets("/", count)
