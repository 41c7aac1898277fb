"""One process without balancer or hub: development, small sites, systems other than Linux."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from limpet_adapters.allocator import keep_freed_memory, settle_memory
from limpet_adapters.identity import IdFactory, WorkerAddress
from limpet_adapters.memory import MemoryAdapter
from limpet_worker.http.files import File
from limpet_worker.http.frontdoor import Doorway
from limpet_worker.http.site import start_site
from limpet_worker.presence import LocalPresence
from limpet_worker.socketio.context import WorkerContext
from limpet_worker.socketio.server import Server

logger = logging.getLogger("limpet.worker")


@asynccontextmanager
async def serving(
    io: Server,
    host: str | None = "127.0.0.1",
    port: int = 8080,
    *,
    unix: str | None = None,
    files: Mapping[str, File] | None = None,
) -> AsyncIterator[list[tuple[str, int] | str]]:
    """Serve an application in the running event loop for as long as the context lasts.

    Args:
        io: the application.
        host: address to listen on; None for every one.
        port: port to listen on; 0 lets the system choose.
        unix: path of a unix socket to listen on, instead of host and port.
        files: the client for browsers, served unless the application's ``serve_client`` is off.

    Yields:
        The addresses it listens on: ``(host, port)`` pairs, or the path.

    Raises:
        OSError: the address cannot be used.
    """
    presence = LocalPresence()
    await io.start(
        WorkerContext(
            name="w0",
            new_id=IdFactory(WorkerAddress(0, 0, os.getpid() % 256)),
            adapter=MemoryAdapter,
            presence=presence,
            presence_source=presence,
        )
    )
    doorway: Doorway | None = None  # the start of the application's own routes may fail
    try:
        site = await start_site(io.app if io.has_app else None)
        doorway = Doorway(io.engine, site, files=files if io.serve_client else None)
        server = await (doorway.listen_unix(unix) if unix else doorway.listen(host, port))
        yield [
            name if isinstance(name := sock.getsockname(), str) else (name[0], name[1])
            for sock in server.sockets
        ]
        server.close()
    finally:
        await io.close("server shutting down")
        if doorway is not None:
            await doorway.close()
            if doorway.site is not None:
                await doorway.site.close()


def run(
    io: Server,
    host: str | None = "127.0.0.1",
    port: int = 8080,
    *,
    files: Mapping[str, File] | None = None,
) -> None:
    """Serve an application in this process until INT or TERM comes.

    Without a balancer and a hub, so without other workers; everything else is the same.

    Args:
        io: the application.
        host: address to listen on; None for every one.
        port: port to listen on; 0 lets the system choose.
        files: the client for browsers.

    Raises:
        OSError: the address cannot be used.
    """
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        factory = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_until_signal(io, host, port, files))


async def _until_signal(
    io: Server, host: str | None, port: int, files: Mapping[str, File] | None
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    keep_freed_memory()
    async with serving(io, host, port, files=files) as addresses:
        settle_memory()
        for address in addresses:
            where = address if isinstance(address, str) else f"http://{address[0]}:{address[1]}"
            print(f"limpet ready on {where}", flush=True)
        await stopped.wait()
