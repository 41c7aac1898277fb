"""Processes killed and stopped under load: what clients notice, and how soon all is well again.

Deadlines are ten times what is promised; orders, counts and causes are exact.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from itertools import count

import psutil  # type: ignore[import-untyped]
import pytest

from faults.crowd import (
    UNNOTICED,
    Caller,
    Crowd,
    Failure,
    all_open,
    assert_undisturbed,
    attempt,
    balancer,
    kill,
    members,
    noticed,
    settled,
    shows,
    working,
)
from harness import RunningCluster, stopped
from raw_clients import Client, eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

PRESENCE = 1.0
"""Seconds until presence shows none of the dead; promised are 0.1."""
BACK = 10.0
"""Seconds until the clients of a killed worker are back, or the bus; promised is 1."""
PATIENCE = 30.0
"""Seconds that clients wait who come while a process stands still or is missing."""


class Newcomers:
    """Clients that connect one after the other, by either transport in turn, and leave."""

    def __init__(self, cluster: RunningCluster) -> None:
        self.cluster = cluster
        self.came = 0
        self.failures: list[Failure] = []
        self.problems: list[str] = []

    async def next(self) -> None:
        transport = ("websocket", "polling")[self.came % 2]
        client = Client(self.cluster.address, transport, problems=self.problems)
        if await attempt(client, self.failures):
            self.came += 1
            await client.close()


class Publisher:
    """Says 1, 2, 3, … in a room, without waiting for anything."""

    def __init__(self, caller: Caller, room: str) -> None:
        self.name = caller.name
        self.said = 0
        self._caller = caller
        self._room = room

    async def next(self) -> None:
        self.said += 1
        self._caller.client.emit("say", self._room, self.name, self.said)

    def heard_by(self, listener: Caller) -> list[int]:
        return listener.heard.get(self.name, [])

    def last_heard_by(self, listeners: list[Caller]) -> int:
        """The number up to which even the last of them has heard."""
        return min((self.heard_by(listener) or [0])[-1] for listener in listeners)

    def assert_heard(self, listeners: list[Caller], first: int = 1) -> None:
        """Fail unless each heard everything from a number on, once and in order."""
        for listener in listeners:
            heard = [n for n in self.heard_by(listener) if n >= first]
            missing = sorted(set(range(first, self.said + 1)) - set(heard))
            assert not missing, f"{listener.name} did not hear {missing} of {self.name}"
            assert heard == list(range(first, self.said + 1))


async def _restarted(
    cluster: RunningCluster, name: str, old_pid: int, timeout: float = 20.0
) -> None:
    await asyncio.to_thread(cluster.wait_restarted, name, old_pid, timeout)


async def _owes(cluster: RunningCluster, pid: int) -> int:
    """How many connections a worker has been handed and has not acknowledged."""
    workers = (await balancer(cluster))["workers"]
    return sum(one["unacknowledged"] for one in workers if one["pid"] == pid)


async def test_a_worker_is_killed_under_load(whole_cluster: RunningCluster) -> None:
    cluster = whole_cluster
    pid, other_pid = cluster.pids["worker-0"], cluster.pids["worker-1"]
    newcomers = Newcomers(cluster)
    async with Crowd(cluster, 500, polling=150, pause=1.0) as crowd:
        lost, others = crowd.of(pid), crowd.of(other_pid)
        assert len(lost) + len(others) == 500
        assert min(len(lost), len(others)) >= 500 // 5
        await shows(cluster, crowd.room, crowd.ids, BACK)
        dead = {caller.client.id for caller in lost}
        async with working(newcomers.next, 0.02):
            await eventually(lambda: newcomers.came > 20, 2 * BACK)
            crowd.mark()
            died = await kill(pid)

            asked, shown = died, dead
            while shown & dead:
                assert asked - died < PRESENCE, f"{len(shown & dead)} of the dead are shown"
                asked = time.monotonic()
                shown, _ = await asyncio.to_thread(members, cluster, crowd.room)
            await noticed(lost, BACK)
            await crowd.complete(BACK)
            assert time.monotonic() - died < BACK
            came = newcomers.came
            await eventually(lambda: newcomers.came > came + 5, BACK, "nobody new has come")
        assert_undisturbed(others, UNNOTICED)
        assert {len(caller.losses) for caller in lost} == {1}
        assert crowd.ids.isdisjoint(dead)
        await shows(cluster, crowd.room, crowd.ids, BACK)
        await _restarted(cluster, "worker-0", pid)
    assert crowd.problems == newcomers.problems == []
    for failure in crowd.failures + newcomers.failures:
        # What the worker had in hand went with it; nothing was refused, and nothing later failed.
        assert failure.ended, failure
        assert failure.began < died, failure


async def test_a_worker_is_killed_with_connections_on_their_way_to_it(
    whole_cluster: RunningCluster,
) -> None:
    cluster = whole_cluster
    pid = cluster.pids["worker-1"]
    problems: list[str] = []
    failures: list[Failure] = []
    newcomers = [
        Client(cluster.address, ("websocket", "polling")[n % 2], problems=problems)
        for n in range(100)
    ]
    redispatched = (await balancer(cluster))["redispatched"]
    with stopped(pid):  # it acknowledges none of them
        connecting = asyncio.gather(*(attempt(one, failures, PATIENCE) for one in newcomers))
        deadline = time.monotonic() + BACK
        while not (owed := await _owes(cluster, pid)):
            assert time.monotonic() < deadline, "it is given nothing"
            await asyncio.sleep(0.05)
        await kill(pid)
    assert all(await connecting), failures
    assert failures == []
    assert problems == []
    assert (await balancer(cluster))["redispatched"] - redispatched >= owed
    for client in newcomers:
        assert await client.call("echo", client.id) == client.id
        await client.close()
    await _restarted(cluster, "worker-1", pid)


async def test_the_balancer_is_killed_under_load(whole_cluster: RunningCluster) -> None:
    cluster = whole_cluster
    pid = cluster.pids["balancer"]
    async with Crowd(cluster, 100, polling=30, pause=0.1) as crowd:
        await asyncio.sleep(0.5)
        crowd.mark()
        problems: list[str] = []
        failures: list[Failure] = []
        newcomers = [
            Client(cluster.address, ("websocket", "polling")[n % 2], problems=problems)
            for n in range(60)
        ]
        with stopped(cluster.pid):  # no successor before we say so
            await kill(pid)
            calls = [caller.calls for caller in crowd.callers]
            connecting = asyncio.gather(*(attempt(one, failures, PATIENCE) for one in newcomers))
            await eventually(
                lambda: all(
                    caller.calls > before + 5
                    for caller, before in zip(crowd.callers, calls, strict=True)
                ),
                BACK,
                "some client stands still without a balancer",
            )
            assert not any(client.sid for client in newcomers)
        assert all(await connecting), failures
        assert failures == []
        for client in newcomers:
            assert await client.call("echo", client.id) == client.id
            await client.close()
        await _restarted(cluster, "balancer", pid)
        assert problems == []
        assert_undisturbed(crowd.callers, UNNOTICED)
    assert crowd.problems == []
    assert crowd.failures == []


async def test_the_hub_is_killed_under_load(whole_cluster: RunningCluster) -> None:
    cluster = whole_cluster
    pid = cluster.pids["hub"]
    async with Crowd(cluster, 40, polling=10, pause=0.2) as crowd:
        ours, theirs = (crowd.of(cluster.pids[f"worker-{slot}"]) for slot in (0, 1))
        assert min(len(ours), len(theirs)) > 1
        for caller in ours:
            await caller.client.call("join", "local")
        near = Publisher(ours[0], "local")
        wide = [Publisher(ours[1], crowd.room), Publisher(theirs[1], crowd.room)]
        publishers = [near, *wide]

        async def say() -> None:
            for publisher in publishers:
                await publisher.next()

        async with working(say, 0.02):
            told = [len(await caller.client.call("gaps")) for caller in (ours[0], theirs[0])]
            # However long somebody stood still, not much is under way when the hub dies.
            await eventually(
                lambda: (
                    wide[0].last_heard_by(theirs) > max(100, wide[0].said - 20)
                    and wide[1].last_heard_by(ours) > max(100, wide[1].said - 20)
                ),
                2 * BACK,
                "what is said in another worker does not arrive",
            )
            crowd.mark()
            before = [publisher.said for publisher in publishers]
            with stopped(cluster.pid):  # no successor before we say so
                await kill(pid)
                during = [publisher.said for publisher in publishers]
                await eventually(
                    lambda: near.last_heard_by(ours) > during[0] + 20,
                    BACK,
                    "a room within one worker stands still",
                )
                assert wide[0].last_heard_by(theirs) <= during[1]
                assert wide[1].last_heard_by(ours) <= during[2]
            may_start = time.monotonic()
            await eventually(
                lambda: (
                    wide[0].last_heard_by(theirs) > during[1]
                    and wide[1].last_heard_by(ours) > during[2]
                ),
                BACK,
                "rooms across workers are not back",
            )
            assert time.monotonic() - may_start < BACK
            await _restarted(cluster, "hub", pid)
            again = [publisher.said for publisher in publishers]
            await shows(cluster, crowd.room, crowd.ids, BACK)
            await shows(cluster, "local", {caller.client.id for caller in ours}, BACK)
            await asyncio.sleep(0.5)
        await eventually(
            lambda: all(each.last_heard_by(crowd.callers) == each.said for each in wide),
            BACK,
            "the last message does not arrive",
        )
        # Within a worker nothing was lost; nor was anything that did not wait in the hub.
        near.assert_heard(ours)
        wide[0].assert_heard(ours)
        wide[1].assert_heard(theirs)
        wide[0].assert_heard(theirs, first=again[1])
        wide[1].assert_heard(ours, first=again[2])
        for publisher, said, others in zip(wide, before[1:], (theirs, ours), strict=True):
            for listener in others:
                assert len([n for n in publisher.heard_by(listener) if n <= said]) > said - 50
        for caller, earlier in zip((ours[0], theirs[0]), told, strict=True):
            gaps = (await caller.client.call("gaps"))[earlier:]
            assert ["uncertain", "hub restart"] in [[one["kind"], one["reason"]] for one in gaps]
        assert_undisturbed(crowd.callers, UNNOTICED)
    assert crowd.problems == []
    assert crowd.failures == []


async def test_a_worker_is_stopped_for_a_while(whole_cluster: RunningCluster) -> None:
    cluster = whole_cluster
    pid, other_pid = cluster.pids["worker-1"], cluster.pids["worker-0"]
    async with Crowd(cluster, 60, polling=20, pause=0.2) as crowd:
        sleepers, others = crowd.of(pid), crowd.of(other_pid)
        publisher = Publisher(others[0], crowd.room)
        problems: list[str] = []
        failures: list[Failure] = []
        crowd.mark()
        async with working(publisher.next, 0.02):
            began = time.monotonic()
            with stopped(pid):
                # It may be given some of these, for a tenth of a second; then it is known to be
                # slow: to a balancer that has answered after that.
                early: list[Client] = []
                first: list[asyncio.Task[bool]] = []
                while not await _owes(cluster, pid):
                    assert time.monotonic() - began < BACK, "it is given nothing"
                    early.append(Client(cluster.address, problems=problems))
                    waiting = attempt(early[-1], failures, PATIENCE)
                    first.append(asyncio.create_task(waiting))
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.5)
                assert await _owes(cluster, pid)
                pids = set()
                for number in count():
                    client = Client(
                        cluster.address, ("websocket", "polling")[number % 2], problems=problems
                    )
                    await client.connect(UNNOTICED)
                    pids.add((await client.call("whoami"))["pid"])
                    await client.close()
                    if number > 20 and time.monotonic() - began > UNNOTICED + 1:
                        break
                    await asyncio.sleep(0.05)
                assert pids == {other_pid}
                assert_undisturbed(others, UNNOTICED)
            assert all(await asyncio.gather(*first)), failures
            for client in early:
                await client.close()
            await asyncio.sleep(0.5)
        await eventually(
            lambda: publisher.last_heard_by(crowd.callers) == publisher.said,
            BACK,
            "what was said meanwhile does not arrive",
        )
        publisher.assert_heard(crowd.callers)
        assert_undisturbed(others, UNNOTICED)
        assert_undisturbed(sleepers, time.monotonic() - began)
        assert {cluster.pids["worker-0"], cluster.pids["worker-1"]} == {pid, other_pid}
    assert crowd.problems == problems == []
    assert crowd.failures == failures == []


async def test_a_worker_that_stays_silent_is_replaced(
    spawn_cluster: Callable[..., RunningCluster],
) -> None:
    # Longer than a machine pauses, and than what is meant to go unnoticed.
    cluster = spawn_cluster("servers.faults_app:io", 2, "--stall-after=6")
    await settled(cluster, all_open)
    pid, other_pid = cluster.pids["worker-0"], cluster.pids["worker-1"]
    async with Crowd(cluster, 20, polling=6, pause=0.1) as crowd:
        sleepers, others = crowd.of(pid), crowd.of(other_pid)
        crowd.mark()
        os.kill(pid, signal.SIGSTOP)
        # Silence of 6 s, 2 s to say where it stands, and a start.
        await _restarted(cluster, "worker-0", pid, 30)
        await noticed(sleepers, BACK)
        await crowd.complete(BACK)
        assert_undisturbed(others, UNNOTICED)
        assert {len(caller.losses) for caller in sleepers} == {1}
        await shows(cluster, crowd.room, crowd.ids, BACK)
        assert cluster.pids["worker-1"] == other_pid
    assert crowd.problems == []
    assert crowd.failures == []


async def test_nothing_outlives_a_killed_supervisor(
    spawn_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = spawn_cluster("servers.faults_app:io", 2)
    pids = cluster.pids
    everybody = [one.pid for one in psutil.Process(cluster.pid).children(recursive=True)]
    assert set(everybody) >= set(pids.values()) - {cluster.pid}
    async with Crowd(cluster, 20, polling=6, pause=0.1, returns=False) as crowd:
        await asyncio.to_thread(cluster.kill)
        await eventually(lambda: not any(map(psutil.pid_exists, everybody)), BACK)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(cluster.address, 5)
        await noticed(crowd.callers, BACK)
    for name in ("hub.sock", "api.sock", "balancer.sock", "supervisor.sock"):
        with socket.socket(socket.AF_UNIX) as connection, pytest.raises(OSError):
            connection.connect(os.fspath(cluster.run_directory / name))

    # What it left behind hinders no successor.
    await asyncio.to_thread(cluster.start, "{}:{}".format(*cluster.address))
    assert set(cluster.pids.values()).isdisjoint(everybody)
    async with Crowd(cluster, 20, polling=6, pause=0.1) as crowd:
        await shows(cluster, crowd.room, crowd.ids, BACK)
    assert crowd.problems == []
    assert crowd.failures == []
