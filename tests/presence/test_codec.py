"""The codec of presence operations: what is written is read, and nothing else is."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

from limpet_adapters.presence import Home, PresenceIndex
from limpet_adapters.presence_ops import (
    BATCH_BYTES,
    BEGIN,
    END,
    NAME_LIMIT,
    OPS_LIMIT,
    Batch,
    Changed,
    Connected,
    Disconnected,
    Joined,
    Left,
    Op,
    PresenceCodecError,
    decode,
    encode,
    reportable,
    weight,
)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.text("abcXYZ019_-", min_size=1, max_size=64)
times = st.floats(0, 1e11)
transports = st.sampled_from(["polling", "websocket", "other"])
ops: st.SearchStrategy[Op] = st.one_of(
    st.builds(
        Connected, ids, names, names, transports, times, st.dictionaries(names, times, max_size=5)
    ),
    st.builds(Disconnected, ids),
    st.builds(Joined, ids, names, times),
    st.builds(Left, ids, names),
    st.builds(Changed, ids, st.none() | names, st.none() | transports),
)
batches = st.builds(Batch, st.integers(0, 2**53), st.integers(0, 3), st.lists(ops, max_size=10))


@given(batches)
def test_round_trip(batch: Batch) -> None:
    data = encode(batch)
    assert decode(data) == batch
    assert len(data) <= 30 + sum(map(weight, batch.ops))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x93\x01\x00\x91" * 50)
@example(b"\x91" * 100_000)
def test_any_bytes_are_a_batch_or_the_documented_error(data: bytes) -> None:
    try:
        batch = decode(data)
    except PresenceCodecError:
        return
    assert decode(encode(batch)) == batch


@given(batches, st.data())
def test_damaged_batches_harm_nobody(batch: Batch, data: st.DataObject) -> None:
    """One byte changed, cut or doubled: an error or another batch, which the index bears."""
    raw = bytearray(encode(batch))
    at = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["change", "cut", "double"])):
        case "change":
            raw[at] = data.draw(st.integers(0, 255))
        case "cut":
            del raw[at:]
        case _:
            raw[at:at] = raw[at:]
    try:
        found = decode(bytes(raw))
    except PresenceCodecError:
        return
    index = PresenceIndex()
    assert index.register(1, Home("host", "w", 0))
    index.receive(1, Batch(1, BEGIN | END, []))
    index.receive(1, Batch(1, 0, found.ops))
    index.receive(1, found)
    index.drop_worker(1)
    assert not index.sweep(10_000)
    assert index.namespaces == {}


@pytest.mark.parametrize(
    "value",
    [
        [1, 0, [[9, "a"]]],
        [1, 4, []],
        [-1, 0, []],
        [1, 0, [[1, "", "/", "u", "polling", 1.0, {}]]],
        [1, 0, [[1, "i" * 65, "/", "u", "polling", 1.0, {}]]],
        [1, 0, [[1, "i", "/", "u", "polling", float("nan"), {}]]],
        [1, 0, [[1, "i", "/", "u", "polling", float("inf"), {}]]],
        [1, 0, [[1, "i", "/", "u", "polling", -1.0, {}]]],
        [1, 0, [[1, "i", "/", "u" * (NAME_LIMIT + 1), "polling", 1.0, {}]]],
        [1, 0, [[3, "i", "r" * (NAME_LIMIT + 1), 1.0]]],
        [1, 0, [[3, "i", None, 1.0]]],
        [1, 0, [[2, "i"]] * (OPS_LIMIT + 1)],
        {"generation": 1},
        None,
    ],
)
def test_refused(value: object) -> None:
    with pytest.raises(PresenceCodecError):
        decode(msgspec.msgpack.encode(value))


def test_fields_of_a_later_version_are_ignored() -> None:
    data = msgspec.msgpack.encode([1, 0, [[2, "id", "later", 3]], "later"])
    assert decode(data) == Batch(1, 0, [Disconnected("id")])


@pytest.mark.parametrize("body", [None, "text", 5, ["a"], bytearray(b"x")])
def test_a_body_that_is_no_bytes(body: object) -> None:
    with pytest.raises(PresenceCodecError, match="a batch is bytes"):
        decode(body)


def test_reportable() -> None:
    assert reportable("")
    assert reportable("räume/1 ☃ \U0001f600")
    assert reportable("x" * NAME_LIMIT)
    assert not reportable("x" * (NAME_LIMIT + 1))
    assert not reportable("half \ud83d of a pair")


def test_weight_bounds_the_worst_names() -> None:
    for text in ("x" * NAME_LIMIT, "\U0001f600" * NAME_LIMIT):
        op = Joined("i" * 64, text, 1e9)
        assert len(encode(Batch(1, 0, [op]))) <= weight(op) + 30
    assert weight(Joined("i", "x", 1.0)) * 100 < BATCH_BYTES
