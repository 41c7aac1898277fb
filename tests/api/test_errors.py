"""Errors of the HTTP API are problem documents, whatever happens; and who is let in on TCP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hubs import Answer, Client, client, hub, run_directory, worker
from limpet_cluster.hub.process import HubConfig, HubConfigError, parse_bind
from limpet_cluster.settings.tokens import TokenFileError, read_tokens

pytestmark = pytest.mark.processes


@contextlib.asynccontextmanager
async def setting(**options: Any) -> AsyncIterator[tuple[Client, Path]]:
    """A hub and a client."""
    with run_directory() as path:
        async with hub(path, **options), client(path) as api:
            yield api, path


def assert_problem(answer: Answer, status: int, kind: str) -> Any:
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Limpet-Node"] == "host"
    body = answer.body
    assert body["type"] == f"urn:limpet:problem:{kind}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"]
    return body


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/v1/rooms?limit=0", "limit"),
        ("/v1/rooms?limit=1001", "limit"),
        ("/v1/rooms?limit=-1", "limit"),
        ("/v1/rooms?limit=ten", "limit"),
        ("/v1/rooms?limit=%D9%A3", "limit"),
        ("/v1/rooms?limit=1&limit=2", "limit"),
        ("/v1/rooms?min_users=x", "min_users"),
        ("/v1/rooms?sort=age", "sort"),
        ("/v1/rooms?cursor=", "cursor"),
        ("/v1/rooms?cursor=abc", "cursor"),
        ("/v1/rooms?cursor=%FF", "cursor"),
        ("/v1/rooms?cursor=k8QGAAAAAAAAoWE", "cursor"),
        ("/v1/rooms?prefx=a", "prefx"),
        ("/v1/rooms?Limit=1", "Limit"),
        ("/v1/rooms/r?limit=1", "limit"),
        ("/v1/rooms/r/members?view=tabs", "view"),
        ("/v1/users/u?x", "x"),
        ("/v1/connections/c?x=", "x"),
        ("/v1/workers?state=ready", "state"),
        ("/v1/cluster?a=b", "a"),
        ("/v1/namespaces?prefix=a", "prefix"),
        ("/livez?a", "a"),
        ("/readyz?verbose=maybe", "verbose"),
    ],
)
async def test_invalid_parameters(path: str, parameter: str) -> None:
    async with setting() as (api, _):
        body = assert_problem(await api(path), 400, "invalid-parameter")
        assert body["errors"][0]["parameter"] == parameter
        assert body["errors"][0]["detail"]
        assert parameter in body["detail"]
        assert body["instance"] == path


async def test_an_unknown_parameter_names_the_one_that_was_meant() -> None:
    async with setting() as (api, _):
        body = assert_problem(await api("/v1/rooms?prefx=a"), 400, "invalid-parameter")
        assert "prefix" in body["detail"]


async def test_a_cursor_fits_its_query_alone() -> None:
    async with setting() as (api, path), worker(path) as one:
        for at in range(4):
            one.add(f"user{at}", "r", "s")
        await one.sync()
        cursors = {}
        for query in (
            "/v1/rooms?limit=1",
            "/v1/rooms?limit=1&sort=-users",
            "/v1/rooms/r/members?limit=1",
            "/v1/rooms/r/members?limit=1&view=connections",
            "/v1/rooms/s/members?limit=1",
            "/v1/rooms/r/members?limit=1&prefix=user",
        ):
            cursors[query] = (await api(query)).body["next_cursor"]
            assert re.fullmatch(r"[A-Za-z0-9_-]+", cursors[query])
        for query in cursors:
            for made_for, cursor in cursors.items():
                answer = await api(f"{query}&cursor={cursor}")
                if made_for == query:
                    assert answer.status == 200
                else:
                    assert_problem(answer, 400, "cursor-mismatch")
        # another page size is no other query
        cursor = cursors["/v1/rooms/r/members?limit=1"]
        answer = await api(f"/v1/rooms/r/members?limit=3&cursor={cursor}")
        assert [item["user"] for item in answer.body["data"]] == ["user1", "user2", "user3"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/room", "/v1/rooms/", "/v1/rooms/a/b", "/v2/rooms", "/%2e%2e"]
)
async def test_unknown_routes(path: str) -> None:
    async with setting() as (api, _):
        assert_problem(await api(path), 404, "not-found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_unknown_methods(method: str) -> None:
    async with setting() as (api, _):
        answer = await api("/v1/rooms", method)
        assert_problem(answer, 405, "method-not-allowed")
        assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/v1/rooms/%FF", "/v1/users/%C3", "/v1/rooms/%ED%A0%80/members"])
async def test_names_that_are_no_text(path: str) -> None:
    async with setting() as (api, _):
        answer = await api(path)
        assert answer.status in {200, 400}
        if answer.status == 400:
            assert_problem(answer, 400, "invalid-parameter")


async def test_a_failing_handler_tells_nothing_but_an_id(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with setting() as (api, _):

        def fail(*_: object) -> None:
            raise RuntimeError("inner secret")

        monkeypatch.setattr("limpet_adapters.presence.PresenceIndex.room", fail)
        with caplog.at_level(logging.ERROR, "limpet.api"):
            body = assert_problem(await api("/v1/rooms/r"), 500, "internal-error")
        assert "inner secret" not in str(body)
        assert body["request_id"] in caplog.text
        assert "inner secret" in caplog.text


async def test_readiness_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as (api, _):
        monkeypatch.setattr(
            "limpet_cluster.hub.presence.HubPresence.complete", property(lambda _: False)
        )
        answer = await api("/readyz")
        body = assert_problem(answer, 503, "starting")
        assert "presence" in body["detail"]
        assert answer.headers["Retry-After"] == "1"
        assert (await api("/livez")).status == 200
        assert (await api("/v1/rooms/r")).body["complete"] is False


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/rooms HTTP/1.1\r\nBad Header\r\n\r\n",
        b"GET /v1/rooms HTTP/9.9\r\n\r\n",
        b"GET /v1/rooms HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http(data: bytes) -> None:
    async with setting() as (_, path):
        reader, writer = await asyncio.open_unix_connection(str(path / "api.sock"))
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
        assert b"\r\nContent-Type: application/problem+json\r\n" in head
        assert json.loads(body)["type"] == "urn:limpet:problem:bad-request"
        assert json.loads(body)["detail"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_target_gets_json(data: st.DataObject) -> None:
    """Whatever the path and query: a document or a problem document, never a 500."""
    parts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
    targets = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["/v1/rooms/", "/v1/users/", "/v1/rooms?", "/v1/namespaces?", "/"]),
                parts,
            ),
            min_size=1,
            max_size=8,
        )
    )

    async def ask() -> None:
        async with setting() as (_, path):
            for prefix, rest in targets:
                reader, writer = await asyncio.open_unix_connection(str(path / "api.sock"))
                target = (prefix + rest).encode()
                writer.write(
                    b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
                )
                answer = await reader.read()
                writer.close()
                await writer.wait_closed()
                head, _, _body = answer.partition(b"\r\n\r\n")
                status = int(head.split(b" ", 2)[1])
                assert status in {200, 400, 404}, (target, head)

    asyncio.run(ask())


# --- TCP --------------------------------------------------------------------

TOKEN = "first-token-0123456789"
OTHER = "other-token-0123456789"


def token_file(directory: Path, content: str = f"{TOKEN}\n{OTHER}\n", mode: int = 0o600) -> Path:
    path = directory / "tokens"
    path.write_text(content)
    path.chmod(mode)
    return path


async def test_tcp_needs_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "limpet.hub")
    options = {"api_bind": "127.0.0.1:0", "api_token_file": token_file(tmp_path)}
    async with setting(**options) as (unix, _), aiohttp.ClientSession() as session:
        api = Client(session)
        [base] = re.findall(r"API on (http://127\.0\.0\.1:\d+)", caplog.text)
        for header in (
            None,
            "Bearer",
            "Bearer ",
            "Bearer wrong-token-0123456789",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer \xe4\xf6",
        ):
            headers = {} if header is None else {"Authorization": header}
            for path in ("/v1/rooms", "/nowhere"):
                answer = await api(path, base=base, headers=headers)
                assert_problem(answer, 401, "unauthenticated")
                assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="limpet"')
        for token in (TOKEN, OTHER):
            for scheme in ("Bearer", "bearer"):
                headers = {"Authorization": f"{scheme} {token}"}
                assert (await api("/v1/rooms", base=base, headers=headers)).status == 200
                assert (await api("/nowhere", base=base, headers=headers)).status == 404
        assert (await api("/livez", base=base)).status == 200
        for probe in ("/readyz", "/startupz"):
            assert_problem(await api(probe, base=base), 503, "starting")  # there is no worker
        assert_problem(await api("/metrics", base=base), 401, "unauthenticated")
        assert (await unix("/v1/rooms")).status == 200


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("", 0o600, "one token per line"),
        ("short\n", 0o600, "at least 16 characters"),
        ("a token with blanks in it\n", 0o600, "visible ASCII"),
        (TOKEN, 0o644, "mode 0644"),
        (TOKEN * 10_000, 0o600, "at most 64 KiB"),
    ],
)
def test_bad_token_files(tmp_path: Path, content: str, mode: int, message: str) -> None:
    path = token_file(tmp_path, content, mode)
    with pytest.raises(TokenFileError, match=message) as caught:
        read_tokens(path)
    assert str(path) in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="No such file"):
        read_tokens(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"node_name": ""}, "node_name=''"),
        ({"node_number": 65_536}, "node_number=65536"),
        ({"buckets": 0}, "buckets=0"),
        ({"stall_after": 0.0}, "stall_after=0.0"),
        ({"api_bind": "127.0.0.1:80"}, "without api_token_file"),
        ({"api_bind": "8080"}, r"expected HOST:PORT or \[IPV6\]:PORT"),
        ({"api_bind": "localhost:70000"}, "api_bind='localhost:70000'"),
        ({"api_bind": "::1:80"}, "api_bind='::1:80'"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HubConfigError, match=message):
        HubConfig(run_directory=tmp_path, **options)


def test_binds() -> None:
    assert parse_bind("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_bind("[::1]:0") == ("::1", 0)
    assert parse_bind("localhost:8080") == ("localhost", 8080)
