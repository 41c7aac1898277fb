"""The story of ``limpet start``: sockets first, then the processes, then a word to the user."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from limpet_balancer.listening import describe, open_listeners
from limpet_cluster.appload import BUILT_IN
from limpet_cluster.settings import config
from limpet_cluster.settings.config import Common, ConfigError, Resolved, Sources
from limpet_cluster.settings.table import BALANCER, HUB, SETTINGS, WORKER, Applies, Settings
from limpet_cluster.supervisor.lifecycle import Policy
from limpet_cluster.supervisor.spawn import Command, Plan, Renewal, close_on_exec, role
from limpet_cluster.supervisor.supervisor import Supervisor
from limpet_cluster.version import version

log = logging.getLogger("limpet.config")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """What ``limpet start`` was asked for."""

    settings: Settings
    """Completed: with a run directory, the number of this host, and a log format."""
    sources: Sources
    """Where they come from, to look there again."""
    workers: int = 1
    """How many of them; ``auto`` is counted once, when the cluster starts."""

    @classmethod
    def of(cls, resolved: Resolved) -> StartOptions:
        """Return what the settings ask for, completed by what this host and terminal are.

        Raises:
            ConfigError: there is no place to meet at.
        """
        common = Common.of(resolved.settings)
        return cls(
            settings=replace(
                resolved.settings,
                run_dir=common.run_directory,
                node=common.node,
                log_format=common.log_format,
            ),
            sources=resolved.sources,
            workers=config.worker_count(resolved.settings.workers),
        )

    @property
    def common(self) -> Common:
        """What all processes share."""
        return Common.of(self.settings)

    @property
    def policy(self) -> Policy:
        """How patient the supervisor is."""
        policy = Policy(
            start_timeout=self.settings.start_timeout,
            stop_timeout=self.settings.stop_timeout,
            stall_after=self.settings.stall_after,
        )
        return config.development(policy) if self.settings.dev else policy

    def describe(self) -> dict[str, Any]:
        """Return what the supervisor's status says of the cluster."""
        return {
            "version": version(),
            "name": self.settings.name,
            "application": self.settings.app,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that is different from what the cluster runs with."""

    name: str
    old: str
    new: str
    origin: str
    """Where the new value comes from: ``default``, ``FILE:LINE`` or ``LIMPET_X``."""
    applies: Applies

    def __str__(self) -> str:
        return f"{self.name}: {self.old} → {self.new} ({self.origin})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the settings say now, against what the cluster runs with."""

    options: StartOptions
    """Those to go on with: the new values, but the running ones where a reload does not bring the
    new one into force; all of the running ones after an error."""
    rows: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    """Why nothing is changed, all reasons, one per line; empty when all is well."""


def reload_settings(
    options: StartOptions, told: Mapping[Applies, StartOptions] | None = None
) -> Changes:
    """Read file and environment again, with the same flags; never raises.

    `plan` of the result's ``options`` gives the command lines of the next processes, ``policy``
    what the supervisor applies at once.

    Args:
        options: those the cluster runs with.
        told: those that the hub, or the balancer, was started with, where they may be older.
    """
    told = told or {}
    try:
        resolved = options.sources.resolve()
        fresh = StartOptions.of(resolved)
    except ConfigError as error:
        return Changes(options=options, error=str(error))
    rows: list[Change] = []
    kept: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        running = told.get(setting.applies, options)
        old, new = getattr(running.settings, name), getattr(fresh.settings, name)
        if old == new:
            continue
        rows.append(
            Change(
                name,
                setting.shown(old),
                setting.shown(new),
                resolved.origins[name],
                setting.applies,
            )
        )
        if setting.applies in (Applies.CLUSTER, Applies.SCALE):
            kept[name] = old
    return Changes(
        options=replace(fresh, settings=replace(fresh.settings, **kept), workers=options.workers),
        rows=tuple(rows),
        warnings=resolved.warnings,
    )


class Renewer:
    """Reads the settings again for a supervisor, and knows with which ones it runs.

    Args:
        options: those it begins with.
        listeners: the public sockets.
    """

    def __init__(self, options: StartOptions, listeners: list[socket.socket]) -> None:
        self.plan = plan(options, listeners)
        """What the supervisor was last offered."""
        self.supervisor: Supervisor | None = None  # until there is one
        self._listeners = listeners
        self._running = self._offered = options
        self._plans = [(self.plan, options)]
        """Those that hub or balancer may have been started with."""

    def renew(self) -> Renewal:
        """Return what file and environment say now; the supervisor may adopt it or not.

        Raises:
            ConfigError: they cannot be used.
        """
        supervisor = self.supervisor
        if supervisor is not None and supervisor.plan is self.plan:
            self._running = self._offered
        told: dict[Applies, StartOptions] = {}
        if supervisor is not None:
            hub, balancer = supervisor.runs("hub"), supervisor.runs("balancer")
            self._plans = [
                (one, options)
                for one, options in self._plans
                if one.hub is hub or one.balancer is balancer or one is supervisor.plan
            ]
            for one, options in self._plans:
                if one.hub is hub:
                    told[Applies.HUB] = options
                if one.balancer is balancer:
                    told[Applies.BALANCER] = options
        with suppress(OSError):  # by its name: the folder may be another one now
            os.chdir(self._running.sources.directory)
        changes = reload_settings(self._running, told)
        if changes.error:
            raise ConfigError(changes.error)
        for warning in changes.warnings:
            log.warning("%s", warning)
        self._offered = changes.options
        self.plan = plan(self._offered, self._listeners)
        self._plans.append((self.plan, self._offered))
        return Renewal(
            plan=self.plan,
            policy=self._offered.policy,
            changes=[(str(row), row.applies.value) for row in changes.rows],
            describe=self._offered.describe(),
        )


def start_cluster(options: StartOptions) -> int:
    """Run a cluster on this host until it is told to end; return the exit code.

    Raises:
        BindError: an address is taken or cannot be had.
        ConfigError: the run directory cannot be used.
        StartError: a process failed before the cluster was ready.
    """
    run_directory = options.common.open()
    listeners = open_listeners(
        options.settings.bind, user_timeout=sum(config.pings(options.settings))
    )
    close_on_exec()
    try:
        urls = [url(listener) for listener in listeners]
        renewer = Renewer(options, listeners)
        supervisor = renewer.supervisor = Supervisor(
            run_directory,
            renewer.plan,
            policy=options.policy,
            watch=options.settings.app_dir if options.settings.dev else None,
            on_ready=lambda seconds: announce(options, urls, seconds),
            describe={**options.describe(), "urls": urls},
            renew=renewer.renew,
        )
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(supervisor.run())
    finally:
        for listener in listeners:
            if listener.family == socket.AF_UNIX:
                Path(listener.getsockname()).unlink(missing_ok=True)
            listener.close()


def plan(options: StartOptions, listeners: list[socket.socket]) -> Plan:
    """Return the processes and their command lines; no secret is among them."""
    return Plan(
        hub=Command(role(HUB, *arguments(options.settings, HUB))),
        balancer=Command(
            role(BALANCER, *arguments(options.settings, BALANCER)),
            listeners=tuple(("public", listener) for listener in listeners),
        ),
        workers=[worker_command(options, slot) for slot in range(options.workers)],
        worker=lambda slot: worker_command(options, slot),
    )


def worker_command(options: StartOptions, slot: int) -> Command:
    """Return the command line of the worker of a slot."""
    settings = options.settings
    argv = role(WORKER, f"--slot={slot}", *arguments(settings, WORKER), "--", settings.app)
    return Command(argv, foreground=settings.dev)


def arguments(settings: Settings, command: str) -> list[str]:
    """Return the flags that hand a process all its settings.

    All of them, and no file: a process that is started again later, while somebody is at work
    on the file, gets what the cluster runs with.
    """
    given = ["--config="]
    for name, setting in SETTINGS.items():
        value = getattr(settings, name)
        if command not in setting.commands or setting.argument or name in _OF_SOCKETS:
            continue
        texts = value if setting.kind.several else [setting.written(value)]
        given += [f"{setting.flag}={text}" for text in texts]
    return given


_OF_SOCKETS = frozenset({"bind"})
"""The balancer gets the sockets instead."""


def url(listener: socket.socket) -> str:
    """Return what to type into a browser to reach a listener."""
    where = describe(listener)
    if where.startswith("unix:"):
        return where
    host, _, port = where.rpartition(":")
    # A wildcard address is no place to connect to.
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"http://{host}:{port}"


def announce(options: StartOptions, urls: list[str], seconds: float) -> None:
    """Say on stdout what runs, how to connect and how to end it."""
    settings = options.settings
    first = next((u for u in urls if u.startswith("http")), urls[0])
    what = "the built-in chat" if settings.app == BUILT_IN else settings.app
    count = f"{options.workers} worker{'s' if options.workers > 1 else ''}"
    path = "" if settings.path == "/socket.io/" else f'", {{ path: "{settings.path}" }}'
    lines = [
        f"limpet {version()}: {what} on {count}, balancer and hub",
        *(f"  public      {u}" for u in urls),
        f'  JavaScript  io("{first}{path or chr(34)})',
        f'  Python      await socketio.AsyncClient().connect("{first}")',
    ]
    if settings.health_path:
        lines.append(f"  health      {first}{settings.health_path}")
    if settings.api is not None:
        lines.append(f"  API         http://{settings.api}/v1/rooms")
    lines.append(f"  run dir     {settings.run_dir}")
    if settings.dev:
        lines.append(f"  watching    {settings.app_dir}")
    if sys.stdin is not None and sys.stdin.isatty():
        lines.append("  stop        Ctrl-C (twice: at once)")
    lines.append(f"limpet is ready on {first} after {seconds:.1f} s")
    click.echo("\n".join(lines))
    sys.stdout.flush()
