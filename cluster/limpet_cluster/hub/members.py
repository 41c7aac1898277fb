"""The workers of this host as the hub sees them: who they are, how they do, and when they die.

A worker's process is held by a pidfd, opened from the credentials of its control connection as
soon as that is accepted: the hub sees its end within the loop's next turn, even when a forked child
keeps the connection open, and can end it without ever aiming at a pid that was given to another.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec
from msgspec import Struct

from limpet_adapters.control import ControlConnection, ControlError, Hello
from limpet_adapters.counters import count
from limpet_cluster.hub.control import HubControl

logger = logging.getLogger("limpet.hub")

LOST_GRACE: Final = 5.0
"""Seconds a living worker may be without control connection before it is taken out."""

State = Literal["starting", "ready", "draining", "gone"]
"""Of a worker: connected, but not serving yet; serving; taking no new sessions; ended."""


class Figures(Struct, kw_only=True):
    """What a worker tells of itself each second (control kind ``stats``); all of it is optional."""

    sessions: dict[str, int] = {}
    """Open sessions by transport."""
    counters: dict[str, int] = {}
    """Its counters by full name (`limpet_adapters.counters`)."""
    loop_lag: float = 0.0
    """Seconds the event loop ran late, the worst of the last second."""
    rss: int = 0
    """Resident memory in bytes."""
    state: Literal["starting", "ready", "draining"] | None = None
    """What it says it is; None leaves what was said before."""


class Member:
    """One life of a worker."""

    __slots__ = (
        "connection",
        "figures",
        "figures_at",
        "hello",
        "lost",
        "pid",
        "pidfd",
        "started_at",
        "state",
    )

    def __init__(self, hello: Hello, connection: ControlConnection, pidfd: int) -> None:
        self.hello = hello
        self.pid = connection.peer_pid
        self.pidfd = pidfd
        """Descriptor of its process; -1 once it is gone."""
        self.connection: ControlConnection | None = connection
        """None while a living worker has lost its control connection."""
        self.lost: asyncio.TimerHandle | None = None
        """Ends the wait for it to connect again; None while it is connected."""
        self.state: State = "starting"
        self.started_at = time.time()
        """When it first said hello; wall time, for display."""
        self.figures = Figures()
        self.figures_at: float | None = None
        """When figures last came, monotonic; None before the first."""

    @property
    def worker_id(self) -> int:
        """The random id of this life."""
        return self.hello.worker_id

    @property
    def name(self) -> str:
        """The worker's name, by default after its slot."""
        return self.hello.name or f"w{self.hello.slot}"


class Members:
    """Registry of the workers, by worker id.

    Args:
        control: whose connections are watched; a greeter and handlers are added to it.
        node: number of this host; a worker that names another is refused.
    """

    def __init__(self, control: HubControl, node: int, grace: float = LOST_GRACE) -> None:
        self.node = node
        self.grace = grace
        self.living: dict[int, Member] = {}
        """Workers that live, by worker id."""
        self.departed: dict[int, Member] = {}
        """The last one that ended in each slot nobody has taken since, by slot."""
        self.on_joined: list[Callable[[Member], None]] = []
        """Called with each worker that said hello, also when it did so before."""
        self.on_gone: list[Callable[[Member, bool], None]] = []
        """Called once for each worker that ended; the flag says that its process did, so that its
        id never comes back."""
        self._loop = asyncio.get_running_loop()
        self._unnamed: dict[ControlConnection, int] = {}
        """pidfds of connections that have not said hello yet."""
        control.on_connect.append(self._connected)
        control.on_close.append(self._closed)
        control.greeters.append(self._greet)
        control.on_lost.append(self._lost)
        control.handle("stats", self._stats)
        control.handle("bye", self._bye)

    def in_slot(self, slot: int) -> Member | None:
        """Return the living worker of a slot."""
        for member in self.living.values():
            if member.hello.slot == slot:
                return member
        return None

    @property
    def lost(self) -> bool:
        """Some worker lives, but has no control connection now."""
        return any(member.connection is None for member in self.living.values())

    def everyone(self) -> Iterable[Member]:
        """Return the living workers and those that ended without a successor, by slot."""
        return sorted(
            [*self.living.values(), *self.departed.values()], key=lambda one: one.hello.slot
        )

    def on_deaf(self, _connection: ControlConnection, hello: Hello, why: str) -> None:
        """End a worker that no longer reads the bus: by its pidfd, never by its pid."""
        member = self.living.get(hello.worker_id)
        if member is None or member.pidfd < 0:
            return
        count("limpet_worker_restarts_total", reason="deaf")
        logger.error("%s (pid %d) does not read the bus: %s; killed", member.name, member.pid, why)
        try:
            signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Watch nobody any more."""
        for member in list(self.living.values()):
            self._release(member)
        self.living.clear()
        for pidfd in self._unnamed.values():
            os.close(pidfd)
        self._unnamed.clear()

    # --- connections -------------------------------------------------------

    def _connected(self, connection: ControlConnection) -> None:
        try:
            self._unnamed[connection] = os.pidfd_open(connection.peer_pid)
        except OSError as error:  # it ended already, or is of another pid namespace
            logger.warning("pid %d: no pidfd: %s", connection.peer_pid, error)
            connection.abort()

    def _closed(self, connection: ControlConnection) -> None:
        pidfd = self._unnamed.pop(connection, -1)
        if pidfd >= 0:
            os.close(pidfd)

    def _greet(self, connection: ControlConnection, hello: Hello) -> dict[str, object]:
        if hello.pid != connection.peer_pid:
            raise ControlError(
                f"hello names pid {hello.pid}; the kernel says it is {connection.peer_pid}"
            )
        if hello.node != self.node:
            raise ControlError(f"hello names node {hello.node}; this is node {self.node}")
        if not (0 <= hello.slot <= 255 and hello.worker_id > 0 and len(hello.name) <= 64):
            raise ControlError("hello: slot 0 to 255, worker_id > 0, name of at most 64 characters")
        pidfd = self._unnamed.pop(connection, -1)
        if pidfd < 0:
            raise ControlError("the process has ended")
        member = self.living.get(hello.worker_id)
        if member is None:
            holder = self.in_slot(hello.slot)
            if holder is not None:
                # The slot's lock is another's now, so its earlier holder is dead or as good as.
                self._end(holder, dead=True, why="its slot was taken")
            member = self.living[hello.worker_id] = Member(hello, connection, pidfd)
            self.departed.pop(hello.slot, None)
            logger.info("%s (pid %d) is there", member.name, member.pid)
        else:
            self._release(member)
            member.connection = connection
            member.pidfd = pidfd
            logger.info("%s (pid %d) is connected again", member.name, member.pid)
        self._loop.add_reader(pidfd, self._died, member)
        for told in self.on_joined:
            told(member)
        return {}

    def _lost(self, connection: ControlConnection, hello: Hello) -> None:
        member = self.living.get(hello.worker_id)
        if member is None or member.connection is not connection:
            return
        member.connection = None
        if ended(member.pidfd):
            self._died(member)
            return
        # Descriptors are closed before the process counts as ended: it may be dying right now,
        # which the pidfd tells; else only the connection is gone.
        member.lost = self._loop.call_later(self.grace, self._given_up, member)

    def _given_up(self, member: Member) -> None:
        count("limpet_control_lost_total")
        self._end(member, dead=False, why=f"no control connection for {self.grace:g} s")

    def _died(self, member: Member) -> None:
        self._end(member, dead=True, why="its process ended")

    def _bye(self, connection: ControlConnection, _body: object) -> None:
        hello = connection.owner
        member = self.living.get(hello.worker_id) if isinstance(hello, Hello) else None
        if member is not None:
            self._end(member, dead=True, why="it said bye")

    def _stats(self, connection: ControlConnection, body: object) -> None:
        hello = connection.owner
        member = self.living.get(hello.worker_id) if isinstance(hello, Hello) else None
        if member is None:
            return
        try:
            figures = msgspec.convert(body, Figures)
        except msgspec.ValidationError as error:
            count("limpet_control_refused_total", reason="bad figures")
            logger.debug("figures of %s: %s", member.name, error)
            return
        member.figures = figures
        member.figures_at = time.monotonic()
        if figures.state is not None:
            member.state = figures.state

    def _end(self, member: Member, *, dead: bool, why: str) -> None:
        if self.living.get(member.worker_id) is not member:
            return
        del self.living[member.worker_id]
        self._release(member)
        member.state = "gone"
        self.departed[member.hello.slot] = member
        for told in self.on_gone:
            told(member, dead)
        connection, member.connection = member.connection, None
        if connection is not None:
            connection.close()
        logger.info("%s (pid %d) is gone: %s", member.name, member.pid, why)

    def _release(self, member: Member) -> None:
        if member.lost is not None:
            member.lost.cancel()
            member.lost = None
        if member.pidfd >= 0:
            self._loop.remove_reader(member.pidfd)
            os.close(member.pidfd)
            member.pidfd = -1


def ended(pidfd: int) -> bool:
    """Tell whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
