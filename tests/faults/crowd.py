"""Many clients at work while something is killed, and what each of them noticed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol, Self

from harness import RunningCluster
from limpet_balancer.channel import ask_stats
from limpet_cluster.api_client import ApiError, NoAnswerError, NotReachableError
from raw_clients import Address, BadAnswerError, Client, EndedError, eventually

ANSWER: Final = 20.0
"""Seconds after which an answer counts as lost; some wait for a process that stands still."""
UNNOTICED: Final = 5.0
"""Seconds that the slowest answer of an undisturbed client may take while another process starts
on the same two cores, which pause now and then; on a quiet machine it is 0.03."""
BATCH: Final = 20
"""So many come at a time: whoever is slow to take many at once is given less, on purpose."""


class Failure(NamedTuple):
    """An attempt to connect that failed."""

    began: float
    error: str
    ended: bool
    """The connection was made and ended without an answer; not refused and no bad status."""
    at: float
    """When it had failed."""


async def attempt(client: Client, failures: list[Failure], timeout: float = 10.0) -> bool:
    """Connect; note and return whether that worked."""
    began = time.monotonic()
    try:
        await client.connect(timeout)
    except (EndedError, ConnectionResetError) as error:
        # A reset is of a connection that was made, also where it comes before we know of that.
        failures.append(Failure(began, repr(error), ended=True, at=time.monotonic()))
    except (BadAnswerError, OSError, TimeoutError) as error:
        # A session that was opened and died before the client was connected is no more an
        # attempt that failed than one that was connected already.
        ended = bool(client.sid) and isinstance(error, BadAnswerError) and error.status == 400
        failures.append(Failure(began, repr(error), ended=ended, at=time.monotonic()))
    else:
        return True
    return False


class Caller:
    """A client that calls and calls, and comes back as stock clients do when it is lost."""

    def __init__(self, crowd: Crowd, name: str, transport: str) -> None:
        self.crowd = crowd
        self.name = name
        self.transport = transport
        self.client: Client
        self.pid = 0
        """Of its worker; 0 while it is not in the crowd's room."""
        self.calls = 0
        self.slowest = 0.0
        """Seconds that the slowest answer since `Crowd.mark` took."""
        self.losses: list[str] = []
        self.heard: dict[str, list[int]] = {}
        """Numbers heard from each publisher, in order of their arrival."""

    async def run(self) -> None:
        """Come, call until lost, come back; until the crowd ends."""
        crowd = self.crowd
        while not crowd.ending:
            self.client = Client(crowd.address, self.transport, problems=crowd.problems)
            self.client.on_event = self._event
            if not await attempt(self.client, crowd.failures):
                await asyncio.sleep(_back_off())
                continue
            try:
                self.pid = await self.client.call("join", crowd.room)
                await self._call()
            except EndedError as error:
                self.pid = 0
                self.losses.append(str(error))
                if not crowd.returns:
                    return
                await asyncio.sleep(_back_off())
            except TimeoutError:
                crowd.problems.append(f"{self.name}: no answer {self.calls} in {ANSWER:g} s")
                return
            finally:
                await self.client.close()

    async def _call(self) -> None:
        crowd, client = self.crowd, self.client
        await asyncio.wait({client.ended}, timeout=random.random() * crowd.pause)
        while not crowd.ending:
            began = time.monotonic()
            self.calls += 1
            asked = [self.name, self.calls]
            answer = await client.call_all("echo", *asked, timeout=ANSWER)
            if answer != asked:
                crowd.problems.append(f"{self.name}: {asked} was answered {answer}")
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.wait({client.ended}, timeout=crowd.pause)

    def _event(self, event: str, args: list[Any]) -> None:
        if event != "said":
            self.crowd.problems.append(f"{self.name}: unexpected event {event} {args}")
            return
        publisher, number = args
        numbers = self.heard.setdefault(publisher, [])
        if numbers and number <= numbers[-1]:
            self.crowd.problems.append(
                f"{self.name}: {publisher}'s {number} came after {numbers[-1]}"
            )
        numbers.append(number)


class Crowd:
    """Callers, all in one room, from ``async with`` on.

    Args:
        cluster: where they connect.
        size: how many.
        polling: how many of them poll; the others use WebSockets.
        pause: seconds between an answer and the next call of a caller.
        room: where all of them are.
        returns: whether those that are lost come back.
    """

    def __init__(
        self,
        cluster: RunningCluster,
        size: int,
        *,
        polling: int = 0,
        pause: float = 0.5,
        room: str = "crowd",
        returns: bool = True,
    ) -> None:
        self.address: Address = cluster.address
        self.pause = pause
        self.room = room
        self.returns = returns
        self.ending = False
        self.problems: list[str] = []
        """What must never happen."""
        self.failures: list[Failure] = []
        """Attempts to connect that failed, the first ones and those to come back."""
        self.callers = [
            Caller(self, f"caller-{n}", "polling" if n < polling else "websocket")
            for n in range(size)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for first in range(0, len(self.callers), BATCH):
            batch = self.callers[first : first + BATCH]
            self._tasks += [asyncio.create_task(caller.run()) for caller in batch]
            await self._there(batch, 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ending = True
        try:
            async with asyncio.timeout(ANSWER + 10):
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()

    async def complete(self, timeout: float) -> float:
        """Wait until all are in the room and return how long that took."""
        return await self._there(self.callers, timeout)

    async def _there(self, callers: list[Caller], timeout: float) -> float:
        return await eventually(
            lambda: all(caller.pid for caller in callers),
            timeout,
            lambda: (
                f"{sum(not caller.pid for caller in callers)} of {len(callers)} are "
                f"not there: {self.problems[:5]} {self.failures[:5]}"
            ),
        )

    def of(self, pid: int) -> list[Caller]:
        """Those whose worker has that pid."""
        return [caller for caller in self.callers if caller.pid == pid]

    def mark(self) -> None:
        """Measure the slowest answers from now."""
        for caller in self.callers:
            caller.slowest = 0.0

    @property
    def ids(self) -> set[str]:
        """The socket ids of all."""
        return {caller.client.id for caller in self.callers}


def assert_undisturbed(callers: Iterable[Caller], slowest: float) -> None:
    """Fail when one of them was lost or had to wait longer than that."""
    for caller in callers:
        assert not caller.losses, f"{caller.name} ({caller.transport}) was lost: {caller.losses}"
        assert caller.slowest < slowest, f"{caller.name} ({caller.transport}) waited"


@asynccontextmanager
async def working(work: Callable[[], Awaitable[None]], pause: float) -> AsyncIterator[None]:
    """Do something again and again meanwhile; what it raises comes out at the end."""

    async def repeat() -> None:
        while not done:
            await work()
            await asyncio.sleep(pause)

    done = False
    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        done = True
    await asyncio.wait_for(task, ANSWER + 10)


async def kill(pid: int) -> float:
    """End a process by SIGKILL and return when it was gone."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, gone.set)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await asyncio.wait_for(gone.wait(), 20)
        return time.monotonic()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def balancer(cluster: RunningCluster) -> dict[str, Any]:
    """The figures of the balancer."""
    return await ask_stats(cluster.run_directory / "balancer.sock", 10)


async def settled(cluster: RunningCluster, condition: Callable[[dict[str, Any]], object]) -> None:
    """Wait until the balancer's figures are as a test wants them to begin with."""
    deadline = time.monotonic() + 20
    while not condition(figures := await balancer(cluster)):
        assert time.monotonic() < deadline, figures
        await asyncio.sleep(0.05)


class Losing(Protocol):
    """A client that notes how it was cut off."""

    @property
    def losses(self) -> Sequence[object] | int:
        """Each time, or how often."""


async def noticed(lost: Sequence[Losing], timeout: float) -> None:
    """Wait until those whose worker has ended know it: they read of it after that, and who polls
    by the next poll only."""
    await eventually(lambda: all(one.losses for one in lost), timeout, "not all have noticed")


def taking(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The workers that the balancer gives sessions to; it may know it after the supervisor."""
    return [one for one in figures["workers"] if one["ready"] and not one["draining"]]


def all_open(figures: dict[str, Any]) -> bool:
    """Whether two workers take sessions."""
    return len(taking(figures)) == 2


def members(cluster: RunningCluster, room: str) -> tuple[set[str], bool]:
    """The socket ids in a room, as the HTTP API shows them, and whether it says that is all."""
    shown: list[str] = []
    complete = True
    cursor = None
    while True:
        page = cluster.api.get(
            "rooms", room, "members", view="connections", limit=1000, cursor=cursor
        )
        shown += [one["socket_id"] for one in page["data"]]
        complete = complete and page["complete"]
        first, cursor = cursor is None, page["next_cursor"]
        if cursor is None:
            break
    assert len(shown) == len(set(shown))
    assert not first or len(shown) == page["total"]  # later pages may be of another moment
    return set(shown), complete


async def shows(cluster: RunningCluster, room: str, wanted: set[str], timeout: float) -> float:
    """Wait until the API shows exactly these and says so; return how long that took."""
    began = asked = time.monotonic()
    shown: tuple[set[str], bool] | None = None
    while shown != (wanted, True):
        late = asked - began > timeout
        if late and shown is None:
            raise AssertionError("the API does not answer")
        if late and shown is not None:
            more, less = shown[0] - wanted, wanted - shown[0]
            raise AssertionError(f"{len(more)} too many, {len(less)} too few; complete: {shown[1]}")
        asked = time.monotonic()
        try:
            shown = await asyncio.to_thread(members, cluster, room)
        except (ApiError, NoAnswerError, NotReachableError):  # its hub has just been killed
            await asyncio.sleep(0.01)
    return time.monotonic() - began


def _back_off() -> float:
    """Seconds before a stock client's first attempt to come back."""
    return random.uniform(0.5, 1.5)
