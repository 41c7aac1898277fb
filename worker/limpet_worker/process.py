"""A worker of a cluster: its parts put together, started in order, and ended in order."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from limpet_adapters.allocator import keep_freed_memory, settle_memory
from limpet_adapters.bus import Bus, Gap
from limpet_adapters.control import ControlClient, Hello
from limpet_adapters.counters import counters
from limpet_adapters.forks import close_in_forks
from limpet_adapters.identity import IdFactory, WorkerAddress, new_worker_id
from limpet_adapters.rundir import RunDirectory, Slot
from limpet_balancer.channel import WorkerChannel
from limpet_worker.errors import OptionError
from limpet_worker.http.files import File
from limpet_worker.http.frontdoor import Doorway
from limpet_worker.http.site import start_site
from limpet_worker.presence import WorkerPresence
from limpet_worker.socketio.server import Server, WorkerContext

logger = logging.getLogger("limpet.worker")

STATS_INTERVAL: Final = 1.0
"""Seconds between two reports to the hub."""
_LAG_CHECKS: Final = 4
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """What a worker must know of its cluster."""

    run: RunDirectory
    slot: int
    """Its place on this host, 0 to 255."""
    node: int = 0
    """Number of this host, 0 to 65,535."""
    name: str = "default"
    """Name of the cluster on this host."""
    path: str = "/socket.io/"
    """The Engine.IO path the balancer routes by; the application must have the same."""
    buckets: int = 1024
    """Parts of the bus that rooms are divided into; the hub must have the same."""
    linger: float = 10.0
    """Seconds a bucket of the bus stays subscribed after its last room is gone."""


class Worker:
    """The parts of a worker process.

    Raises:
        RunDirectoryError: the slot is held by another process.
    """

    def __init__(self, config: WorkerConfig, files: Mapping[str, File] | None = None) -> None:
        self.config = config
        self.files = files
        self.slot = Slot(config.run, config.slot)
        self.address = WorkerAddress(config.node, config.slot, self.slot.incarnation)
        self.id = new_worker_id()
        self.control = ControlClient(
            config.run.hub,
            Hello(
                worker_id=self.id,
                node=config.node,
                slot=config.slot,
                incarnation=self.slot.incarnation,
                pid=os.getpid(),
                name=f"w{config.slot}",
            ),
        )
        self.bus = Bus(
            config.run,
            self.control,
            self.id,
            self.address,
            buckets=config.buckets,
            linger=config.linger,
            on_gap=self._gap,
        )
        self.presence = WorkerPresence(self.control)
        self.app: Server | None = None  # until it is loaded
        self.doorway: Doorway | None = None  # until the application has started
        self.channel: WorkerChannel | None = None
        self._state = "starting"
        self._lag = 0.0  # the worst since the last report
        self._checks = 0
        self._check: asyncio.TimerHandle | None = None

    async def start(self, load_app: Callable[[], Server]) -> None:
        """Load the application and take connections once the bus is heard.

        Raises:
            OptionError: the application's path is not the one the balancer routes by.
        """
        loop = asyncio.get_running_loop()
        self.control.start()
        app = self.app = load_app()
        if app.options.path.rstrip("/") != self.config.path.rstrip("/"):
            raise OptionError(
                f"path={app.options.path!r}: expected what the cluster was started with, "
                f"--path {self.config.path}"
            )
        await app.start(
            WorkerContext(
                name=f"w{self.config.slot}",
                new_id=IdFactory(self.address),
                adapter=self.bus.adapter,
                presence=self.presence,
                presence_source=self.presence,
            )
        )
        # What one batch of the bus brings is written at its end.
        self.bus.before_reading = app.engine.flusher.hold
        self.bus.after_reading = app.engine.flusher.flush_held
        doorway = self.doorway = Doorway(
            app.engine,
            await start_site(app.app if app.has_app else None),
            files=self.files if app.serve_client else None,
        )
        close_in_forks(doorway.descriptors)
        channel = self.channel = WorkerChannel(
            self.config.run.balancer,
            self.address,
            self.id,
            doorway.adopt,
            lambda: len(app.engine.sessions),
            loop,
            limit=app.options.max_sessions or 0,
        )
        doorway.migrator = channel
        channel.start(ready=False)
        self._check = loop.call_later(STATS_INTERVAL / _LAG_CHECKS, self._tick, loop.time())
        await self.bus.ready.wait()
        settle_memory()
        self._state = "ready"
        self._report()
        channel.set_ready()

    async def stop(self) -> None:
        """End in order: no new sessions, the clients told, what was written sent, then goodbye.

        Clients are never sent a Socket.IO DISCONNECT: they would not come back.
        """
        self._state = "draining"
        if self.channel is not None:
            self.channel.set_draining()
        if self.app is not None:
            await self.app.close("server shutting down")
        if self.doorway is not None:
            await self.doorway.close()
            if self.doorway.site is not None:
                await self.doorway.site.close()
        if self.channel is not None:
            self.channel.close()
        if self._check is not None:
            self._check.cancel()
        self.control.send("bye", None)
        await self.bus.close()
        await self.control.close()
        self.slot.release()

    def _gap(self, gap: Gap) -> None:
        if self.app is not None:
            self.app.tell("bus_gap", gap)

    # --- figures --------------------------------------------------------------

    def _tick(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._lag = max(self._lag, now - due - STATS_INTERVAL / _LAG_CHECKS)
        self._checks += 1
        if self._checks % _LAG_CHECKS == 0:
            self._report()
        self._check = loop.call_later(STATS_INTERVAL / _LAG_CHECKS, self._tick, now)

    def _report(self) -> None:
        app = self.app
        stats = app.engine.stats() if app is not None else {}
        self.control.send(
            "stats",
            {
                "sessions": {name: stats.get(name, 0) for name in ("polling", "websocket")},
                "counters": dict(counters),
                "loop_lag": max(0.0, self._lag),
                "rss": _resident(),
                "state": self._state,
            },
        )
        self._lag = 0.0


async def run_worker(
    config: WorkerConfig,
    load_app: Callable[[], Server],
    ready: Callable[[], None],
    files: Mapping[str, File] | None = None,
) -> int:
    """Run a worker until it is cancelled.

    Args:
        config: its place in the cluster.
        load_app: imports the user's application; what it raises ends the worker.
        ready: called once the worker takes connections.
        files: the client for browsers, served unless the application's ``serve_client`` is off.

    Raises:
        RunDirectoryError: the slot is held by another process.
        OptionError: the application does not fit the cluster.
    """
    keep_freed_memory()
    worker = Worker(config, files)
    try:
        await worker.start(load_app)
        ready()
        logger.info("ready in slot %d", config.slot)
        await asyncio.get_running_loop().create_future()
    finally:
        await worker.stop()
    return 0


def _resident() -> int:
    try:
        with open("/proc/self/statm", "rb") as figures:  # noqa: PTH123 - once a second: cheap
            return int(figures.read().split()[1]) * _PAGE
    except OSError:
        return 0
