"""The story of ``limpet start``: sockets first, then the processes, then a word to the user."""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from limpet_balancer.listening import describe, open_listeners
from limpet_cluster.appload import BUILT_IN
from limpet_cluster.config import Common
from limpet_cluster.lifecycle import Policy
from limpet_cluster.spawn import Command, close_on_exec, role
from limpet_cluster.supervisor import Plan, Supervisor
from limpet_cluster.version import version


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """What ``limpet start`` was asked for."""

    common: Common
    application: str = BUILT_IN
    app_directory: Path
    workers: int
    bind: tuple[str, ...]
    health_path: str
    api: str | None = None
    api_token_file: Path | None = None
    buckets: int = 1024
    linger: float = 10.0
    dev: bool = False
    policy: Policy


def start_cluster(options: StartOptions) -> int:
    """Run a cluster on this host until it is told to end; return the exit code.

    Raises:
        BindError: an address is taken or cannot be had.
        ConfigError: the run directory cannot be used.
        StartError: a process failed before the cluster was ready.
    """
    run_directory = options.common.open()
    listeners = open_listeners(options.bind)
    close_on_exec()
    try:
        urls = [url(listener) for listener in listeners]
        supervisor = Supervisor(
            run_directory,
            plan(options, listeners),
            policy=options.policy,
            watch=options.app_directory if options.dev else None,
            on_ready=lambda seconds: announce(options, urls, seconds),
            describe={
                "version": version(),
                "name": options.common.name,
                "application": options.application,
                "urls": urls,
            },
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
    common = options.common.arguments()
    of_hub = [f"--buckets={options.buckets}"]
    if options.api is not None:
        of_hub.append(f"--api={options.api}")
    if options.api_token_file is not None:
        of_hub.append(f"--api-token-file={options.api_token_file}")
    return Plan(
        hub=Command(role("hub", *common, *of_hub)),
        balancer=Command(
            role("balancer", *common, f"--health-path={options.health_path}"),
            listeners=tuple(("public", listener) for listener in listeners),
        ),
        workers=[
            Command(
                role(
                    "worker",
                    *common,
                    f"--slot={slot}",
                    f"--buckets={options.buckets}",
                    f"--linger={options.linger}",
                    f"--app-dir={options.app_directory}",
                    "--",
                    options.application,
                ),
                foreground=options.dev,
            )
            for slot in range(options.workers)
        ],
    )


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
    first = next((u for u in urls if u.startswith("http")), urls[0])
    what = "the built-in chat" if options.application == BUILT_IN else options.application
    count = f"{options.workers} worker{'s' if options.workers > 1 else ''}"
    path = "" if options.common.path == "/socket.io/" else f'", {{ path: "{options.common.path}" }}'
    lines = [
        f"limpet {version()}: {what} on {count}, balancer and hub",
        *(f"  public      {u}" for u in urls),
        f'  JavaScript  io("{first}{path or chr(34)})',
        f'  Python      await socketio.AsyncClient().connect("{first}")',
    ]
    if options.health_path:
        lines.append(f"  health      {first}{options.health_path}")
    if options.api is not None:
        lines.append(f"  API         http://{options.api}/v1/rooms")
    lines.append(f"  run dir     {options.common.run_directory}")
    if options.dev:
        lines.append(f"  watching    {options.app_directory}")
    if sys.stdin is not None and sys.stdin.isatty():
        lines.append("  stop        Ctrl-C (twice: at once)")
    lines.append(f"limpet is ready on {first} after {seconds:.1f} s")
    click.echo("\n".join(lines))
    sys.stdout.flush()
