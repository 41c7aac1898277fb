"""Chaos: what is done to a cluster is drawn from a seed, what must hold after it is DESIGN's table.

A round strikes one process, then asks for each promise that a fault of this kind leaves standing.
Deadlines are ten times what is promised; orders, counts and causes are exact.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any, Final, NamedTuple

import psutil  # type: ignore[import-untyped]
import socketio

from faults.crowd import UNNOTICED, Failure, attempt, balancer, kill, members, noticed, shows
from harness import RunningCluster
from herd import Herd, Member
from limpet_cluster.api_client import ApiError, NoAnswerError, NotReachableError
from raw_clients import Client, eventually

DECK: Final = ("worker", "worker", "hub", "hub", "balancer", "balancer", "stall", "supervisor")
"""Who is struck in eight rounds in a row, shuffled: each kind of process dies in each eight."""
STALLED: Final = ("worker", "worker", "hub", "balancer")
"""Who may be the one that is stopped instead of killed."""
ROOM: Final = "everybody"
PRESENCE: Final = 1.0
"""Seconds until presence shows none of the dead; promised are 0.1."""
BACK: Final = 10.0
"""Seconds until clients, bus or slot are back; promised is 1."""
PATIENCE: Final = 30.0
"""Seconds that somebody new waits: as long as it takes to replace a process that stands still."""
LONGEST_PAUSE: Final = 7.5
"""Seconds between two attempts of a client to come back, at most."""
ABANDONED: Final = 10.0
"""Seconds until a session is closed whose client has gone without a word: the application's ping
interval and timeout. Who gives up while the cluster starts leaves such a session."""


class Blow(NamedTuple):
    """What one round does."""

    kind: str
    """``kill``: SIGKILL; ``stall``: SIGSTOP, and whoever watches it must replace it."""
    target: str
    """The process, as the supervisor calls it; or the supervisor."""
    wait: float
    """Seconds of calm before."""

    def __str__(self) -> str:
        return f"{'SIGSTOP' if self.kind == 'stall' else 'SIGKILL'} of {self.target}"


def plan(seed: int, rounds: int, workers: int) -> list[Blow]:
    """Return what the rounds of a seed do; the same for the same seed."""
    chance = random.Random(seed)
    blows: list[Blow] = []
    while len(blows) < rounds:
        for card in chance.sample(DECK, len(DECK)):
            kind = "stall" if card == "stall" else "kill"
            role = chance.choice(STALLED) if card == "stall" else card
            target = f"worker-{chance.randrange(workers)}" if role == "worker" else role
            blows.append(Blow(kind, target, chance.uniform(0.0, 0.5)))
    return blows[:rounds]


class Newcomers:
    """Clients that connect one after the other: some poll and leave, some vanish without a word."""

    def __init__(self, cluster: RunningCluster, problems: list[str]) -> None:
        self.cluster = cluster
        self.problems = problems
        self.failures: list[Failure] = []
        self.came = 0
        self._wanted = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._tasks = [asyncio.create_task(self._visit(n)) for n in range(3)]
        self._busy = len(self._tasks)

    async def _visit(self, first: int) -> None:
        for number in count(first):
            if not self._wanted.is_set():
                self._busy -= 1
                if not self._busy:
                    self._at_rest.set()
                await self._wanted.wait()
                self._busy += 1
            transport = ("websocket", "polling")[number % 2]
            client = Client(self.cluster.address, transport, problems=self.problems)
            client.on_event = lambda _event, _args: None
            if await attempt(client, self.failures, PATIENCE):
                self.came += 1
                await client.close()
            await asyncio.sleep(0.03)

    def go(self) -> None:
        """Come and come again from now."""
        self._at_rest.clear()
        self._wanted.set()

    async def rest(self) -> None:
        """Come no more until `go`; return when the last has gone."""
        self._wanted.clear()
        await asyncio.wait_for(self._at_rest.wait(), PATIENCE + 10)

    async def end(self) -> None:
        """Go away for good."""
        await self.rest()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Stock:
    """A python-socketio client as it comes: polling, then WebSocket, and its own reconnecting."""

    def __init__(self, cluster: RunningCluster) -> None:
        self.cluster = cluster
        self.client = socketio.AsyncClient()
        self.pid = 0
        """Of its worker; 0 while it is not connected and in the room."""
        self.id = ""
        self.losses = 0
        self.client.on("connect", self._connected)
        self.client.on("disconnect", self._lost)
        self.client.on("n", lambda *_: None)

    async def start(self) -> None:
        """Connect for the first time."""
        await self.client.connect(self.cluster.url, wait_timeout=10)

    async def end(self) -> None:
        """Leave."""
        await self.client.disconnect()
        await self.client.shutdown()

    async def _connected(self) -> None:
        await self.client.emit("enter", (ROOM,), callback=self._entered)

    def _entered(self, answer: list[Any]) -> None:
        self.id = str(self.client.get_sid())
        self.pid = answer[0]

    def _lost(self, *_: object) -> None:
        self.pid = 0
        self.losses += 1


class Chaos:
    """A cluster under load, and the rounds it is to live through.

    Args:
        cluster: of three workers that count aloud, with a short ``--stall-after``.
        seed: of the rounds, for messages.
        stall_after: what the cluster was started with.
    """

    def __init__(self, cluster: RunningCluster, seed: int, stall_after: float) -> None:
        self.cluster = cluster
        self.seed = seed
        self.stall_after = stall_after
        self.herd = Herd(cluster.address, pause=0.5, rooms=(ROOM,))
        self.newcomers = Newcomers(cluster, self.herd.problems)
        self.stock = [Stock(cluster) for _ in range(4)]
        self.pids: dict[str, int] = {}
        """Of all processes, when the round began."""
        self.files: list[str] = []
        """What lies in the run directory of a whole cluster."""
        self.struck: Counter[str] = Counter()
        """Ends of each process since its supervisor began."""

    async def begin(self, websockets: int, polling: int) -> None:
        """Let everybody come."""
        self.herd.add(websockets + polling, polling=polling)
        await asyncio.gather(*(one.start() for one in self.stock))
        await self._all_back(20)
        self.files = self._files()
        await self._settled()

    async def end(self) -> None:
        """Let everybody go."""
        await self.newcomers.end()
        await asyncio.gather(*(one.end() for one in self.stock))
        await self.herd.remove(list(self.herd.members))

    async def play(self, number: int, blow: Blow) -> None:
        """Play one round.

        Raises:
            AssertionError: a promise was not kept; says all that is needed to repeat it.
        """
        began = time.monotonic()
        try:
            await self._play(blow)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(
                f"seed {self.seed}, round {number}, {blow}: {str(error) or type(error).__name__}\n"
                f"{self.cluster.text[-6000:]}"
            ) from error
        print(f"round {number}, {blow}: {time.monotonic() - began:.1f} s", flush=True)

    # --- a round ------------------------------------------------------------------------------

    async def _play(self, blow: Blow) -> None:
        herd, cluster = self.herd, self.cluster
        self.pids = await asyncio.to_thread(lambda: cluster.pids)
        herd.failures.clear()
        await self._spread()
        herd.mark()
        self.newcomers.failures.clear()
        for one in self.stock:
            one.losses = 0
        self.newcomers.go()
        came = self.newcomers.came
        await asyncio.sleep(blow.wait)
        await {
            "worker": self._lose_worker,
            "hub": self._lose_hub,
            "balancer": self._lose_balancer,
            "supervisor": self._lose_supervisor,
        }[blow.target.partition("-")[0]](blow)
        await self._bus_works()
        await eventually(lambda: self.newcomers.came - came > 5, BACK, "nobody new has come")
        await self.newcomers.rest()
        await self._settled()
        self._nothing_left_behind()
        assert herd.problems == []
        if blow.target != "hub":
            self._no_holes()

    async def _spread(self) -> None:
        """Let some go and others come, so that a worker that has just been started has somebody."""
        herd = self.herd
        pids = [pid for name, pid in self.pids.items() if name.startswith("worker-")]
        there = {pid: herd.of(pid) for pid in pids}
        fair = len(herd.members) // len(pids)
        leaving = [member for some in there.values() for member in some[fair:]]
        await herd.remove(leaving)
        herd.add(len(leaving), polling=sum(one.transport == "polling" for one in leaving))
        await herd.complete(BACK)
        assert herd.failures == []

    async def _strike(self, blow: Blow) -> tuple[float, float]:
        """Return when the process was struck, and when it was gone."""
        pid = self.pids[blow.target]
        struck = time.monotonic()
        if blow.kind == "kill":
            return struck, await kill(pid)
        os.kill(pid, signal.SIGSTOP)
        # Silence, two seconds to say where it stands, and the end.
        await eventually(
            lambda: not psutil.pid_exists(pid), self.stall_after + 2 + BACK, "it is not replaced"
        )
        return struck, time.monotonic()

    async def _lose_worker(self, blow: Blow) -> None:
        pid = self.pids[blow.target]
        everybody = self._everybody
        lost = [one for one in everybody if one.pid == pid]
        others = [one for one in everybody if one.pid != pid]
        assert lost, "nobody is at the worker that is struck"
        dead = {one.id for one in lost}
        living = {one.id for one in others}
        struck, died = await self._strike(blow)
        await self._forgotten(dead, living, died)
        await noticed(lost, BACK)
        await self._all_back(BACK)
        # What it was sent after it was stopped, it has not taken: that is sent elsewhere.
        self._first_attempts_served(struck, struck if blow.kind == "stall" else died)
        self._undisturbed(others)
        assert {len(one.losses) for one in lost if isinstance(one, Member)} <= {1}
        assert self.herd.ids.isdisjoint(dead)
        await self._replaced(blow.target)

    async def _lose_hub(self, blow: Blow) -> None:
        herd = self.herd
        everybody = self._everybody
        ids = {one.id for one in everybody}
        own = {member: member.next.get(member.life, 0) for member in herd.members}
        watching = True
        storms: list[str] = []

        async def watch() -> None:
            while watching:
                with suppress(ApiError, NoAnswerError, NotReachableError):
                    shown, complete = await asyncio.to_thread(members, self.cluster, ROOM)
                    if complete and shown != ids:
                        storms.append(f"{len(shown - ids)} too many, {len(ids - shown)} too few")
                await asyncio.sleep(0.01)

        watcher = asyncio.create_task(watch())
        try:
            struck, _ = await self._strike(blow)
            await eventually(
                lambda: all(member.next.get(member.life, 0) > own[member] + 5 for member in own),
                UNNOTICED,
                "what a worker says to its own clients stands still",
            )
            await self._replaced(blow.target)
            await self._bus_works()
            await shows(self.cluster, ROOM, ids, BACK)
        finally:
            watching = False
            await watcher
        assert storms == [], f"presence swapped with a storm: {storms[:5]}"
        self._undisturbed(everybody)
        assert self.newcomers.failures == [], "somebody was refused"
        for member in herd.members:
            told = [gap for gap in member.gaps if gap[0] >= struck]
            for hole in member.holes:
                own_worker = hole.source.startswith(member.life)
                assert not own_worker, f"{member.name} missed its own worker's {hole}"
                assert told, f"{member.name} missed {hole}, and its worker was not told"

    async def _lose_balancer(self, blow: Blow) -> None:
        everybody = self._everybody
        ids = {one.id for one in everybody}
        struck, died = await self._strike(blow)
        await self._replaced(blow.target)
        await self._served_since(died)
        for failure in self.newcomers.failures:
            # A head that was just being read goes with its reader; nobody is refused.
            assert failure.ended, failure
            assert failure.began < died, failure
            assert failure.at > struck, failure
        self._undisturbed(everybody)
        await shows(self.cluster, ROOM, ids, BACK)

    async def _lose_supervisor(self, _blow: Blow) -> None:
        cluster = self.cluster
        await self.newcomers.rest()
        lost = self._everybody
        family = [one.pid for one in psutil.Process(cluster.pid).children(recursive=True)]
        assert {pid for name, pid in self.pids.items() if name != "supervisor"} <= set(family)
        await asyncio.to_thread(cluster.kill)
        await eventually(
            lambda: not any(map(psutil.pid_exists, family)),
            BACK,
            "somebody outlives the supervisor",
        )
        assert self._processes() == set(), "a process is left"
        await eventually(lambda: not any(one.pid for one in lost), BACK, "a client does not notice")
        # What it left behind hinders no successor.
        await asyncio.to_thread(cluster.start, "{}:{}".format(*cluster.address))
        self.struck.clear()
        self.newcomers.failures.clear()
        self.newcomers.go()
        # Their back-off has doubled meanwhile, up to 5 s and half as much.
        await self._all_back(LONGEST_PAUSE + BACK)
        self.pids = await asyncio.to_thread(lambda: cluster.pids)
        assert set(self.pids.values()).isdisjoint(family)
        assert self.newcomers.failures == []
        # All may have come to the worker that was ready first.
        self.herd.failures.clear()
        await self._spread()

    # --- promises ------------------------------------------------------------------------------

    @property
    def _everybody(self) -> list[Member | Stock]:
        return [*self.herd.members, *self.stock]

    async def _all_back(self, timeout: float) -> None:
        missing: list[Member | Stock] = []

        def nobody_is_missing() -> bool:
            missing[:] = [one for one in self._everybody if not one.pid]
            return not missing

        await eventually(
            nobody_is_missing,
            timeout,
            lambda: (
                f"{len(missing)} clients are not back after {timeout:g} s, "
                f"{sum(isinstance(one, Stock) for one in missing)} of them python-socketio's: "
                f"{self.herd.problems[:3]} {self.herd.failures[-3:]}"
            ),
        )

    async def _forgotten(self, dead: set[str], living: set[str], died: float) -> None:
        """Presence shows the dead no more, and never did it lack one of the living."""
        asked, shown = died, dead
        while shown & dead:
            assert asked - died < PRESENCE, f"{len(shown & dead)} of the dead are shown"
            asked = time.monotonic()
            shown, complete = await asyncio.to_thread(members, self.cluster, ROOM)
            lacking = living - shown
            assert not (complete and lacking), f"presence lacks {len(lacking)} of the living"

    def _undisturbed(self, everybody: Iterable[Member | Stock]) -> None:
        for one in everybody:
            if isinstance(one, Stock):
                assert one.losses == 0, "a python-socketio client of another process was lost"
                continue
            who = f"{one.name} ({one.transport})"
            assert one.losses == [], f"{who} was lost: {one.losses}"
            assert one.slowest < UNNOTICED, f"{who} waited {one.slowest:.1f} s for an answer"

    def _first_attempts_served(self, struck: float, died: float) -> None:
        """Who was in its hands at that instant went with it; nobody else failed, or was late."""
        for failure in self.herd.failures + self.newcomers.failures:
            assert failure.ended, f"refused: {failure}"
            assert failure.began < died, f"too late to be its doing: {failure}"
            assert failure.at > struck, f"too early to be its doing: {failure}"
        for member in self.herd.members:
            for late in member.late:
                assert late < UNNOTICED, f"{member.name} was back {late:.1f} s after its back-off"

    async def _served_since(self, died: float) -> None:
        """Everybody who came while there was no balancer is served by now."""
        came = self.newcomers.came
        await eventually(lambda: self.newcomers.came > came + 6, BACK, "nobody new is served")
        assert time.monotonic() - died < BACK + self._pause("balancer")

    def _pause(self, name: str) -> float:
        """Return the longest time the supervisor lets pass before it starts a process again."""
        return float(min(30.0, 0.25 * 2.0 ** (self.struck[name] - 1)) * 1.25)

    async def _replaced(self, name: str) -> None:
        """Another process is in its place, and no other process has been replaced."""
        self.struck[name] += 1
        timeout = BACK + self._pause(name)
        old = self.pids[name]
        await asyncio.to_thread(self.cluster.wait_restarted, name, old, timeout)
        now = await asyncio.to_thread(lambda: self.cluster.pids)
        changed = {one for one in self.pids if now.get(one) != self.pids[one]}
        assert changed == {name}, f"these were replaced: {sorted(changed)}"
        assert now.keys() == self.pids.keys()

    async def _bus_works(self) -> None:
        """What each worker says from now on reaches every client."""
        herd = self.herd
        lives = {member.life for member in herd.members if member.pid}
        assert len(lives) > 1
        sources = [source for life in lives for source in (life, f"{life} room")]
        target = {
            source: max(member.next.get(source, 0) for member in herd.members) + 2
            for source in sources
        }

        def silent() -> list[str]:
            return [
                f"{member.name} at {member.life} does not hear {source}"
                for member in herd.members
                for source, number in target.items()
                if member.next.get(source, 0) < number
            ]

        await eventually(lambda: not silent(), BACK, lambda: f"the bus is not back: {silent()[:5]}")

    def _no_holes(self) -> None:
        for member in self.herd.members:
            assert member.holes == [], f"{member.name} missed {member.holes[:3]}"

    async def _settled(self) -> None:
        """Hub and balancer know exactly the clients that there are, and nothing waits."""
        everybody = self._everybody
        await shows(self.cluster, ROOM, {one.id for one in everybody}, BACK)
        by_pid = Counter(one.pid for one in everybody)
        seen: Any = None

        async def agreed() -> bool:
            nonlocal seen
            listed = (await asyncio.to_thread(self.cluster.api.get, "workers"))["data"]
            hub = {one["pid"]: one["session_count"] for one in listed if one["state"] != "gone"}
            connections = {one["pid"]: one["connections"] for one in listed if one["connections"]}
            states = {one["state"] for one in listed}
            figures = await balancer(self.cluster)
            routed = {one["pid"]: one["sessions"] for one in figures["workers"]}
            busy = {key: figures[key] for key in ("waiting", "heads", "unacknowledged", "paused")}
            busy["unfit"] = [
                one
                for one in figures["workers"]
                if one["draining"] or one["full"] or not one["ready"]
            ]
            seen = {"hub": hub, "presence": connections, "balancer": routed, "states": states,
                    "expected": dict(by_pid), **busy}  # fmt: skip
            counted = {pid: number for pid, number in hub.items() if number}
            placed = {pid: number for pid, number in routed.items() if number}
            return (
                counted == connections == placed == dict(by_pid)
                and hub.keys() == routed.keys()
                and states == {"ready"}
                and not any(busy.values())
            )

        await _until(agreed, BACK + ABANDONED, lambda: f"sessions are stuck: {seen}")

    def _files(self) -> list[str]:
        found = self.cluster.run_directory.iterdir()
        return sorted(re.sub(r"^(bus-\w+-)[0-9a-f]{8}$", r"\1", each.name) for each in found)

    def _processes(self) -> set[int]:
        """Return the processes of this cluster, whoever is their parent."""
        place = os.fspath(self.cluster.run_directory)
        found = set()
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if place in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        return found

    def _nothing_left_behind(self) -> None:
        files = self._files()
        assert files == self.files, f"left in the run directory: {files}"
        pids = self.cluster.pids
        orphans = self._processes() - set(pids.values())
        assert not orphans, f"orphans: {orphans}"
        children = psutil.Process(pids["supervisor"]).children(recursive=True)
        dead = [one.pid for one in children if one.status() == psutil.STATUS_ZOMBIE]
        assert dead == [], f"nobody has waited for {dead}"


async def _until(
    condition: Callable[[], Awaitable[bool]], timeout: float, what: Callable[[], str]
) -> None:
    deadline = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.1)
