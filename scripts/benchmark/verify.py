"""The judge of deliveries: every one is checked for content, count and order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

CYCLE: Final = 10_000
"""Numbers on the wire have four digits and start again after 9999."""


@dataclass(slots=True)
class Findings:
    """What was delivered and what was wrong with it; all but `delivered` should stay 0."""

    delivered: int = 0
    lost: int = 0
    """Never came."""
    doubled: int = 0
    """Came again."""
    reordered: int = 0
    """Came after a later one of the same sender."""
    corrupt: int = 0
    """Came with other content than was sent, or to somebody it was not meant for."""
    unanswered: int = 0
    """Connections that got no answer to their handshake or CONNECT in time."""
    refused: int = 0
    """Requests or connections that were refused, reset or answered with an error."""

    @property
    def faults(self) -> int:
        """How many things went wrong."""
        return int(sum(asdict(self).values())) - self.delivered

    def describe(self) -> str:
        """Return the faults in words, empty when there are none."""
        return ", ".join(
            f"{count} {name}"
            for name, count in asdict(self).items()
            if count and name != "delivered"
        )


class Sequence:
    """Judges what one receiver gets from one sender: numbers 0, 1, 2 … in that order."""

    __slots__ = ("_findings", "_missing", "next")

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._missing: set[int] = set()
        self.next = 0
        """The number that is to come."""

    def take(self, number: int) -> bool:
        """Judge one delivery by its full number; True when it is new (in order or late)."""
        findings = self._findings
        if number == self.next:
            self.next = number + 1
        elif number > self.next:
            self._missing.update(range(self.next, number))
            self.next = number + 1
        elif number in self._missing:
            self._missing.remove(number)
            findings.reordered += 1
        else:
            findings.doubled += 1
            return False
        findings.delivered += 1
        return True

    def take_digits(self, digits: int) -> int:
        """Judge one delivery by the four digits on the wire; the full number, or -1 if doubled."""
        number = self.unwrap(digits)
        return number if self.take(number) else -1

    def unwrap(self, digits: int) -> int:
        """Return the full number nearest to what is to come that ends in these digits."""
        return self.next + (digits - self.next + CYCLE // 2) % CYCLE - CYCLE // 2

    def run(self, count: int) -> None:
        """Take the next so many, whose bytes the caller has compared with what is to come."""
        self.next += count
        self._findings.delivered += count

    def finish(self, sent: int) -> None:
        """Count as lost what of the `sent` numbers never came; more than were sent is corrupt."""
        self._findings.lost += len(self._missing) + max(0, sent - self.next)
        self._findings.corrupt += max(0, self.next - sent)
        self._missing.clear()
