"""Cross-origin rules: each kind of origin option, preflights, errors in options, WebSockets."""

from __future__ import annotations

import re
from typing import Any

import pytest

from limpet_worker.errors import OptionError
from limpet_worker.http.cors import Cors, CorsOptions, valid_origin

PAGE = b"https://a.example"


def lines(page: bytes | None = PAGE, /, **options: Any) -> dict[str, str]:
    return parsed(Cors(CorsOptions(**options)).lines(page))


def parsed(raw: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in raw.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        assert name not in found
        found[name] = value
    return found


class TestResponses:
    def test_none(self) -> None:
        assert Cors(None).lines(PAGE) == b""
        assert Cors(None).preflight({b"origin": PAGE}) is None

    @pytest.mark.parametrize("origin", [False, ""])
    def test_off(self, origin: Any) -> None:
        cors = Cors(CorsOptions(origin=origin, credentials=True))
        assert cors.lines(PAGE) == b""
        assert cors.preflight({b"origin": PAGE}) is None

    def test_any(self) -> None:
        assert lines() == {"Access-Control-Allow-Origin": "*"}
        assert lines(None) == {"Access-Control-Allow-Origin": "*"}
        assert lines(origin=["https://b.example", "*"]) == {"Access-Control-Allow-Origin": "*"}

    def test_one_is_named_to_everybody(self) -> None:
        named = {"Access-Control-Allow-Origin": "https://b.example", "Vary": "Origin"}
        assert lines(origin="https://b.example") == named
        assert lines(None, origin="https://b.example") == named

    def test_reflected(self) -> None:
        named = {"Access-Control-Allow-Origin": "https://a.example", "Vary": "Origin"}
        assert lines(origin=True) == named
        assert lines(None, origin=True) == {"Vary": "Origin"}

    @pytest.mark.parametrize(
        "origin",
        [
            ["https://b.example", "https://a.example"],
            [re.compile(r"\.example$")],
            re.compile(r"^https://a\."),
            lambda origin: origin == "https://a.example",
            lambda _: [re.compile("a.example")],
        ],
        ids=["list", "list of patterns", "pattern", "function", "function of a list"],
    )
    def test_chosen(self, origin: Any) -> None:
        assert lines(origin=origin)["Access-Control-Allow-Origin"] == "https://a.example"
        other = lines(b"https://a.example.evil.test", origin=["https://a.example"])
        assert other == {"Vary": "Origin"}

    @pytest.mark.parametrize("given", [None, False, ""])
    def test_a_function_may_say_nothing(self, given: Any) -> None:
        assert lines(origin=lambda _: given) == {}

    def test_an_empty_list_is_nobody(self) -> None:
        assert lines(origin=[]) == {"Vary": "Origin"}

    def test_credentials_and_exposed_headers(self) -> None:
        assert lines(credentials=True, exposed_headers=["X-A", "X-B"]) == {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": "X-A,X-B",
        }


class TestPreflight:
    def test_defaults(self) -> None:
        raw = Cors(CorsOptions()).preflight(
            {b"origin": PAGE, b"access-control-request-headers": b"x-a,x-b"}
        )
        assert raw is not None
        assert parsed(raw) == {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Methods": "GET,HEAD,PUT,PATCH,POST,DELETE",
            "Access-Control-Allow-Headers": "x-a,x-b",
            "Vary": "Access-Control-Request-Headers",
        }

    def test_everything_given(self) -> None:
        options = CorsOptions(
            origin=[PAGE.decode()],
            credentials=True,
            methods=["GET", "POST"],
            allowed_headers=["X-C"],
            exposed_headers="X-D, X-E",
            max_age=600,
        )
        raw = Cors(options).preflight({b"origin": PAGE, b"access-control-request-headers": b"x"})
        assert raw is not None
        assert parsed(raw) == {
            "Access-Control-Allow-Origin": "https://a.example",
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Allow-Methods": "GET,POST",
            "Access-Control-Allow-Headers": "X-C",
            "Access-Control-Max-Age": "600",
            "Access-Control-Expose-Headers": "X-D,X-E",
            "Vary": "Origin",
        }


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"origin": "https://a.example/"}, "origin='https://a.example/'"),
            ({"origin": "a.example"}, "origin='a.example'"),
            ({"origin": ["https://a.example", 3]}, "3"),
            ({"origin": 3}, "origin=3"),
            ({"origin": None}, "origin=None"),
            ({"origin": "https://a\r\nX: y"}, "origin="),
            ({"methods": ["GET\r\n"]}, "methods"),
            ({"allowed_headers": ["a b"]}, "allowed_headers"),
            ({"max_age": -1}, "max_age=-1"),
            ({"max_age": "600"}, "max_age='600'"),
            ({"allowed_headers": 3}, "allowed_headers=3"),
            ({"credentials": "yes"}, "credentials='yes'"),
        ],
    )
    def test_errors_name_option_and_value(self, options: dict[str, Any], names: str) -> None:
        with pytest.raises(OptionError, match=re.escape(names)):
            CorsOptions(**options)

    def test_valid_origin(self) -> None:
        assert valid_origin(b"https://a.example")
        assert valid_origin(b"null\t\x80")
        assert not valid_origin(b"a\x01b")
        assert not valid_origin(b"a\x7fb")


class TestWebSocket:
    """Browsers send Origin but do not apply CORS to WebSockets: the server must."""

    @pytest.mark.parametrize(
        ("options", "headers", "admitted"),
        [
            (None, {b"origin": b"https://evil.test"}, True),
            ({}, {b"origin": b"https://evil.test"}, True),
            ({"origin": True}, {b"origin": b"https://evil.test"}, True),
            ({"origin": "https://a.example"}, {}, True),
            ({"origin": "https://a.example"}, {b"origin": PAGE}, True),
            ({"origin": "https://a.example"}, {b"origin": b"https://evil.test"}, False),
            ({"origin": ["https://a.example"]}, {b"origin": PAGE}, True),
            ({"origin": ["https://a.example"]}, {b"origin": b"null"}, False),
            ({"origin": ["https://a.example", "null"]}, {b"origin": b"null"}, True),
            ({"origin": re.compile("a.example$")}, {b"origin": b"https://evil.test"}, False),
            ({"origin": lambda _: False}, {b"origin": b"https://evil.test"}, False),
            ({"origin": lambda _: True}, {b"origin": b"https://evil.test"}, True),
            ({"origin": []}, {b"origin": PAGE}, False),
            (
                {"origin": "https://a.example", "websocket": False},
                {b"origin": b"https://evil.test"},
                True,
            ),
            ({"origin": "*", "websocket": True}, {b"origin": b"https://evil.test"}, True),
            ({"origin": False, "websocket": True}, {b"origin": b"https://evil.test"}, False),
        ],
    )
    def test_origins(
        self, options: dict[str, Any] | None, headers: dict[bytes, bytes], admitted: bool
    ) -> None:
        cors = Cors(None if options is None else CorsOptions(**options))
        assert cors.admits_websocket({b"host": b"chat.example", **headers}) is admitted

    @pytest.mark.parametrize(
        "headers",
        [
            {b"host": b"chat.example", b"origin": b"https://chat.example"},
            {b"host": b"Chat.example:443", b"origin": b"https://chat.example"},
            {b"host": b"chat.example:80", b"origin": b"http://chat.example"},
            {b"host": b"chat.example:8000", b"origin": b"http://chat.example:8000"},
            {b"host": b"[::1]:8000", b"origin": b"http://[::1]:8000"},
            {
                b"host": b"10.0.0.3:8000",
                b"x-forwarded-host": b"chat.example, inner",
                b"origin": b"https://chat.example",
            },
        ],
    )
    def test_own_pages(self, headers: dict[bytes, bytes]) -> None:
        assert Cors(CorsOptions(origin="https://a.example")).admits_websocket(headers)

    def test_another_port_is_another_site(self) -> None:
        cors = Cors(CorsOptions(origin="https://a.example"))
        headers = {b"host": b"chat.example", b"origin": b"http://chat.example:81"}
        assert not cors.admits_websocket(headers)
        assert not cors.admits_websocket({b"host": b"", b"origin": b"evil"})
