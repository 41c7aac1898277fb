"""Putting the units on a host and taking them away: files, user, enabling, starting."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from limpet_cluster.fleet.fleet import FleetError, Say
from limpet_cluster.place import SHARED_API
from limpet_cluster.units import render as units
from limpet_cluster.units.systemctl import SystemctlError, SystemdFleet, active, systemctl

_PATIENCE: Final = 60.0
"""Seconds for a tool of systemd."""
_EMPTY_CONFIG: Final = "# Settings of limpet on this host; `limpet config doc` explains them.\n"


@dataclass(frozen=True, slots=True)
class Change:
    """A file that is written."""

    what: str
    """``write`` or ``update``."""
    path: Path
    text: str


@dataclass(slots=True)
class Plan:
    """What an installation does."""

    changes: list[Change] = field(default_factory=list)
    workers: int = 0
    """Instances that are to be enabled, 1 to this number."""
    notes: list[str] = field(default_factory=list)
    """What the administrator should know."""

    def changed(self, path: Path) -> bool:
        """Return whether a file, named by its path below ``/``, is written."""
        return any(change.path.parts[-len(path.parts) :] == path.parts for change in self.changes)


def plan(site: units.Site, root: Path, workers: int, processors: int) -> Plan:
    """Compare what a site should have with what is there.

    Args:
        site: this host's choices.
        root: where its ``/`` is.
        workers: how many are wanted; 0 for as many as are enabled.
        processors: how many there are to be otherwise.

    Raises:
        UnitError: the configuration file says something else than the site.
    """
    made = Plan(workers=workers or _enabled(root) or processors)
    files = units.render(site)
    files.setdefault(units.CONFIG, _EMPTY_CONFIG)
    for path, text in files.items():
        target = root / path
        try:
            present = target.read_text(encoding="utf-8")
        except FileNotFoundError:
            made.changes.append(Change("write", target, text))
            continue
        if path == units.CONFIG:
            if site.application is not None and present != text:
                _agree(present, text, target)
        elif present != text:
            made.changes.append(Change("update", target, text))
    for path in site.writable:
        with suppress(OSError):
            if path.stat().st_uid == 0:
                made.notes.append(f"{path} belongs to root: chown {units.USER} {units.quote(path)}")
    return made


def _agree(present: str, wanted: str, path: Path) -> None:
    """Leave an administrator's file alone, and say so where it differs from what was asked."""
    for line in wanted.splitlines():
        if not line.startswith("#") and line not in map(str.strip, present.splitlines()):
            raise units.UnitError(
                f"{path} is there already, without the line\n  {line}\n"
                "Change it there: install does not write over a configuration"
            )


def _enabled(root: Path) -> int:
    wants = root / units.UNIT_FOLDER / f"{units.TARGET}.wants"
    return sum(units.slot_of(one.name) is not None for one in wants.glob("limpet-worker@*"))


def write(made: Plan, root: Path) -> None:
    """Write the files of a plan, each at once or not at all; with another root enable them too."""
    # The services read them, and whoever looks after the host: root's own umask may be stricter.
    mask = os.umask(0o022)
    try:
        _write(made, root)
    finally:
        os.umask(mask)


def _write(made: Plan, root: Path) -> None:
    for change in made.changes:
        change.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = change.path.with_name(f".{change.path.name}.new")
        fresh.write_text(change.text, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(change.path)
    if root != Path("/"):
        folder = root / units.UNIT_FOLDER
        links = {"multi-user.target.wants": [(units.TARGET, units.TARGET)]}
        links[f"{units.TARGET}.wants"] = [
            (units.instance(slot), units.WORKER) for slot in range(1, made.workers + 1)
        ]
        for wants, entries in links.items():
            (folder / wants).mkdir(mode=0o755, exist_ok=True)
            for name, unit in entries:
                link = folder / wants / name
                link.unlink(missing_ok=True)
                link.symlink_to(f"/{units.UNIT_FOLDER / unit}")


def make_user(root: Path) -> None:
    """Make user and group where they are missing.

    Raises:
        UnitError: they could not be made.
    """
    snippet = root / units.SYSUSERS
    try:
        done = subprocess.run(  # noqa: S603
            ("systemd-sysusers", os.fspath(snippet)),  # noqa: S607 - the system's own, from PATH
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise units.UnitError(
            f"systemd-sysusers is missing; make the user yourself, then install again: "
            f"useradd --system --user-group --no-create-home {units.USER}"
        ) from None
    if done.returncode:
        raise units.UnitError(f"systemd-sysusers {snippet}: {done.stderr.strip()}")


async def enable(made: Plan, *, start: bool, say: Say) -> str | None:
    """Enable target and workers, and start everything.

    Returns:
        What did not come up, for the administrator; None when everything did.

    Raises:
        FleetError: systemd refused.
    """
    fleet = SystemdFleet()
    slots = list(range(1, made.workers + 1))
    running = await fleet.slots()
    await systemctl("daemon-reload")
    await systemctl("enable", "--quiet", units.TARGET)
    await fleet.keep(slots)
    say(f"enabled {units.TARGET} with {_workers(made.workers)}")
    if not start:
        return None
    moved = made.changed(units.drop_in(units.PUBLIC, "bind")) or made.changed(
        units.UNIT_FOLDER / units.PUBLIC
    )
    if moved and await active(units.PUBLIC):
        # A socket does not move while its service runs.
        await systemctl("stop", units.BALANCER, units.PUBLIC, timeout=None)
    if await active(units.HUB) and not await active(units.API):
        # A socket does not start while its service runs; the service brings it along.
        await fleet.restart(["hub"], say)
    await systemctl("start", units.PUBLIC, units.API)
    failures = []
    failures += await _failures([fleet.start_part("hub"), fleet.start_part("balancer")])
    say("hub and balancer are ready" if not failures else "hub and balancer are not both ready")
    missing = [slot for slot in slots if slot not in running]
    failures += await _failures([fleet.start(slot) for slot in missing])
    failures += await _failures([fleet.drain(slot) for slot in running if slot not in slots])
    await systemctl("start", "--no-block", units.TARGET)
    if failures:
        # All workers fail alike: once is enough.
        return "\n\n".join(dict.fromkeys(failures))
    say(f"{_workers(made.workers)} ready")
    if running and made.changes:
        say("what ran before goes on with what it had: limpet reload, limpet restart hub balancer")
    return None


async def _failures(steps: Iterable[Awaitable[None]]) -> list[str]:
    results = await asyncio.gather(*steps, return_exceptions=True)
    found = []
    for result in results:
        if isinstance(result, FleetError):
            found.append(str(result))
        elif isinstance(result, BaseException):
            raise result
    return found


# --- taking it away ---------------------------------------------------------------


async def disable(say: Say) -> None:
    """Stop everything, wait for the end, and disable it."""
    fleet = SystemdFleet()
    try:
        await fleet.stop(say)
    except SystemctlError as error:
        if "not loaded" not in str(error):
            raise
    await fleet.keep(())
    for last in (("disable", "--quiet", units.TARGET), ("stop", units.SLICE)):
        with suppress(SystemctlError):
            await systemctl(*last)


def leaving(root: Path, *, purge: bool) -> list[Path]:
    """Return the files and folders of an installation that are to be removed."""
    folder = root / units.UNIT_FOLDER
    found = [folder / name for name in units.UNITS]
    for name in units.UNITS:
        drop_ins = folder / f"{name}.d"
        ours = [one for one in drop_ins.glob("*.conf") if purge or one.name.startswith("limpet-")]
        found += ours
        if drop_ins.is_dir() and len(ours) == sum(1 for _ in drop_ins.iterdir()):
            found.append(drop_ins)
    found += [folder / "multi-user.target.wants" / units.TARGET, folder / f"{units.TARGET}.wants"]
    found.append(root / units.SYSUSERS)
    if purge or _untouched(root / units.CONFIG):
        found += [root / units.CONFIG]
        if purge or not _others(root / units.CONFIG):
            found.append((root / units.CONFIG).parent)
    found.append(root / units.RUN_DIRECTORY.relative_to("/"))
    if purge:
        found.append(root / units.STATE_DIRECTORY.relative_to("/"))
    return [path for path in found if path.exists() or path.is_symlink()]


def kept(root: Path) -> list[Path]:
    """Return what an uninstall without purge has left."""
    places = (units.CONFIG, units.STATE_DIRECTORY.relative_to("/"))
    return [root / place for place in places if (root / place).exists()]


def _untouched(path: Path) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == _EMPTY_CONFIG


def _others(path: Path) -> bool:
    return any(one != path for one in path.parent.iterdir())


def remove(paths: Sequence[Path]) -> None:
    """Remove files and whole folders."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=False)
        else:
            path.unlink(missing_ok=True)


async def forget(*, purge: bool) -> None:
    """Have systemd forget the units; with purge the user goes too."""
    await systemctl("daemon-reload")
    with suppress(SystemctlError):
        await systemctl("reset-failed", "limpet*")
    SHARED_API.unlink(missing_ok=True)
    with suppress(OSError):
        units.RUN_DIRECTORY.parent.rmdir()
    if purge:
        for tool in ("userdel", "groupdel"):
            with suppress(OSError):
                subprocess.run(  # noqa: ASYNC221, S603 - nothing else runs here
                    (tool, units.USER), capture_output=True, timeout=_PATIENCE, check=False
                )


# --- checking -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """What systemd's tools say of the units."""

    exposure: dict[str, float]
    """By service; 0 is best."""
    problems: list[str]


def verify(root: Path, threshold: float) -> Report:
    """Check units with ``systemd-analyze``.

    Args:
        root: below which they are installed.
        threshold: the exposure that is not to be exceeded.

    Raises:
        UnitError: systemd-analyze cannot be run.
    """
    folder = root / units.UNIT_FOLDER
    files = [os.fspath(folder / name) for name in units.UNITS]
    done = _analyze("verify", "--man=no", *files)
    # Unknown keys are warnings to it, and its exit code is 0.
    problems = [
        line
        for line in done.stderr.splitlines()
        if "limpet" in line or re.search("Unknown key|Failed to parse", line)
    ]
    if done.returncode and not problems:
        problems = done.stderr.splitlines() or [f"systemd-analyze verify: {done.returncode}"]
    exposure = {}
    for name in units.SERVICES:
        done = _analyze(
            "security", "--no-pager", "--offline=true", f"--threshold={threshold * 10:.0f}",
            os.fspath(folder / name),
        )  # fmt: skip
        told = re.search(r"exposure level for \S+ (\d+\.\d)", done.stdout)
        if told is None:
            problems.append(f"{name}: {done.stderr.strip() or 'no exposure told'}")
            continue
        exposure[name] = float(told[1])
        if done.returncode:
            problems.append(f"{name}: exposure {told[1]}, expected at most {threshold:.1f}")
    return Report(exposure, problems)


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603
            ("systemd-analyze", *arguments),  # noqa: S607 - the system's own, from PATH
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
            env={**os.environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise units.UnitError(f"systemd-analyze cannot be run: {error}") from None


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count != 1 else ''}"
