"""Changing the workers of a running cluster without losing a connection attempt.

Everything acts on a ``Fleet``, so the same story is told under our own supervisor, under systemd,
for ``--dry-run``, and in tests.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from limpet_cluster.fleet.fleet import (
    LAST_SLOT,
    MOST_WORKERS,
    Fleet,
    FleetError,
    Say,
    names,
    worker_name,
)

_COUNT: Final = re.compile(r"(?P<sign>[+=-]?)(?P<number>\d{1,4})")
_RELATIVE: Final = ("+", "-")


async def reload(
    fleet: Fleet,
    say: Say,
    *,
    only: Iterable[int] | None = None,
    home: Iterable[int] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Replace the workers one after the other, with one more than usual running meanwhile.

    A worker in a spare slot starts first: when the new code does not come up there, nothing has
    changed. Then each worker drains and starts again in its own slot, and at last the spare drains,
    so the slots are what they were.

    Args:
        fleet: the workers.
        say: takes a line about each step.
        only: slots to replace; all when None.
        home: slots that are to be there in the end; those beyond, a spare that an earlier failure
            left, are drained as well. None: those that are there now.
        clock: seconds, for the lines.

    Raises:
        FleetError: a worker did not come up. Was it the spare, it is gone again and the others are
            untouched (``partly`` is False); else everything stays as it is at that moment, as it
            does when one that had come up has ended since.
    """
    present = await fleet.slots()
    wanted = _wanted(present, home)
    chosen = set(wanted if only is None else only)
    _need(chosen, wanted, present)
    spare = _spare(present)
    extra = [slot for slot in present if slot not in wanted]
    story = _Story(fleet, say, clock, old=list(present))
    with story.told_when_interrupted():
        await story.try_out(spare)
        try:
            for slot in sorted(chosen.intersection(wanted)):  # the others leave anyway
                await story.check()
                await story.drain(slot)
                await story.start(slot)
            await story.check()
            for slot in [*extra, spare]:
                await story.drain(slot, leaving=True)
        except FleetError as error:
            raise FleetError(story.stuck(spare, error), partly=True) from error
    say(f"{names(story.new)} {'run' if len(story.new) > 1 else 'runs'} the new code", step="done")


async def scale(
    fleet: Fleet, target: int, say: Say, *, clock: Callable[[], float] = time.monotonic
) -> list[int]:
    """Make the number of workers what is asked for, all at once; return the slots.

    More: they start side by side and take sessions as soon as each is ready. Fewer: those of the
    highest slots drain side by side. Afterwards the lowest slots are taken, without a gap.

    When it is to be fewer, workers that were drained leave before: else they might be all that
    stay. New ones come in their slots, where these are among the lowest.

    Raises:
        FleetError: no such number; or not all of the new ones came up: those that did stay, the
            others are taken away again.
    """
    if not 1 <= target <= MOST_WORKERS:
        raise FleetError(f"{target} workers: expected 1 to {MOST_WORKERS}")
    present = await fleet.slots()
    story = _Story(fleet, say, clock, old=list(present), alike=True)
    wanted = range(_first(present), _first(present) + target)
    drained = await fleet.drained() if target < len(present) else []
    renewed = [slot for slot in present if slot in wanted and slot in drained]
    coming = [slot for slot in wanted if slot not in present or slot in renewed]
    leaving = [slot for slot in present if slot not in wanted]
    with story.told_when_interrupted():
        await _leave(story, renewed, for_good=False)
        if coming:
            await _grow(story, coming, begun=bool(renewed))
        await _leave(story, leaving, for_good=True)
    if not coming and not leaving:
        say(f"there are {target} already", step="done")
    slots = await fleet.slots()
    if slots != present:
        say(f"{_workers(len(slots))} now: {names(slots)}", step="done")
    return slots


async def restart(
    fleet: Fleet,
    slots: Iterable[int],
    say: Say,
    *,
    home: Iterable[int] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Replace workers all at once: each drains, ends and starts again in its slot.

    The new code is tried out in a spare slot before. The spare serves until they are back, as the
    others may be drained, or just be starting again.

    Args:
        fleet: the workers.
        slots: whom to replace; one that is to be there and has ended is started.
        say: takes a line about each step.
        home: slots that are to be there in the end; once they all are, those beyond that were not
            to be replaced are drained. None: those that are there now.
        clock: seconds, for the lines.

    Raises:
        FleetError: the spare did not come up, and nothing has changed (``partly`` is False); or
            not all came up again: whoever runs them goes on trying, and the spare stays.
    """
    chosen = sorted(set(slots))
    present = await fleet.slots()
    wanted = _wanted(present, home)
    _need(chosen, wanted, present)
    spare = _spare(present)
    story = _Story(fleet, say, clock, old=list(present))

    async def replace(slot: int) -> None:
        await story.drain(slot)
        await story.start(slot)

    with story.told_when_interrupted():
        await story.try_out(spare)
        failed = await _all(replace(slot) for slot in chosen)
        if failed:
            raise FleetError(
                f"{failed[0]}\n\n{story.standing()} What is missing is tried again.", partly=True
            )
        whole = {*present, *chosen}.issuperset(wanted)
        extra = [slot for slot in present if slot not in {*wanted, *chosen}]
        for slot in [*(extra if whole else ()), spare]:
            await story.drain(slot, leaving=True)
    say(f"{names(chosen)} {'were' if len(chosen) > 1 else 'was'} restarted", step="done")


def target(text: str, present: int) -> int:
    """Return the number of workers that ``6``, ``=6``, ``+2`` or ``-1`` asks for.

    Raises:
        FleetError: it is none of these, or leads out of 1 to 255.
    """
    sign, number = check_count(text)
    if sign not in _RELATIVE:
        return number
    return _checked(present + number if sign == "+" else present - number, f"{text} from {present}")


def check_count(text: str) -> tuple[str, int]:
    """Return the sign (``+``, ``-``, ``=`` or none) and the number of ``6`` or ``+2``.

    Raises:
        FleetError: it is no such thing, or a number that can never be.
    """
    match = _COUNT.fullmatch(text)
    if match is None:
        raise FleetError(f"{text!r}: expected a number of workers as 6, +2 or -1")
    sign, number = match["sign"], int(match["number"])
    return sign, number if sign in _RELATIVE else _checked(number, text)


def _checked(workers: int, text: str) -> int:
    if not 1 <= workers <= MOST_WORKERS:
        raise FleetError(
            f"{text}: expected to come to 1 to {MOST_WORKERS} workers"
            + ("; to end the cluster there is stop" if workers < 1 else "")
        )
    return workers


class Rehearsal:
    """A fleet in which everything works at once and nothing happens: for ``--dry-run``."""

    def __init__(self, slots: Iterable[int], drained: Iterable[int] = ()) -> None:
        self._slots = set(slots)
        self._drained = list(drained)

    async def slots(self) -> list[int]:
        """Return what would be there by now."""
        return sorted(self._slots)

    async def drained(self) -> list[int]:
        """Return who takes no sessions."""
        return self._drained

    async def start(self, slot: int) -> None:
        """Note that the slot would have a worker."""
        self._slots.add(slot)

    async def drain(self, slot: int) -> None:
        """Note that the slot would be empty."""
        self._slots.discard(slot)

    async def check(self, slot: int) -> None:
        """Take for granted that it would live."""


class _Story:
    """Starts and drains workers, says so, and knows who runs which code."""

    def __init__(
        self,
        fleet: Fleet,
        say: Say,
        clock: Callable[[], float],
        old: list[int],
        *,
        alike: bool = False,
    ) -> None:
        self.fleet = fleet
        self.say = say
        self._clock = clock
        self._alike = alike  # whether it is not about old and new code
        self.old = old
        """Slots whose workers were there before."""
        self.new: list[int] = []
        """Slots whose workers came up since."""
        self.awaited: list[int] = []
        """Slots that are to have a worker and have none, or one that did not come up."""
        self._coming: list[int] = []  # slots whose workers are starting
        self._leaving: list[int] = []  # slots whose workers drain and are not replaced

    @contextmanager
    def told_when_interrupted(self) -> Iterator[None]:
        """Say who runs what when what is done in it is cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            self.say(f"interrupted. {self.standing()}", step="interrupted")
            raise

    async def try_out(self, spare: int) -> None:
        """Start the new code in the spare slot, or leave everything as it was."""
        name = worker_name(spare)
        self.say(f"starting {name} in the spare slot", step="start", slot=spare)
        count = len(self.old)
        try:
            await self.start(spare)
            await self.check()
        except FleetError as error:
            self.say(f"{name} did not come up; taking it away", step="failed", slot=spare)
            await self.fleet.drain(spare)
            self.new = []
            raise FleetError(
                f"{error}\n\nThe new code or configuration does not come up; the workers are as "
                f"they were: {_workers(count)} {'go' if count > 1 else 'goes'} on with the old."
            ) from error

    async def start(self, slot: int) -> None:
        began = self._clock()
        self._coming.append(slot)
        try:
            await self.fleet.start(slot)
        except FleetError:
            self._coming.remove(slot)
            raise
        self._coming.remove(slot)
        self.awaited = [one for one in self.awaited if one != slot]
        self.new = sorted([*self.new, slot])
        seconds = round(self._clock() - began, 3)
        self.say(
            f"{worker_name(slot)} is ready{self._in(seconds)}",
            step="ready", slot=slot, seconds=seconds,
        )  # fmt: skip

    async def check(self) -> None:
        """Go no further with new code whose workers do not last."""
        for slot in self.new:
            await self.fleet.check(slot)

    async def drain(self, slot: int, *, leaving: bool = False) -> None:
        began = self._clock()
        self.say(f"draining {worker_name(slot)}", step="drain", slot=slot)
        # Before it is gone: who is interrupted meanwhile is told that it ends.
        if leaving:
            self._leaving.append(slot)
        else:
            self.awaited = sorted({*self.awaited, slot})
        self.old = [one for one in self.old if one != slot]
        self.new = [one for one in self.new if one != slot]
        await self.fleet.drain(slot)
        if leaving:
            self._leaving.remove(slot)
        seconds = round(self._clock() - began, 3)
        self.say(
            f"{worker_name(slot)} has ended{self._in(seconds)}",
            step="ended", slot=slot, seconds=seconds,
        )  # fmt: skip

    def _in(self, seconds: float) -> str:
        return "" if isinstance(self.fleet, Rehearsal) else f" ({seconds:.1f} s)"

    def standing(self) -> str:
        """Return in some short sentences who runs what."""
        if self._alike:
            groups = {"Running": sorted([*self.old, *self.new])}
        else:
            groups = {"New code": self.new, "Old code": self.old}
        more = {
            "Starting": sorted(self._coming),
            "Draining": sorted(self._leaving),
            "Not running": [slot for slot in self.awaited if slot not in self._coming],
        }
        groups |= {state: slots for state, slots in more.items() if slots}
        return " ".join(f"{state}: {names(slots)}." for state, slots in groups.items())

    def stuck(self, spare: int, error: FleetError) -> str:
        """Return what to tell of a reload that stopped half way."""
        kept = f"{worker_name(spare)} in the spare slot is kept. " if spare in self.new else ""
        retried = f"{names(self.awaited)} is tried again; " if self.awaited else ""
        return (
            f"{error}\n\nThe reload stops here, although {worker_name(spare)} with the new code "
            f"came up before. {self.standing()} {kept}"
            f"{retried}`limpet reload` goes over all of them anew."
        )


async def _grow(story: _Story, coming: list[int], *, begun: bool) -> None:
    failed: list[int] = []

    async def add(slot: int) -> None:
        story.say(f"starting {worker_name(slot)}", step="start", slot=slot)
        try:
            await story.start(slot)
        except FleetError:
            failed.append(slot)
            await story.fleet.drain(slot)
            raise

    errors = await _all(add(slot) for slot in coming)
    if errors:
        slots = await story.fleet.slots()
        raise FleetError(
            f"{errors[0]}\n\n{names(sorted(failed))} did not come up and "
            f"{'were' if len(failed) > 1 else 'was'} taken away again: "
            f"{_workers(len(slots))} now, {names(slots)}.",
            partly=begun or bool(story.new),
        )


async def _leave(story: _Story, slots: Sequence[int], *, for_good: bool) -> None:
    failed = await _all(story.drain(slot, leaving=for_good) for slot in reversed(slots))
    if failed:
        raise FleetError(str(failed[0]), partly=True)


async def _all(steps: Iterable[Coroutine[Any, Any, None]]) -> list[FleetError]:
    """Run steps side by side to their ends; return the failures of those that failed."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        results = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    failures = []
    for result in results:
        if isinstance(result, FleetError):
            failures.append(result)
        elif isinstance(result, BaseException):
            raise result
    return failures


def _wanted(present: list[int], home: Iterable[int] | None) -> list[int]:
    """Return the slots that are to be there when workers have been replaced."""
    if not present:
        raise FleetError("no worker is there to be replaced")
    return present if home is None else sorted(set(home))


def _need(chosen: Iterable[int], wanted: list[int], present: list[int]) -> None:
    """Refuse workers that neither are there nor are to be."""
    if missing := sorted(set(chosen).difference(wanted, present)):
        raise FleetError(f"there is no {names(missing)}, but {names(wanted)}")


def _spare(present: Sequence[int]) -> int:
    """Return the slot above all, or where that is beyond the last, the lowest free one."""
    if present[-1] < LAST_SLOT:
        return present[-1] + 1
    free = next((slot for slot in range(LAST_SLOT) if slot not in present), None)
    if free is None:
        raise FleetError("all slots are taken: one must be free for the spare; scale down first")
    return free


def _first(present: Sequence[int]) -> int:
    """Return where the fleet begins to count: systemd's instances have no number 0."""
    return min(1, present[0]) if present else 0


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count != 1 else ''}"
