"""`limpet systemd`: the units of this host, written, shown, checked, and taken away again."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from limpet_cluster.cli import options
from limpet_cluster.cli.tables import dump
from limpet_cluster.fleet.fleet import MOST_WORKERS, FleetError
from limpet_cluster.settings.config import processors
from limpet_cluster.supervisor.commands import supervisor_pid
from limpet_cluster.units import install as work
from limpet_cluster.units import render as units
from limpet_cluster.units import systemctl

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_ROOT: Final = Path("/")


@click.group()
def systemd() -> None:
    """Run this host's cluster as systemd units."""


def _site(command: F) -> F:
    """Add what a host chooses; the command gets it as ``site``."""

    @wraps(command)
    def wrapped(
        *,
        application: str | None,
        app_dir: Path | None,
        bind: tuple[str, ...],
        writable: tuple[Path, ...],
        allow_wx: bool,
        api: str | None,
        api_token_file: Path | None,
        **rest: Any,
    ) -> Any:
        if application is not None and app_dir is None:
            app_dir = Path.cwd()
        site = units.Site(
            python=units.interpreter(),
            bind=bind,
            application=application,
            app_directory=app_dir and app_dir.absolute(),
            writable=writable,
            allow_wx=allow_wx,
            api=api,
            api_token_file=api_token_file and api_token_file.absolute(),
            version=systemctl.version(),
        )
        return command(site=site, **rest)

    result: Any = wrapped
    for option in reversed(_SITE):
        result = option(result)
    sited: F = result
    return sited


_SITE = (
    click.option(
        "--app",
        "application",
        metavar="MODULE:ATTRIBUTE",
        help="The application, for a new configuration file; without it a chat is served.",
    ),
    click.option(
        "--app-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where the application's module lies.  [default: here]",
    ),
    click.option(
        "-b",
        "--bind",
        multiple=True,
        metavar="ADDRESS",
        help="Public address: IP:PORT, [IPV6]:PORT or unix:PATH; may be given several times.  "
        "[default: port 8080 of every interface, or what an earlier install chose]",
    ),
    click.option(
        "--writable",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="PATH",
        help="What the application writes; everything else is read-only to it.",
    ),
    click.option(
        "--allow-wx", is_flag=True, help="Let the application make code at run time, as a JIT does."
    ),
    click.option("--api", metavar="HOST:PORT", help="Serve the API on TCP too."),
    click.option(
        "--api-token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The bearer tokens good there, one per line; the hub gets them as a credential.",
    ),
)


@systemd.command()
@_site
@click.option(
    "-w",
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="How many workers.  [default: as many as are enabled, else one for each processor]",
)
@click.option("--start/--no-start", default=True, help="Whether to start what was installed.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=_ROOT,
    help="Write the files below this folder, and touch nothing else: for images.",
)
@options.as_json
def install(
    *, site: units.Site, workers: int | None, start: bool, dry_run: bool, root: Path, as_json: bool
) -> None:
    """Install the units of hub, balancer and workers, enable them and start them.

    Once more, it brings the units up to date and keeps what was chosen before.
    """
    _needs_linux()
    here = root == _ROOT
    if here and not dry_run:
        _needs_systemd()
        _needs_root("install")
        _needs_the_place()
    if problems := units.check(site, units.code_places()):
        raise options.Failure("this cannot run under systemd:\n" + _bullets(problems))
    with _told():
        plan = work.plan(site, root, workers or 0, processors())
    say = _printer(quiet=as_json)
    for change in plan.changes:
        say(f"{change.what} {change.path}")
    failed = ""
    if not dry_run:
        with _told(), _turn(here=here):
            work.write(plan, root)
            if here:
                work.make_user(root)
                failed = _run(work.enable(plan, start=start, say=say)) or ""
    for note in plan.notes:
        say(note)
    if as_json:
        changes = [{"what": one.what, "path": str(one.path)} for one in plan.changes]
        told = {"changes": changes, "workers": plan.workers, "notes": plan.notes, "error": failed}
        click.echo(dump(told))
    if failed:
        raise options.Failure(failed)


@systemd.command()
@click.option("--purge", is_flag=True, help="Also the configuration, the state and the user.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=_ROOT,
    help="Remove the files below this folder, and touch nothing else.",
)
@options.as_json
def uninstall(*, purge: bool, dry_run: bool, root: Path, as_json: bool) -> None:
    """Stop everything, and remove the units.

    The clients of the workers are told to go; configuration, state and user stay without --purge.
    """
    _needs_linux()
    here = root == _ROOT
    if here and not dry_run:
        _needs_systemd()
        _needs_root("uninstall")
    say = _printer(quiet=as_json)
    leaving = work.leaving(root, purge=purge)
    if here and not dry_run:
        with _told():
            _run(work.disable(say))
    for path in leaving:
        say(f"remove {path}")
    if not dry_run:
        with _told(), _turn(here=here):
            work.remove(leaving)
            if here:
                _run(work.forget(purge=purge))
    kept = [] if purge else [str(path) for path in work.kept(root)]
    if kept:
        say(f"kept: {', '.join(kept)} (uninstall --purge removes them)")
    if as_json:
        click.echo(dump({"removed": [str(path) for path in leaving], "kept": kept}))


@systemd.command("print")
@_site
@click.argument("names", nargs=-1, metavar="[UNIT]...")
@options.as_json
def print_(*, site: units.Site, names: tuple[str, ...], as_json: bool) -> None:
    """Print the units as they would be installed: all of them, or those that are named."""
    with _told():
        files = units.render(site)
    if names:
        found = {path: text for path, text in files.items() if path.name in names}
        if missing := set(names) - {path.name for path in found}:
            known = ", ".join(path.name for path in files)
            raise click.UsageError(f"{', '.join(sorted(missing))}: expected one of {known}")
        files = found
    if as_json:
        click.echo(dump({f"/{path}": text for path, text in files.items()}))
        return
    for path, text in files.items():
        click.echo(text if len(files) == 1 else f"# --- /{path}\n{text}")


@systemd.command()
@_site
@click.option(
    "--threshold",
    type=click.FloatRange(0, 10),
    default=1.5,
    show_default=True,
    help="The exposure that is not to be exceeded, as systemd-analyze security counts it.",
)
@options.as_json
def verify(*, site: units.Site, threshold: float, as_json: bool) -> None:
    """Check the units of this host with systemd's own tools; before an install, those it writes."""
    _needs_linux()
    root = _ROOT if systemctl.installed() else None
    with _told(), tempfile.TemporaryDirectory() as scratch:
        if root is None:
            root = Path(scratch)
            work.write(work.plan(site, root, 1, 1), root)
        report = work.verify(root, threshold)
    problems = report.problems + units.check(site, units.code_places())
    if as_json:
        click.echo(dump({"exposure": report.exposure, "problems": problems}))
    else:
        for name, exposure in report.exposure.items():
            click.echo(f"{name}: exposure {exposure:.1f}")
    if problems:
        raise options.Failure("the units are not as they should be:\n" + _bullets(problems))


# --- what the commands share ------------------------------------------------------


@contextmanager
def _told() -> Iterator[None]:
    """Turn what may go wrong into one message and an exit code."""
    try:
        yield
    except (units.UnitError, FleetError) as error:
        raise options.Failure(str(error)) from None
    except OSError as error:
        raise options.Failure(f"{error.filename or 'systemd'}: {error.strerror}") from None


def _turn(*, here: bool) -> AbstractContextManager[None]:
    """Refuse to begin while `limpet reload` or the like changes the units of this host."""
    return systemctl.SystemdFleet().turn() if here else nullcontext()


def _run(step: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(step)


def _printer(*, quiet: bool) -> Callable[..., None]:
    def say(text: str, /, **figures: object) -> None:
        if not quiet:
            click.echo(text)

    return say


def _bullets(problems: list[str]) -> str:
    return "\n".join(f"- {problem}" for problem in problems)


def _needs_linux() -> None:
    if sys.platform != "linux":
        raise options.Failure("systemd is there on Linux only")


def _needs_systemd() -> None:
    if not systemctl.booted():
        raise options.Unreachable(
            "systemd does not run this host: `limpet start` runs a cluster without it "
            "(--root DIR writes the files all the same)"
        )


def _needs_the_place() -> None:
    """Refuse where `limpet start` runs a cluster: the units would take its folder from it."""
    pid = supervisor_pid(units.RUN_DIRECTORY)
    if pid:
        raise options.Failure(
            f"`limpet start` (pid {pid}) runs a cluster in {units.RUN_DIRECTORY}, where that of "
            "the units belongs: limpet stop, then install again"
        )


def _needs_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise options.Failure(f"only root may do that: sudo limpet systemd {verb} …")
