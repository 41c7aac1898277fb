"""Hub and workers of bus tests as real processes, told by lines of JSON what to do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

SERVERS = Path(__file__).parent / "servers"
PATIENT = {"barrier": 20.0, "hold": 20.0}
"""Limits of nodes unless a test has its own: where a process pauses for a second, no join goes on
before it is in force, and no frame is given up that is on its way."""


class Child:
    """A process that answers lines of JSON."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._command = [sys.executable, str(SERVERS / script), *arguments]
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._reading: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process
        self.ready: asyncio.Future[Any]
        self.said: list[dict[str, Any]] = []

    async def start(self) -> None:
        self.ready = asyncio.get_running_loop().create_future()
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        self._reading = asyncio.create_task(self._read())
        await asyncio.wait_for(asyncio.shield(self.ready), 20)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            message = json.loads(line)
            if "ready" in message:
                self.ready.set_result(message["ready"])
            elif "number" in message:
                future = self._answers.pop(message["number"])
                if "error" in message:
                    future.set_exception(AssertionError(message["error"]))
                else:
                    future.set_result(message["answer"])
            else:
                self.said.append(message)
        if not self.ready.done():
            self.ready.set_exception(AssertionError("ended before it was ready"))

    async def do(self, what: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self._number += 1
        future = self._answers[self._number] = asyncio.get_running_loop().create_future()
        command = {"do": what, "number": self._number, **arguments}
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        return await asyncio.wait_for(future, 60)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        """As a crash."""
        self.process.kill()
        await self._end()

    async def stop(self) -> None:
        """Close its stdin, at which it ends by itself, without an error."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 10)
        except TimeoutError:
            self.process.kill()
            raise
        finally:
            await self._end()
        assert self.process.returncode == 0

    async def _end(self) -> None:
        await self.process.wait()
        if self._reading is not None:
            await self._reading
            self._reading = None
        # the transports of the pipes end a turn after the process
        transport = self.process._transport  # type: ignore[attr-defined]
        transport.close()
        await asyncio.sleep(0)


class Hub(Child):
    """The hub; what it says by itself is kept in ``said``."""

    async def tell(self, what: str, **arguments: Any) -> Any:
        before = len(self.said)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        async with asyncio.timeout(10):
            while True:
                for message in self.said[before:]:
                    if "answer" in message:
                        return message["answer"]
                await asyncio.sleep(0.002)


class Host:
    """A run directory, its hub and its nodes."""

    def __init__(self, path: Path, bus: dict[str, Any]) -> None:
        self.path = path
        self._bus = bus
        self.hub: Hub
        self.nodes: list[Child] = []

    async def start_hub(self, **options: Any) -> Hub:
        self.hub = Hub("bus_hub.py", str(self.path), json.dumps(options))
        await self.hub.start()
        return self.hub

    async def start_node(self, slot: int, *, wait: bool = True, **options: Any) -> Child:
        node = Child("bus_node.py", str(self.path), str(slot), json.dumps(self._bus | options))
        self.nodes.append(node)
        await node.start()
        if wait:
            await node.do("ready")
        return node


@asynccontextmanager
async def host(
    nodes: int = 2, *, hub: dict[str, Any] | None = None, **bus: Any
) -> AsyncIterator[Host]:
    """Run a hub and so many nodes; ``hub`` and ``bus`` are options of Forwarder and Bus.

    And those that ``servers/bus_hub.py`` and ``servers/bus_node.py`` have besides; see `PATIENT`.
    """
    path = Path(tempfile.mkdtemp(prefix="limpet-"))
    os.chmod(path, 0o700)  # noqa: PTH101
    running = Host(path, PATIENT | bus)
    try:
        await running.start_hub(
            **({"buckets": bus["buckets"]} if "buckets" in bus else {}), **hub or {}
        )
        await asyncio.gather(*(running.start_node(slot) for slot in range(nodes)))
        running.nodes.sort(key=lambda node: node._command[3])
        yield running
        for node in running.nodes:
            if node.process.returncode is None:
                await node.stop()
        if running.hub.process.returncode is None:
            await running.hub.stop()
    finally:
        for child in [*running.nodes, running.hub]:
            if child.process.returncode is None:
                child.signal(signal.SIGCONT)
                await child.kill()
        shutil.rmtree(path, ignore_errors=True)


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)
