"""What is known of a cluster at one moment, from everybody who can be asked.

The supervisor knows the processes, the hub the workers, the balancer its queue; under systemd there
is no supervisor, and systemd itself is asked. Who does not answer is left out.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from limpet_balancer.channel import ask_stats
from limpet_balancer.handover import HandoverError
from limpet_cluster.api_client import ApiClient, ApiError, NoAnswerError, NotReachableError
from limpet_cluster.place import SHARED_API
from limpet_cluster.supervisor import commands
from limpet_cluster.units import render as units
from limpet_cluster.units import systemctl

_NAME: Final = re.compile(r"([a-z_]+)(?:\{(.*)\})?$")
_PROPERTIES: Final = (
    "Id",
    "MainPID",
    "ActiveState",
    "NRestarts",
    "StatusText",
    "ActiveEnterTimestampMonotonic",
    "Result",
    "UnitFileState",
)
_SERVICES: Final = (units.HUB, units.BALANCER, units.instance_pattern())
_STATES: Final = {
    "active": "ready",  # Type=notify: not before it says so
    "activating": "starting",
    "deactivating": "stopping",
    "inactive": "stopped",
}
_SLOT: Final = re.compile(r"(?<=worker[-@])\d+")
_LABEL: Final = re.compile(r'([a-z_]+)="([^"]*)"')


@dataclass(slots=True, kw_only=True)
class Process:
    """One process of the cluster."""

    name: str
    pid: int | None
    state: str
    seconds: float | None
    """Since it started; None while it does not run."""
    restarts: int
    why: str
    """What it says of itself, or why it was started again the last time."""

    @property
    def worker(self) -> str:
        """The hub's name for it; empty when it is no worker."""
        slot = _SLOT.search(self.name)
        return "" if slot is None else f"w{slot[0]}"

    @property
    def serves(self) -> bool:
        """Whether it does what it is there for, or leaves as it was asked to."""
        return self.state in {"ready", "reloading", "stopping"}


@dataclass(slots=True, kw_only=True)
class Overview:
    """A cluster at one moment."""

    supervisor: dict[str, Any] | None = None
    """Its answer to ``status``; None where there is none."""
    units: list[dict[str, Any]] | None = None
    """The units of systemd; None where it does not run the cluster, or was not asked."""
    units_change: bool = False
    """Whether a command starts and stops units just now."""
    urls: list[str] = field(default_factory=list)
    """Where clients connect, as far as that is known; ``unix:PATH`` for a socket."""
    workers: list[dict[str, Any]] = field(default_factory=list)
    cluster: dict[str, Any] | None = None
    """None while the hub does not answer."""
    balancer: dict[str, Any] | None = None
    """None while it does not answer, or is out of reach for this user."""
    balancer_hidden: bool = False
    """Whether it is out of reach for this user."""
    at: float = 0.0
    """When, monotonic."""

    def processes(self) -> list[Process]:
        """Return the processes as whoever runs them names them."""
        if self.supervisor is not None:
            return [_child(one) for one in self.supervisor["processes"]]
        if self.units is not None:
            return [_unit(one) for one in self.units]
        return []

    def missing(self) -> list[str]:
        """Return what keeps the cluster from being whole, for people; empty when it is.

        While a reload or the like goes on, workers that come and go are as they should be.
        """
        operation = self.supervisor is not None and bool(self.supervisor.get("operation"))
        changing = operation or self.units_change
        found = [
            f"{one.name} is {one.state}"
            for one in self.processes()
            if not one.serves and not (changing and one.worker)
        ]
        if self.cluster is None:
            found.append("the hub does not answer")
        elif not self.cluster["complete"]:
            found.append("the hub still collects presence")
        serves = any("balancer" in one.name and one.serves for one in self.processes())
        if self.balancer is None and serves and not (self.balancer_hidden or changing):
            found.append("the balancer does not answer")
        if not changing:
            named = {one.worker for one in self.processes()}
            found.extend(
                f"worker {one['name']} is {one['state']}"
                for one in self.workers
                if one["state"] == "starting"
                # A spare that ended is missed by nobody, where somebody knows who there is to be.
                or (one["state"] == "gone" and (not named or one["name"] in named))
            )
        if self.cluster is not None and not any(one["state"] == "ready" for one in self.workers):
            found.append("no worker takes new sessions")
        return found

    def counters(self) -> Iterator[Mapping[str, float]]:
        """Return the counters of the hub and of each worker."""
        if self.cluster is not None:
            yield self.cluster["counters"]
        for one in self.workers:
            yield one["counters"]


def look(directory: Path, timeout: float, api: Path | None = None) -> Overview:
    """Ask everybody.

    Args:
        directory: the run directory.
        timeout: seconds for each answer.
        api: the hub's socket, when it is not ``api.sock`` there.

    Raises:
        NotReachableError: nobody answers at all.
        NoAnswerError: not in time.
        ApiError: the hub refused.
    """
    found = Overview(at=time.monotonic())
    socket = api or directory / "api.sock"
    try:
        found.supervisor = commands.ask(directory, "status", timeout)
        found.urls = list(found.supervisor.get("urls", ()))
    except commands.CommandError:
        if _run_by_systemd(directory, socket):
            found.units_change = systemctl.busy()
            found.units = read_units(_show(_PROPERTIES, *_SERVICES), time.monotonic())
            found.urls = listening(_show(("Listen",), units.PUBLIC))
    hub = ApiClient(socket, timeout)
    try:
        found.workers = hub.get("workers")["data"]
        found.cluster = hub.get("cluster")
    except (NotReachableError, NoAnswerError, ApiError):
        if found.supervisor is None and not found.units:
            raise
        found.workers = []  # the hub is just being replaced
    found.balancer = balancer_figures(directory, timeout)
    found.balancer_hidden = not os.access(directory, os.X_OK)
    found.at = time.monotonic()
    return found


def balancer_figures(directory: Path, timeout: float) -> dict[str, Any] | None:
    """Return what the balancer tells of itself; None when it does not."""
    try:
        return asyncio.run(ask_stats(directory / "balancer.sock", timeout))
    except (OSError, TimeoutError, HandoverError):
        return None


def public_urls(directory: Path, api: Path, timeout: float) -> list[str]:
    """Return where the cluster of a run directory takes clients.

    Raises:
        CommandError: there is none.
    """
    try:
        return list(commands.ask(directory, "status", timeout).get("urls", ()))
    except commands.CommandError:
        if not _run_by_systemd(directory, api):
            raise
        return listening(_show(("Listen",), units.PUBLIC))


def _run_by_systemd(directory: Path, api: Path) -> bool:
    """Whether it is the units that run this cluster."""
    return (directory == units.RUN_DIRECTORY or api == SHARED_API) and systemctl.installed()


def _show(properties: Sequence[str], *names: str) -> str:
    """Return what systemd tells of units; nothing when it does not."""
    wanted = f"--property={','.join(properties)}"
    try:
        return asyncio.run(systemctl.systemctl("show", "--all", wanted, *names))
    except systemctl.SystemctlError:
        return ""


def listening(shown: str) -> list[str]:
    """Return the URLs of a socket unit, from the ``Listen=`` lines of ``systemctl show``."""
    found = []
    for address in re.findall(r"^Listen=(\S+) \(Stream\)$", shown, re.MULTILINE):
        if address.startswith("/"):
            found.append(f"unix:{address}")
            continue
        host, _, port = address.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)
        found.append(f"http://{host}:{port}")
    return found


def read_units(shown: str, now: float) -> list[dict[str, Any]]:
    """Return what ``systemctl show`` tells of our units.

    Args:
        shown: its output, the properties of each unit in a block of lines.
        now: monotonic time.
    """
    found = []
    for block in shown.strip().split("\n\n"):
        told = dict(line.partition("=")[::2] for line in block.splitlines())
        name = told.get("Id", "")
        if not name:
            continue
        since = int(told.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        pid = int(told.get("MainPID") or 0)
        active = told.get("ActiveState", "")
        wanted = units.slot_of(name) is None or told.get("UnitFileState") == "enabled"
        if active == "inactive" and not wanted:
            continue  # scaled away, or the spare of a reload
        result = told.get("Result", "success")
        found.append(
            {
                "name": name.removesuffix(".service"),
                "pid": pid or None,
                "state": _STATES.get(active, active),
                "seconds": round(now - since, 3) if pid and active == "active" else None,
                "restarts": int(told.get("NRestarts") or 0),
                "status": told.get("StatusText") or ("" if result == "success" else result),
            }
        )
    return found


def total(counters: Iterable[Mapping[str, float]], name: str, **labels: str) -> float:
    """Return the sum of a counter over all processes, and over all labels but those given."""
    found = 0.0
    for of_one in counters:
        for full, value in of_one.items():
            if not full.startswith(name):
                continue
            match = _NAME.fullmatch(full)
            if match is None or match[1] != name:
                continue
            given = dict(_LABEL.findall(match[2] or ""))
            if all(given.get(key) == wanted for key, wanted in labels.items()):
                found += value
    return found


def _child(one: Mapping[str, Any]) -> Process:
    error = str(one.get("error") or "").strip().rpartition("\n")[2]
    last = f"before: {one['last_end']}" if one.get("last_end") else ""
    return Process(
        name=one["name"],
        pid=one["pid"],
        state=one["state"],
        seconds=one["seconds"],
        restarts=one["restarts"],
        why=error or one.get("status") or last,
    )


def _unit(one: Mapping[str, Any]) -> Process:
    return Process(
        name=one["name"],
        pid=one["pid"],
        state=one["state"],
        seconds=one["seconds"],
        restarts=one["restarts"],
        why=one["status"],
    )
