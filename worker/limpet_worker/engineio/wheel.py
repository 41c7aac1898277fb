"""A timer wheel without a clock: deadlines of many objects, at the cost of a set each tick."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Protocol


class Timed(Protocol):
    """What can be put on a wheel."""

    tick: int
    """Where it is on the wheel, 0 when it is not; the wheel's own."""

    def on_deadline(self, now: float) -> float | None:
        """Do what is due; return when to be called again, if at all.

        Called at the deadline or up to two ticks later, so it must look itself what is due.
        """


class Wheel:
    """Calls objects back at their deadlines, each object at one deadline at a time.

    A deadline that only moves later need not be told: ``on_deadline`` finds nothing due and
    returns the later one. So what happens often (a pong) costs nothing here.
    """

    __slots__ = ("_due", "_due_tick", "_last", "_slots", "granularity")

    def __init__(self, granularity: float) -> None:
        self.granularity = granularity
        """Seconds between two ticks."""
        self._slots: dict[int, set[Timed]] = {}
        """By number of the tick, objects whose deadline lies before it."""
        self._last = 0
        """The tick that came last; slots up to it are gone."""
        self._due: Iterator[Timed] | None = None
        """The rest of a slot that was left for the next slice."""
        self._due_tick = 0
        """The tick of that slot."""

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._slots) or self._due is not None

    def add(self, item: Timed, deadline: float) -> None:
        """Call an object back at a deadline, instead of the one it had."""
        if item.tick:
            self.cancel(item)
        tick = item.tick = max(ceil(deadline / self.granularity), self._last + 1)
        slot = self._slots.get(tick)
        if slot is None:
            self._slots[tick] = {item}
        else:
            slot.add(item)

    def cancel(self, item: Timed) -> None:
        """Forget an object; nothing happens when it is not on the wheel."""
        slot = self._slots.get(item.tick)
        if slot is not None:
            slot.discard(item)
            if not slot:
                del self._slots[item.tick]
        item.tick = 0

    def advance(self, now: float, most: int) -> bool:
        """Call back what is due, at most ``most`` objects; return whether more is due."""
        count = 0
        while True:
            due = self._due
            if due is None:
                due = self._due = self._next_slot(now)
                if due is None:
                    return False
            for item in due:
                if item.tick != self._due_tick:  # cancelled since its slot was taken
                    continue
                item.tick = 0
                again = item.on_deadline(now)
                if again is not None:
                    self.add(item, again)
                count += 1
                if count >= most:
                    return True
            self._due = None

    def _next_slot(self, now: float) -> Iterator[Timed] | None:
        """Return the next slot that is due, or None when there is none."""
        current = int(now / self.granularity)
        slots = self._slots
        if not slots or current - self._last > 2 * len(slots) + 64:
            # After a long rest: look at what there is rather than at each tick gone by.
            due = [tick for tick in slots if tick <= current]
            self._last = min(due, default=current + 1) - 1
        while self._last < current:
            self._last += 1
            slot = slots.pop(self._last, None)
            if slot:
                self._due_tick = self._last
                return iter(slot)
        return None
