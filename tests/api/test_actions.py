"""What the HTTP API does to workers: drain, undrain, disconnect; and who is told to be alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hubs import Client, FakeWorker, client, hub, run_directory
from limpet_adapters.control import ControlConnection, ControlError
from limpet_adapters.identity import IdFactory, WorkerAddress
from limpet_adapters.rundir import RunDirectory, Slot
from raw_clients import eventually

pytestmark = pytest.mark.processes


class Worker(FakeWorker):
    """A worker that notes what the hub wants, and can be told what to answer."""

    def __init__(self, path: Path, slot: int) -> None:
        super().__init__(path, slot)
        self.asked: list[tuple[str, Any]] = []
        self.answer: Any = {"sessions": 3, "seconds": 1.5}
        for kind in ("alone", "drainers", "drain", "undrain", "disconnect"):
            self.control.handle(kind, self._handler(kind))

    def _handler(self, kind: str) -> Any:
        def handle(_connection: ControlConnection, body: object) -> object:
            self.asked.append((kind, body))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return handle

    def is_(self, state: str, **figures: object) -> None:
        """Report a state."""
        self.control.send("stats", {"state": state, **figures})

    def drains(self, ending: bool = True) -> None:
        self.control.send("draining", {"ending": ending})

    @property
    def alone(self) -> int:
        """How often it was told that it is alone."""
        return sum(kind == "alone" for kind, _ in self.asked)


@contextlib.asynccontextmanager
async def setting(count: int = 2) -> AsyncIterator[tuple[Client, list[Worker], Path]]:
    """A hub, ready workers and a client."""
    with run_directory() as path:
        async with hub(path), client(path) as api:
            workers = [Worker(path, slot) for slot in range(count)]
            for one in workers:
                await one.start()
                one.is_("ready")
                await one.sync()
            yield api, workers, path
            for one in workers:
                await one.control.close()


async def states(api: Client) -> dict[str, str]:
    return {one["name"]: one["state"] for one in (await api("/v1/workers")).body["data"]}


@pytest.mark.parametrize("name", ["w1", "1"])
async def test_drain_and_undrain(name: str) -> None:
    async with setting() as (api, (_, two), _):
        answer = await api(f"/v1/workers/{name}/drain", "POST")
        assert answer.status == 202
        assert answer.body["worker"]["name"] == "w1"
        assert answer.body["worker"]["state"] == "draining"
        assert (answer.body["sessions_left"], answer.body["seconds_left"]) == (3, 1.5)
        assert two.asked == [("drain", {"grace": None, "window": None})]
        assert await states(api) == {"w0": "ready", "w1": "draining"}
        # Once more, with other times.
        body = {"window": 30, "grace": 0.5}
        answer = await api(f"/v1/workers/{name}/drain", "POST", json=body)
        assert answer.status == 202
        assert two.asked[1:] == [("drain", {"grace": 0.5, "window": 30.0})]

        two.answer = {"sessions": 0}
        answer = await api(f"/v1/workers/{name}/undrain", "POST")
        assert (answer.status, answer.body["sessions_left"]) == (200, 0)
        assert two.asked[2:] == [("undrain", None)]
        assert await states(api) == {"w0": "ready", "w1": "ready"}


async def test_by_its_id() -> None:
    async with setting() as (api, (one, _), _):
        answer = await api(f"/v1/workers/{one.hello.worker_id:016x}/drain", "POST")
        assert answer.body["worker"]["name"] == "w0"


async def test_the_last_one_is_drained_only_by_force() -> None:
    async with setting() as (api, (one, two), _):
        assert (await api("/v1/workers/w0/drain", "POST")).status == 202
        refused = await api("/v1/workers/w1/drain", "POST")
        assert refused.status == 409
        assert refused.body["type"] == "urn:limpet:problem:conflict"
        assert "force" in refused.body["detail"]
        assert two.asked == []
        assert (await api("/v1/workers/w1/drain?force=false", "POST")).status == 409
        assert (await api("/v1/workers/w1/drain?force=true", "POST")).status == 202
        assert [kind for kind, _ in two.asked] == ["drain"]
        assert one.alone == two.alone == 0  # they stay: nobody is in a hurry


@pytest.mark.parametrize(
    "body",
    ["[]", "{", '{"window":"long"}', '{"windows":1}', '{"grace":-1}', '{"window":1e9}', "null",
     "[" * 60_000],
)  # fmt: skip
async def test_a_body_that_is_wrong(body: str) -> None:
    async with setting() as (api, (_, two), _):
        answer = await api("/v1/workers/w1/drain", "POST", data=body)
        assert answer.status == 400, answer.body
        assert answer.body["detail"].startswith("body: ")
        assert two.asked == []


async def test_a_body_that_is_none_is_no_failure_of_the_hub(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with setting() as (api, (_, two), path):
        packed = {"Content-Encoding": "gzip"}
        answer = await api("/v1/workers/w1/drain", "POST", data=b"abc", headers=packed)
        assert answer.status == 400
        _, writer = await asyncio.open_unix_connection(RunDirectory(path).api)
        writer.write(b"POST /v1/workers/w1/drain HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.1)
        assert [answer.status, two.asked] == [400, []]
        assert (await api("/v1/workers")).status == 200
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


def nobody(node: int, slot: int, incarnation: int) -> str:
    return "/v1/connections/" + IdFactory(WorkerAddress(node, slot, incarnation))()


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v1/workers/w7/drain", "POST", 404),
        ("/v1/workers/w7/undrain", "POST", 404),
        ("/v1/workers/w1/drain?windows=3", "POST", 400),
        ("/v1/workers/w1/drain?force=maybe", "POST", 400),
        ("/v1/workers/w1/drain", "GET", 405),
        ("/v1/connections/nobody", "DELETE", 404),
        pytest.param(
            "/v1/connections/" + IdFactory(WorkerAddress(0, 9, 1))(),
            "DELETE",
            404,
            id="another slot",
        ),
        pytest.param(
            "/v1/connections/" + IdFactory(WorkerAddress(0, 1, 2))(),
            "DELETE",
            404,
            id="another incarnation",
        ),
        pytest.param(
            "/v1/connections/" + IdFactory(WorkerAddress(5, 1, 1))(),
            "DELETE",
            404,
            id="another node",
        ),
    ],
)
async def test_nothing_that_could_be_meant(path: str, method: str, status: int) -> None:
    async with setting() as (api, workers, _):
        answer = await api(path, method)
        assert answer.status == status
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert [one.asked for one in workers] == [[], []]


async def test_what_a_worker_refuses_and_what_it_does_not_know() -> None:
    async with setting() as (api, (_, two), _):
        two.answer = ControlError("it is not ready yet")
        answer = await api("/v1/workers/w1/drain", "POST")
        assert (answer.status, answer.body["detail"]) == (409, "w1: it is not ready yet")
        two.control.handlers.clear()  # a worker of an earlier version
        answer = await api("/v1/workers/w1/drain", "POST")
        assert answer.status == 409
        assert "older version" in answer.body["detail"]
        assert (await states(api))["w1"] == "ready"


async def test_what_ends_cannot_be_undrained() -> None:
    async with setting() as (api, (_, two), _):
        two.drains()
        await two.sync()
        assert (await states(api))["w1"] == "draining"
        answer = await api("/v1/workers/w1/undrain", "POST")
        assert (answer.status, two.asked) == (409, [])


async def test_a_connection_is_ended() -> None:
    async with setting() as (api, (_, two), _):
        two.answer = True
        socket_id = two.new_id()  # presence has yet to hear of it
        answer = await api(f"/v1/connections/{socket_id}", "DELETE")
        assert (answer.status, answer.body) == (204, None)
        answer = await api(f"/v1/connections/{socket_id}?close=true", "DELETE")
        assert answer.status == 204
        assert two.asked == [
            ("disconnect", {"socket_id": socket_id, "close": False}),
            ("disconnect", {"socket_id": socket_id, "close": True}),
        ]
        two.answer = False
        assert (await api(f"/v1/connections/{socket_id}", "DELETE")).status == 404


# --- together -----------------------------------------------------------------


async def test_those_that_drain_at_a_time_know_how_many_they_are() -> None:
    async with setting(4) as (_, (one, two, three, _four), _):
        one.is_("ready", sessions={"websocket": 3})
        one.drains()
        await one.sync()
        assert one.asked == []
        two.drains()
        await two.sync()
        await eventually(lambda: one.asked == two.asked == [("drainers", 2)], 5)
        one.is_("draining", sessions={"websocket": 0, "polling": 0})  # it has nobody left
        await one.sync()
        two.is_("draining", sessions={"polling": 1})
        await two.sync()
        three.drains()
        await eventually(
            lambda: (two.asked, three.asked) == ([("drainers", 2)] * 2, [("drainers", 2)]), 5
        )
        assert one.asked == [("drainers", 2)]


# --- alone ------------------------------------------------------------------


async def test_who_ends_is_told_when_nobody_is_left() -> None:
    async with setting(3) as (_, (one, two, three), _):
        one.drains()
        await one.sync()
        assert one.alone == 0
        two.drains()
        await two.sync()
        assert (one.alone, two.alone) == (0, 0)
        three.control.send("bye", None)
        await eventually(lambda: one.alone and two.alone, 5)
        one.is_("draining")
        two.is_("draining")
        await asyncio.gather(one.sync(), two.sync())
        assert (one.alone, two.alone) == (1, 1)


async def test_one_that_starts_will_take_the_clients() -> None:
    async with setting(1) as (_, (one,), path):
        starting = Worker(path, 1)
        await starting.start()
        one.drains()
        await one.sync()
        assert one.alone == 0
        await starting.control.close()  # it fails; its process, which is ours, lives on
        await asyncio.sleep(0.1)
        assert one.alone == 0
        starting = Worker(path, 1)  # but the slot is another's now
        await starting.start()
        starting.control.send("bye", None)
        await eventually(lambda: one.alone, 5)


async def test_drained_by_the_api_is_no_place_to_go() -> None:
    async with setting() as (api, (one, two), _):
        await api("/v1/workers/w0/drain", "POST")
        one.drains(ending=False)
        await one.sync()
        two.drains()
        await eventually(lambda: two.alone, 5)
        assert one.alone == 0


async def test_a_hub_that_has_just_started_knows_that_it_does_not_know_everybody() -> None:
    with run_directory() as path:
        held = Slot(RunDirectory(path), 1)  # a worker that has not found this hub yet
        async with hub(path):
            one = Worker(path, 0)
            await one.start()
            one.drains()
            await one.sync()
            assert one.alone == 0
            held.release()
            one.is_("draining")  # as each second
            await eventually(lambda: one.alone, 5)
            await one.control.close()
