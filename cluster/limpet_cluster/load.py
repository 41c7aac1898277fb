"""Many clients in this process against one server: how long answers take, and how many fail.

What `limpet bench` runs. It measures server, network and this client together; `Report.own_load`
tells how much of a processor the client itself needed, for above about 0.8 the figures are the
client's.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from limpet_client.client import Client
from limpet_worker.socketio.errors import SocketIOError

BUSY: Final = 0.8
"""Share of a processor above which this process is what limits the figures."""
_LATE_EACH: Final = 0.05
_KEPT: Final = 200_000
"""Durations that are kept; of more, a fair sample."""
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a client says.

    Filled in, in an argument of an event: ``{text}``, ``{room}``, a name of this run's own, and
    ``{client}``, the client's number.
    """

    first: Sequence[tuple[str, Sequence[Any]]] = ()
    """Events sent once after connecting, each waited for."""
    event: str = "say"
    args: Sequence[Any] = ("{room}", "{text}")
    expect: str = "said"
    """The event that the others get, for broadcasts."""


CHAT: Final = {
    # A room of its own for each: what is said there is acknowledged, and nobody else hears it.
    "echo": Script(
        args=("{room}-{client}", "{text}"), first=(("enter", ("{room}-{client}",)),), expect=""
    ),
    "broadcast": Script(first=(("enter", ("{room}",)),)),
    "connect": Script(),
}
"""What fits the built-in chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be done."""

    url: str
    path: str = "/socket.io/"
    transports: tuple[str, ...] = ("websocket",)
    clients: int = 100
    seconds: float = 10.0
    rate: float = 0.0
    """Events per second of all clients together; 0: each sends when it has its answer."""
    at_once: int = 50
    """Clients that connect at a time."""
    size: int = 32
    """Characters of a text."""
    answer_within: float = 10.0
    auth: Any = None
    script: Script = field(default_factory=Script)


class Samples:
    """Durations: a fair sample of them when they are too many."""

    __slots__ = ("_random", "count", "kept", "longest")

    def __init__(self) -> None:
        self.kept: list[float] = []
        self.count = 0
        self.longest = 0.0
        self._random = random.Random(1)  # noqa: S311 - which are kept is no secret

    def add(self, seconds: float) -> None:
        """Take one in."""
        self.count += 1
        self.longest = max(self.longest, seconds)
        if len(self.kept) < _KEPT:
            self.kept.append(seconds)
        else:
            place = self._random.randrange(self.count)
            if place < _KEPT:
                self.kept[place] = seconds

    def percentiles(self) -> dict[str, float]:
        """Return the shares by name, in seconds; nothing when there is nothing."""
        if not self.kept:
            return {}
        ordered = sorted(self.kept)
        found = {
            name: ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999))
        }
        return {**found, "max": self.longest}


@dataclass(slots=True, kw_only=True)
class Report:
    """What came of it."""

    mode: str
    clients: int = 0
    """Those that connected."""
    seconds: float = 0.0
    """The measured time."""
    connects: Samples = field(default_factory=Samples)
    answers: Samples = field(default_factory=Samples)
    """Round trips, or times from a broadcast to each of its receivers."""
    sent: int = 0
    expected: int = 0
    """Answers there should have been."""
    failures: Counter[str] = field(default_factory=Counter)
    own_load: float = 0.0
    """Share of one processor that this process used."""
    own_lag: float = 0.0
    """Seconds its event loop ran late at the worst."""

    @property
    def client_bound(self) -> bool:
        """Whether the figures are rather this client's than the server's."""
        return self.own_load > BUSY

    def rate(self) -> float:
        """Return connections, or answers, per second."""
        samples = self.connects if self.mode == "connect" else self.answers
        return samples.count / self.seconds if self.seconds else 0.0

    def document(self) -> dict[str, Any]:
        """Return it for JSON; times in seconds."""
        return {
            "mode": self.mode,
            "clients": self.clients,
            "seconds": round(self.seconds, 3),
            "per_second": round(self.rate(), 1),
            "sent": self.sent,
            "answers": self.answers.count,
            "expected": self.expected,
            "failures": dict(self.failures),
            "connect_seconds": _rounded(self.connects),
            "answer_seconds": _rounded(self.answers),
            "own_load": round(self.own_load, 3),
            "own_lag_seconds": round(self.own_lag, 4),
            "client_bound": self.client_bound,
        }


def _rounded(samples: Samples) -> dict[str, float]:
    return {name: round(value, 6) for name, value in samples.percentiles().items()}


Step = Callable[[str], None]
_ERRORS: Final = (SocketIOError, OSError, TimeoutError)


class RefusedError(SocketIOError):
    """The application said no."""


class Run:
    """One measurement.

    Args:
        mode: ``connect``, ``echo`` or ``broadcast``.
        load: how much of it.
        step: told in a few words how far it has come.
        tick: told now and then for how many seconds it has measured.
    """

    def __init__(
        self,
        mode: str,
        load: Load,
        step: Step = lambda text: None,
        tick: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.report = Report(mode=mode)
        self._load = load
        self._step = step
        self._tick = tick
        self._began = math.inf  # when the measured time began
        self._room = "bench-" + "".join(random.choices(_LETTERS, k=8))  # noqa: S311 - a name
        self._clients: list[Client] = []
        self._numbers: dict[Client, int] = {}
        self._sent_at: dict[str, float] = {}  # broadcasts under way, by their token
        self._number = 0

    async def run(self) -> Report:
        """Measure; what was measured until it is cancelled is in ``report``."""
        watching = asyncio.create_task(self._watch())
        try:
            if self.report.mode == "connect":
                await self._measured(self._connect_again())
            else:
                await self._connect_all()
                self._step(f"{len(self._clients)} clients are connected")
                if self._clients:
                    echo = self.report.mode == "echo"
                    await self._measured(self._echo() if echo else self._broadcast())
        finally:
            watching.cancel()
            await asyncio.gather(*(one.close() for one in self._clients), return_exceptions=True)
        return self.report

    async def _measured(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work that is measured."""
        began, used = time.perf_counter(), _processor_time()
        self._began = began
        self.report.own_lag = 0.0
        try:
            await work
        finally:
            self.report.seconds = time.perf_counter() - began
            self.report.own_load = (_processor_time() - used) / max(self.report.seconds, 1e-9)

    async def _watch(self) -> None:
        """Note how late this process's own loop runs."""
        while True:
            due = time.perf_counter() + _LATE_EACH
            await asyncio.sleep(_LATE_EACH)
            now = time.perf_counter()
            self.report.own_lag = max(self.report.own_lag, now - due)
            if now > self._began:
                self._tick(now - self._began)

    # --- connecting ---------------------------------------------------------

    async def _connect_all(self) -> None:
        turns = asyncio.Semaphore(self._load.at_once)

        async def one() -> None:
            async with turns:
                client = await self._connect()
                if client is not None:
                    self._clients.append(client)

        await asyncio.gather(*(one() for _ in range(self._load.clients)))
        self.report.clients = len(self._clients)

    async def _connect(self, *, prepared: bool = True) -> Client | None:
        load = self._load
        client = Client(
            load.url,
            auth=load.auth,
            path=load.path,
            transports=load.transports,
            reconnection=False,
            timeout=load.answer_within,
        )
        began = time.perf_counter()
        try:
            await client.connect()
            self.report.connects.add(time.perf_counter() - began)
            if prepared:
                if self.report.mode == "broadcast":
                    client.on(load.script.expect, self._received)
                client.on("disconnect", self._lost)
                self._numbers[client] = len(self._numbers)
                for event, args in load.script.first:
                    await self._ask(client, event, args, "")
        except _ERRORS as error:
            self._failed(error)
            await client.close()
            return None
        return client

    async def _connect_again(self) -> None:
        """Connect and leave again, so many at a time, until the time is up."""
        until = time.perf_counter() + self._load.seconds

        async def one() -> None:
            while time.perf_counter() < until:
                client = await self._connect(prepared=False)
                if client is not None:
                    await client.close()
                elif self.report.connects.count == 0:
                    await asyncio.sleep(0.2)  # nobody is there: do not spin

        together = min(self._load.clients, self._load.at_once)
        await asyncio.gather(*(one() for _ in range(together)))
        self.report.clients = self.report.connects.count
        self.report.expected = self.report.connects.count + self.report.failures.total()

    # --- events -------------------------------------------------------------

    async def _echo(self) -> None:
        await self._each(self._round_trip)

    async def _round_trip(self, client: Client, due: float) -> None:
        self.report.sent += 1
        self.report.expected += 1
        script = self._load.script
        try:
            await self._ask(client, script.event, script.args, self._text(""))
        except _ERRORS as error:
            self._failed(error)
        else:
            self.report.answers.add(time.perf_counter() - due)

    async def _broadcast(self) -> None:
        await self._each(self._say)
        # What is under way may still come.
        until = time.perf_counter() + min(2.0, self._load.answer_within)
        while self.report.answers.count < self.report.expected:
            if time.perf_counter() > until:
                break
            await asyncio.sleep(0.02)
        missing = self.report.expected - self.report.answers.count
        if missing > 0:
            self.report.failures["not received"] += missing

    async def _say(self, client: Client, due: float) -> None:
        self._number += 1
        token = f"{self._number:08d}."
        self._sent_at[token] = due
        self.report.sent += 1
        script = self._load.script
        try:
            await self._ask(client, script.event, script.args, self._text(token))
        except _ERRORS as error:
            self._failed(error)
        else:
            self.report.expected += len(self._clients) - 1
        if len(self._sent_at) > 10_000:
            del self._sent_at[next(iter(self._sent_at))]

    def _received(self, *args: Any) -> None:
        token = find_token(args)
        sent_at = self._sent_at.get(token) if token else None
        if sent_at is not None:
            self.report.answers.add(time.perf_counter() - sent_at)

    async def _each(self, work: Callable[[Client, float], Awaitable[None]]) -> None:
        """Have the clients work until the time is up: in a loop each, or at a rate."""
        until = time.perf_counter() + self._load.seconds
        speakers = self._clients
        if self._load.rate:
            await self._at_rate(work, until)
            return
        if self.report.mode == "broadcast":
            speakers = speakers[:1]  # one at a time: everybody hears every one

        async def loop(client: Client) -> None:
            while client.connected and (due := time.perf_counter()) < until:
                await work(client, due)

        await asyncio.gather(*(loop(one) for one in speakers))

    async def _at_rate(
        self, work: Callable[[Client, float], Awaitable[None]], until: float
    ) -> None:
        """Send when it is time, whether or not answers came: late ones count from then."""
        began = until - self._load.seconds
        number = 0
        under_way: set[asyncio.Future[None]] = set()
        while (offset := number / self._load.rate) < self._load.seconds:
            due = began + offset
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            client = self._clients[number % len(self._clients)]
            if client.connected:
                task = asyncio.ensure_future(work(client, due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            number += 1
        if under_way:
            await asyncio.wait(under_way, timeout=self._load.answer_within)

    async def _ask(self, client: Client, event: str, args: Sequence[Any], text: str) -> None:
        """Send an event and wait for its acknowledgement.

        Raises:
            RefusedError: the application acknowledged it with ``{"ok": false}``.
            SocketIOError: there was no acknowledgement.
        """
        places = {
            "{room}": self._room,
            "{client}": str(self._numbers.get(client, 0)),
            "{text}": text,
        }
        filled = [fill(one, places) for one in args]
        answer = await client.timeout(self._load.answer_within).emit_with_ack(event, *filled)
        if isinstance(answer, dict) and answer.get("ok") is False:
            raise RefusedError(f"{event}: {answer.get('error', '')}")

    def _lost(self, reason: str, _error: object = None) -> None:
        if reason != "io client disconnect":
            self.report.failures[f"lost: {reason}"] += 1

    def _failed(self, error: BaseException) -> None:
        name = type(error).__name__
        text = str(error).partition("\n")[0][:80]
        self.report.failures[f"{name}: {text}" if text else name] += 1

    def _text(self, token: str) -> str:
        return token + "x" * max(0, self._load.size - len(token))


def fill(value: Any, places: Mapping[str, str]) -> Any:
    """Return an argument with its places filled in, however deep they are."""
    if isinstance(value, str):
        for place, text in places.items():
            value = value.replace(place, text)
        return value
    if isinstance(value, (list, tuple)):
        return [fill(one, places) for one in value]
    if isinstance(value, dict):
        return {key: fill(one, places) for key, one in value.items()}
    return value


def find_token(value: Any) -> str:
    """Return the token that a broadcast's text begins with, wherever in the arguments it is."""
    if isinstance(value, str):
        return value[:9] if len(value) >= 9 and value[8] == "." and value[:8].isdigit() else ""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            if token := find_token(one):
                return token
    return ""


def arguments(text: str) -> list[Any]:
    """Read the arguments of an event from JSON: a list of them, or the only one.

    Raises:
        ValueError: it is no JSON.
    """
    found = json.loads(text)
    return found if isinstance(found, list) else [found]


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
