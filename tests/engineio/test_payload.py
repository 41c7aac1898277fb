"""Polling payloads: what is split is what was joined."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_fakes import ClientReader
from limpet_adapters.packet import EncodedPacket
from limpet_worker.engineio.payload import (
    SEPARATOR,
    PayloadError,
    binary_of,
    binary_part,
    frames_of,
    packet_payload,
    split,
)

texts = st.text(alphabet=st.characters(exclude_characters="\x1e", codec="utf-8"), max_size=40)
parts = st.one_of(
    texts.map(lambda text: ("4" + text).encode()), st.binary(max_size=200).map(binary_part)
)


@given(st.lists(parts, min_size=1, max_size=20))
def test_joined_and_split(packets: list[bytes]) -> None:
    assert split(SEPARATOR.join(packets), 20) == (packets, False)


@given(st.binary(max_size=300))
def test_binary(data: bytes) -> None:
    assert binary_of(binary_part(data)) == data


def test_more_than_the_limit() -> None:
    assert split(b"4a\x1e4b\x1e4c", 2) == ([b"4a", b"4b"], True)
    assert split(b"4a\x1e4b", 2) == ([b"4a", b"4b"], False)
    packets, more = split(SEPARATOR * 1_000_000, 1000)
    assert more
    assert packets == [b""] * 1000


@given(st.binary(max_size=40))
def test_not_base64(junk: bytes) -> None:
    with suppress(PayloadError):
        assert len(binary_of(b"b" + junk)) <= len(junk)


@pytest.mark.parametrize("part", [b"b!", b"bAQ", b"bAQ==AQ==", b"bA\nQID", b"b\xff"])
def test_what_is_not_base64_is_refused(part: bytes) -> None:
    with pytest.raises(PayloadError):
        binary_of(part)


def test_a_packet_is_joined_once() -> None:
    packet = EncodedPacket(b'52-["a"]', (b"\x01\x02\x03\x04", b""))
    payload = packet_payload(packet)
    assert payload == b'452-["a"]\x1ebAQIDBA==\x1eb'
    assert packet_payload(packet) is payload


@given(st.lists(parts, min_size=1, max_size=10))
def test_what_waited_for_a_poll_as_frames(packets: list[bytes]) -> None:
    reader = ClientReader()
    reader.feed(frames_of(SEPARATOR.join(packets)))
    assert reader.events == [
        binary_of(part) if part[:1] == b"b" else part.decode() for part in packets
    ]
