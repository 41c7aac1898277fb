"""Request heads, targets, queries and bodies: what is taken, what refused, how parts are found."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limpet_worker.http.request import (
    MAX_HEAD,
    BadRequest,
    ChunkedBody,
    Head,
    HeadParser,
    SizedBody,
    find_head,
    parse_query,
)


def head(text: str) -> Head:
    return HeadParser().parse(text.replace("\n", "\r\n").encode("latin-1"))


class TestHead:
    def test_a_poll(self) -> None:
        got = head("GET /socket.io/?EIO=4&sid=a HTTP/1.1\nHost: x\nX-Some:  thing \n\n")
        assert (got.method, got.path, got.query) == (b"GET", "/socket.io/", "EIO=4&sid=a")
        assert got.headers == {b"host": b"x", b"x-some": b"thing"}
        assert got.keep_alive
        assert not got.upgrade
        assert got.body() is None

    def test_lines_of_one_name_are_joined(self) -> None:
        got = head("GET / HTTP/1.1\nHost: x\nA: 1\na: 2\nCookie: b=1\nCookie: c=2\n\n")
        assert got.headers[b"a"] == b"1, 2"
        assert got.headers[b"cookie"] == b"b=1; c=2"

    @pytest.mark.parametrize(
        ("lines", "keep_alive"),
        [
            ("GET / HTTP/1.1\nHost: x\n\n", True),
            ("GET / HTTP/1.1\nHost: x\nConnection: close\n\n", False),
            ("GET / HTTP/1.0\n\n", False),
            ("GET / HTTP/1.0\nConnection: keep-alive\n\n", True),
        ],
    )
    def test_keep_alive(self, lines: str, keep_alive: bool) -> None:
        assert head(lines).keep_alive is keep_alive

    @pytest.mark.parametrize(
        ("line", "target"),
        [
            ("GET http://a.example/b?c HTTP/1.1", "/b?c"),
            ("GET https://a.example HTTP/1.1", "/"),
            ("GET http://a.example?c=/d HTTP/1.1", "/?c=/d"),
            ("GET /a?b#c HTTP/1.1", "/a?b"),
            ("OPTIONS * HTTP/1.1", "*"),
        ],
    )
    def test_targets(self, line: str, target: str) -> None:
        assert head(f"{line}\nHost: x\n\n").target == target

    @pytest.mark.parametrize(
        ("text", "status"),
        [
            ("GET / HTTP/1.1\n\n", 400),
            ("GET / HTTP/2.0\nHost: x\n\n", 505),
            ("PRI * HTTP/2.0\n\n", 400),
            ("GET /\n\n", 505),
            ("GET  / HTTP/1.1\nHost: x\n\n", 400),
            ("NONSENSE / HTTP/1.1\nHost: x\n\n", 400),
            ("GET / HTTP/1.1\nHost: x\nA : b\n\n", 400),
            ("GET / HTTP/1.1\nHost: x\nA: b\n c\n\n", 400),
            ("GET / HTTP/1.1\nHost: x\nA: b\x01\n\n", 400),
            ("POST / HTTP/1.1\nHost: x\nContent-Length: 3\nContent-Length: 4\n\n", 400),
            ("POST / HTTP/1.1\nHost: x\nContent-Length: 3\nTransfer-Encoding: chunked\n\n", 400),
            ("POST / HTTP/1.1\nHost: x\nContent-Length: -3\n\n", 400),
            ("POST / HTTP/1.1\nHost: x\nContent-Length: 99999999999999999999\n\n", 400),
            ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: gzip\n\n", 400),
            ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: gzip, chunked\n\n", 501),
            ("\x16\x03\x01\n\n", 400),
        ],
    )
    def test_refused(self, text: str, status: int) -> None:
        with pytest.raises(BadRequest) as refused:
            head(text)
        assert refused.value.status == status

    def test_the_parser_serves_again_whatever_it_was_given_before(self) -> None:
        parser = HeadParser()
        good = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
        before = [
            good,
            b"garbage\r\n\r\n",
            b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
            b"GET /c HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"GET /d HTTP/1.0\r\n\r\n",
            b"GET /e HTTP/1.1\r\n\r\n",
            b"POST /f HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET /g HTTP/1.1\r\nHost",
            b"POST /h HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000000000\r\n\r\n",
        ]
        for data in before:
            try:
                parser.parse(data)
            except BadRequest:
                pass
            assert parser.parse(good).target == "/a"

    @given(st.binary(max_size=200))
    @example(b"GET / HTTP/1.1\r\n\r\n")
    def test_any_bytes(self, data: bytes) -> None:
        try:
            end = find_head(data)
            if end:
                HeadParser().parse(data[:end])
        except BadRequest:
            pass  # the only one there may be

    @given(
        st.lists(
            st.sampled_from(
                [
                    b"GET ", b"POST ", b"/", b"*", b"http://a", b" HTTP/1.1", b" HTTP/1.0", b"\r\n",
                    b"Host: x", b"Content-Length: ", b"5", b"Transfer-Encoding: chunked", b": ",
                    b"Connection: ", b"close", b"Upgrade", b"websocket", b"\n", b"\x00", b"\xff",
                ]
            ),
            max_size=20,
        )
    )  # fmt: skip
    def test_pieces_of_requests(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces) + b"\r\n\r\n"
        parser = HeadParser()
        try:
            end = find_head(data)
            if end:
                got = parser.parse(data[:end])
                assert got.length >= 0
        except BadRequest:
            pass
        assert parser.parse(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").target == "/a"


class TestFindHead:
    def test_whole_and_partial(self) -> None:
        data = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbody"
        assert data[find_head(data) :] == b"body"
        for end in range(len(data) - 4):
            assert find_head(data[:end]) == 0

    def test_too_long(self) -> None:
        line = b"GET / HTTP/1.1\r\nA: "
        fits = line + b"a" * (MAX_HEAD - len(line) - 4) + b"\r\n\r\n"
        assert find_head(fits) == MAX_HEAD
        with pytest.raises(BadRequest) as refused:
            find_head(line + b"a" * (MAX_HEAD - len(line) - 3) + b"\r\n\r\n")
        assert refused.value.status == 431

    @pytest.mark.parametrize("data", [b"\x16\x03\x01\x02", b" GET", b"{", b"\x00"])
    def test_what_cannot_become_a_request(self, data: bytes) -> None:
        with pytest.raises(BadRequest):
            find_head(data)


class TestQuery:
    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("", {}),
            ("EIO=4&transport=polling", {"EIO": "4", "transport": "polling"}),
            ("sid=a&sid=b", {"sid": "b"}),
            ("sid=a&sid=", {"sid": ""}),
            ("a", {"a": ""}),
            ("a=b=c", {"a": "b=c"}),
            ("&&a=1&", {"a": "1"}),
            ("a=%C3%A9+b", {"a": "é b"}),
            ("s%69d=x", {"sid": "x"}),
            ("a=%zz%4", {"a": "%zz%4"}),
            ("a=%ff", {"a": "\ufffd"}),
            ("=v", {"": "v"}),
        ],
    )
    def test_values(self, query: str, expected: dict[str, str]) -> None:
        assert parse_query(query) == expected

    @given(st.text(max_size=100))
    def test_any_text(self, text: str) -> None:
        for name, value in parse_query(text).items():
            (name + value).encode("utf-8", "surrogatepass")


class TestBodies:
    def test_sized(self) -> None:
        body = SizedBody(5)
        assert body.feed(b"abc") == ([b"abc"], 3)
        assert not body.done
        assert body.feed(b"defgh") == ([b"de"], 2)
        assert body.done

    def test_chunked(self) -> None:
        body = ChunkedBody()
        data = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET /"
        pieces, used = body.feed(data)
        assert b"".join(pieces) == b"abc0123456789"
        assert data[used:] == b"GET /"
        assert body.done

    @given(st.data(), st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    def test_chunked_in_any_segments(self, data: st.DataObject, chunks: list[bytes]) -> None:
        wire = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        wire += b"0\r\n\r\n"
        after = b"NEXT"
        cuts = data.draw(st.lists(st.integers(0, len(wire) + 4), max_size=8).map(sorted))
        body = ChunkedBody()
        got = b""
        used = 0
        stream = wire + after
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if body.done:
                break
            pieces, taken = body.feed(stream[start:end])
            got += b"".join(pieces)
            used += taken
        assert got == b"".join(chunks)
        assert body.done
        assert used == len(wire)

    @pytest.mark.parametrize(
        "data",
        [
            b"x\r\n",
            b"\r\n",
            b"-1\r\n",
            b"0x3\r\nabc\r\n",
            b"3 \r\nabc\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabcdef",
            b"3\nabc\r\n\r\n",
            b"f" * 16 + b"\r\n",
            b"3;" + b"e" * 600 + b"\r\nabc\r\n",
            b"3;" + b"e" * 600,
            b"0\r\n" + b"A: b\r\n" * 3000,
            b"0\r\n" + b"A" * 10_000,
        ],
    )
    def test_chunked_refused(self, data: bytes) -> None:
        with pytest.raises(BadRequest):
            ChunkedBody().feed(data)

    @given(
        st.lists(
            st.sampled_from(
                [b"0", b"1", b"a", b"3", b"\r\n", b"\r", b"\n", b";", b" ", b"abc", b"z", b"T: v"]
            ),
            max_size=14,
        )
    )
    def test_chunked_agrees_with_llhttp(self, parts: list[bytes]) -> None:
        """Whoever is stricter refuses; nobody takes a different body out of the same bytes."""
        data = b"".join(parts)
        theirs = _llhttp_body(data)
        body = ChunkedBody()
        try:
            pieces, _ = body.feed(data)
        except BadRequest:
            return
        if body.done:
            assert theirs == b"".join(pieces)


def _llhttp_body(chunked: bytes) -> bytes | None:
    body: list[bytes] = []
    done: list[bool] = []

    class Collector:
        def on_body(self, data: bytes) -> None:
            if not done:
                body.append(data)

        def on_message_complete(self) -> None:
            done.append(True)

    parser = httptools.HttpRequestParser(Collector())
    parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        parser.feed_data(chunked)
    except httptools.HttpParserError:
        pass  # what follows the end is no request
    return b"".join(body) if done else None
