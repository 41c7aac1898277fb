"""Which slots living processes hold, for ids whose worker has not registered."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Final

from limpet_adapters.rundir import RunDirectory, held_slots

logger = logging.getLogger("limpet.balancer")

_HELD_FOR: Final = 0.1
"""Seconds for which the list of held slots is believed."""


class HeldSlots:
    """The slots that living processes hold; asking the system is remembered for a moment."""

    __slots__ = ("_at", "_known", "_run")

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._known: Collection[int] = ()
        self._at = float("-inf")

    def __call__(self) -> Collection[int]:
        now = time.monotonic()
        if now - self._at >= _HELD_FOR:
            try:
                self._known = frozenset(held_slots(self._run))
            except OSError as error:
                # Out of descriptors: what was known is the best guess, and nobody is dropped.
                logger.debug("cannot look at the slots: %s", error)
            self._at = now
        return self._known

    def forget(self) -> None:
        """Ask anew: a worker has just gone."""
        self._at = float("-inf")
