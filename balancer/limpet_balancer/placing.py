"""Where each connection goes: the workers, their load, and who waits for what (no sockets).

- A connection with a session id is *bound* to the worker that the id names. A slot that a living
  process holds but that has not registered is waited for; any other id that leads nowhere makes
  the connection *final*: any worker answers that the session is unknown.
- One that would open a session, and one for another path, goes to the worker with the least load
  that is open (ready, not draining) and answers promptly; when none does, it waits.

Times are seconds of a monotonic clock, passed in.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from typing import Final, NamedTuple

from limpet_adapters.identity import WorkerAddress
from limpet_balancer.handover import Address, Ledger, Parcel, Register

HOPS_LIMIT: Final = 8
"""A connection sent back more often than this is final: two workers that disagree on who owns a
session must not pass it around for ever."""


class Kind(Enum):
    """What a connection needs."""

    NEW = "new"
    """A worker that takes one more session."""
    ANY = "any"
    """Any worker: another path, a preflight, an id that leads nowhere."""
    BOUND = "bound"
    """The worker that its session id names."""


# An enum's member costs a slow look-up; these are asked several times per connection.
_NEW: Final = Kind.NEW
_ANY: Final = Kind.ANY
_BOUND: Final = Kind.BOUND


class Refusal(Enum):
    """Why a connection is answered 503."""

    FULL = "full"
    NO_WORKER = "no worker"
    BUSY = "busy"


class Arrival(Parcel):
    """One connection in the balancer's hands, until a worker has acknowledged it."""

    __slots__ = ("came_at", "kind", "owner", "sent", "since")

    def __init__(
        self,
        sock: socket.socket,
        family: int,
        address: Address,
        data: bytes,
        *,
        hops: int = 0,
        final: bool = False,
    ) -> None:
        # As the parent does, without the call: this is once per connection.
        self.sock = sock
        self.family = family
        self.address: Address = address
        self.data = data
        self.hops = hops
        self.final = final
        self.kind = _ANY
        self.owner: WorkerAddress | None = None
        """The worker that its session id names, when kind is BOUND."""
        self.since = 0.0
        """When it began to wait."""
        self.sent = 0.0
        """When it was handed over."""
        self.came_at = 0.0
        """When it was accepted or given back; for the figures."""


class Worker:
    """One registered worker."""

    __slots__ = (
        "address",
        "blocked",
        "draining",
        "full",
        "handed",
        "leaving",
        "ledger",
        "limit",
        "pid",
        "ready",
        "recent",
        "sessions",
        "turn",
        "unable_until",
        "waiting",
        "worker_id",
    )

    def __init__(self, register: Register) -> None:
        self.address, self.worker_id, self.pid, self.limit = register
        self.ready = False
        self.draining = False
        self.leaving = False
        """It said BYE: nothing more is sent to it."""
        self.full = False
        self.sessions = 0
        """As last reported."""
        self.recent = 0
        """Our own hand-overs that the report cannot count yet."""
        self.turn = 0
        """When it was last chosen, counted in choices: equals take turns."""
        self.handed = 0
        """Connections handed over so far."""
        self.blocked = False
        """The channel takes nothing at this moment."""
        self.unable_until = 0.0
        """It is out of file descriptors, and left alone until then."""
        self.ledger: Ledger[Arrival] = Ledger()
        self.waiting: deque[Arrival] = deque()
        """Bound to it, while it is blocked or owes too many acknowledgements."""


class Limits(NamedTuple):
    """Bounds of counts and times (seconds)."""

    unacknowledged: int = 256
    """Hand-overs that one worker may owe an acknowledgement for."""
    prompt: float = 0.1
    """A worker whose oldest hand-over is older gets nothing but what is bound to it."""
    waiting: int = 1024
    """Connections that wait for any one reason before accepting pauses."""
    worker_wait: float = 5.0
    """How long a connection is held when there is no worker, or its slot has not registered."""
    busy_wait: float = 20.0
    """How long a connection is held when all workers are busy."""
    unable_for: float = 0.5
    """How long a worker that has run out of file descriptors gets nothing."""


class Placing:
    """Decides for each connection: this worker, not now, or never.

    Args:
        node: number of this host; ids of other hosts lead nowhere yet.
        limits: bounds.
        held_slots: returns the slots that living processes hold; asked only for an id whose
            slot has not registered.
    """

    __slots__ = (
        "_absent",
        "_alone_since",
        "_any",
        "_ever_ready",
        "_held_slots",
        "_new",
        "_open",
        "_turn",
        "limits",
        "node",
        "workers",
    )

    def __init__(
        self, node: int, limits: Limits, held_slots: Callable[[], Collection[int]]
    ) -> None:
        self.node = node
        self.limits = limits
        self.workers: dict[int, Worker] = {}
        """Registered workers by slot."""
        self._held_slots = held_slots
        self._open: list[Worker] = []
        """Ready and not draining."""
        self._new: deque[Arrival] = deque()
        self._any: deque[Arrival] = deque()
        self._absent: dict[int, deque[Arrival]] = {}
        """Bound to a slot that has not registered."""
        self._turn = 0
        self._alone_since = 0.0
        """When the last open worker left."""
        self._ever_ready = False

    # --- workers ------------------------------------------------------------------------

    def register(self, register: Register, now: float) -> tuple[Worker, Worker | None]:
        """Add a worker; returns it and the older registration of its slot that it replaces.

        The older one keeps its ledger: its channel's end is still to come (`leave`).
        """
        slot = register.address.slot
        older = self.workers.get(slot)
        if older is not None:
            self._remove(older, now)
        worker = Worker(register)
        self.workers[slot] = worker
        return worker, older

    def ready(self, worker: Worker) -> None:
        """Let a worker take new sessions from now on."""
        worker.ready = True
        self._ever_ready = True
        self._list_open()

    def draining(self, worker: Worker, now: float) -> None:
        """Give a worker no new sessions any more."""
        worker.draining = True
        self._list_open(now)

    def undrain(self, worker: Worker) -> None:
        """Give a worker new sessions again."""
        worker.draining = False
        self._list_open()

    def bye(self, worker: Worker, now: float) -> None:
        """Give a worker nothing any more; what it owes is settled when its channel ends."""
        worker.leaving = True
        self._remove(worker, now)

    def leave(self, worker: Worker, now: float) -> list[Arrival]:
        """Take a worker out whose channel ended; returns what is to be dispatched anew."""
        worker.leaving = True
        self._remove(worker, now)
        rest = [*worker.ledger.rest(), *worker.waiting]
        worker.waiting.clear()
        return rest

    def load(self, worker: Worker, sessions: int, full: bool) -> None:
        """Note a worker's report; what it has not acknowledged it cannot have counted."""
        worker.sessions = sessions
        worker.full = full
        worker.recent = worker.ledger.count

    def _remove(self, worker: Worker, now: float) -> None:
        if self.workers.get(worker.address.slot) is worker:
            del self.workers[worker.address.slot]
        self._list_open(now)

    def _list_open(self, now: float | None = None) -> None:
        before = bool(self._open)
        self._open = [w for w in self.workers.values() if w.ready and not w.draining]
        if before and not self._open and now is not None:
            self._alone_since = now

    # --- one connection -----------------------------------------------------------------

    def bind(self, arrival: Arrival, owner: WorkerAddress | None) -> None:
        """Note which worker a connection's session id names; None for a malformed id."""
        if owner is None or owner.node != self.node:
            arrival.kind = _ANY
            arrival.final = True
        elif arrival.final:
            arrival.kind = _ANY
        else:
            arrival.kind = _BOUND
            arrival.owner = owner

    def place(self, arrival: Arrival, now: float) -> Worker | Refusal | None:
        """Decide on a connection; None means that it waits here and `due` will name it."""
        if arrival.kind is _BOUND:
            worker = self._owner(arrival, now)
            if arrival.kind is _BOUND:
                return worker
        queue = self._new if arrival.kind is _NEW else self._any
        # More workers take what is final than what waits, perhaps for one that takes sessions.
        if not queue or arrival.final:
            chosen = self.choose(arrival, now)
            if chosen is not None:
                return chosen
        if arrival.kind is _NEW and self.is_full:
            return Refusal.FULL
        arrival.since = now
        queue.append(arrival)
        return None

    def choose(self, arrival: Arrival, now: float) -> Worker | None:
        """Return the worker with the least load that takes a connection of no owner."""
        limits = self.limits
        is_new = arrival.kind is _NEW
        best: Worker | None = None
        lowest = 0
        candidates: Collection[Worker] = self._open
        if arrival.final and not candidates:
            # Nobody takes sessions, but one that is draining can still say "unknown".
            candidates = self.workers.values()
        for worker in candidates:
            owed = worker.ledger.count
            if worker.blocked or owed >= limits.unacknowledged or now < worker.unable_until:
                continue
            if owed:
                oldest = worker.ledger.oldest
                if oldest is not None and now - oldest.sent >= limits.prompt:
                    continue
            load = worker.sessions + worker.recent
            if is_new and (worker.full or (worker.limit and load >= worker.limit)):
                continue
            if best is None or load < lowest or (load == lowest and worker.turn < best.turn):
                best = worker
                lowest = load
        return best

    def handed(self, worker: Worker, arrival: Arrival, now: float) -> None:
        """Note that a connection has been sent to a worker."""
        arrival.sent = now
        worker.ledger.add(arrival)
        worker.handed += 1
        if arrival.kind is not _BOUND:
            self._turn += 1
            worker.turn = self._turn
            worker.recent += 1

    def back(self, worker: Worker, arrival: Arrival, now: float) -> None:
        """Keep a connection that a worker's channel did not take: it is next in its turn."""
        worker.blocked = True
        if not arrival.since:  # else it has waited before, and that counts
            arrival.since = now
        if arrival.kind is _BOUND:
            worker.waiting.appendleft(arrival)
        elif arrival.kind is _NEW:
            self._new.appendleft(arrival)
        else:
            self._any.appendleft(arrival)

    def _owner(self, arrival: Arrival, now: float) -> Worker | None:
        """Find the worker of a bound connection, or queue it, or make it final."""
        owner = arrival.owner
        assert owner is not None  # noqa: S101 - BOUND has an owner
        worker = self.workers.get(owner.slot)
        if worker is not None:
            if worker.address != owner:
                self._finish(arrival)
                return None
            if worker.waiting or not self._takes(worker, now):
                arrival.since = now
                worker.waiting.append(arrival)
                return None
            return worker
        if owner.slot not in self._held_slots():
            self._finish(arrival)
            return None
        arrival.since = now
        self._absent.setdefault(owner.slot, deque()).append(arrival)
        return None

    def rejected(self, worker: Worker, number: int, now: float) -> None:
        """Take back a hand-over that a worker had no file descriptor for; it waits its turn.

        Raises:
            HandoverError: the worker does not owe this one.
        """
        self.back(worker, worker.ledger.reject(number), now)
        worker.unable_until = now + self.limits.unable_for

    def _takes(self, worker: Worker, now: float) -> bool:
        """Say whether a worker takes what is bound to it."""
        return (
            not worker.blocked
            and worker.ledger.count < self.limits.unacknowledged
            and now >= worker.unable_until
        )

    @staticmethod
    def _finish(arrival: Arrival) -> None:
        """Its session cannot come back: any worker says so."""
        arrival.kind = _ANY
        arrival.owner = None
        arrival.final = True

    # --- those that wait ----------------------------------------------------------------

    def due(self, now: float) -> Iterator[tuple[Arrival, Worker | Refusal]]:
        """Yield what no longer has to wait, and where it goes.

        The caller acts on each (`handed` or `back`) before it asks for the next.
        """
        if self._absent:
            self._settle_absent(now)
        for worker in list(self.workers.values()):
            while worker.waiting and self._takes(worker, now):
                yield worker.waiting.popleft(), worker
        for queue in (self._new, self._any):
            while queue:
                arrival = queue[0]
                decision = self._waited(arrival, now)
                if decision is None:
                    break
                queue.popleft()
                yield arrival, decision

    def _waited(self, arrival: Arrival, now: float) -> Worker | Refusal | None:
        chosen = self.choose(arrival, now)
        if chosen is not None:
            return chosen
        if arrival.kind is _NEW and self.is_full:
            return Refusal.FULL
        if not self._open:
            alone = max(arrival.since, self._alone_since)
            return Refusal.NO_WORKER if now - alone >= self.limits.worker_wait else None
        return Refusal.BUSY if now - arrival.since >= self.limits.busy_wait else None

    def _settle_absent(self, now: float) -> None:
        held = self._held_slots()
        for slot in list(self._absent):
            queue = self._absent[slot]
            while queue:
                arrival = queue[0]
                if slot not in self.workers:
                    if slot in held and now - arrival.since < self.limits.worker_wait:
                        break
                    self._finish(arrival)
                queue.popleft()
                # Queued and not given, so that `due` hands out in one place only.
                if arrival.kind is _BOUND:
                    worker = self.workers[slot]
                    if worker.address == arrival.owner:
                        worker.waiting.append(arrival)
                        continue
                    self._finish(arrival)
                self._any.append(arrival)  # what it has waited already counts
            if not queue:
                del self._absent[slot]

    def drop_waiting(self) -> list[Arrival]:
        """Return all that wait, and forget them: the balancer ends."""
        queues = [self._new, self._any, *self._absent.values()]
        queues += [worker.waiting for worker in self.workers.values()]
        dropped = [arrival for queue in queues for arrival in queue]
        for queue in queues:
            queue.clear()
        self._absent.clear()
        return dropped

    # --- figures ------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether every open worker has reached its session limit (False when there is none)."""
        return bool(self._open) and all(
            w.full or (w.limit and w.sessions + w.recent >= w.limit) for w in self._open
        )

    @property
    def waits(self) -> int:
        """How many connections wait here."""
        count = len(self._new) + len(self._any)
        for queue in self._absent.values():
            count += len(queue)
        for worker in self.workers.values():
            count += len(worker.waiting)
        return count

    @property
    def anyone_waits(self) -> bool:
        """Whether a connection waits here."""
        if self._new or self._any or self._absent:
            return True
        for worker in self.workers.values():  # noqa: SIM110 - a generator costs twice as much
            if worker.waiting:
                return True
        return False

    @property
    def crowded(self) -> bool:
        """Whether so many wait for some reason that no more should be accepted."""
        limit = self.limits.waiting
        if len(self._new) + len(self._any) >= limit:
            return True
        if self._absent and sum(map(len, self._absent.values())) >= limit:
            return True
        return any(len(worker.waiting) >= limit for worker in self.workers.values())

    @property
    def health(self) -> str:
        """``ok`` when some worker takes sessions, else why not."""
        if self._open:
            return "ok"
        if any(worker.draining for worker in self.workers.values()):
            return "draining"
        return "no worker" if self._ever_ready and not self.workers else "starting"
