"""What a worker gives to the server that it runs: ids, the bus, who hears of presence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from limpet_adapters.contract import Adapter, Deliver
from limpet_adapters.memory import MemoryAdapter
from limpet_worker.presence import PresenceSource


class PresenceSink(Protocol):
    """Where a worker reports who is connected and in which rooms; own rooms are not reported."""

    def connected(
        self, namespace: str, socket_id: str, user: object, transport: str, at: float
    ) -> None:
        """Hear of a new socket; ``at`` is in seconds since 1970, for display."""

    def disconnected(self, namespace: str, socket_id: str) -> None:
        """Hear that a socket is gone, and out of its rooms."""

    def joined(self, namespace: str, socket_id: str, room: str) -> None:
        """Hear that a socket entered a room."""

    def left(self, namespace: str, socket_id: str, room: str) -> None:
        """Hear that a socket left a room."""

    def changed(
        self, namespace: str, socket_id: str, *, user: object = None, transport: str | None = None
    ) -> None:
        """Hear of a new user or transport of a socket; None: unchanged."""


@dataclass(slots=True, kw_only=True)
class WorkerContext:
    """What a worker gives to the server that it runs."""

    new_id: Callable[[], str]
    """Makes session ids and socket ids."""
    adapter: Callable[[str, Deliver], Adapter] = MemoryAdapter
    """Makes the adapter of a namespace."""
    presence: PresenceSink | None = None
    """None: nobody wants to know who is there."""
    presence_source: PresenceSource | None = None
    """Asks the hub who is where."""
    name: str = "worker"
    """Name of the worker, for display."""
