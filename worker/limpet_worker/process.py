"""A worker of a cluster: its parts put together, started in order, and ended in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from limpet_adapters.allocator import keep_freed_memory, settle_memory
from limpet_adapters.bus import Bus, Gap
from limpet_adapters.control import ControlClient, ControlConnection, ControlError, Hello
from limpet_adapters.forks import close_in_forks
from limpet_adapters.identity import IdFactory, WorkerAddress, new_worker_id
from limpet_adapters.notify import Notifier
from limpet_adapters.rundir import RunDirectory, Slot
from limpet_adapters.worker_control import DisconnectOrder, DrainAnswer, Draining, DrainOrder
from limpet_balancer.channel import WorkerChannel
from limpet_worker.drain import DrainOptions
from limpet_worker.drainer import REASON, Drainer
from limpet_worker.errors import OptionError
from limpet_worker.figures import WorkerFigures
from limpet_worker.http.files import File
from limpet_worker.http.frontdoor import Doorway
from limpet_worker.http.site import start_site
from limpet_worker.presence import WorkerPresence
from limpet_worker.socketio.context import WorkerContext
from limpet_worker.socketio.server import Server

logger = logging.getLogger("limpet.worker")

EXTENSION: Final = 10.0
"""Seconds that a draining worker asks its supervisor for, each second anew."""
HUB_PATIENCE: Final = 1.0
"""Seconds without a hub after which an ending worker does as if it were alone."""
LAST_WORDS: Final = 5.0
"""Seconds for clients to fetch their last packets, and for requests of the site to be answered."""
QUICK: Final = 0.5
"""The same when nobody is there to take the clients."""
_NOW: Final = 0.2
"""The same when somebody has lost patience: our supervisor waits for one second in all then."""
_LAST_HANDLERS: Final = 5.0
"""Seconds for handlers whose clients are gone: those of ``disconnect``, and whoever was waited for
in vain."""
_GIVEN_BACK: Final = 256
_STEP: Final = 0.01
_WATCH: Final = 1.0
"""Seconds between two looks at how far a drain is."""


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
    drain: DrainOptions = field(default_factory=DrainOptions)
    """How gently it sends its clients away."""


class Worker:
    """The parts of a worker process.

    Args:
        config: its place in the cluster.
        files: the client for browsers.
        notifier: who hears how far a drain is; by default nobody.

    Raises:
        RunDirectoryError: the slot is held by another process.
    """

    def __init__(
        self,
        config: WorkerConfig,
        files: Mapping[str, File] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.config = config
        self.notifier = notifier or Notifier()
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
        self.drainer: Drainer | None = None  # until the application has started
        self._state = "starting"
        self._ending = False  # whether the process ends once the drain is done
        self._quick = False  # whether nothing is gained by being gentle
        self._now = False  # whether somebody has lost patience
        self._hub_seen = 0.0  # when there was a hub last
        self._watching: asyncio.TimerHandle | None = None  # while it drains
        self.figures = WorkerFigures(self.control, self.bus, lambda: self._state)

    async def start(self, load_app: Callable[[], Server]) -> None:
        """Load the application and take connections once bus and balancer are there.

        Raises:
            OptionError: the application's path is not the one the balancer routes by.
        """
        loop = asyncio.get_running_loop()
        self.control.handle("alone", self._on_alone)
        self.control.handle("drainers", self._on_drainers)
        self.control.handle("drain", self._on_drain)
        self.control.handle("undrain", self._on_undrain)
        self.control.handle("disconnect", self._on_disconnect)
        self.control.attach(on_connected=self._on_hub)
        self.control.start()
        app = self.app = self.figures.app = load_app()
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
        doorway = self.doorway = self.figures.doorway = Doorway(
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
            lambda: len(app.engine.sessions) + doorway.arriving,
            loop,
            limit=app.options.max_sessions or 0,
        )
        doorway.migrator = channel
        app.engine.on_fewer = channel.session_ended
        self.drainer = Drainer(app.engine, self.config.drain)
        channel.start(ready=False)
        self.figures.start()
        await self.bus.ready.wait()
        if not channel.met.is_set():  # ready without a balancer, it would reach nobody
            self.notifier.status("waiting for the balancer")
            await channel.met.wait()
            self.notifier.status("")
        settle_memory()
        self._state = "ready"
        self.figures.report()
        channel.set_ready()

    # --- the end --------------------------------------------------------------

    async def leave(self) -> None:
        """Send all clients away, gently, and return when the last one has been closed.

        The balancer and the hub know at once. Clients are never sent a Socket.IO DISCONNECT: they
        would not come back.
        """
        self._ending = True
        self.notifier.stopping()
        drainer = self.drainer
        if drainer is None:
            return
        # When the API wanted it first, what is left of that may take too long.
        self._drain(grace=0.0 if drainer.draining else None, window=None)
        if self._now:  # patience may have ended before we began: signals come in pairs
            drainer.hurry(0.0, alone=True)
        await drainer.emptied()

    def end_now(self) -> None:
        """Close everybody now and wait for as little as possible."""
        self._quick = self._now = True
        if self.drainer is not None:
            self.drainer.hurry(0.0, alone=True)

    async def stop(self) -> None:
        """End in order: what was written is sent, what was asked is answered, then goodbye.

        Whoever is still connected is closed now: see `leave` for the gentle way.
        """
        self._ending = True
        self._state = "draining"
        drainer = self.drainer
        if drainer is not None:
            if not drainer.draining:
                self._quick = True
                self._drain(grace=0.0, window=0.0)
                drainer.hurry(0.0, alone=True)
            await drainer.emptied()
            engine = drainer.engine
            await self._until(lambda: not (engine.sessions or engine.goodbyes), LAST_WORDS)
            await self._until(lambda: self._quick or drainer.polls_settled(), LAST_WORDS)
        if self.channel is not None:
            self.channel.leave()
            await self._until(self._is_vacant, LAST_WORDS)
        if self.app is not None:
            self._ask_no_more()
            await self.app.close(REASON, grace=self._handler_grace())
        # No turn of the loop in between: a connection that came now would be nobody's.
        if self.channel is not None:
            self.channel.close()
        if self.doorway is not None:
            await self.doorway.close()
            if self.doorway.site is not None:
                await self.doorway.site.close()
        if drainer is not None:
            drainer.close()
        if self._watching is not None:
            self._watching.cancel()
        self.figures.stop()
        self.control.send("bye", None)
        await self.bus.close()
        await self.control.close()
        self.slot.release()

    def _ask_no_more(self) -> None:
        """Leave it to the supervisor's patience from here on: a shutdown hook may never return."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
            self.notifier.extend(self._handler_grace() + EXTENSION)

    def _is_vacant(self) -> bool:
        """Give idle connections back to the balancer, and return whether none is left here."""
        doorway, channel = self.doorway, self.channel
        if doorway is None or channel is None:
            return True
        here = doorway.give_back(min(_GIVEN_BACK, channel.room))
        return not here and not channel.unsent

    async def _until(self, done: Callable[[], bool], most: float) -> bool:
        """Wait for something, not for long when nothing is gained by it; False: it did not come."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not done():
            patience = _NOW if self._now else QUICK if self._quick else most
            if loop.time() - began >= min(patience, most):
                return False
            await asyncio.sleep(_STEP)
        return True

    def _handler_grace(self) -> float:
        """Return how long handlers are waited for whose clients are gone."""
        return min(self.config.drain.handler_grace, _NOW if self._now else _LAST_HANDLERS)

    # --- draining -------------------------------------------------------------

    def _drain(self, *, grace: float | None, window: float | None) -> None:
        """Begin to send clients away.

        Raises:
            OptionError: a time is out of range; nothing has begun then.
        """
        if self.drainer is not None:
            self.drainer.begin(grace=grace, window=window)
        self._state = "draining"
        if self.channel is not None:
            self.channel.set_draining()
        if self.doorway is not None:
            self.doorway.draining = True
        self._tell_draining()
        self.figures.report()
        self._hub_seen = asyncio.get_running_loop().time()
        self._watch()

    def _tell_draining(self) -> None:
        self.control.send("draining", msgspec.to_builtins(Draining(ending=self._ending)))

    def _watch(self) -> None:
        """Say how far it is, each second, and that it takes longer; notice that the hub is gone."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        drainer = self.drainer
        if drainer is None or not drainer.draining:
            return
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(_WATCH, self._watch)
        drainer.show()
        left = drainer.remaining
        if self._ending:
            self.notifier.extend(EXTENSION)
        sessions = "no sessions" if not left else "1 session" if left == 1 else f"{left} sessions"
        self.notifier.status(f"draining, {sessions} left")
        now = loop.time()
        if self.control.connection is not None:
            self._hub_seen = now
        elif now - self._hub_seen >= HUB_PATIENCE:
            self._be_alone()

    def _be_alone(self) -> None:
        if self._ending and not self._quick:
            logger.info("nobody else takes the clients: all are closed now")
            self._quick = True
            if self.drainer is not None:
                # Whoever is asked something still answers: only who is idle is closed at once.
                self.drainer.hurry(self.config.drain.handler_grace, alone=True)

    # --- what the hub says ----------------------------------------------------

    def _on_hub(self, _connection: ControlConnection, _welcome: dict[str, object]) -> None:
        if self._state == "draining":
            self._tell_draining()

    def _on_alone(self, _connection: ControlConnection, _body: object) -> None:
        self._be_alone()

    def _on_drainers(self, _connection: ControlConnection, body: object) -> None:
        workers = msgspec.convert(body, int)
        if self.drainer is not None and workers > 0:
            self.drainer.share(workers)

    def _on_drain(self, _connection: ControlConnection, body: object) -> object:
        order = msgspec.convert(body, DrainOrder)
        drainer = self._ready_to_drain()
        if not self._ending:
            try:
                self._drain(grace=order.grace, window=order.window)
            except OptionError as error:
                raise ControlError(str(error)) from None
        return _answer(drainer)

    def _on_undrain(self, _connection: ControlConnection, _body: object) -> object:
        drainer = self._ready_to_drain()
        if self._ending:
            raise ControlError("it is ending")
        if drainer.draining:
            drainer.undo()
            self._state = "ready"
            if self.doorway is not None:
                self.doorway.draining = False
            if self.channel is not None:
                self.channel.undrain()
            self.notifier.status("takes sessions again")
            self.figures.report()
        return _answer(drainer)

    def _ready_to_drain(self) -> Drainer:
        if self.drainer is None or self._state == "starting":
            raise ControlError("it is not ready yet")
        return self.drainer

    def _on_disconnect(self, _connection: ControlConnection, body: object) -> object:
        order = msgspec.convert(body, DisconnectOrder)
        if self.app is None:
            return False
        for namespace in list(self.app.namespaces.values()):
            socket = namespace.sockets.get(order.socket_id)
            if socket is not None:
                socket.disconnect(order.close)
                return True
        return False

    def _gap(self, gap: Gap) -> None:
        if self.app is not None:
            self.app.tell("bus_gap", gap)


def _answer(drainer: Drainer) -> object:
    answer = DrainAnswer(sessions=drainer.remaining, seconds=round(drainer.left(), 3))
    return msgspec.to_builtins(answer)


class _Orders:
    """What signals want: TERM a gentle end, once more or QUIT an end now, a third one any end."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self._worker = worker
        self._given = 0
        self.end = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            # Ignored under a supervisor, to whom Ctrl-C is left.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, partial(self._take, number))

    def _take(self, number: signal.Signals) -> None:
        self._given = max(self._given + 1, 2 if number is signal.SIGQUIT else 1)
        if self._given > 2:
            os._exit(128 + number)
        self.end.set()
        if self._given == 2:
            self._worker.end_now()


async def run_worker(
    config: WorkerConfig,
    load_app: Callable[[], Server],
    ready: Callable[[], None],
    files: Mapping[str, File] | None = None,
    *,
    notifier: Notifier | None = None,
) -> int:
    """Run a worker until TERM or INT comes: then it drains and ends.

    The signal once more, or QUIT: it closes everybody and ends now, in order; a third time: on
    the spot. To cancel it is to end it now.

    Args:
        config: its place in the cluster.
        load_app: imports the user's application; what it raises ends the worker.
        ready: called once the worker takes connections.
        files: the client for browsers, served unless the application's ``serve_client`` is off.
        notifier: who is told that the end takes its time, and how far it is.

    Raises:
        RunDirectoryError: the slot is held by another process.
        OptionError: the application does not fit the cluster.
    """
    keep_freed_memory()
    loop = asyncio.get_running_loop()
    worker = Worker(config, files, notifier)
    orders = _Orders(worker, loop)
    starting = loop.create_task(worker.start(load_app))
    asked = loop.create_task(orders.end.wait())
    try:
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            ready()
            logger.info("ready in slot %d", config.slot)
            await asked
            await worker.leave()
    finally:
        for task in (starting, asked):
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        await worker.stop()
    return 0
