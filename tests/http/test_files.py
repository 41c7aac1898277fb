"""Files below the Engine.IO path: the client for browsers, as browsers and caches ask for it."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from limpet_client.assets import CONTENT_TYPE, browser_files
from limpet_worker.single import serving
from limpet_worker.socketio.server import Server
from rawhttp import Raw, request
from servers.engineio_echo import EchoServer

NAMES = ["socket.io.js", "socket.io.min.js", "socket.io.esm.js", "socket.io.esm.min.js"]
SCRIPT = "/engine.io/socket.io.js"
POLL = "/engine.io/?EIO=4&transport=polling"

Address = tuple[str, int]


@pytest.fixture
async def address() -> AsyncIterator[Address]:
    server = EchoServer(doorway={"files": browser_files()})
    yield await server.listen()
    await server.close()


@pytest.mark.parametrize("name", NAMES)
async def test_each_form_is_served(address: Address, name: str) -> None:
    async with await Raw.open(address) as raw:
        answer = await raw.request("GET", f"/engine.io/{name}?v=1")
    assert answer.status == 200
    assert answer.body == browser_files()[name].content
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert answer.headers["cache-control"] == "public, max-age=0"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip, deflate, br", "gzip"),
        ("deflate", "deflate"),
        ("br", ""),
        ("gzip;q=0", ""),
        ("*", "gzip"),
    ],
)
async def test_it_is_compressed_as_the_browser_asks(
    address: Address, accept: str, coding: str
) -> None:
    async with await Raw.open(address) as raw:
        answer = await raw.request("GET", SCRIPT, Accept_Encoding=accept)
    assert answer.headers.get("content-encoding", "") == coding
    unpack: dict[str, Callable[[bytes], bytes]]
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, "": bytes}
    assert unpack[coding](answer.body) == browser_files()["socket.io.js"].content
    assert not coding or len(answer.body) < 15_000


async def test_compression_can_be_switched_off() -> None:
    server = EchoServer(doorway={"files": browser_files()}, http_compression=False)
    try:
        async with await Raw.open(await server.listen()) as raw:
            answer = await raw.request("GET", SCRIPT, Accept_Encoding="gzip")
    finally:
        await server.close()
    assert "content-encoding" not in answer.headers
    assert answer.body == browser_files()["socket.io.js"].content


async def test_what_the_browser_has_is_not_sent_again(address: Address) -> None:
    async with await Raw.open(address) as raw:
        etag = (await raw.request("GET", SCRIPT)).headers["etag"]
        for known in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
            answer = await raw.request("GET", SCRIPT, If_None_Match=known)
            assert (answer.status, answer.body) == (304, b""), known
            assert answer.headers["etag"] == etag
            assert "content-length" not in answer.headers
        for other in ('"other"', "", etag[:-2]):
            assert (await raw.request("GET", SCRIPT, If_None_Match=other)).status == 200


async def test_each_form_has_its_own_etag(address: Address) -> None:
    async with await Raw.open(address) as raw:
        etags = {(await raw.request("GET", f"/engine.io/{n}")).headers["etag"] for n in NAMES}
    assert len(etags) == len(NAMES)


async def test_head_is_answered_without_the_body(address: Address) -> None:
    async with await Raw.open(address) as raw:
        whole = await raw.request("GET", SCRIPT, Accept_Encoding="gzip")
        answer = await raw.request("HEAD", SCRIPT, Accept_Encoding="gzip")
        # Had it a body, this would read that.
        assert (await raw.request("GET", POLL)).status == 200
    assert answer.status == 200
    for name in ("content-length", "content-type", "content-encoding", "etag"):
        assert answer.headers[name] == whole.headers[name]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_refused(address: Address, method: str) -> None:
    async with await Raw.open(address) as raw:
        answer = await raw.request(method, SCRIPT, b"a body" * 100)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"
        assert (await raw.request("GET", SCRIPT)).status == 200


async def test_pipelined_with_polls_on_one_connection(address: Address) -> None:
    async with await Raw.open(address) as raw:
        await raw.send(request("GET", SCRIPT) + request("GET", POLL) + request("GET", SCRIPT))
        answers = [await raw.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[0].body == answers[2].body
    assert answers[1].sid


@pytest.mark.parametrize(
    "name", ["", "limpet.js", "socket.io.js/", "SOCKET.IO.JS", "../socket.io.js"]
)
async def test_nothing_else_is_there(address: Address, name: str) -> None:
    async with await Raw.open(address) as raw:
        answer = await raw.request("GET", f"/engine.io/{name}")
    # Another path below Engine.IO's is Engine.IO's, as with stock servers.
    assert (answer.status, answer.json["code"]) == (400, 0)


async def test_a_server_serves_it_unless_told_not_to() -> None:
    async def status(io: Server, path: str) -> int:
        async with (
            serving(io, port=0, files=browser_files()) as [place],
            aiohttp.ClientSession() as http,
            http.get(f"http://{place[0]}:{place[1]}{path}/socket.io.js") as response,
        ):
            return response.status

    assert await status(Server(), "/socket.io") == 200
    assert await status(Server(path="/live"), "/live") == 200
    assert await status(Server(serve_client=False), "/socket.io") == 400


@pytest.mark.processes
@pytest.mark.timeout(90)
async def test_any_worker_of_a_cluster_serves_it(request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("cluster").url
    async with aiohttp.ClientSession() as http:

        async def get() -> tuple[int, bytes]:
            async with http.get(f"{url}/socket.io/socket.io.esm.min.js") as response:
                return response.status, await response.read()

        answers = await asyncio.gather(*(get() for _ in range(20)))
    assert set(answers) == {(200, browser_files()["socket.io.esm.min.js"].content)}
