"""When each client of a worker that goes away is told to go: no sockets, no clock, no chance.

A client that is closed comes back after its own back-off, somewhere else. All at once would be a
herd at the other workers' doors, so each client gets an instant of its own, drawn at random from a
window long enough for the cluster's budget of reconnects. When its instant comes it is closed,
unless it is *busy* (a handler of its runs, an acknowledgement is waited for, something is unsent):
then it is looked at again every now and then, until it is idle or its patience is used up.

Times are seconds of a monotonic clock, passed in.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from limpet_worker.errors import OptionError

LOOK_AGAIN: Final = 0.05
"""Seconds after which a busy client is looked at again."""

Client = TypeVar("Client", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOptions:
    """How gently clients are sent away.

    Raises:
        OptionError: a value is out of range.
    """

    grace: float = 0.5
    """Seconds before the first is closed: the balancer, and other workers that drain, are told
    meanwhile, so that nobody is sent from one that goes to the next that goes."""
    window: float = 120.0
    """Seconds over which clients are closed, at most."""
    budget: float = 500.0
    """Clients that the cluster takes back in a second: the window is as long as they need."""
    handler_grace: float = 10.0
    """Seconds that a busy client is waited for, at most."""

    def __post_init__(self) -> None:
        for name in ("grace", "window", "handler_grace"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= 86_400):
                raise OptionError(f"drain {name}={value!r}: expected seconds from 0 to 86400")
        if not (_is_number(self.budget) and self.budget > 0):
            raise OptionError(f"drain budget={self.budget!r}: expected clients per second, > 0")

    def length(self, clients: int, workers: int = 1) -> float:
        """Return the seconds that closing so many takes, when so many workers drain at a time."""
        return min(clients * workers / self.budget, self.window)


class Drain(Generic[Client]):
    """The plan of one drain.

    Args:
        options: how gently.
        clients: who is there.
        now: when it begins.
        chance: returns numbers from 0 up to 1.
        length: seconds of the window, instead of what the budget makes it.
    """

    __slots__ = (
        "_chance",
        "_count",
        "_options",
        "_patience",
        "_planned",
        "_queue",
        "ends",
        "first",
    )

    def __init__(
        self,
        options: DrainOptions,
        clients: Collection[Client],
        now: float,
        chance: Callable[[], float],
        *,
        length: float | None = None,
    ) -> None:
        self._options = options
        self._chance = chance
        self._patience = options.handler_grace
        self.first = now + options.grace
        """From when on clients are closed."""
        self.ends = self.first + (options.length(len(clients)) if length is None else length)
        """When the last one's instant comes."""
        self._queue: list[tuple[float, int, Client]] = []
        """(when to look, a number that makes it unique, who): a heap."""
        self._planned: dict[Client, float] = {}
        """The instant of each that is still to be closed."""
        self._count = 0
        self.add(clients, now)

    def __len__(self) -> int:
        """Return how many are still to be closed."""
        return len(self._planned)

    def __contains__(self, client: object) -> bool:
        return client in self._planned

    def add(self, clients: Iterable[Client], now: float) -> None:
        """Plan for those that are not planned for: at the beginning, or because they came late."""
        start = max(now, self.first)
        span = max(0.0, self.ends - start)
        before = len(self._queue)
        for client in clients:
            if client not in self._planned:
                at = self._planned[client] = start + self._chance() * span
                self._count += 1
                self._queue.append((at, self._count, client))
        if len(self._queue) > before:
            heapq.heapify(self._queue)  # at once: thousands come at the beginning

    def next_look(self) -> float:
        """Return when `due` is worth asking; infinity when nobody is left."""
        return self._queue[0][0] if self._queue else math.inf

    def due(self, now: float, busy: Callable[[Client], bool], most: int = 256) -> list[Client]:
        """Return whom to close now, ``most`` at a time; they are forgotten here."""
        chosen: list[Client] = []
        queue = self._queue
        while queue and queue[0][0] <= now and len(chosen) < most:
            client = heapq.heappop(queue)[2]
            instant = self._planned[client]
            if now < instant + self._patience and busy(client):
                self._look(min(now + LOOK_AGAIN, instant + self._patience), client)
                continue
            del self._planned[client]
            chosen.append(client)
        return chosen

    def hurry(self, now: float, patience: float) -> None:
        """Close all now, those that are busy within ``patience`` seconds: nothing is gained by
        waiting, because nobody is there to take them, or because somebody said so.
        """
        self._patience = min(self._patience, patience)
        self.first = min(self.first, now)
        self.ends = min(self.ends, now)
        self._queue.clear()
        for client, instant in self._planned.items():
            self._planned[client] = min(instant, now)
            self._look(now, client)

    def _look(self, at: float, client: Client) -> None:
        self._count += 1
        heapq.heappush(self._queue, (at, self._count, client))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
