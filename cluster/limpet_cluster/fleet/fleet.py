"""What a rolling change acts on: the workers of this host, whoever runs them."""

from __future__ import annotations

from typing import Final, Protocol

LAST_SLOT: Final = 255
"""The highest slot there is; one beyond the workers' is needed as the spare of a reload."""
MOST_WORKERS: Final = 255


class FleetError(Exception):
    """Something did not come about; the message is for the operator.

    Args:
        message: what, and what is running now.
        partly: whether something was changed before it failed.
    """

    def __init__(self, message: str, *, partly: bool = False) -> None:
        super().__init__(message)
        self.partly = partly


class Say(Protocol):
    """Takes one line about each step of an operation, with figures for programs."""

    def __call__(self, text: str, /, **figures: object) -> None:
        """Tell one line."""


class Fleet(Protocol):
    """The workers of one host, by slot; who runs them also starts again what dies."""

    async def slots(self) -> list[int]:
        """Return the slots that have a worker, or are to have one, in ascending order."""

    async def drained(self) -> list[int]:
        """Return the slots whose workers run and take no new sessions, as `limpet drain` wants."""

    async def start(self, slot: int) -> None:
        """Start a worker with the new code and configuration; return when it is READY.

        One that fails is tried again by whoever runs the workers, until it is drained.

        Raises:
            FleetError: it ended, or was not ready in time; the message is the application's own.
        """

    async def drain(self, slot: int) -> None:
        """Have a worker move its clients to the others and end; return when it is gone.

        The slot has no worker from then on. Draining an empty slot is no error.
        """

    async def check(self, slot: int) -> None:
        """Look whether a worker that was started here lasts.

        Raises:
            FleetError: it has failed since it was READY, whether or not it is back.
        """


def is_drained(status: str) -> bool:
    """Return whether a worker says, in its own line on what it does, that it drains or has."""
    return status.startswith("draining")


def worker_name(slot: int) -> str:
    """Return how a worker is called: ``w3``."""
    return f"w{slot}"


def names(slots: list[int]) -> str:
    """Return the workers of some slots for a sentence: ``w0, w1 and w4``, or ``none``."""
    if not slots:
        return "none"
    *most, last = map(worker_name, slots)
    return f"{', '.join(most)} and {last}" if most else last
