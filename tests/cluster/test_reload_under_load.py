"""Workers are drained and replaced under clients that hear a number each 10 ms: none is missed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from faults.chaos import Newcomers
from faults.crowd import balancer, shows
from harness import RunningCluster
from herd import Answer, Herd, Member, Source, command, routed, run
from raw_clients import eventually

pytestmark = pytest.mark.processes

PERIOD = 0.01
BACK = 6.0
"""Seconds after its own back-off in which a client is connected again."""
BUDGET = 500.0
"""Reconnects per second that a drain may cause."""
SLOWEST = 6.0
"""Seconds that a client may wait for an answer while processes start on two cores."""


class Load:
    """Clients that listen, one source of numbers, and others that come and go."""

    def __init__(self, cluster: RunningCluster, herd: Herd) -> None:
        self.cluster = cluster
        self.herd = herd
        self.source = Source(herd, PERIOD)
        self.newcomers = Newcomers(cluster, herd.problems)

    def mark(self) -> None:
        """Look at what happens from now."""
        self.herd.mark()
        self.newcomers.go()

    async def assert_nothing_was_missed(self, *pids: int) -> None:
        """Nobody was refused, everybody is back as soon as it asked, and heard every number.

        All come to these workers: who polls notices only by its next poll that its own has ended.
        """
        herd = self.herd
        await eventually(
            lambda: all(member.pid in pids for member in herd.members),
            20,
            lambda: f"not all are at {pids}: {herd.problems[:5]} {herd.failures[-5:]}",
        )
        said = self.source.said
        await eventually(
            lambda: all(member.next.get(Source.NAME, 0) > said for member in herd.members),
            20,
            lambda: f"{said} is not heard by all, but {self.source.said} is said",
        )
        assert herd.failures == self.newcomers.failures == []
        for member in herd.members:
            assert member.holes == [], f"{member.name} missed {member.holes[:3]}"
            for late in member.late:
                assert late < BACK, f"{member.name} was back {late:.1f} s after its back-off"
        await shows(self.cluster, "everybody", herd.ids, 20)
        assert herd.problems == []

    def drained(self, pid: int) -> list[Member]:
        """Those who were lost by one worker, within the time that its drain may take."""
        at = {
            member: loss.at
            for member in self.herd.members
            for loss in member.losses
            if loss.worker == pid
        }
        assert at, "the worker had nobody"
        assert max(at.values()) - min(at.values()) < len(at) / BUDGET + 5
        return list(at)


@asynccontextmanager
async def load(cluster: RunningCluster, clients: int) -> AsyncIterator[Load]:
    """Let clients listen, a fifth of them by polling, until the context ends."""
    # Who gave up while waiting for a session has left one, until the ping that nobody answers.
    deadline = time.monotonic() + 25
    while any(one["sessions"] for one in (await balancer(cluster))["workers"]):
        assert time.monotonic() < deadline, "somebody of an earlier test is still there"
        await asyncio.sleep(0.02)
    async with Herd(cluster.address, rooms=("everybody",), repeating=(Source.NAME,)) as herd:
        herd.add(clients, polling=clients // 5)
        one = Load(cluster, herd)
        try:
            await herd.complete(30)
            yield one
        finally:
            await one.newcomers.end()
            await one.source.end()


def workers(cluster: RunningCluster) -> dict[str, int]:
    """Return the pids of the workers by name."""
    return {name: pid for name, pid in cluster.pids.items() if name.startswith("worker-")}


async def _reload(cluster: RunningCluster, clients: int) -> None:
    before = cluster.pids
    async with load(cluster, clients) as work:
        work.mark()
        said, began = work.source.said, time.monotonic()
        answer = await command(cluster, "reload")
        assert answer.code == 0, answer
        await work.assert_nothing_was_missed(*workers(cluster).values())
        rate = (work.source.said - said) / (time.monotonic() - began)
        assert rate > 0.2 / PERIOD, f"only {rate:.0f} numbers per second: too slow to tell"
        after = cluster.pids
        assert after.keys() == before.keys()
        unchanged = {name for name, pid in before.items() if after[name] == pid}
        assert unchanged == {"supervisor", "hub", "balancer"}
        lost = [set(work.drained(pid)) for name, pid in before.items() if name not in unchanged]
        assert all(member.losses for member in work.herd.members)
        assert sum(map(len, lost)) >= len(work.herd.members)
        assert work.newcomers.came > 20


@pytest.fixture(scope="module")
def cluster_of_two(_new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    return _new_cluster("servers.herd_app:io", 2)


@pytest.mark.timeout(120)
def test_rolling_reload(cluster_of_two: RunningCluster) -> None:
    run(_reload(cluster_of_two, 150))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rolling_reload_under_five_hundred(cluster_of_two: RunningCluster) -> None:
    run(_reload(cluster_of_two, 500))


@pytest.mark.timeout(120)
def test_a_worker_is_told_to_end_by_hand(cluster_of_two: RunningCluster) -> None:
    cluster = cluster_of_two

    async def story() -> None:
        before = cluster.pids
        async with load(cluster, 60) as work:
            work.mark()
            pid = before["worker-1"]
            others = [member for member in work.herd.members if member.pid != pid]
            os.kill(pid, signal.SIGTERM)
            await asyncio.to_thread(cluster.wait_restarted, "worker-1", pid, 30)
            await work.assert_nothing_was_missed(*workers(cluster).values())
            for member in work.drained(pid):
                assert len(member.losses) == 1
            for member in others:
                assert member.losses == []
                assert member.slowest < SLOWEST
            assert {name for name, pid in cluster.pids.items() if before[name] != pid} == {
                "worker-1"
            }

    run(story())


@pytest.mark.timeout(120)
def test_a_worker_is_drained_and_comes_back(cluster_of_two: RunningCluster) -> None:
    cluster = cluster_of_two

    def shown(name: str) -> dict[str, Any]:
        found = cluster.api.get("workers")["data"]
        [one] = [one for one in found if one["name"] == name and one["state"] != "gone"]
        return dict(one)

    async def ordered(*words: str) -> Answer:
        answer = await command(cluster, *words)
        assert answer.code == 0, answer
        return answer

    async def story() -> None:
        before = cluster.pids
        pid = before["worker-1"]
        async with load(cluster, 60) as work:
            work.mark()
            others = [member for member in work.herd.members if member.pid != pid]
            await ordered("drain", "w1")
            await eventually(lambda: shown("w1")["session_count"] == 0, 30, "it is not empty")
            assert shown("w1")["state"] == "draining"
            await work.assert_nothing_was_missed(before["worker-0"])
            work.drained(pid)
            assert all(member.losses == [] for member in others)

            await ordered("undrain", "w1")
            await eventually(lambda: shown("w1")["state"] == "ready", 10)
            await routed(cluster, before["worker-0"], pid)
            # One after the other, and nobody beside them: who is slow to take one gets no second.
            await work.newcomers.rest()
            work.herd.mark()
            more: list[Member] = []
            for _ in range(10):
                more += work.herd.add(1)
                await work.herd.complete(20)
            assert {member.pid for member in more} == {pid}
            work.newcomers.go()
            await work.assert_nothing_was_missed(before["worker-0"], pid)
            assert all(member.losses == [] for member in work.herd.members)
        assert cluster.pids == before

    run(story())
