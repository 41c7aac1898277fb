"""The front door over real sockets: heads, bodies, order, keep-alive, refusals and limits."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limpet_adapters.counters import counters
from limpet_worker.http.cors import CorsOptions
from limpet_worker.http.request import MAX_HEAD
from rawhttp import Answer, Raw, request, until, websocket
from servers.engineio_echo import EchoServer

PATH = "/engine.io/?EIO=4&transport=polling"
PAGE = "https://a.example"

Start = Callable[..., Awaitable[tuple[EchoServer, tuple[str, int]]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Return ``start(**options)``: a running echo server and its address."""
    servers: list[EchoServer] = []

    async def begin(**options: Any) -> tuple[EchoServer, tuple[str, int]]:
        server = EchoServer(**{"ping_interval": 25.0, "ping_timeout": 20.0, **options})
        servers.append(server)
        return server, await server.listen()

    yield begin
    for server in servers:
        await server.close()


async def opened(raw: Raw) -> str:
    """Open a polling session and return the rest of the target of its requests."""
    return f"{PATH}&sid={(await raw.request('GET', PATH)).sid}"


async def flood(raw: Raw, data: bytes, times: int) -> None:
    """Write, and give up when nothing moves any more."""
    for _ in range(times):
        async with asyncio.timeout(15):
            await raw.send(data)
        await asyncio.sleep(0)


class TestPolling:
    async def test_handshake_message_and_headers(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            first = await raw.request("GET", PATH)
            assert json.loads(first.body[1:]) == {
                "sid": first.sid,
                "upgrades": ["websocket"],
                "pingInterval": 25000,
                "pingTimeout": 20000,
                "maxPayload": 1000000,
            }
            date = first.headers.pop("date")
            assert date.endswith("GMT")
            assert first.headers == {
                "content-type": "text/plain; charset=UTF-8",
                "content-length": str(len(first.body)),
                "cache-control": "no-store",
            }
            posted = await raw.request("POST", f"{PATH}&sid={first.sid}", b"4one\x1e4two")
            del posted.headers["date"]
            assert posted == Answer(
                200,
                {"content-type": "text/html", "content-length": "2", "cache-control": "no-store"},
                b"ok",
            )
            polled = await raw.request("GET", f"{PATH}&sid={first.sid}")
            assert polled.body == b"4one\x1e4two"
        assert server.echoes[first.sid].received == ["one", "two"]

    async def test_two_sessions_on_one_connection(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            targets = [await opened(raw) for _ in range(2)]
            for turn in range(10):
                for number, target in enumerate(targets):
                    await raw.request("POST", target, f"4{number}-{turn}".encode())
                for number, target in enumerate(targets):
                    got = await raw.request("GET", target)
                    assert got.body == f"4{number}-{turn}".encode()

    async def test_a_head_in_many_segments(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            data = b"\r\n" + request("POST", target, b"4segments")
            for at in range(0, len(data), 7):
                await raw.send(data[at : at + 7])
                await asyncio.sleep(0.001)
            assert (await raw.answer()).body == b"ok"
            assert (await raw.request("GET", target)).body == b"4segments"

    async def test_pipelined_requests_are_answered_in_order(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(
                b"".join(
                    [
                        request("POST", target, b"4a"),
                        request("GET", "/nowhere"),
                        request("GET", target),
                        request("PUT", target),
                        request("POST", target, b"4b"),
                        request("GET", target),
                    ]
                )
            )
            got = [await raw.answer() for _ in range(6)]
            assert [answer.status for answer in got] == [200, 404, 200, 400, 200, 200]
            assert [answer.body for answer in (got[0], got[2], got[4], got[5])] == [
                b"ok",
                b"4a",
                b"ok",
                b"4b",
            ]

    async def test_what_follows_a_waiting_poll_waits(self, start: Start) -> None:
        """A duplicate on the same connection is none: it is read when the first is answered."""
        _, address = await start()
        async with await Raw.open(address) as raw, await Raw.open(address) as other:
            target = await opened(raw)
            await raw.send(request("GET", target) * 2)
            await other.request("POST", target, b"4one")
            assert (await raw.answer()).body == b"4one"
            await other.request("POST", target, b"4two")
            assert (await raw.answer()).body == b"4two"

    async def test_a_chunked_body(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(request("POST", target, b"", Transfer_Encoding="chunked"))
            for piece in (b"3\r\n4ch", b"\r\n5;a=b\r\nunked\r\n0", b"\r\n\r\n"):
                await raw.send(piece)
                await asyncio.sleep(0.005)
            assert (await raw.answer()).body == b"ok"
            assert (await raw.request("GET", target)).body == b"4chunked"

    async def test_expect_100_continue(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(request("POST", target, b"", Expect="100-continue", Content_Length="4"))
            assert (await raw.answer()).status == 100
            await raw.send(b"4abc")
            assert (await raw.answer()).body == b"ok"
            assert (await raw.request("GET", "/", Expect="miracles")).status == 417

    @pytest.mark.parametrize(
        ("version", "connection", "kept"),
        [
            ("1.1", "", True),
            ("1.1", "Connection: close\r\n", False),
            ("1.0", "", False),
            ("1.0", "Connection: keep-alive\r\n", True),
        ],
    )
    async def test_keeping_the_connection(
        self, start: Start, version: str, connection: str, kept: bool
    ) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            await raw.send(f"GET {PATH} HTTP/{version}\r\nHost: x\r\n{connection}\r\n".encode())
            answer = await raw.answer()
            assert answer.sid
            if kept:
                assert answer.headers.get("connection") == (
                    "keep-alive" if version == "1.0" else None
                )
                assert await opened(raw)
            else:
                assert answer.headers["connection"] == "close"
                assert await raw.ended() == b""

    async def test_old_internet_explorer(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            answer = await raw.request("GET", PATH, User_Agent="Mozilla/5.0 Trident/7.0")
            assert answer.headers["x-xss-protection"] == "0"

    async def test_cookie_on_the_first_answer_only(self, start: Start) -> None:
        _, address = await start(cookie=True)
        async with await Raw.open(address) as raw:
            first = await raw.request("GET", PATH)
            expected = f"io={first.sid}; Path=/; HttpOnly; SameSite=Lax"
            assert first.headers["set-cookie"] == expected
            await raw.request("POST", f"{PATH}&sid={first.sid}", b"4a")
            assert "set-cookie" not in (await raw.request("GET", f"{PATH}&sid={first.sid}")).headers

    async def test_compression(self, start: Start) -> None:
        _, address = await start()
        message = b"4" + b"repeat " * 1000
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            for accepted, undo in (
                ("gzip, deflate", gzip.decompress),
                ("deflate", zlib.decompress),
                ("br", bytes),
            ):
                await raw.request("POST", target, message, Accept_Encoding=accepted)
                answer = await raw.request("GET", target, Accept_Encoding=accepted)
                expected = accepted.split(",")[0] if accepted != "br" else None
                assert answer.headers.get("content-encoding") == expected
                assert undo(answer.body) == message
            await raw.request("POST", target, b"4short")
            answer = await raw.request("GET", target, Accept_Encoding="gzip")
            assert answer.body == b"4short"

    async def test_no_compression(self, start: Start) -> None:
        _, address = await start(http_compression=False)
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.request("POST", target, b"4" + b"a" * 5000)
            answer = await raw.request("GET", target, Accept_Encoding="gzip")
            assert answer.body == b"4" + b"a" * 5000

    async def test_an_aborted_poll_ends_the_session(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            (echo,) = server.echoes.values()
            await raw.send(request("GET", target))
            await until(lambda: echo.session.writable)
        await until(lambda: bool(echo.reasons))
        assert echo.reasons == ["transport error"]
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", target)).json["code"] == 1

    async def test_a_duplicate_poll_ends_the_session(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as first, await Raw.open(address) as second:
            target = await opened(first)
            (echo,) = server.echoes.values()
            await first.send(request("GET", target))
            await until(lambda: echo.session.writable)
            answer = await second.request("GET", target)
            assert (answer.status, answer.body) == (400, b"")
            answer = await first.answer()
            assert (answer.status, answer.body) == (200, b"1")
            assert (await second.request("GET", target)).json["code"] == 1
        assert echo.reasons == ["transport error"]

    async def test_a_duplicate_post_ends_the_session(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as first, await Raw.open(address) as second:
            target = await opened(first)
            (echo,) = server.echoes.values()
            await first.send(request("POST", target, b"4ha", Content_Length="9"))
            polling = echo.session.polling
            assert polling is not None
            await until(lambda: polling.poster is not None)
            answer = await second.request("POST", target, b"4other")
            assert (answer.status, answer.body) == (400, b"")
            assert await first.ended() == b""
            assert (await second.request("GET", target)).json["code"] == 1
        assert echo.reasons == ["transport error"]
        assert echo.received == []

    async def test_half_a_post_ends_the_session(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(request("POST", target, b"4ha", Content_Length="9"))
        (echo,) = server.echoes.values()
        await until(lambda: bool(echo.reasons))
        assert echo.reasons == ["transport error"]

    async def test_a_binary_post_ends_the_session(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            answer = await raw.request(
                "POST", target, b"4a", Content_Type="application/octet-stream"
            )
            assert (answer.status, answer.body) == (400, b"")
        (echo,) = server.echoes.values()
        assert echo.reasons == ["transport error"]

    async def test_a_post_whose_session_is_upgraded_meanwhile(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw, await Raw.open(address) as other:
            target = await opened(raw)
            (echo,) = server.echoes.values()
            await raw.send(request("POST", target, b"4ha", Content_Length="9"))
            await other.send(websocket(target.replace("polling", "websocket")))
            await other.answer()
            await other.send(frame(b"2probe") + frame(b"5"))
            await until(lambda: echo.upgrades == 1)
            await raw.send(b"lf late")
            assert (await raw.answer()).status == 400

    async def test_chunks_that_are_none(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(request("POST", target, b"3\r\n4abc\r\n", Transfer_Encoding="chunked"))
            assert (await raw.answer()).status == 400
            assert await raw.ended() == b""
        (echo,) = server.echoes.values()
        assert echo.reasons == ["transport error"]
        async with await Raw.open(address) as raw:
            await raw.send(request("POST", PATH, b"nonsense\r\n", Transfer_Encoding="chunked"))
            assert (await raw.answer()).json["code"] == 2
            assert await raw.ended() == b""


class TestLimits:
    async def test_a_declared_body_too_large(self, start: Start) -> None:
        server, address = await start(max_http_buffer_size=100)
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            answer = await raw.request("POST", target, b"4" * 101)
            assert (answer.status, answer.body) == (413, b"")
            # The connection goes on, the session does not: its message is lost.
            assert (await raw.request("GET", target)).json["code"] == 1
            assert await opened(raw)
        assert next(iter(server.echoes.values())).reasons == ["transport error"]
        assert counters['limpet_requests_refused_total{reason="body too large"}']

    async def test_a_streamed_body_too_large(self, start: Start) -> None:
        server, address = await start(max_http_buffer_size=100)
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(request("POST", target, b"", Transfer_Encoding="chunked"))
            for _ in range(11):
                await raw.send(b"A\r\n0123456789\r\n")
                await asyncio.sleep(0.002)
            answer = await raw.answer()
            assert (answer.status, answer.body) == (413, b"")
            await raw.send(b"0\r\n\r\n")
            assert await opened(raw)
        assert next(iter(server.echoes.values())).reasons == ["transport error"]

    async def test_a_body_of_just_the_limit(self, start: Start) -> None:
        _, address = await start(max_http_buffer_size=100)
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            assert (await raw.request("POST", target, b"4" + b"a" * 99)).body == b"ok"

    async def test_an_endless_unwanted_body(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            await raw.send(
                request("POST", f"{PATH}&sid=unknown", b"", Content_Length="100000000000")
            )
            assert (await raw.answer()).json["code"] == 1
            with pytest.raises(ConnectionError):
                await flood(raw, bytes(65_536), 400)

    async def test_a_head_too_large(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            await raw.send(b"GET /" + b"a" * MAX_HEAD)
            assert (await raw.answer()).status == 431
            assert await raw.ended() == b""

    async def test_a_slow_head(self, start: Start) -> None:
        """Each byte is in time, the head as a whole is not."""
        server, address = await start(doorway={"head_timeout": 0.2})
        async with await Raw.open(address) as raw:
            began = asyncio.get_running_loop().time()
            answer = asyncio.create_task(raw.answer())
            while not answer.done():
                raw.writer.write(b"G" if asyncio.get_running_loop().time() == began else b"E")
                await asyncio.sleep(0.02)
            assert (await answer).status in {400, 408}
            assert asyncio.get_running_loop().time() - began < 8
            await until(lambda: server.doorway.connections == 0)

    async def test_a_connection_that_says_nothing(self, start: Start) -> None:
        server, address = await start(doorway={"head_timeout": 0.1})
        async with await Raw.open(address) as raw:
            assert await raw.ended() == b""
        assert server.doorway.connections == 0

    async def test_an_idle_connection(self, start: Start) -> None:
        _, address = await start(doorway={"idle_timeout": 0.1})
        async with await Raw.open(address) as raw:
            await opened(raw)
            assert await raw.ended() == b""

    async def test_a_waiting_poll_is_not_idle(self, start: Start) -> None:
        _, address = await start(doorway={"idle_timeout": 0.1, "write_timeout": 0.1})
        async with await Raw.open(address) as other:
            target = await opened(other)
        async with await Raw.open(address) as raw:
            await raw.send(request("GET", target))
            await asyncio.sleep(0.4)
            async with await Raw.open(address) as poster:
                await poster.request("POST", target, b"4late")
            assert (await raw.answer()).body == b"4late"

    async def test_a_slow_body(self, start: Start) -> None:
        server, address = await start(doorway={"body_timeout": 0.1})
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(request("POST", target, b"4", Content_Length="9"))
            assert (await raw.answer()).status == 408
        assert next(iter(server.echoes.values())).reasons == ["transport error"]

    async def test_a_client_that_does_not_read(self, start: Start) -> None:
        """Pipelined requests are not answered into an endless buffer."""
        server, address = await start(doorway={"write_timeout": 0.3})
        async with await Raw.open(address) as raw:
            with pytest.raises((ConnectionError, TimeoutError)):
                await flood(raw, request("GET", "/nowhere", Filler="x" * 100) * 100, 10_000)
            await until(lambda: server.doorway.connections == 0)

    async def test_a_flood_behind_a_waiting_poll(self, start: Start) -> None:
        """Read ahead so far and no further; all of it is answered in the end."""
        _, address = await start()
        async with await Raw.open(address) as raw, await Raw.open(address) as other:
            target = await opened(raw)
            times = 40_000
            raw.writer.write(request("GET", target) + request("GET", "/nowhere") * times)
            await asyncio.sleep(0.1)
            await other.request("POST", target, b"4go")
            assert (await raw.answer()).body == b"4go"
            for _ in range(times):
                assert (await raw.answer()).status == 404

    async def test_full(self, start: Start) -> None:
        _, address = await start(max_sessions=1)
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            answer = await raw.request("GET", PATH)
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json == {"code": 503, "message": "Too many sessions"}
            assert (await raw.request("POST", target, b"4a")).body == b"ok"
            await raw.send(websocket("/engine.io/?EIO=4&transport=websocket"))
            assert (await raw.answer()).status == 503
            assert await raw.ended() == b""


REFUSED = [
    ("GET", "/engine.io/?EIO=4", (400, 0, "Transport unknown")),
    ("GET", "/engine.io/?EIO=4&transport=pigeon", (400, 0, "Transport unknown")),
    ("GET", "/engine.io/?EIO=4&transport=webtransport", (400, 0, "Transport unknown")),
    ("GET", f"{PATH}&sid=nonesuch", (400, 1, "Session ID unknown")),
    ("POST", f"{PATH}&sid=nonesuch", (400, 1, "Session ID unknown")),
    ("POST", PATH, (400, 2, "Bad handshake method")),
    ("OPTIONS", PATH, (400, 2, "Bad handshake method")),
    ("GET", "/engine.io/?EIO=4&transport=websocket", (400, 3, "Bad request")),
    ("GET", "/engine.io/?transport=polling", (400, 5, "Unsupported protocol version")),
    ("GET", "/engine.io/?EIO=3&transport=polling", (400, 5, "Unsupported protocol version")),
    ("GET", f"{PATH}&EIO=abc", (400, 5, "Unsupported protocol version")),
    # Where two things are wrong, the order of the checks shows.
    ("POST", "/engine.io/?EIO=3&transport=pigeon&sid=nonesuch", (400, 0, "Transport unknown")),
    ("PUT", "/engine.io/?EIO=3&transport=polling&sid=nonesuch", (400, 1, "Session ID unknown")),
    ("POST", "/engine.io/?EIO=3&transport=websocket", (400, 2, "Bad handshake method")),
    ("GET", "/engine.io/?EIO=3&transport=websocket", (400, 3, "Bad request")),
]


class TestRefusals:
    @pytest.mark.parametrize(("method", "target", "expected"), REFUSED)
    async def test_polling(
        self, start: Start, method: str, target: str, expected: tuple[int, int, str]
    ) -> None:
        status, code, message = expected
        _, address = await start()
        async with await Raw.open(address) as raw:
            answer = await raw.request(method, target)
            assert answer.status == status
            assert answer.headers["content-type"] == "application/json"
            assert answer.json == {"code": code, "message": message}
            assert await opened(raw)

    async def test_with_a_session(self, start: Start) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            for method, given_target, code in [
                ("GET", target.replace("EIO=4", "EIO=3"), 3),
                ("GET", target.replace("transport=polling", "transport=websocket"), 3),
                ("PUT", target, 2),
                ("DELETE", target, 2),
                ("OPTIONS", target, 2),
            ]:
                answer = await raw.request(method, given_target)
                assert (answer.status, answer.json["code"]) == (400, code)
            head = await raw.request("HEAD", target)
            assert (head.status, head.body) == (400, b"")
            # None of it harmed the session.
            await raw.request("POST", target, b"4well")
            assert (await raw.request("GET", target)).body == b"4well"

    async def test_a_transport_that_is_not_enabled(self, start: Start) -> None:
        _, address = await start(transports=("websocket",))
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", PATH)).json["code"] == 0

    @pytest.mark.parametrize(
        ("target", "text"),
        [
            ("/engine.io/?EIO=4&transport=polling", b"Bad request"),
            ("/engine.io/?EIO=4&transport=pigeon", b"Transport unknown"),
            ("/engine.io/?EIO=4&transport=websocket&sid=nonesuch", b"Session ID unknown"),
            ("/engine.io/?transport=websocket", b"Unsupported protocol version"),
            ("/engine.io/?EIO=3&transport=websocket", b"Unsupported protocol version"),
        ],
    )
    async def test_websocket(self, start: Start, target: str, text: bytes) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            await raw.send(websocket(target))
            answer = await raw.answer()
            assert answer.status == 400
            assert answer.headers["connection"] == "close"
            assert answer.headers["content-type"] == "text/html"
            assert answer.body == text
            assert await raw.ended() == b""
        assert not server.echoes

    async def test_websocket_version_and_key(self, start: Start) -> None:
        server, address = await start()
        for fields, version in (
            ({"Sec_WebSocket_Version": "8"}, "13"),
            ({"Sec_WebSocket_Key": "short"}, None),
        ):
            async with await Raw.open(address) as raw:
                await raw.send(websocket("/engine.io/?EIO=4&transport=websocket", **fields))
                answer = await raw.answer()
                assert answer.status == 400
                assert answer.headers.get("sec-websocket-version") == version
                assert await raw.ended() == b""
        assert not server.echoes

    @pytest.mark.parametrize(
        ("verdict", "status", "message"),
        [
            (True, 200, ""),
            (None, 200, ""),
            (False, 403, "Forbidden"),
            ("Not today", 403, "Not today"),
            ("Half \ud83d", 403, "Half ?"),
        ],
    )
    @pytest.mark.parametrize("wait", [False, True])
    async def test_allow_request(
        self, start: Start, verdict: object, status: int, message: str, wait: bool
    ) -> None:
        seen: list[Any] = []

        def plainly(given_request: Any) -> object:
            seen.append(given_request)
            return verdict

        async def patiently(given_request: Any) -> object:
            await asyncio.sleep(0.01)
            return plainly(given_request)

        _, address = await start(allow_request=patiently if wait else plainly)
        async with await Raw.open(address) as raw:
            await raw.send(request("GET", f"{PATH}&user=a%20b", X_Token="t"))
            answer = await raw.answer()
            assert answer.status == status
            if status == 403:
                assert answer.json == {"code": 4, "message": message}
            assert seen[0].query["user"] == "a b"
            assert seen[0].headers["x-token"] == "t"
            assert seen[0].address[0] == "127.0.0.1"
            await raw.send(websocket("/engine.io/?EIO=4&transport=websocket"))
            answer = await raw.answer()
            if status == 403:
                assert (answer.status, answer.body) == (400, message.encode())
            else:
                assert answer.status == 101
        if status == 200:
            await raw.close()

    async def test_allow_request_that_fails(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_: Any) -> bool:
            raise LookupError("no such table")

        _, address = await start(allow_request=fail)
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", PATH)).json["code"] == 3
        assert "no such table" in caplog.text

    async def test_allow_request_that_fails_later(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(_: Any) -> bool:
            await asyncio.sleep(0)
            raise LookupError("no such table")

        _, address = await start(allow_request=fail)
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", PATH)).json["code"] == 3
        assert "no such table" in caplog.text

    async def test_a_session_that_cannot_begin(
        self, start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server, address = await start()

        def fail(*_: object) -> None:
            raise LookupError("no such table")

        monkeypatch.setattr(server.engine, "open", fail)
        monkeypatch.setattr(server.engine, "open_websocket", fail)
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", PATH)).json["code"] == 3
            await raw.send(websocket("/engine.io/?EIO=4&transport=websocket"))
            assert await raw.ended() == b""
        assert "no such table" in caplog.text

    async def test_a_client_that_leaves_while_the_app_decides(self, start: Start) -> None:
        cancelled = asyncio.Event()

        async def ponder(_: Any) -> bool:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return True

        server, address = await start(allow_request=ponder)
        async with await Raw.open(address) as raw:
            await raw.send(request("GET", PATH))
            await until(lambda: server.doorway.requests == 1)
        async with asyncio.timeout(5):
            await cancelled.wait()
        assert not server.echoes

    @pytest.mark.parametrize(
        ("target", "status"),
        [
            ("/engine.io/anything?EIO=4&transport=polling", 200),
            ("http://test.example/engine.io/?EIO=4&transport=polling", 200),
            ("/engine.io?EIO=4&transport=polling", 404),
            ("/engine.iox/?EIO=4&transport=polling", 404),
            ("/other/engine.io/?EIO=4&transport=polling", 404),
            ("/", 404),
        ],
    )
    async def test_paths(self, start: Start, target: str, status: int) -> None:
        _, address = await start()
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", target)).status == status


class TestListening:
    async def test_unix(self, start: Start, tmp_path: Path) -> None:
        server, _ = await start()
        path = str(tmp_path / "s")
        await server.doorway.listen_unix(path)
        raw = Raw(*await asyncio.open_unix_connection(path))
        first = await raw.request("GET", PATH)
        assert server.echoes[first.sid].session.request.address == ""
        await raw.close()

    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
    async def test_a_bound_socket(self, start: Start, tmp_path: Path, family: int) -> None:
        server, _ = await start()
        bound = socket.socket(family)
        if family == socket.AF_UNIX:
            bound.bind(str(tmp_path / "s"))
        else:
            bound.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        name = bound.getsockname()
        await server.doorway.listen_socket(bound)
        if family == socket.AF_UNIX:
            raw = Raw(*await asyncio.open_unix_connection(name))
        else:
            raw = await Raw.open(name[:2])
        first = await raw.request("GET", PATH)
        address = server.echoes[first.sid].session.request.address
        assert address == ("" if family == socket.AF_UNIX else (name[0], address[1]))
        await raw.close()

    async def test_closing_ends_idle_connections_and_adopts_no_more(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            await opened(raw)
            await server.close()
            assert await raw.ended() == b""
        ours, theirs = socket.socketpair()
        server.doorway.adopt(ours, b"", "unix")
        assert ours.fileno() == -1
        theirs.close()
        with pytest.raises(ConnectionRefusedError):
            await Raw.open(address)


class TestCors:
    async def test_on_answers_errors_and_preflights(self, start: Start) -> None:
        _, address = await start(cors=CorsOptions(origin=[PAGE], credentials=True))
        async with await Raw.open(address) as raw:
            for target in (PATH, f"{PATH}&sid=nonesuch", "/engine.io/"):
                answer = await raw.request("GET", target, Origin=PAGE)
                assert answer.headers["access-control-allow-origin"] == PAGE
                assert answer.headers["access-control-allow-credentials"] == "true"
                assert answer.headers["vary"] == "Origin"
            answer = await raw.request("GET", PATH, Origin="https://evil.test")
            assert answer.status == 200
            assert "access-control-allow-origin" not in answer.headers
            answer = await raw.request(
                "OPTIONS",
                PATH,
                Origin=PAGE,
                Access_Control_Request_Method="POST",
                Access_Control_Request_Headers="x-a",
            )
            assert answer.status == 204
            assert answer.headers["content-length"] == "0"
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["access-control-allow-methods"] == (
                "GET,HEAD,PUT,PATCH,POST,DELETE"
            )
            assert answer.headers["access-control-allow-headers"] == "x-a"

    async def test_websocket(self, start: Start) -> None:
        _, address = await start(cors=CorsOptions(origin=[PAGE]))
        target = "/engine.io/?EIO=4&transport=websocket"
        async with await Raw.open(address) as raw:
            await raw.send(websocket(target, Origin=PAGE))
            answer = await raw.answer()
            assert answer.status == 101
            assert answer.headers["access-control-allow-origin"] == PAGE
        async with await Raw.open(address) as raw:
            await raw.send(websocket(target, Origin="https://evil.test"))
            answer = await raw.answer()
            assert (answer.status, answer.body) == (400, b"Origin not allowed")
        async with await Raw.open(address) as raw:
            await raw.send(websocket(target, Origin="http://test.example"))
            assert (await raw.answer()).status == 101

    async def test_a_function_that_fails(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_: str | None) -> bool:
            raise LookupError("no such table")

        _, address = await start(cors=CorsOptions(origin=fail))
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", PATH)).json["code"] == 3
            assert (await raw.request("OPTIONS", PATH)).json["code"] == 3
        assert "no such table" in caplog.text


class TestUpgrade:
    async def test_on_the_polling_connection_with_frames_behind_the_handshake(
        self, start: Start
    ) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            first = await raw.request("GET", PATH)
            target = f"/engine.io/?EIO=4&transport=websocket&sid={first.sid}"
            await raw.send(websocket(target) + frame(b"2probe") + frame(b"5") + frame(b"4hi"))
            assert (await raw.answer()).status == 101
            assert await raw.reader.readexactly(8) == b"\x81\x063probe"
            assert await raw.reader.readexactly(5) == b"\x81\x034hi"
            echo = server.echoes[first.sid]
            assert echo.upgrades == 1
            assert echo.session.transport_name == "websocket"
            assert server.doorway.connections == 0
            async with await Raw.open(address) as late:
                answer = await late.request("GET", f"{PATH}&sid={first.sid}")
                assert answer.json["code"] == 3
                answer = await late.request("POST", f"{PATH}&sid={first.sid}", b"4a")
                assert answer.json["code"] == 3

    async def test_websocket_first(self, start: Start) -> None:
        server, address = await start()
        async with await Raw.open(address) as raw:
            await raw.send(websocket("/engine.io/?EIO=4&transport=websocket") + frame(b"4early"))
            assert (await raw.answer()).status == 101
            head = await raw.reader.readexactly(2)
            opening = await raw.reader.readexactly(head[1])
            sid = json.loads(opening[1:])["sid"]
            assert await raw.reader.readexactly(8) == b"\x81\x064early"
            assert server.echoes[sid].received == ["early"]


def frame(text: bytes) -> bytes:
    """Return a masked text frame of less than 126 bytes (mask 0)."""
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text


@pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_on_both_event_loops(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        server = EchoServer(ping_interval=25.0, ping_timeout=20.0)  # no ping comes in between
        address = await server.listen()
        async with await Raw.open(address) as raw:
            target = await opened(raw)
            await raw.send(request("POST", target, b"4a") + request("GET", target))
            assert (await raw.answer()).body == b"ok"
            assert (await raw.answer()).body == b"4a"
            await raw.request("POST", target, b"4" + b"b" * 900_000)
            assert len((await raw.request("GET", target)).body) == 900_001
            await raw.send(websocket(target.replace("polling", "websocket")))
            assert (await raw.answer()).status == 101
            await raw.send(frame(b"2probe"))
            assert await raw.reader.readexactly(8) == b"\x81\x063probe"
        async with await Raw.open(address) as raw:
            await raw.send(b"\x16\x03\x01 no http")
            assert (await raw.answer()).status == 400
            assert await raw.ended() == b""
        await server.close()
        await asyncio.sleep(0.05)
        assert not faults

    with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        runner.run(main())


PIECES = [
    b"GET ", b"POST ", b"OPTIONS ", b"HEAD ", b"CONNECT ", b"/engine.io/", b"/", b"*", b"http://a/",
    b"?EIO=4&transport=polling", b"?EIO=4&transport=websocket", b"&sid=", b"%", b"nonesuch",
    b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: x\r\n", b"Content-Length: 5\r\n", b"\r\n", b"\r",
    b"Transfer-Encoding: chunked\r\n", b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n",
    b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Origin: \xff\r\n", b"\r\n\r\n",
    b"\x00", b"5\r\nhello\r\n", b"0\r\n\r\n", b"4abc", b"\x81\x83\x00\x00\x00\x004hi", b"\xff\xfe",
]  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.lists(
        st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=20)), max_size=25).map(
            b"".join
        ),
        min_size=1,
        max_size=3,
    )
)
def test_garbage(data: list[bytes]) -> None:
    """Whatever comes: an answer or the end, and no exception in the event loop."""

    async def main() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        server = EchoServer(cors=CorsOptions(origin=[PAGE]))
        address = await server.listen()
        async with await Raw.open(address) as raw:
            for piece in data:
                raw.writer.write(piece)
                await asyncio.sleep(0)
            try:
                raw.writer.write_eof()
            except OSError:
                pass  # it has ended
            got = await raw.ended()
            assert not got or got.startswith(b"HTTP/1.1 ")
        async with await Raw.open(address) as raw:
            assert (await raw.request("GET", PATH)).status == 200
        await server.close()
        await asyncio.sleep(0)
        assert not faults

    asyncio.run(main())


async def test_the_descriptors_of_all_clients_are_known(start: Start) -> None:
    server, address = await start()
    async with await Raw.open(address) as idle, await Raw.open(address) as socket_:
        await idle.request("GET", PATH)
        await socket_.send(websocket(f"{PATH.replace('polling', 'websocket')}"))
        await until(lambda: any(one.wire for one in server.engine.sessions.values()))
        found = set()
        for fd in server.doorway.descriptors():
            borrowed = socket.socket(fileno=fd)
            found.add(borrowed.getpeername())
            borrowed.detach()
        assert found == {one.writer.get_extra_info("sockname") for one in (idle, socket_)}
    await until(lambda: not server.doorway.descriptors())
