"""`limpet doctor`: what could keep a cluster from doing well, and what to do about it."""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import zmq

from limpet_balancer.listening import BindError, TcpAddress, parse_address
from limpet_cluster import doctor as checks
from limpet_cluster import version
from limpet_cluster.api_client import (
    ApiError,
    NoAnswerError,
    NotAllowedError,
    NotReachableError,
)
from limpet_cluster.cli import options
from limpet_cluster.cli.overview import Overview, look, total
from limpet_cluster.cli.tables import dump, plain, terminal_width
from limpet_cluster.doctor import Finding, Level
from limpet_cluster.place import api_socket
from limpet_cluster.settings import config
from limpet_cluster.settings.table import Settings
from limpet_cluster.settings.tokens import TokenFileError, read_tokens
from limpet_cluster.units import render as units
from limpet_cluster.units import systemctl

_MARKS: Final = {
    Level.OK: ("ok", "green"),
    Level.WARN: ("warn", "yellow"),
    Level.FAIL: ("FAIL", "red"),
}


@dataclass(slots=True, kw_only=True)
class Subject:
    """What is looked at."""

    directory: Path
    overview: Overview | None
    """None when nobody answers."""
    silence: Finding
    """What is said of the cluster then."""
    settings: Settings | None
    """None when they cannot be used."""
    clients: int | None
    """How many are expected on this host; None when nobody said."""

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The living workers."""
        found = [] if self.overview is None else self.overview.workers
        return [one for one in found if one["state"] != "gone"]

    @property
    def pids(self) -> dict[str, int]:
        """The processes that have clients."""
        found = {one["name"]: one["pid"] for one in self.workers}
        if self.overview is not None:
            found |= {
                one.name: one.pid
                for one in self.overview.processes()
                if one.pid and "balancer" in one.name
            }
        return found


@click.command()
@options.place_anyway
@options.as_json
@options.timeout
@click.option(
    "--clients",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="How many this host is to serve: the limits are judged by it.",
)
@click.pass_context
def doctor(
    ctx: click.Context,
    *,
    run_dir: str | None,
    name: str,
    as_json: bool,
    timeout: float,
    clients: int | None,
) -> None:
    """Look at the machine, the configuration and the running cluster.

    The exit code is 1 when something fails; warnings are no failure.
    """
    directory = options.run_directory(run_dir, name)
    findings: list[Finding] = []
    settings = None
    try:
        resolved = config.Sources(file=ctx.params.get("config_file")).resolve()
        settings = resolved.settings
        findings.extend(_configuration(resolved))
    except config.ConfigError as error:
        findings.append(
            checks.fail("configuration", str(error), "limpet config check shows it again")
        )
    overview = None
    silence = checks.fine("cluster", "does not run; what is said of it is from here")
    try:
        overview = look(directory, timeout, api_socket(directory, name))
    except NotAllowedError as error:
        what, _, remedy = str(error).partition(": ")
        silence = checks.warn("cluster", what, remedy)
    except NotReachableError:
        pass
    except (NoAnswerError, ApiError) as error:
        silence = checks.fail("cluster", str(error), "limpet restart hub")
    subject = Subject(
        directory=directory, overview=overview, silence=silence, settings=settings, clients=clients
    )
    findings.extend(examine(subject))
    failed = any(one.level is Level.FAIL for one in findings)
    if as_json:
        click.echo(dump({"ok": not failed, "findings": [one.document() for one in findings]}))
    else:
        _show(findings)
    if failed:
        sys.exit(1)


def examine(subject: Subject) -> Iterator[Finding]:
    """Run all checks."""
    overview, workers, pids = subject.overview, subject.workers, subject.pids
    if overview is None:
        yield subject.silence
    else:
        yield from _cluster(overview, subject.directory)
    yield from _versions(overview, workers)
    yield from _tokens(subject.settings)
    yield from checks.run_directory(subject.directory, _owner(subject.directory))
    each = None
    if subject.clients is not None:
        each = math.ceil(subject.clients / max(1, len(workers)))
    yield from checks.open_files(pids, each)
    yield from checks.backlog()
    yield from checks.ports(_ports(overview, subject.settings))
    yield from checks.memory(workers)
    yield from checks.limits(pids, len(workers))
    yield from checks.disk({"run directory": subject.directory, "temporary files": Path("/tmp")})  # noqa: S108
    yield from checks.clock(checks.clock_synchronised())
    libzmq = tuple(int(part) for part in zmq.zmq_version().split(".") if part.isdigit())
    yield from checks.libraries(version.versions(), libzmq)
    yield from _units()


def _configuration(resolved: config.Resolved) -> Iterator[Finding]:
    for warning in resolved.warnings:
        yield checks.warn("configuration", warning, "remove it, or correct its name")
    if not resolved.warnings:
        where = "no file" if resolved.file is None else str(resolved.file)
        yield checks.fine("configuration", where)


def _cluster(overview: Overview, directory: Path) -> Iterator[Finding]:
    """Look whether everybody answers."""
    check = "cluster"
    missing = overview.missing()
    if missing:
        yield checks.fail(
            check, ", ".join(missing), "limpet status says more; the logs of the process say why"
        )
    # Who may only use the API cannot ask it.
    if overview.balancer is None and os.access(directory, os.X_OK):
        yield checks.fail(check, "the balancer does not answer", "limpet restart balancer")
    for one in overview.workers:
        if one["state"] == "ready" and (one["figures_age_seconds"] or 0) > 5:
            yield checks.warn(
                check,
                f"{one['name']} was last heard {one['figures_age_seconds']:.0f} s ago",
                "a handler may block its event loop: look for blocking calls",
            )
        elif one["loop_lag_seconds"] > 0.25:
            yield checks.warn(
                check,
                f"the event loop of {one['name']} was {one['loop_lag_seconds']:.2f} s late",
                "handlers that compute or block belong into a thread or another process",
            )
    lost = total(overview.counters(), "limpet_bus_lost_total")
    if lost:
        yield checks.warn(
            check,
            f"{lost:.0f} messages of the bus were lost since the start",
            "limpet status, and the logs, say where; the machine may be overloaded",
        )
    if not missing:
        yield checks.fine(check, f"{len(overview.workers)} workers answer")


def _versions(overview: Overview | None, workers: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    if overview is None:
        return
    running = {}
    if overview.supervisor is not None and "version" in overview.supervisor:
        running["the supervisor"] = overview.supervisor["version"]
    if overview.cluster is not None:
        running["the hub"] = overview.cluster["version"]
    started = {
        one["name"]: datetime.fromisoformat(one["started_at"]).timestamp() for one in workers
    }
    yield from checks.versions(version.version(), version.installed_at(), running, started)


def _tokens(settings: Settings | None) -> Iterator[Finding]:
    if settings is None or settings.api_token_file is None:
        return
    try:
        tokens = read_tokens(settings.api_token_file)
    except TokenFileError as error:
        yield checks.fail("API tokens", str(error), "see docs/configuration.md")
    else:
        yield checks.fine("API tokens", f"{len(tokens)} in {settings.api_token_file}")


def _units() -> Iterator[Finding]:
    if not systemctl.installed():
        return
    try:
        templates = units.templates()
    except units.UnitError as error:
        yield checks.fail("systemd units", str(error), "install limpet again")
        return
    yield from checks.units(Path("/"), templates, units.UNITS)


def _owner(directory: Path) -> int:
    """Return whose the run directory is to be: root looks at anybody's."""
    if os.getuid() == 0 and directory.exists():
        return directory.lstat().st_uid
    return os.getuid()


def _ports(overview: Overview | None, settings: Settings | None) -> Iterator[int]:
    """Return the ports that are listened on, or are to be."""
    for url in overview.urls if overview is not None else ():
        port = url.rpartition(":")[2].strip("/")
        if port.isdigit():
            yield int(port)
    if overview is None and settings is not None:
        for address in settings.bind:
            try:
                parsed = parse_address(address)
            except BindError:
                continue
            if isinstance(parsed, TcpAddress) and parsed.port:
                yield parsed.port


def _show(findings: Iterable[Finding]) -> None:
    findings = list(findings)
    width = max(len(one.check) for one in findings)
    margin = " " * (width + 8)
    for one in findings:
        mark, colour = _MARKS[one.level]
        head = f"{click.style(f'{mark:<4}', fg=colour)}  {one.check:<{width}}  "
        for line in one.text.splitlines():
            for part in _wrapped(plain(line), len(margin)):
                click.echo(f"{head}{part}")
                head = margin
        if one.remedy:
            first, *others = _wrapped(plain(one.remedy), len(margin) + 2)
            click.echo(f"{margin}→ {first}")
            for part in others:
                click.echo(f"{margin}  {part}")
    failed = sum(one.level is Level.FAIL for one in findings)
    warned = sum(one.level is Level.WARN for one in findings)
    click.echo(f"\n{failed} failed, {warned} warnings, {len(findings) - failed - warned} fine")


def _wrapped(text: str, margin: int) -> list[str]:
    """Return the lines of a text beside a margin; one line where there is no terminal."""
    room = terminal_width()
    if room is None:
        return [text]
    return textwrap.wrap(
        text, max(20, room - margin), break_long_words=False, break_on_hyphens=False
    )
