"""What an operator asks of a running supervisor: stop, scale, reload, restart; one at a time."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from limpet_cluster.fleet import rolling
from limpet_cluster.fleet.fleet import FleetError, Say, is_drained, worker_name
from limpet_cluster.supervisor.commands import Answer, CommandError, Handler
from limpet_cluster.supervisor.lifecycle import End
from limpet_cluster.supervisor.spawn import Command, Renewal

if TYPE_CHECKING:
    from limpet_cluster.supervisor.supervisor import Supervisor

log = logging.getLogger("limpet.supervisor")

PARTLY: Final = 75
"""Exit code (EX_TEMPFAIL) of what was done in part."""
_LONGEST_ERROR: Final = 4000
_TELL_EACH: Final = 1.0
"""Seconds between two lines on how far a drain has come."""
_FAILED: Final = 2
"""Times that a worker may be killed before it counts as failing: once may be anybody's doing."""
_LEFT: Final = re.compile(r"(?P<left>\d+) sessions? left")
PARTS: Final = ("hub", "balancer", "workers")
"""What ``restart`` takes, besides a worker's name; also the order in which it goes."""


class SupervisedFleet:
    """The workers that a supervisor runs, for `rolling`.

    Args:
        supervisor: whose workers.
        command: makes the worker of a slot.
        because: what the workers end for.
        say: gets how many sessions a draining worker still has.
    """

    def __init__(
        self, supervisor: Supervisor, command: Callable[[int], Command], because: End, say: Say
    ) -> None:
        self._supervisor = supervisor
        self._command = command
        self._because = because
        self._say = say
        self._failures: dict[int, int] = {}
        """How often each slot's worker had failed when the one that we started was ready."""

    async def slots(self) -> list[int]:
        """Return the slots whose workers are wanted."""
        return self._supervisor.slots()

    async def drained(self) -> list[int]:
        """Return the slots whose workers take no new sessions, as `limpet drain` wants."""
        supervisor = self._supervisor
        return [slot for slot in supervisor.slots() if is_drained(supervisor.status_of(slot))]

    async def start(self, slot: int) -> None:
        """Start a worker; return when it is ready.

        Raises:
            FleetError: it did not come up; it is tried again until it is drained.
        """
        await self._supervisor.bring_up(slot, self._command(slot))
        self._failures[slot] = self._failures_of(slot)[0]

    async def check(self, slot: int) -> None:
        """Look whether a worker that we started lasts.

        Raises:
            FleetError: it has ended of its own since it was ready, or was killed more than once.
        """
        failures, last = self._failures_of(slot)
        if failures - self._failures.get(slot, failures) >= _FAILED:
            raise FleetError(f"worker-{slot} came up, but {last} soon after")

    def _failures_of(self, slot: int) -> tuple[int, str]:
        ends, last = self._supervisor.ends_of(slot)
        own = ends.get(End.EXIT, 0) + ends.get(End.STALLED, 0)
        return _FAILED * own + ends.get(End.SIGNAL, 0), last

    async def drain(self, slot: int) -> None:
        """Tell a worker to drain and end; return when it is gone."""
        before = self._supervisor.ends_of(slot)[0].get(self._because, 0)
        gone = asyncio.ensure_future(self._supervisor.take_down(slot, self._because))
        try:
            while not (await asyncio.wait({gone}, timeout=_TELL_EACH))[0]:
                self._tell_left(slot)
        finally:
            gone.cancel()
        ends, last = self._supervisor.ends_of(slot)
        if ends.get(self._because, 0) > before and last.endswith("was killed by SIGKILL"):
            name = worker_name(slot)
            self._say(f"{name} did not end in time and was killed", step="killed", slot=slot)

    def _tell_left(self, slot: int) -> None:
        match = _LEFT.search(self._supervisor.status_of(slot))
        if match is not None:
            left = int(match["left"])
            self._say(f"{worker_name(slot)}: {left} sessions left", slot=slot, left=left)


@dataclass(slots=True)
class _Current:
    """The operation that runs."""

    verb: str
    task: asyncio.Task[Answer]
    began: float
    said: str = ""


class Operations:
    """The verbs of the supervisor's socket beyond ``status``, and the signals that stand for them.

    Args:
        supervisor: what they act on.
        renew: reads the settings again; None: they cannot change. Raises ValueError when they
            cannot be used, with a message for the operator.
    """

    def __init__(self, supervisor: Supervisor, renew: Callable[[], Renewal] | None = None) -> None:
        self._supervisor = supervisor
        self._renew = renew
        self._current: _Current | None = None
        self.home = list(range(len(supervisor.plan.workers)))
        """The slots that are to have a worker when no operation runs."""
        self._steps = 0  # workers to add or to take away when the present operation is over
        self._again = False  # whether to reload when it is over
        self._last_reload: dict[str, Any] | None = None  # until the first

    @property
    def verbs(self) -> dict[str, Handler]:
        """What the socket understands because of us."""
        return {
            "stop": self._stop,
            "scale": lambda asked, say: self._begin("scale", self._scale, asked, say),
            "reload": lambda asked, say: self._begin("reload", self._reload, asked, say),
            "restart": lambda asked, say: self._begin("restart", self._restart, asked, say),
        }

    def status(self) -> dict[str, Any]:
        """Return what ``status`` tells of operations."""
        current = self._current
        return {
            "workers": len(self.home),
            "operation": current
            and {
                "verb": current.verb,
                "seconds": round(time.monotonic() - current.began, 3),
                "said": current.said,
            },
            "last_reload": self._last_reload,
        }

    def interrupt(self) -> None:
        """End the operation that runs: the cluster as a whole is about to end."""
        self._steps = 0
        self._again = False
        if self._current is not None:
            self._current.task.cancel()

    # --- signals --------------------------------------------------------------

    def hung_up(self) -> None:
        """Reload, as SIGHUP asks; however often it comes meanwhile, once more when that is over.

        What runs may have begun with code or settings that were older.
        """
        self._again = True
        if self._current is None:
            self._go_on()

    def step(self, by: int) -> None:
        """Add or take away workers, as SIGTTIN and SIGTTOU ask; what comes meanwhile adds up."""
        self._steps += by
        if self._current is None:
            self._take_steps()

    def _go_on(self) -> None:
        """Do what signals have asked for in the meantime."""
        again, self._again = self._again, False
        if again:
            self._by_signal("reload", self._reload, {})
        else:
            self._take_steps()

    def _take_steps(self) -> None:
        by, self._steps = self._steps, 0
        if by:
            self._by_signal("scale", self._scale, {"workers": f"{by:+d}"})

    def _by_signal(self, verb: str, work: _Work, asked: Mapping[str, Any]) -> None:
        try:
            self._start(verb, work, asked, _silent)
        except CommandError as error:
            log.warning("%s: %s", verb, error)

    # --- one at a time --------------------------------------------------------

    async def _begin(self, verb: str, work: _Work, asked: Mapping[str, Any], say: Say) -> Answer:
        task = self._start(verb, work, asked, say)
        if asked.get("wait") is False:
            return {"started": verb}
        await asyncio.wait({task})
        if task.cancelled():
            raise CommandError(f"{verb} was interrupted: the cluster is being stopped")
        return task.result()

    def _start(
        self, verb: str, work: _Work, asked: Mapping[str, Any], say: Say
    ) -> asyncio.Task[Answer]:
        if self._supervisor.phase.name != "RUNNING":
            ending = self._supervisor.phase.name.startswith("END")
            raise CommandError(f"the cluster is {'ending' if ending else 'still starting'}")
        if (now := self._current) is not None:
            seconds = time.monotonic() - now.began
            raise CommandError(
                f"a {now.verb} has been running for {seconds:.0f} s ({now.said or 'just begun'}): "
                "one at a time; wait for it, or stop the cluster"
            )

        def tell(text: str, /, **figures: object) -> None:
            if "left" not in figures and not asked.get("dry_run"):
                log.info("%s: %s", verb, text)
            current.said = text
            say(text, **figures)

        task = asyncio.ensure_future(self._answered(work(asked, tell)))
        current = self._current = _Current(verb, task, time.monotonic())
        task.add_done_callback(self._over)
        return task

    async def _answered(self, work: Awaitable[Answer]) -> Answer:
        began = time.monotonic()
        try:
            answer = await work
        except FleetError as error:
            raise CommandError(
                str(error), PARTLY if error.partly else 1, self._outcome(began)
            ) from error
        return {**self._outcome(began), **answer}

    def _outcome(self, began: float) -> Answer:
        slots = self._supervisor.slots()
        return {
            "workers": len(slots),
            "slots": slots,
            "seconds": round(time.monotonic() - began, 3),
        }

    def _over(self, task: asyncio.Task[Answer]) -> None:
        current, self._current = self._current, None
        self._supervisor.forget()
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and current is not None:
            unexpected = None if isinstance(error, CommandError) else error
            log.error("%s: %s", current.verb, error, exc_info=unexpected)
        self._go_on()

    # --- what is done ---------------------------------------------------------

    async def _stop(self, asked: Mapping[str, Any], say: Say) -> Answer:
        supervisor = self._supervisor
        running = supervisor.remaining()
        if asked.get("dry_run"):
            say(f"ending {', '.join(running)}")
            return {"dry_run": True}
        say(f"ending {', '.join(running)}", processes=running)
        if asked.get("quick"):
            supervisor.quick()
        else:
            supervisor.stop()
        if asked.get("wait") is False:
            return {"started": "stop"}
        told = running
        while not (await asyncio.wait({supervisor.ended}, timeout=_TELL_EACH))[0]:
            if (left := supervisor.remaining()) != told:
                say(f"waiting for {', '.join(left)}", processes=left)
                told = left
        return {"forced": supervisor.forced}

    async def _scale(self, asked: Mapping[str, Any], say: Say) -> Answer:
        supervisor = self._supervisor
        before = supervisor.slots()
        # A spare that a reload has left is none of the workers there are to be.
        target = wanted_number(asked.get("workers"), len(self.home))
        fleet = SupervisedFleet(supervisor, supervisor.plan.for_slot, End.SCALE, say)
        if asked.get("dry_run"):
            rehearsal = rolling.Rehearsal(before, await fleet.drained())
            return {"dry_run": True, "slots": await rolling.scale(rehearsal, target, say)}
        try:
            await rolling.scale(fleet, target, say)
        finally:
            self.home = supervisor.slots()
        return {}

    async def _reload(self, asked: Mapping[str, Any], say: Say) -> Answer:
        dry = bool(asked.get("dry_run"))
        home = self.home
        try:
            renewal = self._renewed(say)
            self._need_hub()
            if dry:
                rehearsal = rolling.Rehearsal(self._supervisor.slots())
                await rolling.reload(rehearsal, say, home=home)
                return {"dry_run": True, "changes": _listed(renewal)}
            await self._roll(renewal, End.RELOAD, say, None, home)
        except (CommandError, FleetError) as error:
            if not dry:
                self._last_reload = {
                    "ok": False,
                    "at": time.time(),
                    "partly": isinstance(error, FleetError) and error.partly,
                    "error": str(error)[-_LONGEST_ERROR:],  # who runs what is told at its end
                }
            raise
        self._last_reload = {"ok": True, "at": time.time()}
        return {"changes": _listed(renewal)}

    def _need_hub(self) -> None:
        """Refuse what would wait in vain: without a hub no worker comes up."""
        error = self._supervisor.error_of("hub")
        if error:
            raise CommandError(
                f"{error}\n\nThe hub does not come up, and without it no worker does: nothing has "
                "changed. Once this is mended, `limpet restart hub` starts it at once."
            )

    async def _restart(self, asked: Mapping[str, Any], say: Say) -> Answer:
        supervisor = self._supervisor
        parts, chosen = named_parts(asked.get("what"), supervisor.slots())
        in_turn = bool(asked.get("rolling"))
        renewal = self._renewed(say)
        plan = renewal.plan if renewal is not None else supervisor.plan
        dry = bool(asked.get("dry_run"))
        for part, command in (("hub", plan.hub), ("balancer", plan.balancer)):
            if part not in parts:
                continue
            began = time.monotonic()
            say(f"restarting the {part}", step="restart", process=part)
            if not dry:
                await self._replace(part, command)
                say(f"the {part} is ready ({time.monotonic() - began:.1f} s)", step="ready")
        if chosen and dry:
            rehearsal = rolling.Rehearsal(supervisor.slots())
            if in_turn:
                await rolling.reload(rehearsal, say, only=chosen, home=self.home)
            else:
                await rolling.restart(rehearsal, chosen, say)
        elif chosen:
            try:
                if in_turn:
                    await self._roll(renewal, End.RESTART, say, chosen, self.home)
                else:
                    fleet = SupervisedFleet(supervisor, plan.for_slot, End.RESTART, say)
                    await rolling.restart(fleet, chosen, say)
            except FleetError as error:
                if not parts or error.partly:
                    raise
                self._adopt(renewal)  # hub and balancer have it already
                raise after_parts(error, parts) from error
        if dry:
            return {"dry_run": True}
        self._adopt(renewal)
        return {}

    async def _replace(self, part: str, command: Command) -> None:
        try:
            await self._supervisor.replace(part, command)
        except FleetError as error:
            raise FleetError(
                f"{error}\n\nThe {part} did not come up again; it is tried again, and nothing "
                "further is restarted.",
                partly=True,
            ) from error

    async def _roll(
        self,
        renewal: Renewal | None,
        because: End,
        say: Say,
        only: Iterable[int] | None,
        home: list[int],
    ) -> None:
        supervisor = self._supervisor
        plan = renewal.plan if renewal is not None else supervisor.plan
        fleet = SupervisedFleet(supervisor, plan.for_slot, because, say)
        try:
            await rolling.reload(fleet, say, only=only, home=home)
        except FleetError as error:
            if not error.partly:
                raise
            self.home = home
            self._adopt(renewal)  # the spare runs it, and what is tried again is to
            raise
        self.home = home
        self._adopt(renewal)

    def _renewed(self, say: Say) -> Renewal | None:
        """Read the settings again and tell what is different."""
        if self._renew is None:
            return None
        try:
            renewal = self._renew()
        except ValueError as error:
            raise CommandError(
                f"{error}\n\nThe configuration cannot be used: nothing has changed.", 3
            ) from error
        for text, when in renewal.changes:
            say(f"{text}: {when}", step="change", change=text, applies=when)
        return renewal

    def _adopt(self, renewal: Renewal | None) -> None:
        if renewal is None:
            return
        self._supervisor.adopt(renewal.plan)
        self._supervisor.follow(renewal.policy, renewal.describe)


_Work = Callable[[Mapping[str, Any], Say], Awaitable[Answer]]


def _listed(renewal: Renewal | None) -> list[dict[str, str]]:
    changes = renewal.changes if renewal is not None else ()
    return [{"change": text, "applies": when} for text, when in changes]


def wanted_number(asked: object, present: int) -> int:
    """Return the number of workers that ``scale`` is asked for.

    Args:
        asked: a number, or ``+N`` or ``-N``.
        present: how many there are to be so far.

    Raises:
        CommandError: it is none, or cannot be.
    """
    try:
        return rolling.target(_text(asked), present)
    except FleetError as error:
        raise CommandError(str(error), 2) from None


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return value
    raise CommandError(f"workers={value!r}: expected a number, or +N or -N", 2)


def named_parts(asked: object, slots: list[int]) -> tuple[list[str], list[int]]:
    """Return which of hub and balancer, and which workers, ``what`` names; all when it is empty.

    Raises:
        CommandError: a name means nothing.
    """
    names = asked or list(PARTS)
    if not isinstance(names, list):
        raise CommandError(f"what={asked!r}: expected a list of names", 2)
    parts: set[str] = set()
    chosen: set[int] = set()
    for name in names:
        number = str(name).removeprefix("worker-").removeprefix("w")
        if name in ("hub", "balancer"):
            parts.add(name)
        elif name == "workers":
            chosen.update(slots)
        elif number.isdecimal() and int(number) in slots:
            chosen.add(int(number))
        else:
            present = ", ".join(map(worker_name, slots))
            raise CommandError(f"{name!r}: expected hub, balancer, workers or one of {present}", 2)
    return [part for part in PARTS if part in parts], sorted(chosen)


def after_parts(error: FleetError, parts: list[str]) -> FleetError:
    """Return the failure of a restart whose hub or balancer was restarted before."""
    done = f"The {' and the '.join(parts)} {'were' if len(parts) > 1 else 'was'} restarted before."
    return FleetError(f"{error}\n\n{done}", partly=True)


def _silent(text: str, /, **figures: object) -> None:
    """Whom nobody listens to: an operation asked for by a signal."""
