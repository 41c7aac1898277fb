"""Frames: what is read is what was written, however the stream is cut; bad bytes are refused."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpet_adapters.packet import EncodedPacket
from limpet_worker.websocket import frames
from limpet_worker.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    FrameError,
    FrameParser,
    close_frame,
    encode,
    message_frame,
    packet_frame,
    parse_close,
)
from limpet_worker.websocket.mask import apply_mask, apply_mask_pure

MASK = b"\x9a\x01\xff\x10"
LIMIT = 70_000


class Reader(FrameParser):
    """Keeps the events of a stream."""

    __slots__ = ("events",)

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__(limit)
        self.events: list[tuple[object, ...]] = []

    def on_text(self, payload: bytes) -> None:
        assert type(payload) is bytes
        self.events.append(("text", payload))

    def on_binary(self, payload: bytes) -> None:
        assert type(payload) is bytes
        self.events.append(("binary", payload))

    def on_ping(self, payload: bytes) -> None:
        self.events.append(("ping", payload))

    def on_pong(self, payload: bytes) -> None:
        self.events.append(("pong", payload))

    def on_close_frame(self, code: int, reason: str) -> None:
        self.events.append(("close", code, reason))

    @property
    def kept(self) -> int:
        return len(self._partial or b"") + len(self._message or b"")


def read(chunks: Iterable[bytes], limit: int = LIMIT) -> list[tuple[object, ...]]:
    """Return the events of a stream, the error it ends with among them."""
    reader = Reader(limit)
    for chunk in chunks:
        try:
            reader.feed(chunk)
        except FrameError as error:
            return [*reader.events, ("error", error.code)]
    return reader.events


def refusal(data: bytes, limit: int = LIMIT) -> int:
    """Return the close code with which a stream is refused."""
    with pytest.raises(FrameError) as caught:
        Reader(limit).feed(data)
    assert len(caught.value.reason.encode("ascii")) <= 123
    return caught.value.code


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    at = 0
    chunks = []
    for place in sorted(place % (len(data) + 1) for place in places):
        chunks.append(data[at:place])
        at = place
    return [*chunks, data[at:]]


sizes = st.one_of(st.integers(0, 20), st.sampled_from([124, 125, 126, 127, 65_535, 65_536]))
binaries = st.one_of(st.binary(max_size=200), sizes.map(lambda size: b"\x00\xf0\x81" * (size // 3)))
texts = st.one_of(st.text(max_size=60), sizes.map(lambda size: "x" * size)).map(str.encode)
masks = st.binary(min_size=4, max_size=4)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[tuple[object, ...]]]:
    """A message in one or more frames, with control frames in between; and its events."""
    text = draw(st.booleans())
    payload = draw(texts if text else binaries)
    events: list[tuple[object, ...]] = []
    parts = cut(payload, draw(st.lists(st.integers(0, 10_000), max_size=3)))
    stream = b""
    for index, part in enumerate(parts):
        opcode = CONTINUATION if index else (TEXT if text else BINARY)
        stream += encode(opcode, part, draw(masks), final=index == len(parts) - 1)
        if index < len(parts) - 1 and draw(st.booleans()):
            control = draw(st.sampled_from([PING, PONG]))
            data = draw(st.binary(max_size=125))
            stream += encode(control, data, draw(masks))
            events.append(("ping" if control == PING else "pong", data))
    events.append(("text" if text else "binary", payload))
    return stream, events


@given(st.lists(messages(), max_size=6), st.lists(st.integers(0), max_size=12))
def test_any_cut_of_the_stream_gives_the_same_events(
    parts: list[tuple[bytes, list[tuple[object, ...]]]], places: list[int]
) -> None:
    stream = b"".join(part for part, _ in parts) + encode(CLOSE, b"\x03\xe8bye", MASK)
    expected = [event for _, events in parts for event in events]
    expected.append(("close", 1000, "bye"))
    assert read([stream]) == expected
    assert read(cut(stream, places)) == expected


@settings(max_examples=25)
@given(st.lists(messages(), min_size=1, max_size=2))
def test_byte_by_byte(parts: list[tuple[bytes, list[tuple[object, ...]]]]) -> None:
    stream = b"".join(part for part, _ in parts)[:3000]
    assert read(stream[at : at + 1] for at in range(len(stream))) == read([stream])


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.tuples(st.sampled_from([0, 1, 2, 8, 9, 10, 129, 130, 136]), texts).map(
                lambda pair: bytes([pair[0]]) + encode(TEXT, pair[1][:200], MASK)[1:]
            ),
        ),
        max_size=8,
    ),
    st.lists(st.integers(0), max_size=8),
)
def test_garbage_is_read_or_refused_and_never_piles_up(
    parts: list[bytes], places: list[int]
) -> None:
    data = b"".join(parts)
    reader = Reader(1000)
    outcome = read([data], 1000)
    fed: list[tuple[object, ...]] = []
    for chunk in cut(data, places):
        try:
            reader.feed(chunk)
        except FrameError as error:
            fed = [("error", error.code)]
            break
        assert reader.kept <= 1000 + 14
    assert reader.events + fed == outcome


def test_endless_fragments_do_not_pile_up() -> None:
    reader = Reader(1000)
    reader.feed(encode(TEXT, b"", MASK, final=False))
    for _ in range(5000):
        reader.feed(encode(CONTINUATION, b"", MASK, final=False))
    assert reader.kept == 0
    reader.feed(encode(CONTINUATION, b"x" * 1000, MASK, final=False))
    with pytest.raises(FrameError) as caught:
        reader.feed(encode(CONTINUATION, b"x", MASK))
    assert caught.value.code == 1009
    assert reader.events == []


@pytest.mark.parametrize("size", [1001, 65_536, 1 << 40])
def test_a_message_too_big_is_refused_by_its_header(size: int) -> None:
    short = struct.pack("!BBH", 0x81, 0xFE, size) if size < 65_536 else b""
    head = short or struct.pack("!BBQ", 0x82, 0xFF, size)
    assert refusal(head + MASK, 1000) == 1009
    assert read([encode(TEXT, b"x" * 1000, MASK)], 1000) == [("text", b"x" * 1000)]


def test_a_small_limit_holds_for_small_frames() -> None:
    assert refusal(encode(TEXT, b"xxxxx", MASK), 4) == 1009
    assert read([encode(TEXT, b"xxxx", MASK)], 4) == [("text", b"xxxx")]


def test_an_announced_size_costs_no_memory() -> None:
    reader = Reader(100_000_000)
    reader.feed(struct.pack("!BBQ", 0x82, 0xFF, 100_000_000) + MASK + b"abc")
    assert reader.kept == 3


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(encode(TEXT, b"hi"), 1002, id="5.1 unmasked"),
        pytest.param(b"\x81\x00", 1002, id="5.1 unmasked and empty"),
        pytest.param(b"\xc1\x80" + MASK, 1002, id="5.2 RSV1"),
        pytest.param(b"\xa1\x80" + MASK, 1002, id="5.2 RSV2"),
        pytest.param(b"\x91\x80" + MASK, 1002, id="5.2 RSV3"),
        pytest.param(b"\x83\x80" + MASK, 1002, id="5.2 reserved opcode 3"),
        pytest.param(b"\x8b\x80" + MASK, 1002, id="5.2 reserved opcode 11"),
        pytest.param(b"\x82\xff" + b"\x80" + bytes(7) + MASK, 1002, id="5.2 length of 64 bits"),
        pytest.param(b"\x09\x80" + MASK, 1002, id="5.4 fragmented ping"),
        pytest.param(b"\x80\x80" + MASK, 1002, id="5.4 continuation of nothing"),
        pytest.param(
            encode(TEXT, b"a", MASK, final=False) + encode(TEXT, b"b", MASK),
            1002,
            id="5.4 text inside a message",
        ),
        pytest.param(
            encode(BINARY, b"a", MASK, final=False) + encode(BINARY, b"b", MASK),
            1002,
            id="5.4 binary inside a message",
        ),
        pytest.param(encode(PING, b"x" * 126, MASK), 1002, id="5.5 long ping"),
        pytest.param(encode(CLOSE, b"\x03", MASK), 1002, id="5.5.1 half a code"),
        pytest.param(encode(CLOSE, b"\x03\xed", MASK), 1002, id="7.4.1 code 1005"),
        pytest.param(encode(CLOSE, b"\x03\xe8\xff", MASK), 1007, id="5.5.1 reason not UTF-8"),
        pytest.param(encode(TEXT, b"\xc3\x28", MASK), 1007, id="8.1 text not UTF-8"),
        pytest.param(encode(TEXT, b"\xed\xa0\x80" * 50, MASK), 1007, id="8.1 surrogates"),
    ],
)
def test_refused(data: bytes, code: int) -> None:
    assert refusal(data) == code
    # Byte by byte it is refused no later.
    assert read(data[at : at + 1] for at in range(len(data)))[-1] == ("error", code)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535])
def test_codes_that_must_not_be_sent(code: int) -> None:
    with pytest.raises(FrameError):
        parse_close(struct.pack("!H", code))


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999])
def test_codes_that_may(code: int) -> None:
    assert parse_close(struct.pack("!H", code) + "é".encode()) == (code, "é")
    assert parse_close(b"") == (1005, "")


def test_utf8_may_be_cut_between_fragments() -> None:
    data = "€".encode()
    stream = encode(TEXT, data[:1], MASK, final=False) + encode(CONTINUATION, data[1:], MASK)
    assert read([stream]) == [("text", data)]


def test_nothing_is_read_after_a_close_frame() -> None:
    stream = encode(CLOSE, b"", MASK) + encode(TEXT, b"late", MASK) + b"\xff" * 20
    assert read([stream, stream]) == [("close", 1005, "")]


def test_a_subclass_may_stop_in_the_middle() -> None:
    class Muted(Reader):
        def on_text(self, payload: bytes) -> None:
            super().on_text(payload)
            self.muted = True

    reader = Muted()
    reader.feed(encode(TEXT, b"a", MASK) + encode(TEXT, b"b", MASK))
    assert reader.events == [("text", b"a")]


def test_an_extension_reads_messages_with_the_first_reserved_bit() -> None:
    class Reverse:
        def inflate(self, data: bytes, limit: int) -> bytes:
            return data[::-1]

    reader = Reader()
    reader.extension = Reverse()
    frame = encode(TEXT, b"abc", MASK)
    reader.feed(bytes([0xC1]) + frame[1:] + frame)
    reader.feed(b"\x41" + encode(TEXT, b"ab", MASK)[1:] + encode(CONTINUATION, b"c", MASK))
    assert [event[1] for event in reader.events] == [b"cba", b"abc", b"cba"]
    with pytest.raises(FrameError):
        reader.feed(b"\xc9\x80" + MASK)  # not on control frames


def test_a_large_frame_in_small_pieces_is_not_quadratic() -> None:
    payload = bytes(range(256)) * 4096
    stream = encode(BINARY, payload, MASK)
    assert read((stream[at : at + 64] for at in range(0, len(stream), 64)), 1 << 20) == [
        ("binary", payload)
    ]


@given(st.binary(max_size=300), masks)
def test_masks_agree(data: bytes, mask: bytes) -> None:
    masked = apply_mask(data, mask)
    assert masked == apply_mask_pure(data, mask)
    assert masked == bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    assert apply_mask_pure(bytearray(masked), mask) == data


@pytest.mark.parametrize("size", [0, 1, 123, 124, 125, 126, 65_533, 65_534, 65_535, 65_536])
def test_message_frames_equal_encoded_ones(size: int) -> None:
    assert message_frame(b"x" * size) == encode(TEXT, b"4" + b"x" * size)


def test_packet_frame_is_made_once() -> None:
    packet = EncodedPacket(b'52-["a"]', (b"\x01" * 200, b""))
    frame = packet_frame(packet)
    assert frame == encode(TEXT, b'452-["a"]') + encode(BINARY, b"\x01" * 200) + b"\x82\x00"
    assert packet_frame(packet) is frame
    assert packet.frame is frame
    assert packet_frame(EncodedPacket(b"2[]")) == b"\x81\x0442[]"


def test_close_frames() -> None:
    assert close_frame() == b"\x88\x00"
    assert close_frame(1009, "big") == b"\x88\x05\x03\xf1big"


def test_a_client_reads_unmasked_frames() -> None:
    class Client(Reader):
        from_client = False

    reader = Client()
    reader.feed(encode(TEXT, b"a") + encode(TEXT, b"x" * 300) + encode(PING, b"p"))
    assert reader.events == [("text", b"a"), ("text", b"x" * 300), ("ping", b"p")]
    with pytest.raises(FrameError):
        reader.feed(encode(TEXT, b"a", MASK))


def test_subclasses_take_the_events() -> None:
    parser = FrameParser(10)
    for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
        with pytest.raises(NotImplementedError):
            parser.feed(encode(opcode, b"", MASK))
    assert frames.NORMAL_CLOSURE == 1000
