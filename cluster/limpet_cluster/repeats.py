"""Which log records are the same thing over and over, and how many were left out (sans I/O)."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

MOST: Final = 10
"""Records of one kind that are written within a window."""
WINDOW: Final = 60.0
"""Seconds a window lasts; it begins with the first record of a kind."""
_ROOM: Final = 1000

K = TypeVar("K")


class Repeats(Generic[K]):
    """Admits so many records of one kind per window and counts the others.

    Whoever uses it says what kind a record is of, and what time it is.

    Args:
        most: records of one kind that are admitted within a window.
        window: its length in seconds.
        room: kinds that are remembered; the oldest window ends early when there are more.
    """

    __slots__ = ("_ended", "_left_out", "_most", "_room", "_seen", "window")

    def __init__(self, most: int = MOST, window: float = WINDOW, room: int = _ROOM) -> None:
        self.window = window
        self._most = most
        self._room = room
        self._seen: dict[K, tuple[float, int]] = {}
        """When each window began and how many came in it; the oldest window first."""
        self._left_out = 0
        """Windows in which something was left out."""
        self._ended: list[tuple[K, int]] = []
        """What was left out of windows that ended early; until ``due`` is asked."""

    def admit(self, kind: K, now: float) -> bool:
        """Return whether a record is to be written; ask ``due`` first."""
        began, came = self._seen.get(kind, (now, 0))
        if not came and len(self._seen) >= self._room:
            self._end(next(iter(self._seen)))
        self._seen[kind] = (began, came + 1)
        if came == self._most:
            self._left_out += 1
        return came < self._most

    def due(self, now: float) -> list[tuple[K, int]]:
        """End the windows whose time is over; return what was left out of them, and how often."""
        while self._seen:
            kind, (began, _) = next(iter(self._seen.items()))
            if now - began < self.window:
                break
            self._end(kind)
        ended, self._ended = self._ended, []
        return ended

    def wait(self, now: float) -> float | None:
        """Return the seconds until ``due`` has something to tell; None: it will not have any."""
        if self._ended:
            return 0.0
        if self._left_out:
            for began, came in self._seen.values():
                if came > self._most:
                    return max(0.0, began + self.window - now)
        return None

    def end(self) -> list[tuple[K, int]]:
        """End all windows, as at the end of the process, and return what ``due`` would have."""
        for kind in list(self._seen):
            self._end(kind)
        ended, self._ended = self._ended, []
        return ended

    def _end(self, kind: K) -> None:
        _, came = self._seen.pop(kind)
        if came > self._most:
            self._left_out -= 1
            self._ended.append((kind, came - self._most))
