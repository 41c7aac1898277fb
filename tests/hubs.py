"""A hub and workers that only hold presence, in this process or in their own.

As a program: ``hubs.py hub DIRECTORY`` or ``hubs.py worker DIRECTORY SLOT CONNECTIONS``; each
prints ``ready`` once it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp

from limpet_adapters.control import ControlClient, Hello
from limpet_adapters.identity import IdFactory, WorkerAddress, new_worker_id
from limpet_adapters.notify import Notifier
from limpet_adapters.rundir import RunDirectory, Slot
from limpet_cluster import child
from limpet_cluster.hub import process as hub_process
from limpet_cluster.hub.members import Members
from limpet_cluster.hub.presence import HubPresence
from limpet_cluster.hub.process import HubConfig, run_hub
from limpet_worker.presence import WorkerPresence

ROOM = "lobby"
GRACE = 60.0
"""Seconds that these hubs wait for a worker that lives and says nothing, and for those that were
there before: one that pauses is not given up."""


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A run directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="limpet-") as path:
        yield Path(path) / "run"


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Hubs that start meanwhile give nobody up."""
    with (
        mock.patch.object(hub_process, "Members", partial(Members, grace=GRACE)),
        mock.patch.object(hub_process, "HubPresence", partial(HubPresence, grace=GRACE)),
    ):
        yield


@contextlib.asynccontextmanager
async def hub(path: Path, **options: Any) -> AsyncIterator[asyncio.Task[int]]:
    """A hub in this process, ready."""
    ready = asyncio.Event()
    config = HubConfig(run_directory=path, node_name="host", **options)
    task = asyncio.create_task(run_hub(config, ready.set))
    waiting = asyncio.create_task(ready.wait())
    try:
        with patience():
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class FakeWorker:
    """A worker's control connection and presence."""

    def __init__(self, path: Path, slot: int = 0, **hello: Any) -> None:
        values = {
            "worker_id": new_worker_id(),
            "node": 0,
            "slot": slot,
            "incarnation": 1,
            "pid": os.getpid(),
            "name": f"w{slot}",
        }
        self.hello = Hello(**{**values, **hello})
        self.control = ControlClient(RunDirectory(path).hub, self.hello)
        self.presence = WorkerPresence(self.control)
        self.new_id = IdFactory(WorkerAddress(0, slot, 1))

    async def start(self) -> FakeWorker:
        self.control.start()
        async with asyncio.timeout(10):
            await self.control.connected()
        return self

    def add(
        self,
        user: str | None = None,
        *rooms: str,
        namespace: str = "/",
        at: float | None = None,
        transport: str = "websocket",
    ) -> str:
        """Connect a socket and return its id."""
        socket_id = self.new_id()
        self.presence.connected(namespace, socket_id, user, transport, at)
        for room in rooms:
            self.presence.joined(namespace, socket_id, room)
        return socket_id

    async def sync(self) -> None:
        """Wait until the hub has applied all that was reported."""
        await self.presence.count("nobody is here", timeout=20)


@contextlib.asynccontextmanager
async def worker(path: Path, slot: int = 0, **hello: Any) -> AsyncIterator[FakeWorker]:
    """A worker in this process, connected."""
    one = FakeWorker(path, slot, **hello)
    try:
        yield await one.start()
    finally:
        await one.control.close()


@dataclass
class Answer:
    """What the API answered."""

    status: int
    headers: Any
    body: Any


class Client:
    """Asks the API by its unix socket."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def __call__(
        self, path: str, method: str = "GET", base: str = "http://hub", **options: Any
    ) -> Answer:
        from yarl import URL

        url = URL(base + path, encoded=True)
        async with self.session.request(method, url, **options) as response:
            text = await response.text()
            body = await response.json(content_type=None) if text else None
            return Answer(response.status, response.headers, body)


@contextlib.asynccontextmanager
async def client(path: Path) -> AsyncIterator[Client]:
    """A client of the hub's API."""
    connector = aiohttp.UnixConnector(path=str(path / "api.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(session)


# --- processes --------------------------------------------------------------


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """This file as a program, ready; killed at the end if it lives."""
    command = [sys.executable, __file__, *map(str, arguments)]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        wait_ready(popen)
        yield popen
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait(10)
        assert popen.stdout is not None
        popen.stdout.close()


def wait_ready(popen: subprocess.Popen[bytes], timeout: float = 30) -> None:
    """Wait until a process has said that it is ready."""
    assert popen.stdout is not None
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if select.select([popen.stdout], [], [], 0.05)[0]:
            line = popen.stdout.readline()
            if line.strip() == b"ready":
                return
            assert line, f"{popen.args!r} ended with {popen.wait(10)}"
    raise AssertionError(f"{popen.args!r} is not ready after {timeout} s")


async def _hub_main(path: Path) -> int:
    config = HubConfig(run_directory=path, node_name="host")
    with patience():
        return await run_hub(config, lambda: print("ready", flush=True))


async def _worker_main(path: Path, slot: int, connections: int, *, comes_up: bool) -> int:
    held = Slot(RunDirectory(path), slot)
    one = await FakeWorker(path, slot, incarnation=held.incarnation).start()
    for at in range(connections):
        one.add(f"user-{slot}-{at}", ROOM)
    if comes_up:
        one.control.send("stats", {"state": "ready", "counters": {"limpet_drains_total": 7}})
    await one.sync()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    one.control.send("bye", None)
    await one.control.close()
    return 0


async def _forked_main(path: Path, slot: int, connections: int) -> int:
    """As a worker, but with a child that has inherited its control connection."""
    one = await FakeWorker(path, slot).start()
    for at in range(connections):
        one.add(f"user-{slot}-{at}", ROOM)
    await one.sync()
    if os.fork() == 0:
        time.sleep(GRACE)
        os._exit(0)
    print("ready", flush=True)
    await asyncio.sleep(60)
    return 0


def _main(arguments: list[str]) -> int:
    if arguments[0] == "hub":
        life = child.Life(Notifier.from_environment(), supervised=False)
        return child.run(lambda: _hub_main(Path(arguments[1])), life, child.fast_loop)
    slot, connections = map(int, arguments[2:4])
    if arguments[4:] == ["forked"]:
        return asyncio.run(_forked_main(Path(arguments[1]), slot, connections))
    comes_up = arguments[4:] != ["starting"]
    return asyncio.run(_worker_main(Path(arguments[1]), slot, connections, comes_up=comes_up))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
