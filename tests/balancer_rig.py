"""Real balancers and tiny workers in processes of their own, and a client to ask them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from limpet_adapters.rundir import RunDirectory
from limpet_balancer.channel import ask_stats
from limpet_balancer.listening import bind

HERE = Path(__file__).parent
NODE = 517
ENGINE = "/socket.io/?EIO=4&transport=polling"


class Child:
    """One process that said ``ready``."""

    def __init__(self, script: str, options: dict[str, Any], pass_fds: tuple[int, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), json.dumps(options)],
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            self.end(signal.SIGKILL)
            raise RuntimeError(f"{script} {options} did not become ready")

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            if number != signal.SIGKILL:
                self.process.send_signal(signal.SIGCONT)
        return self.ended()

    def ended(self) -> int:
        """Wait for an end that was asked for, and return the exit code.

        A second TERM would meet a process that has put its handlers away, and kill it.
        """
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def cpu(self) -> float:
        """Return the CPU seconds it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Rig:
    """A run directory, a public socket, and the processes around them; all end with it."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="limpet-"))
        self.run = RunDirectory(self.folder / "run")
        self.listener = bind(address.format(folder=self.folder))
        self.target: Any = self.listener.getsockname()
        self.children: list[Child] = []
        self.clients: list[Client] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self.clients:
            client.writer.transport.abort()
        for child in self.children:
            child.end(signal.SIGKILL)
        self.listener.close()
        shutil.rmtree(self.folder)

    def balancer(self, **options: Any) -> Child:
        fd = self.listener.fileno()
        chosen = {"run": str(self.run.path), "node": NODE, "listener": fd, **options}
        return self._child(Child("balancer_child.py", chosen, (fd,)))

    def worker(self, slot: int, **options: Any) -> Child:
        chosen = {"run": str(self.run.path), "node": NODE, "slot": slot, **options}
        return self._child(Child("balancer_worker.py", chosen, ()))

    def _child(self, child: Child) -> Child:
        self.children.append(child)
        return child

    async def stats(self) -> dict[str, Any]:
        return await ask_stats(self.run.balancer, 20.0)

    async def open(self) -> Client:
        if isinstance(self.target, str):
            streams = await asyncio.open_unix_connection(self.target)
        else:
            streams = await asyncio.open_connection(*self.target[:2])
        client = Client(*streams)
        self.clients.append(client)
        return client

    async def get(self, path: str = ENGINE, **options: Any) -> Answer:
        """Ask once on a connection of its own."""
        async with await self.open() as client:
            return await client.get(path, **options)

    async def ready(self, count: int) -> None:
        """Wait until the balancer knows this many ready workers."""

        async def enough() -> bool:
            try:
                stats = await self.stats()
            except OSError:
                return False
            return [worker["ready"] for worker in stats["workers"]].count(True) == count

        await until(enough)


class Answer:
    """One HTTP response."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close, and wait until the loop has."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def ask(self, path: str = ENGINE, *, method: str = "GET", body: bytes = b"") -> None:
        """Send a request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
        if body:
            head += f"Content-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"\r\n" + body)

    async def answer(self, timeout: float = 10.0, *, head_only: bool = False) -> Answer:
        """Read a response."""
        async with asyncio.timeout(timeout):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {}
            for line in head[1:-2]:
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            length = 0 if head_only else int(headers["content-length"])
            body = await self.reader.readexactly(length)
        return Answer(int(head[0].split(" ")[1]), headers, body)

    async def get(self, path: str = ENGINE, **options: Any) -> Answer:
        self.ask(path, **options)
        return await self.answer()


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = 10.0) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true.
    """
    end = time.monotonic() + timeout
    while not await condition():
        if time.monotonic() > end:
            raise TimeoutError
        await asyncio.sleep(0.01)


def silent_socket() -> socket.socket:
    """Return a socket that stands for one in tests that never use it."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
