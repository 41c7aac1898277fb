"""Draining on a running cluster: every client comes back elsewhere, and none misses a word."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest
import socketio
from click.testing import CliRunner, Result

import hubs
from conftest import SpawnCluster
from faults.crowd import balancer
from harness import TESTS, RunningCluster, wait_until
from herd import routed
from limpet_adapters.control import Handler
from limpet_cluster.cli import limpet
from limpet_cluster.hub.control import HubControl
from raw_clients import Client, eventually
from rawhttp import Raw

pytestmark = [pytest.mark.processes, pytest.mark.timeout(90)]

APP = "servers.drain_app:io"
RESTART = f"closed: {(1012).to_bytes(2, 'big')!r}"
UNKNOWN = "Session ID unknown"
"""What ends polling: stock Python clients would not come back after the packet 1."""
Enter = Callable[..., Awaitable["Listener"]]


class Listener:
    """A raw client, the numbers it heard, and who serves it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[int] = []
        self.events: list[tuple[str, list[Any]]] = []
        self.pid = 0
        client.on_event = self._heard

    def _heard(self, event: str, args: list[Any]) -> None:
        if event == "n":
            self.heard.append(args[0])
        else:
            self.events.append((event, args))

    @property
    def unbroken(self) -> bool:
        """Whether no number is missing between the first and the last."""
        return self.heard == list(range(self.heard[0], self.heard[0] + len(self.heard)))


@pytest.fixture
async def enter() -> AsyncIterator[Enter]:
    """Return ``enter(cluster, transport)``: a client whose server is known."""
    everybody: list[Listener] = []

    async def enter(cluster: RunningCluster, transport: str = "websocket") -> Listener:
        one = Listener(Client(cluster.address, transport))
        everybody.append(one)
        await one.client.connect()
        one.pid = await one.client.call("whoami")
        return one

    yield enter
    await asyncio.gather(*(one.client.close() for one in everybody))
    assert [one.client.problems for one in everybody if one.client.problems] == []


async def crowd(enter: Enter, cluster: RunningCluster, count: int) -> list[Listener]:
    """Let clients come, few at a time: whoever is slow to take many is given less, on purpose."""
    transports = [("websocket", "polling")[number % 2] for number in range(count)]
    came: list[Listener] = []
    for first in range(0, count, 10):
        some = transports[first : first + 10]
        came += await asyncio.gather(*(enter(cluster, transport) for transport in some))
    return came


async def on(enter: Enter, cluster: RunningCluster, pid: int, transport: str) -> Listener:
    """Return a client of one worker."""
    for _ in range(60):
        one = await enter(cluster, transport)
        if one.pid == pid:
            return one
    raise AssertionError(f"nobody is placed on {pid}")


def run(cluster: RunningCluster, *arguments: str) -> Result:
    """Run a command of the command line on a cluster."""
    return CliRunner().invoke(limpet, [*arguments, f"--run-dir={cluster.run_directory}"])


async def command(cluster: RunningCluster, *arguments: str) -> Result:
    return await asyncio.to_thread(run, cluster, *arguments)


class Ticker:
    """Numbers to everybody, each 10 ms, from a client of one worker."""

    def __init__(self, source: Listener) -> None:
        self._source = source
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while True:
            self._source.client.emit("say", number)
            number += 1
            await asyncio.sleep(0.01)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def test_term_sends_everybody_to_the_other_worker_and_nobody_misses_a_number(
    spawn_cluster: SpawnCluster, enter: Enter
) -> None:
    # Within the grace the balancer hears of it, however slow: else it would send some back there.
    cluster = spawn_cluster(APP, 2, "--drain-budget=40", "--drain-grace=2")
    pids = cluster.pids
    leaving, staying = pids["worker-0"], pids["worker-1"]
    everybody = await crowd(enter, cluster, 80)
    served = Counter(one.pid for one in everybody)
    assert min(served[leaving], served[staying]) >= 80 // 4
    source = await on(enter, cluster, staying, "websocket")
    watcher = await on(enter, cluster, staying, "websocket")
    await watcher.client.call_all("watch")
    async with Ticker(source):
        await eventually(lambda: all(one.heard for one in everybody), 15)
        mine = [one for one in everybody if one.pid == leaving]
        ends: list[float] = []

        def ended(_: object) -> None:
            ends.append(time.monotonic() - began)

        for one in mine:
            one.client.ended.add_done_callback(ended)
        began = time.monotonic()
        os.kill(leaving, signal.SIGTERM)
        for number, ending in enumerate(asyncio.as_completed([one.client.ended for one in mine])):
            await ending
            again = await enter(cluster, ("websocket", "polling")[number % 2])
            assert again.pid != leaving
        await eventually(
            lambda: {one.client.id for one in mine} <= {id_ for _, (id_, _) in watcher.events}, 10
        )
    # One second for 40 clients a second, after the grace, and not all at once.
    assert ends[0] >= 2
    assert 2.3 < ends[-1] < 12
    for one in mine:
        expected = RESTART if one.client.transport_name == "websocket" else UNKNOWN
        assert one.client.reason is not None
        assert expected in one.client.reason
    for one in everybody:
        assert one.unbroken, one.heard
        assert (one.client.reason is None) is (one.pid == staying)
    assert {reason for _, (_, reason) in watcher.events} == {"server shutting down"}
    wait_until(lambda: cluster.pids.get("worker-0") != leaving, what="it did not end")


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_what_is_written_before_the_end_arrives(
    spawn_cluster: SpawnCluster, enter: Enter, transport: str
) -> None:
    cluster = spawn_cluster(APP, 2, "--drain-grace=0")
    one = await enter(cluster, transport)
    answer = asyncio.ensure_future(one.client.call_all("burst", 100, 20_000, 0.7))
    await eventually(lambda: one.events, 15)
    began = time.monotonic()
    os.kill(one.pid, signal.SIGTERM)
    assert await answer == [200]
    await one.client.ended
    assert time.monotonic() - began < 9
    assert [number for _, (number, _) in one.events] == list(range(200))


async def test_a_handler_is_waited_for_no_longer_than_configured(
    spawn_cluster: SpawnCluster, enter: Enter
) -> None:
    cluster = spawn_cluster(APP, 2, "--drain-grace=0", "--handler-grace=0.5")
    one = await enter(cluster)
    one.client.emit("slow", 60)
    await one.client.call("whoami")  # its turn came after
    began = time.monotonic()
    os.kill(one.pid, signal.SIGTERM)
    await one.client.ended
    assert 0.4 < time.monotonic() - began < 30


async def test_requests_and_connections_of_the_site_survive(
    spawn_cluster: SpawnCluster,
) -> None:
    cluster = spawn_cluster(APP, 2, "--drain-grace=0.1")
    idle = [await Raw.open(cluster.address) for _ in range(6)]
    pids = [int((await raw.request("GET", "/page")).body) for raw in idle]
    leaving = pids[0]
    busy = next(raw for raw, pid in zip(idle, pids, strict=True) if pid == leaving)
    answer = asyncio.ensure_future(busy.request("GET", "/slow"))
    await eventually(lambda: "the slow page is asked for" in cluster.text, 15)
    os.kill(leaving, signal.SIGTERM)
    assert int((await answer).body) == leaving  # what was asked is answered
    await eventually(lambda: _ended(leaving), 20)
    for raw in idle:
        # The same connection, and nobody was in its way: the balancer has it again.
        assert int((await raw.request("GET", "/page")).body) != leaving
        await raw.close()


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_stock_clients_come_back_within_their_back_off(
    spawn_cluster: SpawnCluster,
) -> None:
    cluster = spawn_cluster(APP, 2)
    clients = [
        socketio.AsyncClient(reconnection_delay=0.5, randomization_factor=0.5) for _ in range(6)
    ]
    failed: list[object] = []
    lost: dict[int, float] = {}
    away: dict[int, float] = {}

    def watch(number: int, client: socketio.AsyncClient) -> None:
        client.on("connect_error", failed.append)
        client.on("disconnect", lambda *_: lost.setdefault(number, time.monotonic()))
        client.on(
            "connect",
            lambda: away.setdefault(number, time.monotonic()) if number in lost else None,
        )

    for number, client in enumerate(clients):
        watch(number, client)
        await client.connect(
            cluster.url, transports=[("websocket", "polling")[number % 2]], wait_timeout=10
        )
    before = [await client.call("whoami") for client in clients]
    leaving = before[0]
    slot = next(name for name, pid in cluster.pids.items() if pid == leaving)[-1]
    mine = {number for number, pid in enumerate(before) if pid == leaving}
    # Within the grace the balancer hears of it, however slow: else it would send some back there.
    result = await command(cluster, "drain", f"w{slot}", "--window=500ms", "--grace=2")
    assert result.exit_code == 0, result.output
    assert re.search(rf"w{slot} is empty \({len(mine)} sessions? in", result.output)
    await eventually(lambda: away.keys() == mine, 20, lambda: f"{lost} {away}")
    assert failed == []
    assert set(lost) == mine
    assert all(away[number] - lost[number] < 10 for number in mine)
    assert leaving not in [await client.call("whoami") for client in clients]
    for client in clients:
        await client.disconnect()
        await client.shutdown()


async def test_drained_and_taken_back_by_the_command_line(
    spawn_cluster: SpawnCluster, enter: Enter
) -> None:
    cluster = spawn_cluster(APP, 2)
    leaving, staying = cluster.pids["worker-0"], cluster.pids["worker-1"]
    await crowd(enter, cluster, 20)

    result = await command(cluster, "drain", "0", "--window=1", "--json", "--no-wait")
    assert result.exit_code == 0, result.output
    begun = json.loads(result.output)
    assert (begun["worker"], begun["sessions_left"]) == ("w0", begun["sessions"])
    await routed(cluster, staying)
    assert {(await enter(cluster)).pid for _ in range(6)} == {staying}
    shown = {one["name"]: one["state"] for one in cluster.api.get("workers")["data"]}
    assert shown == {"w0": "draining", "w1": "ready"}
    assert (await command(cluster, "drain", "w0")).exit_code == 0
    others = await command(cluster, "drain", "w1")
    assert others.exit_code == 1
    assert "no other worker would take the clients of w1" in others.output
    for words, code in ((), 1), (("--force",), 0):
        plan = await command(cluster, "drain", "w1", "--dry-run", *words)
        assert plan.exit_code == code, plan.output
        assert ("no other worker would take" in plan.output) is bool(code)

    result = await command(cluster, "undrain", "w0")
    assert result.exit_code == 0, result.output
    await routed(cluster, leaving, staying)
    assert {(await enter(cluster)).pid for _ in range(6)} == {leaving}
    assert cluster.pids["worker-0"] == leaving

    result = await command(cluster, "drain", "w0", "--window=1h", "--timeout=300ms")
    assert result.exit_code == 5, result.output
    assert "sessions left after 300ms" in result.output
    # What the API wanted to take an hour does not hold up who ends the worker.
    os.kill(leaving, signal.SIGTERM)
    await eventually(lambda: _ended(leaving), 20)


async def test_a_worker_that_does_not_answer_may_still_drain_and_that_is_said(
    spawn_cluster: SpawnCluster,
) -> None:
    cluster = spawn_cluster(APP, 2)
    pid = cluster.pids["worker-1"]
    os.kill(pid, signal.SIGSTOP)
    try:
        result = await command(cluster, "drain", "w1")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert result.exit_code == 5
    assert "w1: no answer within 3 s; it may still drain when it can" in result.output

    def states() -> dict[str, str]:
        return {one["name"]: one["state"] for one in cluster.api.get("workers")["data"]}

    wait_until(lambda: states() == {"w0": "ready", "w1": "draining"})


async def test_one_connection_is_ended_by_the_command_line(
    spawn_cluster: SpawnCluster, enter: Enter
) -> None:
    cluster = spawn_cluster(APP, 2)
    one, other = await enter(cluster), await enter(cluster)
    assert (await command(cluster, "disconnect", one.client.id)).exit_code == 0
    assert await asyncio.wait_for(one.client.ended, 15) == "the server closed: 41"
    again = await command(cluster, "disconnect", one.client.id, "--json")
    assert again.exit_code == 1
    assert json.loads(again.output)["error"].startswith("404 ")
    assert (await command(cluster, "disconnect", other.client.id, "--close")).exit_code == 0
    await asyncio.wait_for(other.client.ended, 15)


async def test_the_end_of_the_whole_cluster_is_quick(
    spawn_cluster: SpawnCluster, enter: Enter
) -> None:
    cluster = spawn_cluster(APP, 2)
    everybody = await crowd(enter, cluster, 40)
    everybody[0].client.emit("slow", 0.5)
    await everybody[0].client.call("whoami")  # its turn came after
    began = time.monotonic()
    assert await asyncio.to_thread(cluster.stop) == 0
    assert time.monotonic() - began < 10
    await asyncio.gather(*(one.client.ended for one in everybody))


async def test_who_waits_for_an_answer_gets_it_before_the_whole_cluster_ends(
    spawn_cluster: SpawnCluster, enter: Enter, tmp_path: Path
) -> None:
    cluster = spawn_cluster(APP, 2)
    asking, idle = await enter(cluster), await enter(cluster)
    answer = asyncio.ensure_future(asking.client.call("until", str(tmp_path / "now"), timeout=20))
    await asyncio.sleep(0.1)
    await asking.client.call("whoami")  # its turn came after
    began = time.monotonic()
    stopping = asyncio.create_task(asyncio.to_thread(cluster.stop))
    await idle.client.ended
    assert not answer.done()
    (tmp_path / "now").touch()
    assert await answer == "done"
    assert await stopping == 0
    assert time.monotonic() - began < 9


async def test_a_drain_ends_with_the_worker(spawn_cluster: SpawnCluster, enter: Enter) -> None:
    cluster = spawn_cluster(APP, 2)
    await crowd(enter, cluster, 10)
    draining = asyncio.create_task(command(cluster, "drain", "w0", "--window=60", "--json"))
    await eventually(lambda: cluster.api.get("workers")["data"][0]["state"] == "draining", 15)
    old = cluster.kill_role("hub")  # who waits for the worker does not mind
    await asyncio.to_thread(cluster.wait_restarted, "hub", old)
    # The next one hears of the worker first, and then how many sessions it has.
    await asyncio.sleep(2)
    assert not draining.done(), draining.result().output
    os.kill(cluster.pids["worker-0"], signal.SIGKILL)
    done = await draining
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["sessions_left"] == 0


async def test_patience_may_end_while_it_drains(spawn_cluster: SpawnCluster, enter: Enter) -> None:
    cluster = spawn_cluster(APP, 2, "--drain-budget=0.1")
    leaving = cluster.pids["worker-0"]
    everybody = await crowd(enter, cluster, 20)
    os.kill(leaving, signal.SIGTERM)
    await asyncio.sleep(0.8)
    assert sum(one.client.reason is not None for one in everybody) < 5
    wait_until(lambda: "sessions left" in cluster.status["worker-0"]["status"], 20)
    os.kill(leaving, signal.SIGTERM)
    await eventually(lambda: _ended(leaving), 20)
    await asyncio.gather(*(one.client.ended for one in everybody if one.pid == leaving))
    assert all(one.client.reason is None for one in everybody if one.pid != leaving)


async def test_who_comes_back_after_a_mass_of_goodbyes_is_spread_evenly(
    spawn_cluster: SpawnCluster, enter: Enter
) -> None:
    cluster = spawn_cluster(APP, 2)
    everybody = await crowd(enter, cluster, 100)
    one = cluster.pids["worker-0"]
    others = sum(each.pid != one for each in everybody)
    await asyncio.gather(*(each.client.close() for each in everybody if each.pid == one))

    async def known() -> bool:
        workers = (await balancer(cluster))["workers"]
        return {each["pid"]: each["sessions"] + each["recent"] for each in workers} == {
            one: 0,
            cluster.pids["worker-1"]: others,
        }

    async with asyncio.timeout(20):
        while not await known():
            await asyncio.sleep(0.02)
    served = Counter(each.pid for each in await crowd(enter, cluster, 150))
    served.update(each.pid for each in everybody if each.pid != one)
    assert max(served.values()) / min(served.values()) <= 1.2, served


async def test_a_new_worker_beside_an_older_hub_drains_by_its_plan(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = HubControl.handle

    def older(control: HubControl, kind: str, handler: Handler) -> None:
        if kind != "draining":
            handle(control, kind, handler)

    monkeypatch.setattr(HubControl, "handle", older)
    with hubs.run_directory() as path:
        async with hubs.hub(path), processes(path) as (worker, address):
            cluster = cast("RunningCluster", SimpleNamespace(address=address))
            everybody = await crowd(enter, cluster, 6)
            began = time.monotonic()
            worker.terminate()
            await asyncio.gather(*(one.client.ended for one in everybody))
            assert time.monotonic() - began >= 0.5  # the grace: nobody said that it is alone
            assert await asyncio.wait_for(worker.wait(), 20) == 0


@asynccontextmanager
async def processes(
    path: Path,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, tuple[str, int]]]:
    """Run a balancer and one worker; the worker, and where clients connect."""
    place = (f"--run-dir={path}", "--node=0", "--log-format=json")
    balancer = await limpet_process("balancer", "--bind=127.0.0.1:0", *place)
    worker = await limpet_process("worker", APP, "--slot=0", f"--app-dir={TESTS}", *place)
    try:
        listening = await logged(balancer, "listening on ")
        await logged(worker, "ready in slot 0")
        host, _, port = listening.partition(":")
        yield worker, (host, int(port))
    finally:
        for process in (worker, balancer):
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def limpet_process(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "limpet", *arguments, stderr=asyncio.subprocess.PIPE
    )


async def logged(process: asyncio.subprocess.Process, words: str) -> str:
    """Wait until a process logs something that begins so; return the rest of it."""
    assert process.stderr is not None
    async with asyncio.timeout(20):
        async for line in process.stderr:
            message: str = json.loads(line)["msg"]
            if message.startswith(words):
                return message.removeprefix(words)
    raise AssertionError(f"it did not log {words!r}")
