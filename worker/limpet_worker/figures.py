"""What a worker tells the hub of itself each second: sessions, counters, gauges, histograms."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from limpet_adapters import counters as figures
from limpet_adapters.counters import counters, gauge, gauges, series
from limpet_adapters.process_figures import ProcessFigures

if TYPE_CHECKING:
    from limpet_adapters.bus import Bus
    from limpet_adapters.control import ControlClient
    from limpet_worker.engineio.server import EngineServer
    from limpet_worker.http.frontdoor import Doorway
    from limpet_worker.socketio.server import Server

STATS_INTERVAL: Final = 1.0
"""Seconds between reports."""
_LOOKED_AT: Final = 10_000
"""Outboxes that are looked at for one report; with more sessions that is done more seldom."""


class WorkerFigures:
    """Gathers the figures of a worker and reports them.

    Args:
        control: the connection to the hub.
        bus: the worker's end of the bus.
        state: returns what the worker says it is: ``starting``, ``ready``, ``draining``.
    """

    def __init__(self, control: ControlClient, bus: Bus, state: Callable[[], str]) -> None:
        self.app: Server | None = None  # until it is loaded
        self.doorway: Doorway | None = None  # until the application has started
        self.process = ProcessFigures()
        self._control = control
        self._bus = bus
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._reports = 0

    def start(self) -> None:
        """Report each second from now on."""
        self.process.start()
        self._timer = self._loop.call_later(STATS_INTERVAL, self._tick)

    def stop(self) -> None:
        """Report a last time: the totals of this life."""
        self.process.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.report()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(STATS_INTERVAL, self._tick)
        self.report()

    def report(self) -> None:
        """Tell the hub how things are."""
        resident = self.process.sample()
        stats = {}
        if self.app is not None:
            engine = self.app.engine_or_none
            if engine is not None:
                stats = engine.stats()
                self._engine_figures(engine)
            self._app_figures(self.app)
        self._bus_figures()
        self._reports += 1
        gauges.setdefault("limpet_draining", 0)
        gauges.setdefault("limpet_drain_sessions_remaining", 0)
        self._control.send(
            "stats",
            {
                "sessions": {name: stats.get(name, 0) for name in ("polling", "websocket")},
                "counters": dict(counters),
                "gauges": gauges,
                "histograms": list(figures.reports()),
                "loop_lag": self.process.take_lag(),
                "rss": resident,
                "state": self._state(),
            },
        )

    def _engine_figures(self, engine: EngineServer) -> None:
        engine.traffic.hand_on()
        stats = engine.stats()
        for transport in ("polling", "websocket"):
            gauge("limpet_sessions", stats[transport], transport=transport)
        gauge("limpet_slow_consumers", stats["slow"])
        if self._reports % (1 + stats["sessions"] // _LOOKED_AT) == 0:
            gauge("limpet_send_queue_bytes", unsent_bytes(engine))
        doorway = self.doorway
        if doorway is not None:
            gauge("limpet_http_connections", doorway.connections)
            counters["limpet_requests_total"] = doorway.requests
            counters["limpet_connections_adopted_total"] = doorway.adopted

    @staticmethod
    def _app_figures(app: Server) -> None:
        connections: Counter[str] = Counter()
        rooms: Counter[str] = Counter()
        for namespace in app.namespaces.values():
            label = namespace.meter.label
            inside = namespace.occupancy
            connections[label] += inside[0]
            rooms[label] += inside[1]
        pending = 0
        shown: Counter[str] = Counter()  # several namespaces may be the one series "other"
        for label in {meter.label: None for meter in app.meters}:
            shown[series("limpet_connections", {"namespace": label})] += connections[label]
            shown[series("limpet_rooms", {"namespace": label})] += rooms[label]
        gauges.update(shown)
        for meter in app.meters:
            meter.hand_on()
            pending += meter.acks_pending
        gauge("limpet_acks_pending", pending)
        gauge("limpet_handlers_running", app.running)

    def _bus_figures(self) -> None:
        stats = self._bus.stats()
        for name in ("ready", "topics"):
            gauge(f"limpet_bus_{name}", stats[name])
        gauge("limpet_bus_queue_messages", stats["queued"])
        gauge("limpet_bus_queue_bytes", stats["queued_bytes"])
        for unit, sent, read in (
            ("messages", "sent", "read"),
            ("bytes", "sent_bytes", "read_bytes"),
        ):
            family = f"limpet_bus_{unit}_total"
            counters[series(family, {"direction": "out"})] = stats[sent]
            counters[series(family, {"direction": "in"})] = stats[read]
        counters["limpet_bus_gaps_total"] = stats["gaps"]
        counters["limpet_bus_repaired_total"] = stats["repaired"]
        counters["limpet_bus_doubles_total"] = stats["doubles"]


def unsent_bytes(engine: EngineServer) -> int:
    """Return the bytes that wait to be sent: in outboxes, and in transports that are full."""
    size = 0
    for session in engine.sessions.values():
        out = session.out
        if out is not None:
            size += len(out) if isinstance(out, bytes) else sum(map(len, out))
        if session.blocked and session.wire is not None:
            size += cast("Any", session.wire).get_write_buffer_size()
    return size
