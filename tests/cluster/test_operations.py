"""Scale, reload, restart and stop on real clusters, by the command line, with clients connected."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import RunningCluster, wait_until
from herd import Answer, command
from limpet_cluster.api_client import ApiClient
from limpet_cluster.supervisor.commands import ask
from raw_clients import Client, EndedError, eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

APP = """
import os
from limpet import Server

VERSION = {version!r}
io = Server(cors_allowed_origins="*", ping_interval=5.0)


@io.on("version")
def version(socket):
    return [VERSION, os.getpid()]
"""

DRAIN = ("--drain-grace=0.1", "--drain-budget=1000")
"""Few clients are to be sent away at once."""

Start = Callable[..., RunningCluster]


class Application:
    """An application in a folder of its own, and the cluster that serves it."""

    def __init__(self, folder: Path, spawn_cluster: Start) -> None:
        self.module = folder / "operated_app.py"
        self.write("one")
        self.cluster = spawn_cluster("operated_app:io", 2, f"--app-dir={folder}", *DRAIN)

    def write(self, version: str) -> None:
        """Change the code."""
        self.module.write_text(APP.format(version=version))

    async def limpet(self, *words: str) -> Answer:
        """Run a command that is expected to succeed."""
        answer = await command(self.cluster, *words)
        assert answer.code == 0, f"{answer}\n{self.cluster.text[-3000:]}"
        return answer

    async def versions(self) -> set[str]:
        """Ask every worker, through new clients, which code it runs."""
        pids = {pid for name, pid in self.cluster.pids.items() if name.startswith("worker-")}
        found: dict[int, str] = {}
        until = time.monotonic() + 20
        # Whoever reported its load a moment too late is given nobody for that long.
        while found.keys() != pids and time.monotonic() < until:
            async with crowd(self.cluster, 4 * len(pids)) as clients:
                for client in clients:
                    version, pid = await client.call("version")
                    found[pid] = version
        assert found.keys() == pids
        return set(found.values())


@asynccontextmanager
async def crowd(cluster: RunningCluster, count: int) -> AsyncIterator[list[Client]]:
    """Connect some clients."""
    clients = [
        Client(cluster.address, "polling" if n % 4 == 3 else "websocket") for n in range(count)
    ]
    try:
        for client in clients:
            await client.connect()
        yield clients
    finally:
        for client in clients:
            await client.close()
    problems = [one for client in clients for one in client.problems]
    assert problems == []


@asynccontextmanager
async def attempts(cluster: RunningCluster) -> AsyncIterator[list[float]]:
    """Connect again and again meanwhile; every attempt must succeed."""
    took: list[float] = []

    async def again() -> None:
        while True:
            client = Client(cluster.address)
            began = time.monotonic()
            await client.connect(20)
            took.append(time.monotonic() - began)
            await client.close()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(again())
    try:
        yield took
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def application(spawn_cluster: Start, tmp_path: Path) -> Application:
    return Application(tmp_path, spawn_cluster)


def lost(clients: list[Client]) -> list[Client]:
    return [client for client in clients if client.reason is not None]


async def test_scale_with_clients_connected(application: Application) -> None:
    cluster = application.cluster
    async with crowd(cluster, 12) as clients, attempts(cluster) as took:
        pids = [(await client.call("version"))[1] for client in clients]
        answer = await application.limpet("scale", "4")
        assert "4 workers now: w0, w1, w2 and w3" in answer.output
        assert lost(clients) == []
        assert len({name for name in cluster.status if name.startswith("worker-")}) == 4
        answer = await application.limpet("scale", "-2", "--json")
        document = json.loads(answer.output)
        assert (document["ok"], document["slots"]) == (True, [0, 1])
        assert lost(clients) == [], "those of the first two workers noticed nothing"
        assert [(await client.call("version"))[1] for client in clients] == pids
        leaving = cluster.pids["worker-1"]
        await application.limpet("scale", "1")
        moved = [client for client, pid in zip(clients, pids, strict=True) if pid == leaving]
        assert moved
        # Who polls may learn of it by the next poll only.
        await eventually(lambda: lost(clients) == moved, 10)
        # Never a Socket.IO DISCONNECT: stock clients would stay away.
        assert {client.reason for client in moved}.isdisjoint({"the server closed: 41"})
    assert len(took) > 5


async def test_reload_brings_new_code_and_keeps_the_old_when_it_is_broken(
    application: Application,
) -> None:
    cluster = application.cluster
    kept = {name: cluster.pids[name] for name in ("supervisor", "hub", "balancer")}
    assert await application.versions() == {"one"}
    application.write("two")
    async with attempts(cluster):
        answer = await application.limpet("reload")
    assert "w0 and w1 run the new code" in answer.output
    assert await application.versions() == {"two"}
    assert {name: cluster.pids[name] for name in kept} == kept

    application.module.write_text(APP.format(version="three") + "\n\ndef broken(:\n    pass\n")
    before = cluster.pids
    async with crowd(cluster, 4) as clients:
        failed = await command(cluster, "reload")
        assert failed.code == 1
        assert "SyntaxError" in failed.errors
        assert f'File "{application.module}", line 14' in failed.errors
        assert "2 workers go on with the old" in failed.errors
        assert lost(clients) == []
        assert cluster.pids == before, "nothing has changed"
    assert await application.versions() == {"two"}

    application.write("four")
    os.kill(cluster.pid, signal.SIGHUP)
    done = "reload: w0 and w1 run the new code"
    wait_until(lambda: done in cluster.text.partition("Syntax")[2], 30)
    assert await application.versions() == {"four"}


async def test_reload_when_only_some_workers_come_up(application: Application) -> None:
    cluster = application.cluster
    application.module.write_text(
        APP.format(version="two")
        + """
import sys

if "--slot=1" in sys.argv:
    raise RuntimeError("slot 1 has no database")
"""
    )
    failed = await command(cluster, "reload", "--json")
    document = json.loads(failed.output)
    assert (failed.code, document["ok"], document["exit_code"]) == (75, False, 75)
    assert "RuntimeError: slot 1 has no database" in document["error"]
    assert "New code: w0 and w2. Old code: none. Not running: w1." in document["error"]
    told = await application.limpet("status")
    assert "the last reload stopped half way:" in told.output
    assert "New code: w0 and w2. Old code: none. Not running: w1." in told.output
    application.write("three")
    await application.limpet("reload")
    assert await application.versions() == {"three"}
    assert "half way" not in (await application.limpet("status")).output
    assert ask(cluster.run_directory, "status")["workers"] == 2


async def test_a_worker_without_a_balancer_is_not_ready_and_takes_nobodys_place(
    application: Application,
) -> None:
    cluster = application.cluster
    before = cluster.pids
    socket = cluster.run_directory / "balancer.sock"
    away = socket.with_name("away")
    socket.rename(away)
    reload = asyncio.create_task(command(cluster, "reload"))

    async def waits() -> bool:
        return cluster.status.get("worker-2", {}).get("status") == "waiting for the balancer"

    async with asyncio.timeout(20):
        while not await waits():
            await asyncio.sleep(0.05)
    assert not reload.done()
    assert {name: pid for name, pid in cluster.pids.items() if name in before} == before
    away.rename(socket)
    assert (await reload).code == 0


async def test_restart_of_everything_loses_no_attempt_to_connect(application: Application) -> None:
    cluster = application.cluster
    before = cluster.pids
    application.write("two")
    async with attempts(cluster) as took:
        await application.limpet("restart")
        after = cluster.pids
        assert {name for name in before if after[name] == before[name]} == {"supervisor"}
        await application.limpet("restart", "--rolling", "workers")
    assert max(took) < 10
    assert await application.versions() == {"two"}
    wrong = await command(cluster, "restart", "w9")
    assert wrong.code == 2
    assert "'w9': expected hub, balancer, workers or one of w0, w1" in wrong.errors


async def test_a_drained_worker_is_not_counted_on(application: Application) -> None:
    cluster = application.cluster
    await application.limpet("drain", "w0")
    async with attempts(cluster) as took:
        await application.limpet("restart", "w1")
        answer = await application.limpet("scale", "1")
        assert "1 worker now: w0" in answer.output
    assert max(took) < 4.5, "there was somebody: else they wait for 5 s"
    async with crowd(cluster, 1):
        pass


async def test_a_second_operation_is_refused_and_stop_interrupts_the_first(
    application: Application,
) -> None:
    cluster = application.cluster
    application.module.write_text("import time\n\ntime.sleep(30)\n" + APP.format(version="slow"))
    first = asyncio.create_task(command(cluster, "reload"))
    status: dict[str, Any] = {}
    while not status.get("operation"):
        await asyncio.sleep(0.05)
        status = ask(cluster.run_directory, "status")
    assert status["operation"]["verb"] == "reload"
    second = await command(cluster, "scale", "+1")
    assert second.code == 1
    assert "a reload has been running" in second.errors
    impatient = await command(cluster, "stop", "--no-wait")
    assert impatient.code == 0
    interrupted = await first
    assert interrupted.code == 1
    assert "interrupted: the cluster is being stopped" in interrupted.errors
    wait_until(lambda: not cluster.alive, 30)


@pytest.mark.parametrize("how", ["--graceful", "--quick"])
async def test_stop_ends_everything_quickly(application: Application, how: str) -> None:
    cluster = application.cluster
    pids = cluster.pids
    async with crowd(cluster, 12) as clients:
        answer = await application.limpet("stop", how)
        assert answer.output == "stopped\n"
        for pid in pids.values():
            assert not Path(f"/proc/{pid}").exists() or _ended(pid)
        assert answer.took < 8, "of which the command line takes half a second"
        await asyncio.wait_for(asyncio.gather(*(client.ended for client in clients)), 10)
        with pytest.raises(EndedError):
            await clients[0].call("version")
    left = {path.name for path in cluster.run_directory.iterdir()}
    assert {name for name in left if name.endswith(".sock") or name.startswith("bus-")} == set()
    again = await command(cluster, "stop")
    assert again.code == 4
    assert "no cluster runs at" in again.errors


def _ended(pid: int) -> bool:
    """Whether it waits for the test's process to collect it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def has_come_to(cluster: RunningCluster, workers: int) -> bool:
    """Whether so many workers are ready, and the operation that made them so is over."""
    told = ask(cluster.run_directory, "status")
    states = [one["state"] for one in told["processes"] if one["slot"] is not None]
    return told["operation"] is None and states == ["ready"] * workers


async def test_signals_and_what_the_command_line_refuses(application: Application) -> None:
    cluster = application.cluster
    os.kill(cluster.pid, signal.SIGTTIN)
    wait_until(lambda: has_come_to(cluster, 3), 20)
    os.kill(cluster.pid, signal.SIGTTOU)
    wait_until(lambda: has_come_to(cluster, 2), 20)
    for words, code, message in (
        (("scale", "many"), 2, "'many': expected a number of workers as 6, +2 or -1"),
        (("scale", "-2"), 2, "-2 from 2: expected to come to 1 to 255 workers"),
        (("scale",), 2, "Missing argument"),
    ):
        refused = await command(cluster, *words)
        assert (refused.code, message in refused.errors) == (code, True), refused
    application.module.write_text("import time\n\ntime.sleep(4)\n" + APP.format(version="two"))
    late = await command(cluster, "scale", "+1", "--timeout", "0.3")
    assert late.code == 5
    assert "not done in time" in late.errors
    wait_until(lambda: has_come_to(cluster, 3), 20)
    rehearsed = await application.limpet("scale", "1", "--dry-run", "--json")
    assert json.loads(rehearsed.output)["slots"] == [0]
    assert len(cluster.status) == 5
    api: ApiClient = cluster.api
    assert {one["slot"] for one in api.get("workers")["data"]} == {0, 1, 2}
