"""Connections whose request head has not come whole: they wait aside and block nobody."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from enum import Enum

from limpet_balancer.config import HEAD_LIMIT
from limpet_balancer.head import head_end, may_be_http
from limpet_balancer.placing import Arrival


class Failed(Enum):
    """Why a head will not come."""

    CLOSED = "closed"
    """The client closed first."""
    SLOW = "slow head"
    IDLE = "idle"
    """Not a byte came: a browser's spare connection, most likely."""
    TOO_MANY = "too many heads"
    TOO_LARGE = "head too large"
    NOT_HTTP = "not http"


def judge(data: bytes, start: int = 0) -> Failed | bool:
    """Say whether a head is complete (True), may become so (False), or never will."""
    if head_end(data, start):
        return True
    if len(data) >= HEAD_LIMIT:
        return Failed.TOO_LARGE
    return False if may_be_http(data) else Failed.NOT_HTTP


class WaitingHeads:
    """Reads the rest of slow heads.

    Args:
        loop: the event loop.
        limit: how many may wait; one more drops the oldest.
        timeout: seconds until a head must be complete.
        done: called with a connection whose head is complete.
        failed: called with a connection, no longer watched, whose head will not come.
    """

    __slots__ = ("_done", "_failed", "_limit", "_loop", "_timeout", "_waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: int,
        timeout: float,
        done: Callable[[Arrival], None],
        failed: Callable[[Arrival, Failed], None],
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._timeout = timeout
        self._done = done
        self._failed = failed
        self._waiting: dict[int, Arrival] = {}
        """By descriptor, in the order of their deadlines."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, arrival: Arrival, now: float) -> None:
        """Wait for the rest of a head."""
        if len(self._waiting) >= self._limit:
            self._drop(next(iter(self._waiting)), Failed.TOO_MANY)
        fd = arrival.sock.fileno()
        arrival.since = now
        self._waiting[fd] = arrival
        self._loop.add_reader(fd, self._read, fd)

    def expire(self, now: float) -> None:
        """Give up those that have had their time."""
        while self._waiting:
            fd, arrival = next(iter(self._waiting.items()))
            if now - arrival.since < self._timeout:
                return
            self._drop(fd, Failed.SLOW if arrival.data else Failed.IDLE)

    def take_all(self) -> list[Arrival]:
        """Return all that wait, no longer watched."""
        for fd in self._waiting:
            self._loop.remove_reader(fd)
        arrivals = list(self._waiting.values())
        self._waiting.clear()
        return arrivals

    def _read(self, fd: int) -> None:
        arrival = self._waiting[fd]
        before = len(arrival.data)
        try:
            data = arrival.sock.recv(HEAD_LIMIT - before, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(fd, Failed.CLOSED)
            return
        arrival.data += data
        verdict = judge(arrival.data, before)
        if verdict is True:
            self._forget(fd)
            self._done(arrival)
        elif verdict:
            self._drop(fd, verdict)

    def _drop(self, fd: int, why: Failed) -> None:
        self._failed(self._forget(fd), why)

    def _forget(self, fd: int) -> Arrival:
        # Before it is closed or handed over: a descriptor that lives on in a worker would stay
        # in our epoll set and wake us for ever.
        self._loop.remove_reader(fd)
        return self._waiting.pop(fd)
