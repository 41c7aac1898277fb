"""The HTTP API over its unix socket: each resource, paging, ETags, names of any characters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from hubs import Client, FakeWorker, client, hub, run_directory, worker

pytestmark = pytest.mark.processes

T0 = 1_700_000_000.25


@contextlib.asynccontextmanager
async def setting() -> AsyncIterator[tuple[Client, FakeWorker, FakeWorker, Path]]:
    """A hub, two workers and a client."""
    with run_directory() as path:
        async with hub(path), worker(path, 0) as one, worker(path, 1) as two, client(path) as api:
            yield api, one, two, path


async def test_two_tabs_are_one_user_with_two_connections() -> None:
    async with setting() as (api, one, two, _):
        first = one.add("ann", "lobby", at=T0)
        second = two.add("ann", "lobby", transport="polling", at=T0 + 1)
        alone = two.add(None, "lobby")
        await asyncio.gather(one.sync(), two.sync())

        room = (await api("/v1/rooms/lobby")).body
        assert room["occupancy"] == {"users": 2, "connections": 3}
        assert (room["room"], room["namespace"], room["complete"]) == ("lobby", "/", True)
        assert room["stale_nodes"] == []

        members = (await api("/v1/rooms/lobby/members")).body
        assert members["total"] == 2
        assert members["next_cursor"] is None
        assert members["complete"] is True
        by_user = {item["user"]: item for item in members["data"]}
        assert list(by_user) == sorted(["ann", alone])
        assert by_user["ann"]["connection_count"] == 2
        shown = {item["socket_id"]: item for item in by_user["ann"]["connections"]}
        assert list(shown) == sorted([first, second])
        joined = shown[first].pop("joined_at")
        assert by_user["ann"]["joined_at"] == joined
        assert joined.endswith("Z")
        assert shown[first] == {
            "socket_id": first,
            "user": "ann",
            "namespace": "/",
            "node": "host",
            "worker": "w0",
            "slot": 0,
            "transport": "websocket",
            "connected_at": "2023-11-14T22:13:20.250000Z",
        }
        assert shown[second]["worker"] == "w1"
        assert shown[second]["transport"] == "polling"

        flat = (await api("/v1/rooms/lobby/members?view=connections")).body
        assert flat["total"] == 3
        assert [(item["user"], item["socket_id"]) for item in flat["data"]] == sorted(
            [("ann", first), ("ann", second), (alone, alone)]
        )

        one.presence.disconnected("/", first)
        await one.sync()
        room = (await api("/v1/rooms/lobby")).body
        assert room["occupancy"] == {"users": 2, "connections": 2}


async def test_user_says_where_they_are() -> None:
    async with setting() as (api, one, two, _):
        first = one.add("ann", "a", "b", at=T0)
        second = two.add("ann", "a", namespace="/chat")
        await asyncio.gather(one.sync(), two.sync())
        body = (await api("/v1/users/ann")).body
        assert body["online"] is True
        assert [item["socket_id"] for item in body["connections"]] == [first, second]
        assert "joined_at" not in body["connections"][0]
        assert [(room["namespace"], room["room"]) for room in body["rooms"]] == [
            ("/", "a"),
            ("/", "b"),
            ("/chat", "a"),
        ]
        assert (body["connection_count"], body["room_count"]) == (2, 3)
        body = (await api("/v1/users/ann?namespace=/chat")).body
        assert [item["socket_id"] for item in body["connections"]] == [second]
        answer = await api("/v1/users/nobody")
        assert answer.status == 200
        assert answer.body["online"] is False
        assert answer.body["connections"] == answer.body["rooms"] == []


async def test_connection_by_its_socket_id() -> None:
    async with setting() as (api, one, _, __):
        socket_id = one.add("ann", "a")
        await one.sync()
        body = (await api(f"/v1/connections/{socket_id}")).body
        assert body["connection"]["user"] == "ann"
        assert [room["room"] for room in body["rooms"]] == ["a"]
        answer = await api("/v1/connections/AAAAAAAAAAAAAAAAAAAA")
        assert answer.status == 404
        assert answer.body["type"] == "urn:limpet:problem:not-found"


async def test_namespaces_and_rooms() -> None:
    async with setting() as (api, one, two, _):
        for at in range(5):
            for worker_ in (one, two):
                for room in range(at + 1):
                    worker_.add(f"user{at}", f"room:{room}")
        one.add("x", "other", namespace="/chat")
        await asyncio.gather(one.sync(), two.sync())
        body = (await api("/v1/namespaces")).body
        assert body["total"] == 2
        assert body["data"] == [
            {"namespace": "/", "rooms": 5, "occupancy": {"users": 5, "connections": 30}},
            {"namespace": "/chat", "rooms": 1, "occupancy": {"users": 1, "connections": 1}},
        ]
        body = (await api("/v1/rooms")).body
        assert body["total"] == 5
        assert body["data"][0] == {
            "room": "room:0",
            "namespace": "/",
            "occupancy": {"users": 5, "connections": 10},
        }
        names = [item["room"] for item in body["data"]]
        assert names == [f"room:{at}" for at in range(5)]

        body = (await api("/v1/rooms?min_users=3")).body
        assert [item["room"] for item in body["data"]] == names[:3]
        assert body["total"] is None
        body = (await api("/v1/rooms?prefix=room:4")).body
        assert [item["room"] for item in body["data"]] == names[4:]
        for sort, expected in [("users", names[::-1]), ("-connections", names)]:
            body = (await api(f"/v1/rooms?sort={sort}")).body
            assert [item["room"] for item in body["data"]] == expected
            met: list[str] = []
            query = f"/v1/rooms?sort={sort}&limit=2"
            cursor = ""
            while True:
                body = (await api(query + cursor)).body
                met += [item["room"] for item in body["data"]]
                if body["next_cursor"] is None:
                    break
                cursor = f"&cursor={body['next_cursor']}"
            assert met == expected
        body = (await api("/v1/rooms?namespace=/chat")).body
        assert [item["room"] for item in body["data"]] == ["other"]
        body = (await api("/v1/rooms?namespace=/none")).body
        assert (body["data"], body["total"]) == ([], 0)


@pytest.mark.parametrize("view", ["users", "connections"])
async def test_pages_follow_their_links(view: str) -> None:
    async with setting() as (api, one, two, _):
        for at in range(25):
            one.add(f"user{at:02}", "r")
            if at % 3 == 0:
                two.add(f"user{at:02}", "r")
        await asyncio.gather(one.sync(), two.sync())
        path = f"/v1/rooms/r/members?view={view}&limit=4&prefix=user"
        met: list[tuple[str, str]] = []
        pages = 0
        while True:
            answer = await api(path)
            assert answer.status == 200
            pages += 1
            assert len(answer.body["data"]) <= 4
            for item in answer.body["data"]:
                if view == "users":
                    met += [(item["user"], c["socket_id"]) for c in item["connections"]]
                else:
                    met.append((item["user"], item["socket_id"]))
            if answer.body["next_cursor"] is None:
                assert "Link" not in answer.headers
                break
            link = answer.headers["Link"]
            assert link.endswith('>; rel="next"')
            path = link[1 : link.index(">")]
            # others come and go between the pages
            gone = one.add(f"user{pages:02}x", "r")
            await one.sync()
            one.presence.disconnected("/", gone)
            await one.sync()
        assert len(met) == 25 + 9
        assert met == sorted(set(met))
        assert pages == (7 if view == "users" else 9)


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "ä ö",
        "100%",
        "%2F",
        "?x=1#y",
        "räume/☃/\U0001f600",
        "a+b&c=d",
        ":",
        "..a",
        ".",
        "..",
        "a;b",
        "\t",
    ],
)
async def test_names_of_any_characters(name: str) -> None:
    async with setting() as (api, one, _, __):
        one.add(name, name, name + "2", namespace="/" + name)
        await one.sync()
        encoded = quote(name, safe="")
        space = quote("/" + name, safe="")
        body = (await api(f"/v1/rooms/{encoded}?namespace={space}")).body
        assert body["room"] == name
        assert body["namespace"] == "/" + name
        assert body["occupancy"] == {"users": 1, "connections": 1}
        body = (await api(f"/v1/rooms/{encoded}/members?namespace={space}")).body
        assert [item["user"] for item in body["data"]] == [name]
        body = (await api(f"/v1/users/{encoded}")).body
        assert body["user"] == name
        assert body["online"] is True
        answer = await api(f"/v1/rooms?namespace={space}&limit=1&prefix={encoded}")
        assert [item["room"] for item in answer.body["data"]] == [name]
        link = answer.headers["Link"]
        answer = await api(link[1 : link.index(">")])
        assert [item["room"] for item in answer.body["data"]] == [name + "2"]


async def test_long_names() -> None:
    async with setting() as (api, one, _, __):
        name = "ä" * 4096
        one.add("u", name, "x" * 5000)  # the second is too long to be shown
        await one.sync()
        body = (await api(f"/v1/rooms/{quote(name)}")).body
        assert body["occupancy"] == {"users": 1, "connections": 1}
        assert (await api("/v1/rooms")).body["total"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/rooms/r",
        "/v1/rooms/r/members",
        "/v1/rooms/r/members?view=connections",
        "/v1/rooms",
        "/v1/users/ann",
        "/v1/namespaces",
    ],
)
async def test_etags(path: str) -> None:
    async with setting() as (api, one, two, _):
        socket_id = one.add("ann", "r")
        await one.sync()
        answer = await api(path)
        version = answer.headers["ETag"]
        assert version.startswith('W/"')
        assert answer.body["version"] == version
        assert answer.headers["Cache-Control"] == "no-store"
        for value in (version, version[2:], f'"other", {version}', "*"):
            again = await api(path, headers={"If-None-Match": value})
            assert again.status == 304, value
            assert again.headers["ETag"] == version
            assert again.body is None
        other = await api(path, headers={"If-None-Match": 'W/"other"'})
        assert other.status == 200
        # something changes, and changes back
        extra = two.add("bob", "r")
        await two.sync()
        if "users" not in path:
            changed = await api(path, headers={"If-None-Match": version})
            assert changed.status == 200
            assert changed.headers["ETag"] != version
        two.presence.disconnected("/", extra)
        await two.sync()
        assert (await api(path, headers={"If-None-Match": version})).status == 304
        if path != "/v1/namespaces":
            one.presence.changed("/", socket_id, transport="polling")
            await one.sync()
            assert (await api(path, headers={"If-None-Match": version})).status == 200
        if "?" not in path and "rooms" in path:
            more = "?namespace=/" if "namespaces" not in path else ""
            assert (await api(path + more)).headers["ETag"] != version


async def test_workers_and_cluster() -> None:
    async with setting() as (api, one, two, _):
        one.add("ann", "r")
        one.control.send(
            "stats",
            {
                "sessions": {"polling": 2, "websocket": 3},
                "counters": {"limpet_x_total": 7},
                "loop_lag": 0.25,
                "rss": 1000,
                "state": "ready",
                "of a later version": 1,
            },
        )
        two.control.send("stats", {"sessions": "bad"})
        await asyncio.gather(one.sync(), two.sync())
        body = (await api("/v1/workers")).body
        assert body["total"] == 2
        first, second = body["data"]
        assert first["id"] == f"{one.hello.worker_id:016x}"
        assert (first["name"], first["slot"], first["node"]) == ("w0", 0, "host")
        assert first["pid"] == os.getpid()
        assert first["state"] == "ready"
        assert first["connected"] is True
        assert first["connections"] == 1
        assert first["sessions"] == {"polling": 2, "websocket": 3}
        assert first["session_count"] == 5
        assert first["loop_lag_seconds"] == 0.25
        assert first["rss_bytes"] == 1000
        assert first["counters"] == {"limpet_x_total": 7}
        assert 0 <= first["figures_age_seconds"] < 5
        assert second["state"] == "starting"
        assert second["figures_age_seconds"] is None

        two.control.send("bye", None)
        await two.control.close()
        await one.sync()
        body = (await api("/v1/workers")).body
        assert [item["state"] for item in body["data"]] == ["ready"]  # nobody misses the other

        body = (await api("/v1/cluster")).body
        assert body["sessions"] == {"polling": 2, "websocket": 3}
        assert body["occupancy"] == {"users": 1, "connections": 1}
        (node,) = body["nodes"]
        assert (node["node"], node["state"]) == ("host", "up")
        assert node["workers"] == {"ready": 1}
        assert body["complete"] is True
        assert body["bus"]["open"] == 1


async def test_health_and_headers() -> None:
    async with setting() as (api, one, _, path):
        answer = await api("/livez")
        assert (answer.status, answer.body) == (200, {"status": "ok"})
        for probe in ("/readyz", "/startupz"):
            answer = await api(probe)
            assert (answer.status, answer.body["detail"]) == (503, "not ready: workers")
        one.control.send("stats", {"state": "ready"})
        await one.sync()
        answer = await api("/readyz?verbose")
        checks = {"presence": True, "bus": True, "workers": True}
        assert answer.body == {"status": "ok", "checks": checks}
        one.control.send("stats", {"state": "draining"})
        await one.sync()
        assert (await api("/readyz")).status == 503
        assert (await api("/startupz?verbose")).body == {"status": "ok", "checks": checks}
        answer = await api("/livez")
        assert answer.headers["Limpet-Node"] == "host"
        assert answer.headers["Server"] == "limpet"
        assert answer.headers["Content-Type"].startswith("application/json")
        mode = (path / "api.sock").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        head = await api("/v1/rooms/r", "HEAD")
        assert (head.status, head.body) == (200, None)


async def test_names_from_the_worker_that_cannot_be_shown() -> None:
    """A user that is no text or number appears under the socket id; bad rooms do not appear."""
    async with setting() as (api, one, _, __):
        for user in ({"id": 1}, "", "half \ud83d", True, "x" * 5000):
            socket_id = one.new_id()
            one.presence.connected("/", socket_id, user, "polling", None)
            one.presence.joined("/", socket_id, "r")
            one.presence.joined("/", socket_id, "half \ud83d")
        one.add(42, "r")  # type: ignore[arg-type]
        await one.sync()
        body = (await api("/v1/rooms/r/members")).body
        users = [item["user"] for item in body["data"]]
        assert len(users) == 6
        assert "42" in users
        for item in body["data"]:
            assert item["user"] in {"42", item["connections"][0]["socket_id"]}
        assert (await api("/v1/rooms")).body["total"] == 1


@pytest.mark.parametrize("name", ["{}", "{room}", "a{b", "}", "a/b", "%7B", "..", "?#&"])
async def test_names_of_any_characters_are_found(name: str) -> None:
    async with setting() as (api, one, _, _):
        one.add(name, name, at=T0)
        await one.sync()
        path = quote(name, safe="")
        assert (await api(f"/v1/rooms/{path}")).body["room"] == name
        members = (await api(f"/v1/rooms/{path}/members")).body
        assert [item["user"] for item in members["data"]] == [name]
        user = (await api(f"/v1/users/{path}")).body
        assert (user["user"], user["connection_count"]) == (name, 1)
