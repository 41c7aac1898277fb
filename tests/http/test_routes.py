"""The app's own routes beside Engine.IO on the same connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import uvloop
from aiohttp import web

from limpet_worker.http.routes import Site
from rawhttp import Raw, request, until, websocket
from servers.engineio_echo import EchoServer

PATH = "/engine.io/?EIO=4&transport=polling"


def routes() -> web.Application:
    app = web.Application(client_max_size=10_000_000)

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=f"page for {request.remote}")

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(3):
            await response.write(f"part {number};".encode())
            await asyncio.sleep(0.01)
        return response

    async def upload(request: web.Request) -> web.Response:
        return web.json_response({"bytes": len(await request.read())})

    async def careless(_: web.Request) -> web.Response:
        return web.Response(text="read nothing")

    async def refuse(_: web.Request) -> web.Response:
        raise web.HTTPForbidden(text="no")

    async def fail(_: web.Request) -> web.Response:
        raise LookupError("planned")

    async def forget(_: web.Request) -> Any:
        return None

    async def socket(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            await response.send_str(f"site: {message.data}")
        return response

    async def file(_: web.Request) -> web.FileResponse:
        return web.FileResponse(Path(__file__))

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return web.Response(text="slow")

    async def large(_: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(20_000_000))

    app.router.add_get("/", page)
    app.router.add_get("/large", large)
    app.router.add_get("/stream", stream)
    app.router.add_post("/upload", upload)
    app.router.add_post("/careless", careless)
    app.router.add_get("/refuse", refuse)
    app.router.add_get("/fail", fail)
    app.router.add_get("/forget", forget)
    app.router.add_get("/socket", socket)
    app.router.add_get("/file", file)
    app.router.add_get("/slow", slow)
    return app


class Running:
    """An echo server with a site."""

    def __init__(self, **options: Any) -> None:
        self.site = Site(routes())
        settings = {"ping_interval": 25.0, "ping_timeout": 20.0, **options}
        self.server = EchoServer(site=self.site, **settings)
        self.address = ("", 0)

    async def __aenter__(self) -> Self:
        await self.site.start()
        self.address = await self.server.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()
        await self.site.close()


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with Running() as running:
        yield running


async def test_page_poll_page_and_upgrade_on_one_connection(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        target = ""
        for _ in range(3):
            assert (await raw.request("GET", "/")).body == b"page for 127.0.0.1"
            target = f"{PATH}&sid={(await raw.request('GET', PATH)).sid}"
            await raw.request("POST", target, b"4a")
            assert (await raw.request("GET", target)).body == b"4a"
        await raw.send(websocket(target.replace("polling", "websocket")))
        assert (await raw.answer()).status == 101
        await raw.send(bytes((0x81, 0x86)) + bytes(4) + b"2probe")
        assert await raw.reader.readexactly(8) == b"\x81\x063probe"


async def test_pipelined(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        await raw.send(
            request("GET", "/slow")
            + request("GET", PATH)
            + request("POST", "/upload", b"12345")
            + request("GET", "/engine.io/")
            + request("GET", "/stream")
            + request("GET", "/")
        )
        got = [await raw.answer() for _ in range(6)]
        assert [answer.status for answer in got] == [200, 200, 200, 400, 200, 200]
        assert got[0].body == b"slow"
        assert got[2].json == {"bytes": 5}
        assert got[4].body == b"part 0;part 1;part 2;"


async def test_bodies(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        data = request("POST", "/upload", b"x" * 400_000)
        for at in range(0, len(data), 50_000):
            await raw.send(data[at : at + 50_000])
            await asyncio.sleep(0.001)
        assert (await raw.answer()).json == {"bytes": 400_000}
        await raw.send(
            request("POST", "/upload", b"", Transfer_Encoding="chunked")
            + b"5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n"
            + request("GET", "/")
        )
        assert (await raw.answer()).json == {"bytes": 8}
        assert (await raw.answer()).status == 200
        await raw.send(request("POST", "/upload", b"", Expect="100-continue", Content_Length="2"))
        assert (await raw.answer()).status == 100
        await raw.send(b"ab")
        assert (await raw.answer()).json == {"bytes": 2}


@pytest.mark.parametrize("size", [10, 1_000_000, 9_000_000])
async def test_a_body_that_nobody_reads(running: Running, size: int) -> None:
    async with await Raw.open(running.address) as raw:
        raw.writer.write(request("POST", "/careless", bytes(size)))
        assert (await raw.answer()).body == b"read nothing"
        await raw.writer.drain()
        assert (await raw.request("GET", "/")).status == 200
        assert (await raw.request("GET", PATH)).sid


async def test_errors(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    async with await Raw.open(running.address) as raw:
        for target, status in (("/refuse", 403), ("/nowhere", 404), ("/", 200)):
            assert (await raw.request("GET", target)).status == status
        assert (await raw.request("POST", "/")).status == 405
        head = await raw.request("HEAD", "/")
        assert (head.status, head.body) == (200, b"")
        assert (await raw.request("GET", "/fail")).status == 500
        assert await raw.ended() == b""
    assert "planned" in caplog.text
    async with await Raw.open(running.address) as raw:
        assert (await raw.request("GET", "/forget")).status == 500
        assert await raw.ended() == b""


async def test_a_websocket_of_the_app(running: Running) -> None:
    url = f"http://{running.address[0]}:{running.address[1]}/socket"
    async with aiohttp.ClientSession() as client, client.ws_connect(url) as socket:
        for text in ("one", "two" * 1000):
            await socket.send_str(text)
            assert await socket.receive_str() == f"site: {text}"
    async with await Raw.open(running.address) as raw:
        await raw.send(websocket("/"))  # a page, no WebSocket
        answer = await raw.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await raw.ended() == b""


async def test_an_upgrade_that_is_none_of_ours_is_no_upgrade(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        answer = await raw.request(
            "GET", "/", Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMA"
        )
        assert answer.status == 200
        assert (await raw.request("GET", PATH)).sid


async def test_a_slow_reader(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        await raw.send(request("GET", "/large") + request("GET", "/"))
        await asyncio.sleep(0.2)
        assert len((await raw.answer()).body) == 20_000_000
        assert (await raw.answer()).status == 200


async def test_chunks_that_are_none(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        await raw.send(request("POST", "/upload", b"", Transfer_Encoding="chunked") + b"zz\r\n")
        assert await raw.ended() == b""


async def test_closing(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        answer = await raw.request("GET", "/", Connection="close")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await raw.ended() == b""
    async with await Raw.open(running.address) as raw:
        await raw.send(b"GET / HTTP/1.0\r\n\r\n")
        await raw.reader.readuntil(b"\r\n\r\n")
        assert await raw.ended() == b"page for 127.0.0.1"


async def test_a_client_that_leaves(running: Running) -> None:
    async with await Raw.open(running.address) as raw:
        await raw.send(request("GET", "/slow"))
    doorway = running.server.doorway
    await until(lambda: doorway.requests == 1 and doorway.connections == 0)


async def test_an_answer_under_way_when_the_doorway_closes(running: Running) -> None:
    async with await Raw.open(running.address) as raw, await Raw.open(running.address) as idle:
        assert (await idle.request("GET", "/")).status == 200
        await raw.send(request("GET", "/slow"))
        await until(lambda: running.server.doorway.requests == 2)
        await running.server.close()
        assert (await raw.answer()).body == b"slow"
        assert await raw.ended() == b""
        assert await idle.ended() == b""


async def test_before_the_site_runs() -> None:
    server = EchoServer(site=Site(routes()))
    address = await server.listen()
    async with await Raw.open(address) as raw:
        assert (await raw.request("GET", "/")).status == 503
        assert (await raw.request("GET", PATH)).sid
    await server.close()


async def test_an_app_that_runs_elsewhere() -> None:
    app = routes()
    app.freeze()
    with pytest.raises(RuntimeError, match="already running"):
        await Site(app).start()


@pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_on_both_event_loops(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Files are where the loops differ most: one sends them with sendfile."""

    async def main() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with Running() as running, await Raw.open(running.address) as raw:
            expected = await asyncio.to_thread(Path(__file__).read_bytes)
            target = ""
            for _ in range(2):
                assert (await raw.request("GET", "/file")).body == expected
                target = f"{PATH}&sid={(await raw.request('GET', PATH)).sid}"
                await raw.request("POST", target, b"4a")
                assert (await raw.request("GET", target)).body == b"4a"
            await raw.send(request("POST", "/careless", bytes(3_000_000)) + request("GET", "/"))
            assert (await raw.answer()).body == b"read nothing"
            assert (await raw.answer()).status == 200
            await raw.send(websocket(target.replace("polling", "websocket")))
            assert (await raw.answer()).status == 101
        await asyncio.sleep(0.02)
        assert not faults

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
