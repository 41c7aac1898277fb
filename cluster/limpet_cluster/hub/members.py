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
from collections.abc import Callable, Collection, Iterable
from typing import Final, Literal

import msgspec
from msgspec import Struct

from limpet_adapters.control import ControlConnection, ControlError, Hello
from limpet_adapters.counters import count
from limpet_adapters.worker_control import Draining
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
    gauges: dict[str, float] = {}
    """Its gauges by full name."""
    histograms: list[tuple[str, tuple[float, ...], list[int], float]] = []
    """Its histograms: full name, bounds, counts, sum."""
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
        "ending",
        "figures",
        "figures_at",
        "former",
        "goodbye",
        "hello",
        "lost",
        "pid",
        "pidfd",
        "started_at",
        "state",
        "told_alone",
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
        self.former: Member | None = None
        """Who ended in its slot before, as long as this one has not come up."""
        self.state: State = "starting"
        self.goodbye = False
        """Whether it ended in order: then nobody misses it."""
        self.ending = False
        """It said that it ends once its clients are gone."""
        self.told_alone = False
        """It knows that nobody takes its clients."""
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
        grace: seconds a living worker may be without control connection.
        held_slots: returns the slots that processes hold: those of workers too that have yet to
            find a hub that was restarted.
        counts_deaths: whether nobody else counts the workers that died and were replaced.
    """

    def __init__(
        self,
        control: HubControl,
        node: int,
        grace: float = LOST_GRACE,
        *,
        held_slots: Callable[[], Collection[int]] = tuple,
        counts_deaths: bool = False,
    ) -> None:
        self.node = node
        self._held_slots = held_slots
        self._counts_deaths = counts_deaths
        if counts_deaths:  # shown from the start, as `zeros` explains
            count("limpet_worker_restarts_total", 0, reason="died")
        self.grace = grace
        self.living: dict[int, Member] = {}
        """Workers that live, by worker id."""
        self.departed: dict[int, Member] = {}
        """The last one that came up and ended in each slot nobody has taken since, by slot."""
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
        control.handle("draining", self._draining)
        control.handle("bye", self._bye)

    def in_slot(self, slot: int) -> Member | None:
        """Return the living worker of a slot."""
        for member in self.living.values():
            if member.hello.slot == slot:
                return member
        return None

    def others(self, member: Member) -> bool:
        """Return whether some other worker takes clients, or will in a moment."""
        return any(
            other is not member and other.state in {"starting", "ready"}
            for other in self.living.values()
        )

    @property
    def lost(self) -> bool:
        """Some worker lives, but has no control connection now."""
        return any(member.connection is None for member in self.living.values())

    def everyone(self, *, left: bool = False) -> Iterable[Member]:
        """Return the living workers and those that died without a successor, by slot.

        Args:
            left: those too that ended in order, whom nobody misses.
        """
        ended = [one for one in self.departed.values() if left or not one.goodbye]
        return sorted([*self.living.values(), *ended], key=lambda one: one.hello.slot)

    def on_deaf(self, _connection: ControlConnection, hello: Hello, why: str) -> None:
        """End a worker that no longer reads the bus: by its pidfd, never by its pid."""
        member = self.living.get(hello.worker_id)
        if member is None or member.pidfd < 0:
            return
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
            former = member.former = self.departed.pop(hello.slot, None)
            if former is not None:
                former.figures = Figures()  # its totals have begun anew, and never come back
                if not former.goodbye and self._counts_deaths:
                    count("limpet_worker_restarts_total", reason="died")
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
            member.goodbye = True
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
            self._tell_alone()

    def _draining(self, connection: ControlConnection, body: object) -> None:
        hello = connection.owner
        member = self.living.get(hello.worker_id) if isinstance(hello, Hello) else None
        if member is None:
            return
        draining = msgspec.convert(body, Draining)
        member.state = "draining"
        member.ending = draining.ending
        member.told_alone = False  # it may have been said to a connection that is gone
        logger.info("%s (pid %d) is draining", member.name, member.pid)
        self._tell_drainers(member)
        self._tell_alone()

    def _tell_drainers(self, newest: Member) -> None:
        """Tell workers that drain how many they are, without those that are empty already."""
        draining = [
            member
            for member in self.living.values()
            if member.state == "draining"
            and (member is newest or any(member.figures.sessions.values()))
        ]
        for member in draining if len(draining) > 1 else ():
            if member.connection is not None:
                member.connection.send("drainers", len(draining))

    def _tell_alone(self) -> None:
        """Tell workers that end when nobody is there to take their clients: they need not wait."""
        if any(member.state in {"starting", "ready"} for member in self.living.values()):
            return
        untold = [
            (member, member.connection)
            for member in self.living.values()
            if member.ending and not member.told_alone and member.connection is not None
        ]
        if not untold:
            return
        known = {member.hello.slot for member in self.living.values()} | self.departed.keys()
        if not known.issuperset(self._held_slots()):
            return  # somebody has yet to say who it is
        for member, connection in untold:
            member.told_alone = True
            connection.send("alone", None)

    def _end(self, member: Member, *, dead: bool, why: str) -> None:
        if self.living.get(member.worker_id) is not member:
            return
        del self.living[member.worker_id]
        self._release(member)
        # Who never came up has taken nobody's place: a spare with broken code is not missed.
        left = member.former if member.state == "starting" else member
        if left is not None:
            self.departed[member.hello.slot] = left
        member.state = "gone"
        member.former = None
        for told in self.on_gone:
            told(member, dead)
        connection, member.connection = member.connection, None
        if connection is not None:
            connection.close()
        self._tell_alone()
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
