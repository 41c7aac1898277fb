"""The packet codec: grammar, refusals, binary, what Python values become."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_adapters.packet import EncodedPacket
from limpet_worker.socketio import packet as codec
from limpet_worker.socketio.errors import PacketError
from limpet_worker.socketio.packet import decode, encode_ack, encode_event, prefix


def parts(text: bytes) -> tuple[int, str, int | None, Any]:
    found = decode(text)
    return found.type, found.namespace, found.id, found.data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"0", (0, "/", None, None)),
        (b'0{"token":"123"}', (0, "/", None, {"token": "123"})),
        (b"0/admin", (0, "/admin", None, None)),
        (b"0/admin,", (0, "/admin", None, None)),
        (b'0/admin,{"token":"1"}', (0, "/admin", None, {"token": "1"})),
        (b"0/adm?token=1,{}", (0, "/adm?token=1", None, {})),
        ("0/größe,".encode(), (0, "/größe", None, None)),
        (b"1", (1, "/", None, None)),
        (b"1/admin,", (1, "/admin", None, None)),
        (b'2["foo","bar"]', (2, "/", None, ["foo", "bar"])),
        (b"2[1]", (2, "/", None, [1])),
        (b"2", (2, "/", None, None)),
        (b"27", (2, "/", 7, None)),
        (b'2/admin,13["foo"]', (2, "/admin", 13, ["foo"])),
        (b'29007199254740991["a"]', (2, "/", 2**53 - 1, ["a"])),
        (b'3/admin,13["ok"]', (3, "/admin", 13, ["ok"])),
        (b"3[]", (3, "/", None, [])),
        (b'4/admin,{"message":"no"}', (4, "/admin", None, {"message": "no"})),
        (b'2["error","x"]', (2, "/", None, ["error", "x"])),
        (b'2["a","\\ud83d"]', (2, "/", None, ["a", "\ufffd"])),
        (b'2["a","\\\\ud83d","\\ud83d\\ude00"]', (2, "/", None, ["a", "\\ud83d", "😀"])),
    ],
)
def test_decodes(text: bytes, expected: tuple[int, str, int | None, Any]) -> None:
    assert parts(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"7",
        b"a",
        b"abc",
        b"-1",
        b"0[]",
        b"0null",
        b'0"text"',
        b"0{",
        b"0 {}x",
        b"1[]",
        b"1{}",
        b'1"x"',
        b"2{}",
        b'2"text"',
        b"2[]",
        b"2[true]",
        b"2[null]",
        b'2[{"a":1}]',
        b'2["connect"]',
        b'2["connect_error"]',
        b'2["disconnect"]',
        b'2["disconnecting"]',
        b'2["newListener"]',
        b'2["removeListener"]',
        b'21-["a"]',
        b"2[NaN]",
        b'2["a",Infinity]',
        b'2abc["message"]',
        b'2["a"',
        b'29007199254740992["a"]',
        b'2100000000000000000000["a"]',
        b"30{}",
        b'3"x"',
        b"3null",
        b'5["a"]',
        b"5",
        b"5-",
        b'50-["a"]',
        b'511-["a"]',
        b'5x-["a"]',
        b'5-1-["a"]',
        b'51["a"]',
        b'61-{"a":1}',
        b'51-["connect"]',
        b"\xff",
        b"2" + b"[" * 5000 + b"]" * 5000,
    ],
)
def test_refuses(text: bytes) -> None:
    with pytest.raises(PacketError):
        decode(text)


def test_attachments_up_to_the_limit() -> None:
    assert decode(b'510-["a"]').missing == 10
    with pytest.raises(PacketError, match="too many"):
        decode(b'511-["a"]')
    assert decode(b'511-["a"]', 11).missing == 11


def test_puts_attachments_where_their_placeholders_are() -> None:
    found = decode(
        b'52-/a,3["x",{"_placeholder":true,"num":1},{"deep":[{"_placeholder":true,"num":0}]}]'
    )
    assert (found.type, found.namespace, found.id, found.missing) == (codec.EVENT, "/a", 3, 2)
    assert not found.attach(b"zero")
    assert found.attach(b"one")
    assert found.data == ["x", b"one", {"deep": [b"zero"]}]


def test_what_only_looks_like_a_placeholder_stays() -> None:
    found = decode(b'51-["x",{"_placeholder":1,"num":9},{"_placeholder":true,"num":0}]')
    assert found.attach(b"!")
    assert found.data == ["x", {"_placeholder": 1, "num": 9}, b"!"]


@pytest.mark.parametrize("number", [b"1", b"-1", b'"0"', b"true", b"null", b"0.0", b"[]"])
def test_refuses_a_placeholder_that_names_no_attachment(number: bytes) -> None:
    found = decode(b'51-["x",{"_placeholder":true,"num":' + number + b"}]")
    with pytest.raises(PacketError, match="illegal attachments"):
        found.attach(b"!")


def test_refuses_a_placeholder_without_number() -> None:
    with pytest.raises(PacketError, match="illegal attachments"):
        decode(b'51-["x",{"_placeholder":true}]').attach(b"!")


def test_bounds_the_bytes_of_attachments() -> None:
    found = decode(b'53-["x"]')
    assert not found.attach(b"12345", 10)
    with pytest.raises(PacketError, match="too large"):
        found.attach(b"123456", 10)


def test_attachments_of_deeply_nested_data() -> None:
    depth = 1000
    text = b'51-["x",' + b"[" * depth + b'{"_placeholder":true,"num":0}' + b"]" * depth + b"]"
    found = decode(text)
    assert found.attach(b"!")
    inner = found.data[1]
    for _ in range(depth - 1):
        inner = inner[0]
    assert inner == [b"!"]


def test_encodes_events() -> None:
    assert encode_event(b"", ("a", 1, "ü", None, [True], {"k": 1.5})) == (
        '2["a",1,"ü",null,[true],{"k":1.5}]'.encode()
    )
    assert encode_event(prefix("/admin"), ("a",), 13) == b'2/admin,13["a"]'
    assert encode_event(prefix("/"), ("a",), 0) == b'20["a"]'


def test_encodes_binary_anywhere() -> None:
    found = encode_event(b"/a,", ("x", b"1", {"k": [bytearray(b"2"), memoryview(b"3")], "n": 1}), 7)
    assert isinstance(found, EncodedPacket)
    assert found.text == (
        b'53-/a,7["x",{"_placeholder":true,"num":0},'
        b'{"k":[{"_placeholder":true,"num":1},{"_placeholder":true,"num":2}],"n":1}]'
    )
    assert found.attachments == (b"1", b"2", b"3")


def test_copies_bytes_that_may_change() -> None:
    data = bytearray(b"abc")
    found = encode_event(b"", ("x", data))
    data[0] = 0
    assert isinstance(found, EncodedPacket)
    assert found.attachments == (b"abc",)


def test_encodes_acks() -> None:
    assert encode_ack(b"", 456, (1, "2")) == b'3456[1,"2"]'
    assert encode_ack(b"/a,", 0, ()) == b"3/a,0[]"
    found = encode_ack(b"", 789, (b"1",))
    assert isinstance(found, EncodedPacket)
    assert found.text == b'61-789[{"_placeholder":true,"num":0}]'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), b"null"),
        (float("inf"), b"null"),
        ((1, (2,)), b"[1,[2]]"),
        ({1: 2}, b'{"1":2}'),
        (OrderedDict(a=1), b'{"a":1}'),
        (datetime(2024, 2, 3, 4, 5, 6, 789_999, tzinfo=UTC), b'"2024-02-03T04:05:06.789Z"'),
        (datetime(2024, 2, 3, 4, 5, 6), b'"2024-02-03T04:05:06.000Z"'),  # noqa: DTZ001
        (
            datetime(2024, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))),
            b'"2024-02-03T02:05:06.000Z"',
        ),
        (date(2024, 2, 3), b'"2024-02-03"'),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
    ],
)
def test_what_values_become(value: object, expected: bytes) -> None:
    assert encode_event(b"", ("a", value)) == b'2["a",' + expected + b"]"
    # and the same on the way that binary takes
    found = encode_event(b"", ("a", value, b""))
    assert isinstance(found, EncodedPacket)
    assert found.text == b'51-["a",' + expected + b',{"_placeholder":true,"num":0}]'


@pytest.mark.parametrize("value", [{1}, object(), 2**64, "\ud800", lambda: None, 1j])
def test_names_what_cannot_be_sent(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        encode_event(b"", ("a", value))
    with pytest.raises(TypeError, match="cannot be sent"):
        encode_ack(b"", 1, (value,))


def test_names_the_type_that_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="set"):
        encode_event(b"", ("a", {1}))


@pytest.mark.parametrize(
    ("name", "expected"), [("a", "a"), (1, "1"), (1.0, "1"), (1.5, "1.5"), (-3, "-3")]
)
def test_numeric_event_names(name: object, expected: str) -> None:
    assert codec.event_name([name]) == expected


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
namespaces = st.text(st.characters(codec="utf-8", exclude_characters=","), max_size=20).map(
    lambda name: "/" + name
)


def count_binary(value: Any) -> int:
    if isinstance(value, bytes):
        return 1
    if isinstance(value, list):
        return sum(map(count_binary, value))
    if isinstance(value, dict):
        return sum(map(count_binary, value.values()))
    return 0


def has_placeholder(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(has_placeholder, value))
    if isinstance(value, dict):
        return "_placeholder" in value or any(map(has_placeholder, value.values()))
    return False


@given(
    namespaces,
    st.text().filter(lambda name: name not in codec.RESERVED),
    st.lists(values, max_size=4),
    st.none() | st.integers(0, codec.MAX_ACK_ID),
)
def test_what_goes_in_comes_out(
    namespace: str, event: str, arguments: list[Any], id_: int | None
) -> None:
    data = [event, *arguments]
    if has_placeholder(data):
        return
    encoded = encode_event(prefix(namespace), data, id_)
    text = encoded if isinstance(encoded, bytes) else encoded.text
    found = decode(text, 10_000)
    assert found.missing == count_binary(data)
    if isinstance(encoded, EncodedPacket):
        for attachment in encoded.attachments:
            found.attach(attachment)
    assert (found.type, found.namespace, found.id) == (codec.EVENT, namespace, id_)
    assert found.data == data


grammar = st.lists(
    st.sampled_from(
        [
            b"0",
            b"1",
            b"2",
            b"5",
            b"6",
            b"9",
            b"-",
            b"/",
            b",",
            b"[",
            b"]",
            b"{",
            b"}",
            b'"a"',
            b":",
            b'{"_placeholder":true,"num":0}',
            b'"connect"',
            b"null",
            b"\\ud8",
            b'"',
            b"\xff",
        ]
    ),
    max_size=12,
).map(b"".join)


@given(st.binary(max_size=40) | grammar, st.lists(st.binary(max_size=4), max_size=12))
def test_any_input_gives_a_packet_or_a_packet_error(text: bytes, attachments: list[bytes]) -> None:
    try:
        found = decode(text)
        for attachment in attachments:
            if not found.missing:
                break
            found.attach(attachment)
    except PacketError:
        pass
    else:
        assert 0 <= found.missing <= codec.MAX_ATTACHMENTS
