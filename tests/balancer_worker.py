"""A tiny worker for the balancer's tests: HTTP/1.1 that says who answered, on a WorkerChannel.

Its option ``patience`` is how long a connection on its way back waits for a balancer, for tests in
which a slow machine must not reach that.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, urlsplit

import uvloop

from limpet_adapters.identity import IdFactory, WorkerAddress, new_worker_id
from limpet_adapters.rundir import RunDirectory, Slot
from limpet_balancer import channel
from limpet_balancer.channel import WorkerChannel, ask_stats
from limpet_balancer.handover import Address


class Site:
    """What the connections of this worker share."""

    def __init__(self, options: dict[str, object]) -> None:
        run = RunDirectory(Path(str(options["run"])))
        slot = Slot(run, int(str(options["slot"])))
        self.slot = slot
        self.path = run.balancer
        self.address = WorkerAddress(int(str(options["node"])), slot.number, slot.incarnation)
        self.new_id = IdFactory(self.address)
        self.sids: set[str] = set()
        self.tasks: set[asyncio.Task[object]] = set()
        self.coming = 0
        """Acknowledged, and not read yet: each may become a session."""
        self.disowns = bool(options.get("disowns"))
        self.channel = WorkerChannel(
            run.balancer,
            self.address,
            new_worker_id(),
            self.adopt,
            lambda: len(self.sids) + self.coming,
            limit=int(str(options.get("limit", 0))),
        )

    async def is_known(self, ready: bool) -> bool:
        """Ask the balancer whether it has taken in what this worker said of itself."""
        try:
            stats = await ask_stats(self.path)
        except OSError:
            return False
        workers = cast(list[dict[str, object]], stats["workers"])
        return any((one["pid"], one["ready"]) == (os.getpid(), ready) for one in workers)

    def adopt(
        self, sock: socket.socket, data: bytes, address: Address, hops: int, final: bool
    ) -> None:
        """Serve a connection that the balancer handed over."""
        loop = asyncio.get_running_loop()
        self.coming += 1
        protocol = Connection(self, data, address, hops, final)
        task = loop.create_task(loop.connect_accepted_socket(lambda: protocol, sock))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Connection(asyncio.Protocol):
    """One client connection; gives back requests that are not for this worker."""

    def __init__(self, site: Site, data: bytes, address: Address, hops: int, final: bool) -> None:
        self.site = site
        self.data = data
        self.address = address
        self.hops = hops
        self.final = final
        self.first = True
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has another base
        self.site.coming -= 1
        self.data_received(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.data += data
        while self.transport is not None and b"\r\n\r\n" in self.data:
            head, _, rest = self.data.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            target = lines[0].split(" ")[1]
            parts = urlsplit(target)
            query = parse_qs(parts.query, keep_blank_values=True)
            sid = query.get("sid", [""])[-1]
            if parts.path.startswith("/socket.io/") and not self.is_here(sid):
                self.migrate()
                return
            length = 0
            for line in lines[1:]:
                if line.lower().startswith("content-length:"):
                    length = int(line.partition(":")[2])
            if len(rest) < length:
                return
            self.data = rest[length:]
            self.answer(parts.path, sid, rest[:length])
            self.first = False
            self.hops = 0
            self.final = False

    def is_here(self, sid: str) -> bool:
        """Say whether this worker answers a request of the Engine.IO path."""
        if self.final or self.site.disowns:
            return self.final
        return self.site.channel.owns(sid) if sid else self.first

    def answer(self, path: str, sid: str, body: bytes) -> None:
        assert self.transport is not None
        site = self.site
        status = "200 OK"
        if path.startswith("/socket.io/"):
            if not sid:
                sid = site.new_id()
                site.sids.add(sid)
            elif sid not in site.sids:
                status = "400 Bad Request"
        content = json.dumps(
            {
                "pid": os.getpid(),
                "slot": site.address.slot,
                "sid": sid,
                "final": self.final,
                "hops": self.hops,
                "address": self.address,
                "length": len(body),
                "digest": hashlib.sha256(body).hexdigest(),
            }
        ).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n"
        self.transport.write(head.encode() + content)

    def migrate(self) -> None:
        """Give the connection back as a front door does: nothing unsent, nothing cut off."""
        transport = self.transport
        assert transport is not None
        transport.pause_reading()
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(0.001, self.migrate)
            return
        original = transport.get_extra_info("socket")
        sock = socket.socket(fileno=os.dup(original.fileno()))
        transport.abort()
        self.transport = None
        if not self.site.channel.migrate(sock, self.data, self.address, self.hops):
            sock.close()


async def main(options: dict[str, object]) -> None:
    """Serve until TERM."""
    if "patience" in options:
        channel.MIGRATION_PATIENCE = float(str(options["patience"]))  # type: ignore[misc]
    site = Site(options)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, site.channel.set_draining)
    loop.add_signal_handler(signal.SIGUSR2, time.sleep, 0.5)
    ready = bool(options.get("ready", True))
    site.channel.start(ready=ready)
    while not await site.is_known(ready):
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await stop.wait()
    site.channel.close()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given.get("nofile"):
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (given["nofile"], given["nofile"]))
    if given.get("uid"):
        os.setuid(given["uid"])
    uvloop.run(main(given))
