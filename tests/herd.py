"""Hundreds of cheap clients in one process that live through restarts, and what each noticed.

They come back as stock clients do, and note every attempt that failed, every loss, and every number
of a counting source that did not come.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Final, NamedTuple, Self, TypeVar

import uvloop

from faults.crowd import Failure, attempt, balancer, taking
from harness import RunningCluster
from raw_clients import Address, Client, EndedError, eventually

T = TypeVar("T")

ANSWER: Final = 10.0
"""Seconds after which an answer counts as lost."""
_FIRST: Final = 1.0
_LONGEST: Final = 5.0
_SPREAD: Final = 0.5


def run(story: Coroutine[Any, Any, T]) -> T:
    """Run a test's story on uvloop: there are many clients."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(story)


def back_off(failures: int) -> float:
    """Return a stock client's pause in seconds, after so many failed attempts in a row."""
    pause = min(_LONGEST, _FIRST * 2.0**failures)
    return pause * random.uniform(1 - _SPREAD, 1 + _SPREAD)


class Loss(NamedTuple):
    """A connection that ended on the other side."""

    at: float
    reason: str
    worker: int
    """Pid of the worker it was at; 0 when it had not got so far."""
    pause: float
    """The back-off drawn then."""


class Hole(NamedTuple):
    """Numbers of one source that a client did not hear, between two that it heard."""

    at: float
    source: str
    first: int
    after: int
    """The number that came instead of ``first``."""


class _Ear(Client):
    """A client that takes numbers without a detour over JSON."""

    member: Member

    def packet(self, packet: str) -> None:
        if packet.startswith('42["n","'):
            source, _, number = packet[8:-1].partition('",')
            self.member.heard(source, int(number))
        else:
            super().packet(packet)


class Member:
    """One client of a herd."""

    __slots__ = (
        "client",
        "gaps",
        "herd",
        "holes",
        "late",
        "life",
        "losses",
        "name",
        "next",
        "numbers",
        "pid",
        "slowest",
        "task",
        "transport",
    )

    def __init__(self, herd: Herd, name: str, transport: str) -> None:
        self.herd = herd
        self.name = name
        self.transport = transport
        self.client: _Ear | None = None  # until the first attempt
        self.pid = 0
        """Of its worker; 0 while it is not connected and in its rooms."""
        self.life = ""
        """Of its worker, likewise."""
        self.next: dict[str, int] = {}
        """The number that comes next of each source heard since it connected."""
        self.numbers = 0
        """How many were heard, over all connections."""
        self.losses: list[Loss] = []
        self.holes: list[Hole] = []
        self.gaps: list[tuple[float, str, str]] = []
        """When its worker was told of a gap of the bus, of which kind, and why."""
        self.late: list[float] = []
        """Seconds from the end of each back-off until it was connected again."""
        self.slowest = 0.0
        """Seconds that the slowest answer since `Herd.mark` took."""
        self.task: asyncio.Task[None] | None = None  # until `Herd.add`

    @property
    def id(self) -> str:
        """Its socket id."""
        return self.client.id if self.client is not None else ""

    def heard(self, source: str, number: int) -> None:
        """Take a number; what came before is no hole, what is left out is."""
        self.numbers += 1
        expected = self.next.get(source, number)
        if number < expected:
            if source not in self.herd.repeating:
                self.herd.problems.append(f"{self.name}: {source}'s {number} after {expected - 1}")
            return
        if number > expected:
            self.holes.append(Hole(time.monotonic(), source, expected, number))
        self.next[source] = number + 1

    async def run(self) -> None:
        """Come, stay until lost, come back; until the herd ends."""
        herd = self.herd
        tries = 0
        due = 0.0
        while True:
            self.client = client = _Ear(herd.address, self.transport, problems=herd.problems)
            client.member = self
            client.on_event = self._event
            self.next = {}
            if not await attempt(client, herd.failures):
                await asyncio.sleep(back_off(tries))
                tries += 1
                continue
            tries = 0
            if due:
                self.late.append(time.monotonic() - due)
            pid = 0
            try:
                pid, self.life = await client.call("enter", *herd.rooms)
                self.pid = pid
                await self._stay(client)
            except EndedError as error:
                self.pid, self.life = 0, ""
                pause = back_off(0)
                self.losses.append(Loss(time.monotonic(), str(error), pid, pause))
                due = time.monotonic() + pause
                await client.close()
                await asyncio.sleep(pause)
            except TimeoutError:
                herd.problems.append(f"{self.name}: no answer in {ANSWER:g} s")
                return

    async def _stay(self, client: _Ear) -> None:
        pause = self.herd.pause
        if not pause:
            raise EndedError(await asyncio.shield(client.ended))
        await asyncio.wait({client.ended}, timeout=random.random() * pause)
        for number in range(1_000_000):
            began = time.monotonic()
            answer = await client.call_all("echo", self.name, number, timeout=ANSWER)
            if answer != [self.name, number]:
                self.herd.problems.append(f"{self.name}: {number} was answered {answer}")
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.wait({client.ended}, timeout=pause)

    def _event(self, event: str, args: list[Any]) -> None:
        if event == "gap":
            self.gaps.append((time.monotonic(), *args))
        else:
            self.herd.problems.append(f"{self.name}: unexpected event {event} {args}")


class Herd:
    """Members that come with `add` and stay until the end of ``async with``.

    Args:
        address: where they connect.
        pause: seconds between an answer and the next call of a member; 0: they only listen.
        rooms: where all of them are.
        repeating: sources that may say a number again; from others that is a problem.
    """

    def __init__(
        self,
        address: Address,
        *,
        pause: float = 1.0,
        rooms: Iterable[str] = (),
        repeating: Iterable[str] = (),
    ) -> None:
        self.address = address
        self.pause = pause
        self.rooms = tuple(rooms)
        self.repeating = frozenset(repeating)
        self.members: list[Member] = []
        self.problems: list[str] = []
        """What must never happen."""
        self.failures: list[Failure] = []
        """Attempts to connect that failed, the first ones and those to come back."""
        self._names = itertools.count()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remove(list(self.members))

    def add(self, count: int, *, polling: int = 0) -> list[Member]:
        """Let members come; the first ``polling`` of them poll, the others use WebSockets."""
        added = [
            Member(self, f"member-{next(self._names)}", "polling" if n < polling else "websocket")
            for n in range(count)
        ]
        for member in added:
            member.task = asyncio.create_task(member.run())
        self.members += added
        return added

    async def remove(self, members: list[Member]) -> None:
        """Let members leave; what ended one of them unexpectedly is raised."""
        for member in members:
            self.members.remove(member)
            if member.task is not None:
                member.task.cancel()
        tasks = [member.task for member in members if member.task is not None]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(
            *(member.client.close() for member in members if member.client is not None)
        )
        for result in ended:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    async def complete(self, timeout: float, members: Iterable[Member] = ()) -> float:
        """Wait until these, or all, are connected and in their rooms; return how long it took."""
        awaited = list(members) or self.members
        return await eventually(
            lambda: all(member.pid for member in awaited),
            timeout,
            lambda: (
                f"{sum(not member.pid for member in awaited)} of {len(awaited)} are not there "
                f"after {timeout:g} s: {self.problems[:5]} {self.failures[-5:]}"
            ),
        )

    def mark(self) -> None:
        """Forget losses, holes, gaps, and times until now; failures and problems stay."""
        for member in self.members:
            member.slowest = 0.0
            for noted in (member.losses, member.holes, member.gaps, member.late):
                noted.clear()

    def of(self, pid: int) -> list[Member]:
        """Those whose worker has that pid."""
        return [member for member in self.members if member.pid == pid]

    @property
    def ids(self) -> set[str]:
        """The socket ids of all."""
        return {member.id for member in self.members}


class Source:
    """Says 1, 2, 3, … to everybody, each number once it knows that the one before was said.

    It is a few members of the herd; when the one that speaks is lost, another says the number
    again whose acknowledgement did not come. So every number is said, and in order, whatever
    becomes of single workers.
    """

    NAME: Final = "source"
    """Belongs into the herd's ``repeating``."""

    def __init__(self, herd: Herd, period: float) -> None:
        self.period = period
        self._herd = herd
        self.said = 0
        """The last number that is known to be said."""
        self.voices = herd.add(3)
        self.changes = 0
        """How often another member had to go on."""
        self._ending = False
        self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Say no more; the last number has been said then."""
        self._ending = True
        await asyncio.wait_for(self._task, 30)

    async def _run(self) -> None:
        voice = await self._next()
        due = time.monotonic()
        while not self._ending:
            number = self.said + 1
            while self.said < number:
                try:
                    self.said = await voice.call("say", self.NAME, number)
                except EndedError:
                    await self._settled()
                    voice = await self._next()
                    self.changes += 1
            due = max(due + self.period, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _settled(self) -> None:
        """Wait until all have heard what was said last: what another says might overtake it.

        Not for ever: who misses it is to have a hole.
        """
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and any(
            member.pid and member.next.get(self.NAME, self.said + 1) <= self.said
            for member in self._herd.members
        ):
            await asyncio.sleep(0.01)

    async def _next(self) -> Client:
        while True:
            for voice in self.voices:
                if voice.pid and voice.client is not None and voice.client.reason is None:
                    return voice.client
            await asyncio.sleep(0.01)


async def routed(cluster: RunningCluster, *pids: int) -> None:
    """Wait until the balancer sends newcomers to these workers only: it is told beside all else."""
    async with asyncio.timeout(15):
        while {one["pid"] for one in taking(await balancer(cluster))} != set(pids):
            await asyncio.sleep(0.02)


class Answer(NamedTuple):
    """What a command did."""

    code: int
    output: str
    errors: str
    took: float
    """Seconds."""


async def command(cluster: RunningCluster, *words: str, timeout: float = 120.0) -> Answer:
    """Run a ``limpet`` command on a cluster as operators do."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "limpet", *words, f"--run-dir={cluster.run_directory}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError(f"limpet {' '.join(words)} took more than {timeout:g} s") from None
    code = process.returncode
    assert code is not None
    return Answer(code, output.decode(), errors.decode(), time.monotonic() - began)
