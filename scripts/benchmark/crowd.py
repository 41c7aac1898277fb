"""A crowd of clients that live through faults: they echo at leisure and come back as stock ones."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

import orjson
from scripts.benchmark.clients import HttpChannel, Target, WebSocketClient
from scripts.benchmark.loop import Loop
from scripts.benchmark.stage import BenchError

_PERIOD = 0.2
_PATIENCE = 20.0


class Crowd:
    """Clients in one room, and what happened to them since the last `mark`."""

    def __init__(self, loop: Loop, target: Target, room: str, size: int) -> None:
        self.loop = loop
        self.target = target
        self.room = room
        self.random = random.Random(7)  # noqa: S311 - spreads load, no secret
        self.size = size
        self.failed_attempts = 0
        self.wrong = 0
        """Echoes with other content than was sent."""
        self.lost: list[Resident] = []
        """Whose connection ended, since the mark."""
        self.back: list[float] = []
        """When each of those was connected and in the room again (monotonic)."""
        self.residents = [Resident(self, number) for number in range(size)]

    def gather(self) -> None:
        """Wait until all are in the room.

        Raises:
            BenchError: some are not after 20 seconds.
        """
        if not self.loop.run_until(lambda: self.present == self.size, _PATIENCE):
            raise BenchError(f"only {self.present} of {self.size} clients are there")

    @property
    def present(self) -> int:
        """How many are connected and in the room."""
        return sum(each.present for each in self.residents)

    def mark(self) -> None:
        """Forget what happened so far."""
        self.lost.clear()
        self.back.clear()
        for each in self.residents:
            each.longest = 0.0

    def longest(self, residents: list[Resident]) -> float:
        """Return the longest time, in ms, that one of these waited for an echo since the mark."""
        now = time.monotonic()
        return 1e3 * max((each.waited(now) for each in residents), default=0.0)

    def close(self) -> None:
        """End them all."""
        for each in self.residents:
            each.close()


class Resident:
    """One client: connect, join, echo every now and then, reconnect with the stock back-off."""

    __slots__ = (
        "_asked",
        "_attempts",
        "_client",
        "_crowd",
        "_ended",
        "_was_lost",
        "longest",
        "number",
        "present",
        "sent_at",
        "worker",
    )

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self.number = number
        self.present = False
        self.worker = 0
        """The pid of the worker that serves it."""
        self.longest = 0.0
        self.sent_at = 0.0
        """When the outstanding echo was sent, 0 while there is none."""
        self._asked = 0
        self._attempts = 0
        self._ended = self._was_lost = False
        self._client: WebSocketClient | None = None
        crowd.loop.call_later(number * 0.002, self._connect)

    def waited(self, now: float) -> float:
        """Return the seconds of the longest wait for an echo, the one that lasts included."""
        return max(self.longest, now - self.sent_at if self.sent_at else 0.0)

    def close(self) -> None:
        """End it, for good."""
        self._ended = True
        self.present = False
        if self._client is not None:
            self._client.close()

    def _connect(self) -> None:
        if not self._ended:
            self._client = WebSocketClient(
                self._crowd.loop, self._crowd.target, self._ready, self._gone
            )

    def _ready(self) -> None:
        self._attempts = 0
        if self._client is not None:
            self._client.call("whoami", answer=self._placed)
            self._client.call("join", self._crowd.room, answer=self._joined)

    def _placed(self, values: list[object]) -> None:
        self.worker = int(str(values[0]))

    def _joined(self, _values: list[object]) -> None:
        self.present = True
        if self._was_lost:
            self._was_lost = False
            self._crowd.back.append(time.monotonic())
        self._later()

    def _later(self) -> None:
        client = self._client
        delay = _PERIOD * (0.5 + self._crowd.random.random())
        self._crowd.loop.call_later(delay, lambda: self._echo(client))

    def _echo(self, client: WebSocketClient | None) -> None:
        if client is None or client is not self._client or not self.present:
            return  # of a connection that is no more
        self._asked += 1
        self.sent_at = time.monotonic()
        text = f"{self.number} {self._asked}"

        def echoed(values: list[object]) -> None:
            self.longest = max(self.longest, time.monotonic() - self.sent_at)
            self.sent_at = 0.0
            self._crowd.wrong += values != [text]
            self._later()

        client.call("echo", text, answer=echoed)

    def _gone(self) -> None:
        if self._ended:
            return
        crowd = self._crowd
        self.sent_at = 0.0
        if self.present:
            self.present = False
            self._was_lost = True
            crowd.lost.append(self)
        else:
            crowd.failed_attempts += 1
        # socket.io-client: 1 s, doubled up to 5 s, and half of it more or less.
        delay = min(1.0 * 2**self._attempts, 5.0) * (0.5 + crowd.random.random())
        self._attempts += 1
        crowd.loop.call_later(delay, self._connect)


class PresenceWatch:
    """Asks the HTTP API again and again how many connections a room has."""

    def __init__(self, loop: Loop, socket_path: str, room: str, interval: float = 0.005) -> None:
        self._loop = loop
        self._request = f"GET /v1/rooms/{room} HTTP/1.1\r\nHost: limpet\r\n\r\n".encode()
        self._interval = interval
        self._channel = HttpChannel(loop, socket_path, self._failed)
        self._ended = False
        self.seen: list[tuple[float, int]] = []
        """(monotonic time of the answer, connections), at each change."""
        self.failures = 0
        self._ask()

    def close(self) -> None:
        """Ask no more."""
        self._ended = True
        self._channel.close()

    def first(self, count: int, since: float) -> float | None:
        """Return when the room first had so many connections, from a time on."""
        return next((at for at, seen in self.seen if at >= since and seen == count), None)

    @property
    def latest(self) -> int:
        """The last count, -1 before the first."""
        return self.seen[-1][1] if self.seen else -1

    def _ask(self) -> None:
        if not self._ended:
            self._channel.request(self._request, self._told)

    def _told(self, status: int, body: bytes) -> None:
        if status == 200:
            count = int(orjson.loads(body)["occupancy"]["connections"])
            if count != self.latest:
                self.seen.append((time.monotonic(), count))
        else:
            self.failures += 1
        self._loop.call_later(self._interval, self._ask)

    def _failed(self, _why: str) -> None:
        self.failures += 1
        self._loop.call_later(0.05, self._ask)


class Stream:
    """Numbered broadcasts from one client to a room, as one member of it hears them."""

    def __init__(
        self, loop: Loop, sender: WebSocketClient, member: WebSocketClient, room: str, rate: float
    ) -> None:
        self._loop = loop
        self._sender = sender
        self._room = room
        self._interval = 1.0 / rate
        self.going = True
        self.sent: list[float] = []
        self.heard: dict[int, float] = {}
        self.doubled = 0
        member.on_message = self._hear
        self._send()

    def longest_silence(self, since: float) -> float:
        """Return the longest ms between two deliveries, from a time on."""
        times = [since, *sorted(at for at in self.heard.values() if at >= since)]
        return 1e3 * max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def back_after(self, since: float) -> float | None:
        """Return the ms from a time until a message that was sent later was heard."""
        later = [at for number, at in self.heard.items() if self.sent[number] >= since]
        return 1e3 * (min(later) - since) if later else None

    @property
    def lost(self) -> int:
        """How many were never heard."""
        return len(self.sent) - len(self.heard)

    def _send(self) -> None:
        if self.going:
            number = len(self.sent)
            self.sent.append(time.monotonic())
            self._sender.send(b'42["broadcast","%s","%d"]' % (self._room.encode(), number))
            self._loop.call_later(self._interval, self._send)

    def _hear(self, _opcode: int, payload: bytes) -> None:
        if payload[:10] == b'42["msg","':
            number = int(payload[10:-2])
            self.doubled += number in self.heard
            self.heard[number] = time.monotonic()


def percentiles(values: list[float], describe: Callable[[float], str]) -> str:
    """Return least, median, 95 % and most of the values in words."""
    if not values:
        return "none"
    ordered = sorted(values)
    picks = [0, len(ordered) // 2, int(len(ordered) * 0.95), len(ordered) - 1]
    names = ("least", "median", "p95", "most")
    return ", ".join(
        f"{name} {describe(ordered[index])}" for name, index in zip(names, picks, strict=True)
    )
