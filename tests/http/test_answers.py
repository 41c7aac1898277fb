"""Parts of answers: compression, cookie, the WebSocket opening handshake, refusals."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_worker.errors import OptionError
from limpet_worker.http import checks
from limpet_worker.http.compression import compress, negotiate
from limpet_worker.http.cookie import cookie_line
from limpet_worker.http.request import HeadParser
from limpet_worker.http.upgrade import accept, asks_websocket, handshake_fault, switching


class TestCompression:
    @pytest.mark.parametrize(
        ("value", "encoding"),
        [
            (b"", ""),
            (b"gzip, deflate, br", "gzip"),
            (b"deflate", "deflate"),
            (b"br", ""),
            (b"*", "gzip"),
            (b"identity", ""),
            (b"gzip;q=0, deflate", "deflate"),
            (b"gzip;q=0.2, deflate;q=0.8", "deflate"),
            (b"gzip;q=0, *;q=0.1", "deflate"),
            (b"*;q=0", ""),
            (b"GZIP; Q=1", "gzip"),
            (b"gzip;q=nonsense", ""),
        ],
    )
    def test_negotiate(self, value: bytes, encoding: str) -> None:
        assert negotiate(value) == encoding

    @given(st.binary(max_size=60))
    def test_negotiate_any_bytes(self, value: bytes) -> None:
        assert negotiate(value) in {"gzip", "deflate", ""}

    def test_compress(self) -> None:
        payload = b"4message\x1e" * 20_000
        assert gzip.decompress(compress(payload, "gzip")) == payload
        assert zlib.decompress(compress(payload, "deflate")) == payload


class TestCookie:
    @pytest.mark.parametrize(
        ("option", "line"),
        [
            (True, "io=SID; Path=/; HttpOnly; SameSite=Lax"),
            ("route", "route=SID; Path=/; HttpOnly; SameSite=Lax"),
            ({"name": "route"}, "route=SID; Path=/; HttpOnly; SameSite=Lax"),
            (
                {"path": None, "http_only": False, "same_site": None},
                "io=SID",
            ),
            (
                {
                    "domain": "example.org",
                    "maxAge": 60,
                    "secure": True,
                    "sameSite": "none",
                    "partitioned": True,
                    "priority": "high",
                    "expires": datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
                },
                (
                    "io=SID; Max-Age=60; Domain=example.org; Path=/;"
                    " Expires=Wed, 02 Jan 2030 03:04:05 GMT; HttpOnly; Secure; Partitioned;"
                    " Priority=High; SameSite=None"
                ),
            ),
            ({"same_site": True}, "io=SID; Path=/; HttpOnly; SameSite=Strict"),
        ],
    )
    def test_lines(self, option: Any, line: str) -> None:
        parts = cookie_line(option)
        assert parts is not None
        assert b"SID".join(parts).decode() == f"Set-Cookie: {line}\r\n"

    def test_none(self) -> None:
        assert cookie_line(False) is None

    @pytest.mark.parametrize(
        ("option", "names"),
        [
            ({"name": "a b"}, "name='a b'"),
            ({"nam": "a"}, "nam"),
            ({"path": "/; Secure"}, "path="),
            ({"domain": 3}, "domain=3"),
            ({"max_age": "60"}, "max_age='60'"),
            ({"expires": "tomorrow"}, "expires='tomorrow'"),
            ({"same_site": "some"}, "same_site='some'"),
            ({"priority": "urgent"}, "priority='urgent'"),
            ({"secure": "yes"}, "Secure='yes'"),
            ({"http_only": []}, "HttpOnly=[]"),
        ],
    )
    def test_errors_name_attribute_and_value(self, option: Any, names: str) -> None:
        with pytest.raises(OptionError, match=re.escape(names)):
            cookie_line(option)


class TestOpeningHandshake:
    def test_the_example_of_rfc_6455(self) -> None:
        assert accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert switching(b"dGhlIHNhbXBsZSBub25jZQ==", b"X: y\r\n") == (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX: y\r\n\r\n"
        )

    @pytest.mark.parametrize(
        ("lines", "asks"),
        [
            ("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", True),
            ("GET / HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n", True),
            ("GET / HTTP/1.1\r\nUpgrade: websocket\r\n", False),
            ("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n", False),
            ("POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", False),
            ("GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", False),
        ],
    )
    def test_asks(self, lines: str, asks: bool) -> None:
        assert asks_websocket(HeadParser().parse(f"{lines}Host: x\r\n\r\n".encode())) is asks

    @pytest.mark.parametrize(
        ("version", "key", "fault"),
        [
            (b"13", b"dGhlIHNhbXBsZSBub25jZQ==", ""),
            (b"8", b"dGhlIHNhbXBsZSBub25jZQ==", "version"),
            (b"", b"dGhlIHNhbXBsZSBub25jZQ==", "version"),
            (b"13", b"", "key"),
            (b"13", b"c2hvcnQ=", "key"),
            (b"13", b"dGhlIHNhbXBsZSBub25jZQ==\r\nX: y", "key"),
        ],
    )
    def test_faults(self, version: bytes, key: bytes, fault: str) -> None:
        headers = {b"sec-websocket-version": version, b"sec-websocket-key": key}
        assert handshake_fault(headers) == fault


class TestRefusals:
    @pytest.mark.parametrize(
        ("refusal", "status", "body"),
        [
            (checks.UNKNOWN_TRANSPORT, 400, {"code": 0, "message": "Transport unknown"}),
            (checks.UNKNOWN_SID, 400, {"code": 1, "message": "Session ID unknown"}),
            (checks.BAD_HANDSHAKE_METHOD, 400, {"code": 2, "message": "Bad handshake method"}),
            (checks.TRANSPORT_MISMATCH, 400, {"code": 3, "message": "Bad request"}),
            (checks.FORBIDDEN, 403, {"code": 4, "message": "Forbidden"}),
            (checks.forbidden('no "thanks"'), 403, {"code": 4, "message": 'no "thanks"'}),
            (
                checks.UNSUPPORTED_VERSION,
                400,
                {"code": 5, "message": "Unsupported protocol version"},
            ),
        ],
    )
    def test_bodies(self, refusal: checks.Refusal, status: int, body: dict[str, Any]) -> None:
        assert refusal.status == status
        assert json.loads(refusal.body) == body
