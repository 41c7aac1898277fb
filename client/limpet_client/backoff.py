"""How long to wait before the next attempt to reconnect: the formula of the JavaScript client."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

_LARGEST_EXPONENT: Final = 60


class Backoff:
    """Twice as long each time, a little at random, up to a limit. Seconds.

    With the defaults of the options: 0.5 to 1.5 s, 1 to 3 s, 2 to 5 s, then at most 5 s.
    """

    __slots__ = ("_random", "attempts", "jitter", "longest", "shortest")

    def __init__(
        self,
        shortest: float,
        longest: float,
        jitter: float,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.shortest = shortest
        """Before the first attempt, but for chance."""
        self.longest = longest
        self.jitter = jitter
        """Part of the time by which chance shortens or lengthens it, 0 to 1."""
        self.attempts = 0
        """How often ``next`` was asked since the last ``reset``."""
        self._random = random

    def next(self) -> float:
        """Return how long to wait now."""
        seconds = self.shortest * 2.0 ** min(self.attempts, _LARGEST_EXPONENT)
        self.attempts += 1
        if self.jitter:
            chance = self._random()
            deviation = chance * self.jitter * seconds
            # One random number gives both, how far and to which side: its first decimal decides.
            seconds += deviation if int(chance * 10) & 1 else -deviation
        return min(seconds, self.longest)

    def reset(self) -> None:
        """Begin anew: there was a connection."""
        self.attempts = 0
