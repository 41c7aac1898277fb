"""Which bytes of a request decide where it goes."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_balancer.head import (
    BadRequestLine,
    Place,
    RequestReader,
    head_end,
    may_be_http,
    sid_in,
)

SID = "AgUAAAABCDEFGHIJ-_09"
READER = RequestReader("/socket.io/", "/healthz")


def read(target: str, method: str = "GET", rest: str = "") -> tuple[Place, str | None]:
    request = READER.read(f"{method} {target} HTTP/1.1\r\n{rest}\r\n".encode())
    assert request.method == method.encode()
    return request.place, request.sid


@pytest.mark.parametrize(
    ("target", "place", "sid"),
    [
        (f"/socket.io/?EIO=4&transport=polling&sid={SID}", Place.ENGINE, SID),
        (f"/socket.io/?sid={SID}&EIO=4", Place.ENGINE, SID),
        (f"/socket.io/anything?sid={SID}", Place.ENGINE, SID),
        (f"/socket.io?sid={SID}", Place.ENGINE, SID),
        (f"http://example.org/socket.io/?sid={SID}", Place.ENGINE, SID),
        (f"http://example.org?sid={SID}", Place.OTHER, None),
        (f"/socket.iox/?sid={SID}", Place.OTHER, None),
        (f"/page?sid={SID}", Place.OTHER, None),
        (f"/page?x=/socket.io/?sid={SID}", Place.OTHER, None),
        (f"/socket.io/?EIO=4#?sid={SID}", Place.ENGINE, None),
        ("/socket.io/?sid=", Place.ENGINE, None),
        ("/socket.io/?sid", Place.ENGINE, None),
        ("/socket.io/?EIO=4", Place.ENGINE, None),
        ("/socket.io/", Place.ENGINE, None),
        (f"/socket.io/?psid={SID}", Place.ENGINE, None),
        (f"/socket.io/?sid=first&sid={SID}", Place.ENGINE, SID),
        (f"/socket.io/?sid={SID}&sid=", Place.ENGINE, None),
        (f"/socket.io/?sid={SID}&sid", Place.ENGINE, None),
        (f"/socket.io/?%73%69%64={SID}", Place.ENGINE, SID),
        ("/socket.io/?sid=%41gUA", Place.ENGINE, "AgUA"),
        ("/socket.io/?sid=a+b", Place.ENGINE, "a b"),
        ("/socket.io/?sid=%ff", Place.ENGINE, "�"),
        ("/healthz", Place.HEALTH, None),
        ("/healthz?x=1", Place.HEALTH, None),
        ("/healthz/", Place.OTHER, None),
        ("*", Place.OTHER, None),
    ],
)
def test_target(target: str, place: Place, sid: str | None) -> None:
    assert read(target) == (place, sid)


def test_sid_outside_the_target_does_not_count() -> None:
    rest = f"Referer: /socket.io/?sid={SID}\r\nCookie: sid={SID}\r\n"
    assert read("/socket.io/?EIO=4", rest=rest) == (Place.ENGINE, None)
    assert read("/socket.io/?EIO=4", rest=f"\r\nsid={SID}") == (Place.ENGINE, None)


def test_health_is_for_get_and_head() -> None:
    assert read("/healthz", "HEAD") == (Place.HEALTH, None)
    assert read("/healthz", "POST") == (Place.OTHER, None)
    assert RequestReader("/socket.io/", "").read(b"GET / HTTP/1.1\r\n").place is Place.OTHER


def test_empty_lines_ahead_are_skipped() -> None:
    assert READER.read(b"\r\n\r\nGET /healthz HTTP/1.0\r\n\r\n").place is Place.HEALTH
    assert not head_end(b"\r\n\r\n")
    assert not head_end(b"\r\n\r\nGET / HTTP/1.1\r\n")
    assert head_end(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1", b"GET\r\n", b"GET /\r\n", b"PRI * HTTP/2.0\r\n", b"\r\n"]
)
def test_no_request_line(data: bytes) -> None:
    with pytest.raises(BadRequestLine):
        READER.read(data)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    try:
        request = READER.read(data)
    except BadRequestLine:
        return
    assert request.sid is None or request.place is Place.ENGINE


PART = st.one_of(
    st.sampled_from(["sid", "%73id", "s%69D", "psid", "sidx", "", SID, "a+b", "%2B", "%zz"]),
    st.text("sid%7364&+=x", max_size=8),
)


@given(st.lists(st.one_of(PART, st.tuples(PART, PART)), max_size=6))
def test_sid_as_the_standard_library_reads_it(fields: list[str | tuple[str, str]]) -> None:
    query = "&".join(field if isinstance(field, str) else "=".join(field) for field in fields)
    pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
    expected = dict(pairs).get("sid") or None
    if expected is None or len(query) <= 60:
        assert sid_in(query.encode()) == expected


@given(st.binary(max_size=80), st.integers(1, 80))
def test_head_found_wherever_it_is_cut(data: bytes, cut: int) -> None:
    whole = b"GET / HTTP/1.1\r\n" + data
    found = head_end(whole)
    assert found == (b"\r\n\r\n" in whole)
    first = whole[:cut]
    if not head_end(first):
        assert head_end(whole, len(first)) == found


def test_other_protocols_are_seen_at_once() -> None:
    assert may_be_http(b"")
    assert may_be_http(b"\r\n")
    assert may_be_http(b"G")
    assert not may_be_http(b"\x16\x03\x01")
    assert not may_be_http(b"\r\n\x00")
