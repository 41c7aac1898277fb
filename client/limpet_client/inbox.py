"""Events for ``async for``: those that no handler takes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

KEPT: Final = 256
"""Events that are kept before anybody iterates."""


class Inbox:
    """Events that wait for whoever iterates. With the first beyond ``KEPT`` before anybody does,
    it is taken that nobody will, and nothing is kept.
    """

    __slots__ = ("_enders", "_events", "_waiters", "ended", "overflown", "started")

    def __init__(self) -> None:
        self._events: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._waiters: list[asyncio.Future[None]] = []
        self._enders: list[asyncio.Future[None]] = []
        """Who waits for the end."""
        self.started = False
        """Whether somebody iterates."""
        self.overflown = False
        """Whether events were not kept, because nobody did."""
        self.ended = False
        """Whether none will come any more."""

    def __len__(self) -> int:
        return len(self._events)

    def put(self, arguments: list[Any]) -> None:
        """Keep an event, its name first."""
        if not self.started:
            if self.overflown:
                return
            if len(self._events) >= KEPT:
                self.overflown = True
                self._events.clear()
                return
        self._events.append((arguments[0], tuple(arguments[1:])))
        self._wake()

    def end(self, *, ended: bool = True) -> None:
        """Let those who iterate come to their end, once they have what is there; or not."""
        self.ended = ended
        self._wake()
        if ended:
            enders, self._enders = self._enders, []
            for ender in enders:
                if not ender.done():
                    ender.set_result(None)

    async def wait_end(self) -> None:
        """Wait until no event will come any more."""
        if not self.ended:
            ender = asyncio.get_running_loop().create_future()
            self._enders.append(ender)
            await ender

    def __aiter__(self) -> Inbox:
        """Return itself: it is its own iterator."""
        return self

    async def __anext__(self) -> tuple[str, tuple[Any, ...]]:
        """Return the next event.

        Raises:
            StopAsyncIteration: none will come any more.
        """
        while not self._events:
            if self.ended:
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._events.popleft()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
