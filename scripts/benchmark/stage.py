"""What a scenario stands on: the loop, the server's processes, the measured window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from scripts.benchmark.accounting import CpuWindow, cpu_ns, pss_kib
from scripts.benchmark.clients import Target, WebSocketClient
from scripts.benchmark.loop import Loop
from scripts.benchmark.verify import Findings

T = TypeVar("T")

ANSWER_TIMEOUT: Final = 10.0
"""Seconds after which a connection without an answer counts as lost; Socket.IO itself waits 45."""

_DRAIN: Final = 5.0
_NOTES: Final = 5


class BenchError(Exception):
    """A scenario could not be run to its end; the message says why."""


@dataclass(slots=True, kw_only=True)
class Job:
    """One scenario against one running server, as told to the generator process."""

    scenario: str
    host: str
    port: int
    pids: list[int]
    roles: dict[int, str]
    workers: int = 1
    pause: float = 0.0
    quick: bool = False
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What came of a job."""

    operations: int = 0
    cpu_ns: int = 0
    wall_ns: int = 0
    generator_ns: int = 0
    """CPU time of the generator in the window: tells whether the server had to wait for it."""
    by_role: dict[str, int] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    """Figures that are no CPU time per operation."""
    findings: Findings = field(default_factory=Findings)
    notes: list[str] = field(default_factory=list)
    complete: bool = True
    """Whether the scenario came to its end."""


class Stage:
    """One job being played: opens clients, measures windows, collects findings."""

    def __init__(self, job: Job, *, read_size: int = 16384) -> None:
        self.job = job
        self.loop = Loop(read_size)
        self.target = Target(job.host, job.port, pause=job.pause)
        self.outcome = Outcome()
        self.findings = self.outcome.findings

    def pick(self, full: T, quick: T) -> T:
        """Return the parameter of a full or of a quick run."""
        return quick if self.job.quick else full

    def open(
        self, count: int, *, at_once: int = 50, spread_sources: bool = False
    ) -> list[WebSocketClient]:
        """Open so many clients, `at_once` at a time, each with CONNECT answered.

        One that gets no answer is counted and replaced.

        Raises:
            BenchError: more fail than a fiftieth of them.
        """
        opening = _Opening(self, count, at_once, spread_sources=spread_sources)
        return opening.run()

    def close(self, clients: Iterable[WebSocketClient]) -> None:
        """Close the clients and wait until the server has done its part."""
        for client in clients:
            client.close()
        self.settle()

    def settle(self, timeout: float = 10.0) -> None:
        """Wait until the server's processes use less than 3 % of a core."""
        deadline = time.monotonic() + timeout
        before = sum(map(cpu_ns, self.job.pids))
        while time.monotonic() < deadline:
            self.loop.run_for(0.1)
            now = sum(map(cpu_ns, self.job.pids))
            if now - before < 3_000_000:
                return
            before = now

    def drain(self, done: Callable[[], bool]) -> None:
        """Wait for what is still under way; what does not come is told by the verifier."""
        self.loop.run_until(done, _DRAIN)

    def note(self, text: str) -> None:
        """Remember something to tell, the first few of them."""
        if len(self.outcome.notes) < _NOTES:
            self.outcome.notes.append(text)

    def window(self, seconds: float, count: Callable[[], int]) -> None:
        """Let run and measure: CPU of the server, and how far `count` went."""
        before = count()
        window = self.start_window()
        self.loop.run_for(seconds)
        self.end_window(window, count() - before)

    def start_window(self) -> CpuWindow:
        """Begin to count the server's CPU time."""
        return CpuWindow(self.job.pids, self.job.roles)

    def end_window(self, window: CpuWindow, operations: int) -> None:
        """Take the window and its operations into the outcome."""
        outcome = self.outcome
        outcome.cpu_ns += window.close()
        outcome.wall_ns += window.wall_ns
        outcome.generator_ns += window.own_ns
        outcome.operations += operations
        for name, used in window.by_role.items():
            outcome.by_role[name] = outcome.by_role.get(name, 0) + used

    def pss_kib(self) -> int:
        """Return the server's memory in KiB."""
        return pss_kib(self.job.pids)

    def call_all(
        self, clients: Iterable[WebSocketClient], event: str, *args: object
    ) -> list[object]:
        """Emit an event from every client; the first argument of each acknowledgement.

        Raises:
            BenchError: an acknowledgement does not come.
        """
        answers: list[object] = []
        sent = 0
        for client in clients:
            sent += 1
            client.call(event, *args, answer=lambda values: answers.append(values[0]))
        if not self.loop.run_until(lambda: len(answers) == sent, ANSWER_TIMEOUT):
            self.findings.lost += sent - len(answers)
            raise BenchError(f"{sent - len(answers)} of {sent} acknowledgements of {event} missing")
        return answers

    def whereabouts(self, clients: list[WebSocketClient]) -> dict[int, list[WebSocketClient]]:
        """Return the clients by the pid of the worker that serves them."""
        found: dict[int, list[WebSocketClient]] = {}
        answered = 0

        def note(client: WebSocketClient) -> Callable[[list[object]], None]:
            def take(values: list[object]) -> None:
                nonlocal answered
                answered += 1
                found.setdefault(int(str(values[0])), []).append(client)

            return take

        for client in clients:
            client.call("whoami", answer=note(client))
        if not self.loop.run_until(lambda: answered == len(clients), ANSWER_TIMEOUT):
            raise BenchError(f"{len(clients) - answered} clients do not learn their worker")
        return found


class _Opening:
    """Opens many clients with a bound on how many are under way."""

    def __init__(self, stage: Stage, count: int, at_once: int, *, spread_sources: bool) -> None:
        self._stage = stage
        self._count = count
        self._at_once = at_once
        self._spread = spread_sources
        self._pending: dict[WebSocketClient, float] = {}
        self._open: list[WebSocketClient] = []
        self._started = 0
        self._failed = 0

    def run(self) -> list[WebSocketClient]:
        """Open them all."""
        self._more()
        self._sweep()
        everything = self._stage.loop.run_until(
            lambda: len(self._open) >= self._count or self._failed > 20 + self._count // 50,
            60.0 + self._count / 100,
        )
        failed, self._failed = self._failed, 1 << 30  # ends the sweeping
        if not everything or len(self._open) < self._count:
            raise BenchError(f"only {len(self._open)} of {self._count} connected, {failed} failed")
        for client in self._open:
            client.on_lost = self._dropped
        return self._open

    def _more(self) -> None:
        while (
            len(self._pending) < self._at_once
            and len(self._open) + len(self._pending) < self._count
            and self._failed <= 20 + self._count // 50
        ):
            self._start()

    def _start(self) -> None:
        def ready() -> None:
            if self._pending.pop(client, None) is not None:
                self._open.append(client)
                self._more()

        def lost() -> None:
            if self._pending.pop(client, None) is not None:
                self._failed += 1
                self._stage.findings.refused += 1
                # Not at once: a server that refuses would be asked without pause.
                self._stage.loop.call_later(0.05, self._more)

        source = self._started if self._spread else -1
        client = WebSocketClient(self._stage.loop, self._stage.target, ready, lost, source=source)
        self._started += 1
        self._pending[client] = time.monotonic()

    def _dropped(self) -> None:
        """Count a connection that the server ends in the middle of a scenario."""
        self._stage.findings.refused += 1

    def _sweep(self) -> None:
        """Give up on connections that wait too long."""
        if len(self._open) >= self._count or self._failed >= 1 << 30:
            return
        limit = time.monotonic() - ANSWER_TIMEOUT
        for client in [each for each, since in self._pending.items() if since < limit]:
            del self._pending[client]
            client.close()
            self._failed += 1
            self._stage.findings.unanswered += 1
        self._more()
        self._stage.loop.call_later(0.25, self._sweep)
