"""What happens per second, from counters that only grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from limpet_cluster.cli.overview import Overview, total

_SHORTEST: Final = 0.5
"""Seconds between two readings that make a rate; workers report each second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The counters of one worker at one moment."""

    at: float
    """When the worker reported them, monotonic, in seconds."""
    connects: float = 0
    messages_in: float = 0
    """Packets of Engine.IO."""
    messages_out: float = 0
    events: float = 0
    """Events of Socket.IO from clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one worker does per second."""

    connects: float
    messages_in: float
    messages_out: float
    events: float

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            connects=self.connects + other.connects,
            messages_in=self.messages_in + other.messages_in,
            messages_out=self.messages_out + other.messages_out,
            events=self.events + other.events,
        )


NOTHING: Final = Rates(connects=0, messages_in=0, messages_out=0, events=0)


class Meter:
    """Keeps the last reading of each worker's life, and the rates since the one before."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self.rates: dict[str, Rates] = {}
        """By the id of the worker's life; missing until there were two reports."""

    def read(self, overview: Overview) -> None:
        """Take in what the workers have counted."""
        living = {one["id"]: one for one in overview.workers if one["state"] != "gone"}
        for key in self._readings.keys() - living.keys():
            del self._readings[key]
            self.rates.pop(key, None)
        for key, worker in living.items():
            if worker["figures_age_seconds"] is None:
                continue
            now = reading(worker, overview.at - worker["figures_age_seconds"])
            before = self._readings.get(key)
            if before is None:
                self._readings[key] = now
            elif now.at - before.at >= _SHORTEST:
                self._readings[key] = now
                self.rates[key] = _between(before, now)

    def sum(self) -> Rates:
        """Return the rates of all workers together."""
        found = NOTHING
        for one in self.rates.values():
            found += one
        return found


def reading(worker: Mapping[str, Any], at: float) -> Reading:
    """Return what a worker has counted."""
    counters = [worker["counters"]]
    return Reading(
        at=at,
        connects=total(counters, "limpet_sessions_opened_total"),
        messages_in=total(counters, "limpet_transport_messages_total", direction="in"),
        messages_out=total(counters, "limpet_transport_messages_total", direction="out"),
        events=total(counters, "limpet_events_total", direction="in"),
    )


def _between(before: Reading, now: Reading) -> Rates:
    seconds = now.at - before.at
    return Rates(
        connects=(now.connects - before.connects) / seconds,
        messages_in=(now.messages_in - before.messages_in) / seconds,
        messages_out=(now.messages_out - before.messages_out) / seconds,
        events=(now.events - before.events) / seconds,
    )
