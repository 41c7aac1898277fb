"""``GET /metrics``: the figures of every process of this host, gathered by the hub when asked.

Workers report theirs each second; the balancer and the supervisor are asked at each scrape. Every
figure says whose it is: ``worker="w0"``, or ``process="hub"``, ``"balancer"``, ``"supervisor"``.
A worker that ended leaves its totals behind until another one takes its slot: they begin anew
then, as Prometheus expects of a process that was restarted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from limpet_adapters.counters import (
    count,
    counters,
    full_name,
    gauge,
    gauges,
    histogram,
    reports,
    series,
)
from limpet_adapters.process_figures import ProcessFigures
from limpet_balancer.channel import ask_stats
from limpet_balancer.handover import HandoverError
from limpet_cluster.hub import zeros
from limpet_cluster.hub.exposition import (
    OPENMETRICS,
    TEXT,
    Source,
    render,
    wants_openmetrics,
)
from limpet_cluster.hub.problems import Handler
from limpet_cluster.hub.queries import Query
from limpet_cluster.supervisor.commands import NAME as SUPERVISOR_SOCKET

if TYPE_CHECKING:
    from limpet_adapters.rundir import RunDirectory
    from limpet_cluster.hub.api import ApiContext
    from limpet_cluster.hub.members import Member

logger = logging.getLogger("limpet.api")

PATIENCE: Final = 0.5
"""Seconds that the balancer and the supervisor have to answer a scrape."""
STALE: Final = 5.0
"""Seconds after which a worker that did not report counts as not up."""
_STATES: Final = ("starting", "ready", "draining", "gone")
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_NO_RESTART: Final = frozenset(("stop", "scale"))
_MOST_COUNTED: Final = 5000
_LONGEST_STATUS: Final = 1 << 20


class _Backend(Struct, kw_only=True):
    slot: int
    sessions: int = 0
    recent: int = 0
    unacknowledged: int = 0


class BalancerFigures(Struct, kw_only=True):
    """What the balancer tells of itself, as far as it matters here."""

    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: list[tuple[str, tuple[float, ...], list[int], float]] = []
    workers: list[_Backend] = []


class _Child(Struct, kw_only=True):
    name: str
    restarts: int = 0


class _Reload(Struct, kw_only=True):
    ok: bool
    at: float


class SupervisorFigures(Struct, kw_only=True):
    """What the supervisor tells of itself, as far as it matters here."""

    processes: list[_Child] = []
    worker_ends: dict[str, int] = {}
    last_reload: _Reload | None = None
    counters: dict[str, float] = {}


class Metrics:
    """Answers scrapes.

    Args:
        context: what the API shows.
        run: where balancer and supervisor are; None: they are not asked.
    """

    def __init__(self, context: ApiContext, run: RunDirectory | None) -> None:
        self._context = context
        self._run = run
        self._process = ProcessFigures()
        self._counted = zeros.WORKER.copy()
        """0 for everything that any worker has counted: the next in a slot begins there."""

    async def running(self, _app: web.Application) -> AsyncIterator[None]:
        """Watch the hub's own loop while the API is served (an aiohttp cleanup context)."""
        self._process.start()
        yield
        self._process.stop()

    async def get(self, request: web.Request) -> web.Response:
        """Return all figures of this host, as text or as OpenMetrics."""
        Query(request, ())
        openmetrics = wants_openmetrics(request.headers.get("Accept", ""))
        others = [] if self._run is None else await _others(self._run)
        await self._context.presence.settled()  # else counting may look at every entry
        self._own()
        workers = self._workers()
        body = render(
            [
                Source({"process": "hub"}, {**zeros.HUB, **counters}, gauges, reports()),
                Source({}, {}, {'limpet_up{process="hub"}': 1}, ()),
                *others,
                *workers,
            ],
            openmetrics=openmetrics,
        )
        kind = OPENMETRICS if openmetrics else TEXT
        return web.Response(body=body, headers={"Content-Type": kind})

    def _own(self) -> None:
        """Set the hub's gauges."""
        context = self._context
        self._process.sample()
        states = Counter(member.state for member in context.members.everyone())
        for state in _STATES:
            gauge("limpet_workers", states[state], state=state)
        users = entries = 0
        for space in context.presence.index.namespaces.values():
            occupancy = context.presence.index.occupancy(space)
            users += occupancy[0]
            entries += occupancy[1]
        gauge("limpet_presence_entries", entries, scope="local")
        gauge("limpet_presence_users", users)
        gauge("limpet_presence_complete", int(context.presence.complete))
        bus = context.bus()
        gauge("limpet_bus_open", bus.get("open", 0))
        gauge("limpet_bus_topics", bus.get("topics", 0))
        gauge("limpet_bus_peers", bus.get("workers", 0), state="ready")
        gauge("limpet_bus_ring_bytes", bus.get("ring_bytes", 0))
        for family, direction, total in (
            ("limpet_bus_messages_total", "in", bus.get("messages", 0)),
            ("limpet_bus_bytes_total", "out", bus.get("bytes", 0)),
        ):
            counters[series(family, {"direction": direction})] = total

    def _workers(self) -> Iterator[Source]:
        now = time.monotonic()
        everyone = list(self._context.members.everyone(left=True))
        if len(self._counted) > _MOST_COUNTED:
            self._counted = zeros.WORKER.copy()
        for member in everyone:
            self._counted.update(dict.fromkeys(member.figures.counters, 0))
        for member in everyone:
            yield _worker(member, now, self._counted)


def _worker(member: Member, now: float, counted: Mapping[str, float]) -> Source:
    labels = {"worker": f"w{member.hello.slot}"}
    figures = member.figures
    totals: dict[str, float] = {**counted, **figures.counters}
    if member.state == "gone":  # what it had is no more; what it did stays done
        used = {name: one for name, one in figures.gauges.items() if name.endswith("_total")}
        return Source(labels, totals, used, figures.histograms)
    age = None if member.figures_at is None else now - member.figures_at
    current = {"limpet_up": float(age is not None and age < STALE), **figures.gauges}
    if age is not None:
        current["limpet_figures_age_seconds"] = round(age, 3)
    return Source(labels, totals, current, figures.histograms)


# --- the others of this host --------------------------------------------------


async def _others(run: RunDirectory) -> list[Source]:
    return [
        source
        for source in await asyncio.gather(
            _balancer(run.balancer), _supervisor(run.path / SUPERVISOR_SOCKET)
        )
        if source is not None
    ]


async def _balancer(path: Path) -> Source:
    labels = {"process": "balancer"}
    try:
        told = msgspec.convert(await ask_stats(path, PATIENCE), BalancerFigures)
    except (OSError, TimeoutError, HandoverError, msgspec.ValidationError) as error:
        logger.debug("the balancer gave no figures: %s", error)
        return Source(labels, {}, {"limpet_up": 0}, ())
    current = {"limpet_up": 1.0, **told.gauges}
    for one in told.workers:
        backend = {"worker": f"w{one.slot}"}
        for name, figure in (
            ("limpet_balancer_backend_sessions", one.sessions + one.recent),
            ("limpet_balancer_backend_unacknowledged", one.unacknowledged),
        ):
            current[full_name(name, backend)] = figure
    return Source(labels, {**zeros.BALANCER, **told.counters}, current, told.histograms)


async def _supervisor(path: Path) -> Source | None:
    """Return the supervisor's figures; None where there is none, as under systemd."""
    labels = {"process": "supervisor"}
    try:
        told = msgspec.convert(await _ask(path), SupervisorFigures)
    except FileNotFoundError:
        return None
    except (OSError, TimeoutError, ValueError, msgspec.ValidationError) as error:
        logger.debug("the supervisor gave no figures: %s", error)
        return Source(labels, {}, {"limpet_up": 0}, ())
    totals = {**zeros.SUPERVISOR, **told.counters}
    for reason, amount in told.worker_ends.items():
        if reason not in _NO_RESTART:
            totals[full_name("limpet_worker_restarts_total", {"reason": reason})] = amount
    for child in told.processes:
        totals[full_name("limpet_process_restarts_total", {"name": child.name})] = child.restarts
    current: dict[str, float] = {"limpet_up": 1}
    if told.last_reload is not None:
        current["limpet_config_last_reload_successful"] = int(told.last_reload.ok)
        current["limpet_config_last_reload_timestamp_seconds"] = told.last_reload.at
    return Source(labels, totals, current, ())


async def _ask(path: Path) -> object:
    """Return the supervisor's status.

    Raises:
        OSError: nobody is there.
        TimeoutError: no answer in time.
        ValueError: the answer is no line of JSON.
    """
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST_STATUS)
        try:
            writer.write(b'{"verb":"status"}\n')
            return json.loads(await reader.readline())
        finally:
            writer.close()


# --- the API's own requests ---------------------------------------------------


@web.middleware
async def measured(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Measure how long a request takes; outermost of the middlewares."""
    started = time.perf_counter()
    try:
        return await handler(request)
    finally:
        histogram("limpet_http_request_duration_seconds", route=route_of(request)).observe(
            time.perf_counter() - started
        )


def count_request(request: web.Request, status: int) -> None:
    """Count an answer of the API by route, method and status."""
    count(
        "limpet_http_requests_total",
        route=route_of(request),
        method=request.method if request.method in _METHODS else "other",
        status=str(status),
    )


def route_of(request: web.Request) -> str:
    """Return the pattern of a request's route; ``none`` when it has none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"
