"""The workers of a host whose processes systemd runs: a fleet over ``systemctl``.

Which instances are enabled says how many workers the host is to have, also after a reboot: `home`
reads it, `keep` writes it. Starting and draining, as a rolling reload does, leave it alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from limpet_cluster.failures import forget_failure, last_failure
from limpet_cluster.fleet.fleet import FleetError, Say, is_drained
from limpet_cluster.units import render as units

_PATIENCE: Final = 30.0
"""Seconds for what systemd answers by itself, without waiting for a process of ours."""
_LINES: Final = 20
"""Of the journal that are shown when a process left no word itself."""
_SERVICES: Final = {"hub": units.HUB, "balancer": units.BALANCER}
_OF_ALL: Final = (units.HUB, units.BALANCER, units.instance_pattern())
_WANTED: Final = "active,activating,reloading"
"""States of units that run, or are started again by systemd."""
_LOOK_EACH: Final = 0.05
_OTHERS_END: Final = 60.0
"""Seconds for another command to notice that everything has been stopped, and to end."""


class SystemctlError(FleetError):
    """``systemctl`` refused; the message is its own, with a remedy where there is one.

    Args:
        message: what it said.
        refused: whether systemd would not do it at all, as against a process that failed.
    """

    def __init__(self, message: str, *, refused: bool = True) -> None:
        super().__init__(message)
        self.refused = refused


class BusyError(FleetError):
    """Another command changes the units just now."""


def booted() -> bool:
    """Return whether systemd runs this host."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def installed(root: Path = Path("/")) -> bool:
    """Return whether systemd runs this host and has our units."""
    return booted() and (root / units.UNIT_FOLDER / units.WORKER).is_file()


def busy(directory: Path = units.RUN_DIRECTORY) -> bool:
    """Return whether a command changes the units just now (`SystemdFleet.turn`), if that shows.

    Taking the lock for a look would refuse a command that begins at this moment.
    """
    try:
        status = directory.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return f" {device}:{status.st_ino} " in locks


def version() -> int:
    """Return the version of systemd, 0 where there is none."""
    try:
        told = subprocess.check_output(
            ("systemctl", "--version"),  # noqa: S607 - the system's own, from PATH
            text=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    number = re.match(r"systemd (\d+)", told)
    return int(number[1]) if number else 0


async def systemctl(*arguments: str, timeout: float | None = _PATIENCE) -> str:
    """Run ``systemctl`` and return what it prints.

    Args:
        arguments: the verb and what follows it.
        timeout: seconds; None where it waits for a process that may drain.

    Raises:
        SystemctlError: it failed, or took longer.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            "--no-ask-password",
            "--no-pager",
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise SystemctlError(f"systemctl cannot be run: {error.strerror or error}") from None
    try:
        async with asyncio.timeout(timeout):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise SystemctlError(f"systemctl {arguments[0]}: no answer in {timeout:g} s") from None
    except asyncio.CancelledError:
        process.kill()  # what was asked of systemd goes on
        await process.wait()
        raise
    if process.returncode:
        raise _error(arguments[0], errors.decode("utf-8", "replace").strip())
    return output.decode("utf-8", "replace")


async def active(unit: str) -> bool:
    """Return whether a unit is active."""
    try:
        await systemctl("is-active", "--quiet", unit)
    except SystemctlError:
        return False
    return True


def _error(verb: str, text: str) -> SystemctlError:
    # "Failed to connect to bus"; of newer versions, "to system scope bus via local transport".
    others = os.geteuid() != 0 and re.search(r"connect to (.* )?bus\b", text) is not None
    if others or re.search("[Aa]uthentication|(Access|Permission) denied", text):
        return SystemctlError(f"systemctl {verb}: systemd lets only root do that; run it with sudo")
    # "Job for … failed because …. See … for details."
    return SystemctlError(f"systemctl {verb}: {text or 'failed'}", refused="Job for" not in text)


async def _journal(unit: str) -> str:
    """Return the last lines of what the last process of a unit wrote; empty if unknown.

    Where there was no process, as with a program that is missing, systemd's own word on it.
    """
    try:
        invocation = await systemctl("show", "--value", "--property=InvocationID", unit)
    except SystemctlError:
        return ""
    for match in ("_SYSTEMD_INVOCATION_ID", "INVOCATION_ID"):
        if told := await _logged(f"{match}={invocation.strip()}"):
            return told
    return ""


async def _logged(match: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={_LINES}"),
            match,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        async with asyncio.timeout(_PATIENCE):
            output, _ = await process.communicate()
    except (OSError, TimeoutError):
        return ""
    return output.decode("utf-8", "replace").strip()


class SystemdFleet:
    """The workers as instances of ``limpet-worker@.service``; the instance is the slot.

    Args:
        run_directory: where the processes leave word when they fail; also what `turn` locks.
    """

    def __init__(self, run_directory: Path = units.RUN_DIRECTORY) -> None:
        self._run = run_directory
        self._watched = False  # whether to notice that the target is not active any more

    # --- one command at a time ------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Refuse to begin while another command changes the units.

        The end of the process gives the turn back, whatever it dies of.

        Raises:
            BusyError: another one does.
            FleetError: not permitted.
        """
        fd = self._open()
        try:
            try:
                if fd >= 0:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError("another command changes the workers; wait for it") from None
            yield
        finally:
            if fd >= 0:
                os.close(fd)

    def _open(self) -> int:
        """Open the run directory; -1: nothing has ever run, so nobody changes it."""
        try:
            return os.open(self._run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        except OSError as error:
            reason = error.strerror or str(error)
            raise FleetError(f"{self._run}: {reason}; run it with sudo") from None

    async def watch(self) -> None:
        """From now on, start nothing any more once ``limpet.target`` has been stopped.

        A worker that starts brings hub and balancer along: the cluster would come back.
        """
        self._watched = await active(units.TARGET)

    async def stopped(self) -> bool:
        """Return whether ``limpet.target`` has been stopped since `watch`."""
        # It becomes inactive before its parts do.
        return self._watched and not await active(units.TARGET)

    async def _refuse_if_stopped(self) -> None:
        if await self.stopped():
            raise FleetError("the cluster is being stopped")

    # --- a fleet ------------------------------------------------------------------

    async def slots(self) -> list[int]:
        """Return the slots whose units run, or are started again by systemd."""
        return _slots(await _listed(_WANTED, units.instance_pattern()))

    async def drained(self) -> list[int]:
        """Return the slots whose workers take no new sessions, as `limpet drain` wants."""
        shown = await systemctl("show", "--property=Id,StatusText", units.instance_pattern())
        found = []
        for block in shown.strip().split("\n\n"):
            told = dict(line.partition("=")[::2] for line in block.splitlines())
            if is_drained(told.get("StatusText", "")):
                found.append(told.get("Id", ""))
        return _slots(found)

    async def start(self, slot: int) -> None:
        """Start a worker and wait until it is READY.

        Raises:
            FleetError: it failed; systemd goes on trying. The message is the application's own
                where it left one. Or the cluster is being stopped, see `watch`.
        """
        await self._refuse_if_stopped()
        await self._bring_up("start", units.instance(slot), f"worker-{slot}")

    async def ask_for(self, slots: Iterable[int]) -> None:
        """Have systemd start workers, each when the one before has ended, and do not wait for it.

        Raises:
            SystemctlError: not permitted.
        """
        await systemctl("start", "--no-block", *map(units.instance, slots))

    async def drain(self, slot: int) -> None:
        """Have a worker move its clients and end; return when it is gone."""
        unit = units.instance(slot)
        await systemctl("stop", unit, timeout=None)
        forget_failure(self._run, f"worker-{slot}")
        try:
            await systemctl("reset-failed", unit)
        except SystemctlError:
            pass  # not loaded any more: nothing to forget

    async def check(self, slot: int) -> None:
        """Look whether a worker that was started lasts.

        Raises:
            FleetError: systemd has had to start it again, more than once.
        """
        unit = units.instance(slot)
        shown = await systemctl("show", "--value", "--property=NRestarts", unit)
        if shown.strip() not in {"", "0", "1"}:
            raise FleetError(f"{unit} came up, but ended soon after: journalctl -u {unit}")

    # --- how many there are to be ---------------------------------------------------

    async def home(self) -> list[int]:
        """Return the slots whose instances are enabled: those that come up with the host."""
        folder = Path("/") / units.UNIT_FOLDER / f"{units.TARGET}.wants"
        names = await asyncio.to_thread(
            lambda: [one.name for one in folder.glob("limpet-worker@*")]
        )
        return _slots(names)

    async def keep(self, slots: Iterable[int]) -> None:
        """Enable exactly the instances of these slots; nothing is started or stopped.

        Raises:
            SystemctlError: not permitted.
        """
        wanted, present = set(slots), set(await self.home())
        if leaving := sorted(present - wanted):
            await systemctl("disable", "--quiet", *map(units.instance, leaving))
        if coming := sorted(wanted - present):
            await systemctl("enable", "--quiet", *map(units.instance, coming))

    # --- the whole ------------------------------------------------------------------

    async def stop(self, say: Say, *, quick: bool = False) -> None:
        """Stop everything and wait until the last process is gone.

        Args:
            say: takes a line about each step.
            quick: do not wait for clients and handlers.

        Raises:
            SystemctlError: not permitted.
        """
        workers = await _listed(f"{_WANTED},deactivating", units.instance_pattern())
        # The target's own job ends before those of its parts: they are waited for by name.
        parts = [units.TARGET, units.PUBLIC, units.API, units.BALANCER, units.HUB, *workers]
        say(f"stopping {len(workers)} workers, the balancer and the hub", step="stop")
        # A command that starts a worker at this moment would cancel the stop of hub and balancer.
        await systemctl("stop", "--no-block", "--job-mode=replace-irreversibly", *parts)
        if quick and workers:
            try:
                await systemctl("kill", "--kill-whom=main", "--signal=QUIT", *workers)
            except SystemctlError:
                pass  # they are gone already
        await systemctl("stop", *parts, timeout=None)
        await self._stop_what_came(say)
        say("everything has ended", step="done")

    async def _stop_what_came(self, say: Say) -> None:
        """Wait for the end of another command, and stop what it has started in the meantime."""
        until = time.monotonic() + _OTHERS_END
        waits = False
        while time.monotonic() < until:
            try:
                with self.turn():
                    break
            except BusyError:
                if not waits:
                    say("waiting for the command that changes the workers", step="wait")
                waits = True
            except FleetError:
                break  # whom systemd lets stop units may still not look into the run directory
            await asyncio.sleep(_LOOK_EACH)
        if came := await _listed(_WANTED, *_OF_ALL):
            await systemctl("stop", units.PUBLIC, units.API, *came, timeout=None)

    async def restart(self, what: Sequence[str], say: Say) -> None:
        """Restart the hub or the balancer; sockets stay open, live connections go on.

        Args:
            what: ``hub``, ``balancer``, or both; workers are restarted through `rolling`.
            say: takes a line about each step.

        Raises:
            FleetError: no such part, or it did not come up again; or the cluster is being
                stopped, see `watch`.
        """
        for name in what:
            unit = _SERVICES.get(name)
            if unit is None:
                raise FleetError(f"{name!r}: expected {' or '.join(_SERVICES)}")
            await self._refuse_if_stopped()
            began = time.monotonic()
            say(f"restarting the {name}", step="restart", process=name)
            await self._bring_up("restart", unit, name)
            seconds = round(time.monotonic() - began, 3)
            say(
                f"the {name} is ready ({seconds:.1f} s)",
                step="ready",
                process=name,
                seconds=seconds,
            )

    async def start_part(self, name: str) -> None:
        """Start ``hub`` or ``balancer`` unless it runs; return when it is READY.

        Raises:
            FleetError: it failed; systemd goes on trying.
        """
        await self._bring_up("start", _SERVICES[name], name)

    async def _bring_up(self, verb: str, unit: str, title: str) -> None:
        """Start a service and wait; where it fails, raise what its process had to say."""
        began = time.monotonic()
        try:
            await systemctl(verb, unit, timeout=None)
        except SystemctlError as error:
            if error.refused:
                raise
            told = last_failure(self._run, title, began) or await _journal(unit)
            told = told.removeprefix("limpet: ")  # the command says that, too
            why = re.search(r"failed because ([^.\n]+)", str(error))
            raise FleetError(
                told
                or f"{unit} did not come up{f': {why[1]}' if why else ''}; journalctl -u {unit}"
            ) from error


async def _listed(states: str, *patterns: str) -> list[str]:
    """Return the names of units that are in one of some states."""
    listed = await systemctl(
        "list-units", "--plain", "--no-legend", "--full", f"--state={states}", *patterns
    )
    return [line.split()[0] for line in listed.splitlines() if line.split()]


def _slots(names: Iterable[str]) -> list[int]:
    return sorted(slot for name in names if (slot := units.slot_of(name)) is not None)
