"""What a balancer counts, and how it tells: to the hub for the metrics, to the command line."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final, NamedTuple

from limpet_adapters.counters import SECONDS, count, counters, gauge, gauges, histogram, reports
from limpet_adapters.process_figures import ProcessFigures
from limpet_balancer.placing import Placing

_ROUTE_SECONDS: Final = (0.0001, 0.00025, *SECONDS)


class Now(NamedTuple):
    """How a balancer stands at this moment."""

    heads: int
    """Connections whose request head is incomplete."""
    unacknowledged: int
    """Hand-overs that workers owe an acknowledgement for."""
    paused: list[str]
    """Why nothing is accepted."""
    accepting: bool
    backlog: int
    """Connections that wait in the kernel."""
    backlog_limit: int


class Totals:
    """What a balancer has counted since its start."""

    __slots__ = (
        "accepted",
        "emfile",
        "handed_over",
        "migrated",
        "process",
        "redispatched",
        "refused",
        "rejected",
        "route_seconds",
        "routed",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.accepted = 0
        self.handed_over = 0
        self.redispatched = 0
        self.migrated = 0
        self.rejected = 0
        self.emfile = 0
        self.refused: Counter[str] = Counter()
        """By reason."""
        self.routed: Counter[str] = Counter()
        """By what decided: ``sid``, ``new``, ``any``."""
        self.route_seconds = histogram("limpet_balancer_route_duration_seconds", _ROUTE_SECONDS)
        self.process = ProcessFigures(loop)

    def out_of_descriptors(self) -> None:
        """Count a descriptor that was not to be had."""
        self.emfile += 1
        count("limpet_balancer_emfile_total")

    def stats(self, placing: Placing, now: Now) -> dict[str, object]:
        """Return all figures: totals, what waits, the workers, and the metrics of the process."""
        return {
            "health": placing.health,
            "accepted": self.accepted,
            "handed_over": self.handed_over,
            "redispatched": self.redispatched,
            "migrated": self.migrated,
            "rejected": self.rejected,
            "refused": dict(self.refused),
            "emfile": self.emfile,
            "paused": now.paused,
            "heads": now.heads,
            "waiting": placing.waits,
            "unacknowledged": now.unacknowledged,
            "workers": [
                {
                    "slot": worker.address.slot,
                    "incarnation": worker.address.incarnation,
                    "worker_id": worker.worker_id,
                    "pid": worker.pid,
                    "ready": worker.ready,
                    "draining": worker.draining,
                    "full": worker.full,
                    "sessions": worker.sessions,
                    "recent": worker.recent,
                    "unacknowledged": worker.ledger.count,
                    "waiting": len(worker.waiting),
                    "handed_over": worker.handed,
                }
                for worker in placing.workers.values()
            ],
            **self._metrics(placing, now),
        }

    def _metrics(self, placing: Placing, now: Now) -> dict[str, object]:
        """Return counters, gauges and histograms, as the metrics of the host have them."""
        self.process.sample()
        for name, total in (
            ("accepted", self.accepted),
            ("fd_passed", self.handed_over),
            ("redispatched", self.redispatched),
            ("migrated", self.migrated),
            ("rejected", self.rejected),
        ):
            counters[f"limpet_balancer_{name}_total"] = total
        for decision in ("sid", "new", "any"):
            name = f'limpet_balancer_routed_total{{decision="{decision}"}}'
            counters[name] = self.routed[decision]
        gauge("limpet_balancer_healthy", int(placing.health == "ok"))
        held = now.heads + placing.waits + now.unacknowledged
        gauge("limpet_balancer_connections_active", held)
        gauge("limpet_balancer_heads_waiting", now.heads)
        gauge("limpet_balancer_waiting", placing.waits)
        gauge("limpet_balancer_accepting", int(now.accepting))
        gauge("limpet_balancer_accept_queue_length", now.backlog)
        gauge("limpet_balancer_accept_queue_limit", now.backlog_limit)
        return {"counters": dict(counters), "gauges": dict(gauges), "histograms": list(reports())}
