"""What happens in the namespaces of one label: numbers that the hot path adds to.

The label of a namespace that the app named is its name. Those that a dynamic one makes share its
pattern's, or its function's name: clients choose their names, and must not choose labels.
"""

from __future__ import annotations

from typing import Final

from limpet_adapters.counters import count, histogram

HANDLER_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Bounds of how long handlers take. The first one is what `Socket` takes for quick."""
QUICK: Final = HANDLER_SECONDS[0]
FANOUT: Final = (0, 1, 2, 5, 10, 25, 100, 250, 1000, 2500, 10_000, 25_000, 100_000)
"""Bounds of how many local sockets a broadcast is for."""


class Meter:
    """Figures of the namespaces of one label."""

    __slots__ = ("acks_pending", "events_in", "events_out", "label", "seconds")

    def __init__(self, label: str) -> None:
        self.label = label
        self.events_in = 0
        """Events from clients since they were last handed on to the counters."""
        self.events_out = 0
        """Events to clients, likewise; one of a broadcast for each local socket."""
        self.acks_pending = 0
        """Acknowledgements that the server waits for just now."""
        self.seconds = histogram(
            "limpet_handler_duration_seconds", HANDLER_SECONDS, namespace=label
        )
        """How long handlers of events ran, waiting included, their acknowledgement too."""

    def hand_on(self) -> None:
        """Add the events to the counters of the process and begin anew."""
        for direction, amount in (("in", self.events_in), ("out", self.events_out)):
            if amount:
                count("limpet_events_total", amount, namespace=self.label, direction=direction)
        self.events_in = self.events_out = 0
