"""Where an operator's command goes: to the supervisor of `limpet start`, or to systemd's units."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import Coroutine, Mapping
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from limpet_cluster.fleet import rolling
from limpet_cluster.fleet.fleet import Fleet, FleetError, Say, names
from limpet_cluster.place import which_one
from limpet_cluster.supervisor import commands
from limpet_cluster.supervisor.commands import Answer, CommandError, Heard, NoAnswerInTimeError
from limpet_cluster.supervisor.operations import (
    PARTLY,
    after_parts,
    named_parts,
    wanted_number,
)


class Controls(Protocol):
    """Takes the verbs of the supervisor's socket: ``stop``, ``scale``, ``reload``, ``restart``."""

    outlived: bool
    """Whether what was asked for goes on when the command that asked is interrupted."""

    def ask(self, verb: str, *, timeout: float | None, heard: Heard, **arguments: object) -> Answer:
        """Do what is asked for and return what came of it.

        Raises:
            CommandError: it was refused, failed, or did not end in time.
        """


def find_fleet(directory: Path, *, named: bool = False) -> Controls:
    """Return what runs the cluster of a run directory.

    Args:
        directory: the run directory.
        named: whether the operator named it; a cluster of systemd's is then meant only if it is
            that of the units.

    Raises:
        NoSupervisorError: nothing runs there.
    """
    if commands.supervisor_pid(directory):
        return _Supervised(directory)
    controls = _systemd(None if named is False else directory)
    if controls is not None:
        return controls
    raise commands.NoSupervisorError(f"no cluster runs at {directory}; {which_one(directory)}")


class _Supervised:
    """A cluster of `limpet start`."""

    outlived = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ask(self, verb: str, *, timeout: float | None, heard: Heard, **arguments: object) -> Answer:
        began = time.monotonic()
        pidfd = _pidfd(commands.supervisor_pid(self._directory)) if verb == "stop" else -1
        try:
            answer = commands.ask(self._directory, verb, timeout, heard, **arguments)
            waits = arguments.get("wait", True) and not arguments.get("dry_run")
            if pidfd >= 0 and waits:
                # Sockets and locks are given back between its last word and its end.
                left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
                if not select.select([pidfd], [], [], left)[0]:
                    raise NoAnswerInTimeError(f"the supervisor did not end in {timeout:g} s")
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        return answer


def _pidfd(pid: int) -> int:
    if pid <= 0:  # of another namespace
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _systemd(directory: Path | None) -> Controls | None:
    """Return the units' controls where they are installed, and meant by the directory if given."""
    systemctl: Any = import_module("limpet_cluster.units.systemctl")  # most hosts never need it
    if directory not in (None, systemctl.units.RUN_DIRECTORY) or not systemctl.installed():
        return None
    return _Units(systemctl)


class _Units:
    """A cluster whose processes systemd runs: what our supervisor does, this command does itself.

    Args:
        systemctl: the module, imported only where there is systemd.
    """

    outlived = False

    def __init__(self, systemctl: Any) -> None:
        self._fleet = systemctl.SystemdFleet()

    def ask(self, verb: str, *, timeout: float | None, heard: Heard, **arguments: object) -> Answer:
        if arguments.get("wait") is False:
            raise CommandError(
                "--no-wait: under systemd this command does the work itself; "
                "let it run in the background, for example with systemd-run",
                2,
            )

        def say(text: str, /, **figures: object) -> None:
            with suppress(OSError):  # a terminal that is gone is no reason to leave it half done
                heard({"progress": text, **figures})

        try:
            return asyncio.run(_unless_told(self._do(verb, arguments, say), timeout, verb))
        except TimeoutError:
            raise NoAnswerInTimeError(f"{verb} was ended after {timeout:g} s") from None
        except FleetError as error:
            raise CommandError(str(error), PARTLY if error.partly else 1) from None

    async def _do(self, verb: str, asked: Mapping[str, object], say: Say) -> Answer:
        dry = bool(asked.get("dry_run"))
        if not dry and verb != "stop":
            await self._fleet.watch()
        present = await self._fleet.slots()
        if not present and verb != "stop":
            raise CommandError(
                "the units are installed, but no worker runs: start limpet.target", 4
            )
        fleet: Fleet = self._fleet
        if dry:
            fleet = rolling.Rehearsal(present, await self._fleet.drained())
        began = time.monotonic()
        if verb == "stop":
            await self._stop(asked, present, say)
        else:
            with nullcontext() if dry else self._fleet.turn():
                await self._change(verb, asked, fleet, present, say)
        slots = await fleet.slots()
        return {
            "workers": len(slots),
            "slots": slots,
            "seconds": round(time.monotonic() - began, 3),
            **({"dry_run": True} if dry else {}),
        }

    async def _stop(self, asked: Mapping[str, object], present: list[int], say: Say) -> None:
        if asked.get("dry_run"):
            say(f"stopping {names(present)}, the balancer and the hub")
        else:
            await self._fleet.stop(say, quick=bool(asked.get("quick")))

    async def _change(
        self, verb: str, asked: Mapping[str, object], fleet: Fleet, present: list[int], say: Say
    ) -> None:
        """Scale, reload or restart, unless or until the cluster is stopped."""
        verbs = {"scale": self._scale, "reload": self._reload, "restart": self._restart}
        try:
            await verbs[verb](fleet, asked, present, say)
        except FleetError:
            if not await self._fleet.stopped():
                raise
        if await self._fleet.stopped():
            raise CommandError(f"{verb} was interrupted: the cluster is being stopped")

    async def _scale(
        self, fleet: Fleet, asked: Mapping[str, object], present: list[int], say: Say
    ) -> None:
        home = await self._home(present)
        target = wanted_number(asked.get("workers"), len(home))
        lowest = range(present[0], present[0] + target)
        renewed: list[int] = []
        try:
            await rolling.scale(fleet, target, say)
        except asyncio.CancelledError:
            renewed = await self._have_come_back(sorted({*home} & {*lowest}), present, say)
            raise
        finally:
            # What is stopped has workers no longer, and is to have them when it is started again.
            if not (asked.get("dry_run") or await self._fleet.stopped()):
                await self._fleet.keep({*await self._fleet.slots(), *renewed})

    async def _reload(
        self, fleet: Fleet, _: Mapping[str, object], present: list[int], say: Say
    ) -> None:
        home = await self._home(present)
        try:
            await rolling.reload(fleet, say, home=home)
        except asyncio.CancelledError:
            await self._have_come_back(home, present, say)
            raise

    async def _restart(
        self, fleet: Fleet, asked: Mapping[str, object], present: list[int], say: Say
    ) -> None:
        home = await self._home(present)
        known = sorted({*present, *home})
        parts, chosen = named_parts(asked.get("what"), known)
        if chosen == known:
            chosen = home  # a spare that an earlier failure has left is none of the workers
        if parts and asked.get("dry_run"):
            say(f"restarting the {' and the '.join(parts)}")
        elif parts:
            await self._fleet.restart(parts, say)
        try:
            if chosen and asked.get("rolling"):
                await rolling.reload(fleet, say, only=chosen, home=home)
            elif chosen:
                await rolling.restart(fleet, chosen, say, home=home)
        except FleetError as error:
            if not parts or error.partly:
                raise
            raise after_parts(error, parts) from error
        except asyncio.CancelledError:
            await self._have_come_back(home, present, say)
            raise

    async def _have_come_back(self, home: list[int], present: list[int], say: Say) -> list[int]:
        """Leave none stopped that was to start again, as nobody is here any more to do it.

        Returns the slots of those that had to be asked for.
        """
        slots = await self._fleet.slots()
        left = [slot for slot in present if slot in home and slot not in slots]
        if not left or await self._fleet.stopped():
            return []
        await self._fleet.ask_for(left)
        each = "start again, each" if len(left) > 1 else "starts again"
        say(f"{names(left)} {each} as soon as it has ended", step="interrupted")
        return left

    async def _home(self, present: list[int]) -> list[int]:
        """Return the slots there are to be in the end: those that come up with the host."""
        home: list[int] = await self._fleet.home()
        return home or present


async def _unless_told(
    work: Coroutine[Any, Any, Answer], timeout: float | None, verb: str
) -> Answer:
    """Do it; TERM, and HUP when the terminal goes, end it as Ctrl-C does: in order.

    Raises:
        TimeoutError: it took too long, and was ended.
        CommandError: a signal has ended it.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    told: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            loop.add_signal_handler(number, end, number)
    try:
        return await asyncio.wait_for(task, timeout)
    except asyncio.CancelledError:
        if not told:
            raise
        raise CommandError(f"{verb} was ended by {told[0].name}", 128 + told[0]) from None
