"""One worker becomes eight and eight become one while clients are there: none meets an error."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest

from faults.crowd import balancer, noticed, shows
from harness import RunningCluster
from herd import Herd, Member, command, routed, run

pytestmark = pytest.mark.processes

WORKERS = 8
SLOWEST = 6.0
"""Seconds that a client may wait for an answer while seven processes start on two cores."""
BACK = 6.0
"""Seconds after its own back-off in which a client is connected again."""
BUDGET = 500.0
"""Reconnects per second that a drain may cause."""


def undisturbed(members: list[Member]) -> None:
    for member in members:
        assert member.losses == [], f"{member.name} ({member.transport}): {member.losses}"
        assert member.slowest < SLOWEST, f"{member.name} waited {member.slowest:.1f} s"


async def scaled(cluster: RunningCluster, workers: int) -> None:
    """Scale, and check that the processes are what was asked for."""
    answer = await command(cluster, "scale", str(workers))
    assert answer.code == 0, answer
    status = await asyncio.to_thread(lambda: cluster.status)
    expected = {"hub", "balancer", *(f"worker-{slot}" for slot in range(workers))}
    assert {name for name, one in status.items() if one["state"] == "ready"} == expected
    assert {name for name, one in status.items() if one["pid"]} == expected


async def seen(cluster: RunningCluster) -> dict[int, int]:
    """Return how many sessions the balancer sees at each worker, by pid."""
    return {one["pid"]: one["sessions"] for one in (await balancer(cluster))["workers"]}


async def _story(cluster: RunningCluster, clients: int, further: int) -> None:
    first = cluster.pids["worker-0"]
    async with Herd(cluster.address, rooms=("everybody",)) as herd:
        early = herd.add(clients, polling=clients // 5)
        await herd.complete(30)
        kept = {name: cluster.pids[name] for name in ("hub", "balancer", "worker-0")}

        # Up: nobody is moved, nobody notices.
        herd.mark()
        await scaled(cluster, WORKERS)
        undisturbed(early)
        assert herd.failures == []

        pids = cluster.pids
        await routed(cluster, *(pids[f"worker-{slot}"] for slot in range(WORKERS)))

        # The new workers had nobody, so everybody who is new goes to them, as many to each.
        herd.mark()
        # Few at a time: else whoever is slow to take them is given less, on purpose.
        late: list[Member] = []
        for _ in range(40):
            late += herd.add(further // 40, polling=further // 200)
            await herd.complete(30)
        undisturbed(herd.members)
        placed = Counter(member.pid for member in late)
        assert placed[first] == 0
        assert len(placed) == WORKERS - 1
        assert max(placed.values()) <= 1.2 * min(placed.values()), placed
        await shows(cluster, "everybody", herd.ids, 20)

        # Down: those of the seven come back to the one, each at the end of its own back-off.
        herd.mark()
        began = time.monotonic()
        await scaled(cluster, 1)
        await noticed(late, 20)
        await herd.complete(20)
        undisturbed(early)
        closed = [member.losses[0].at for member in late]
        took = max(closed) - min(closed)
        assert took < further / BUDGET + 5, f"closing {further} clients took {took:.1f} s"
        for member in late:
            assert len(member.losses) == 1, f"{member.name} was moved often: {member.losses}"
            assert member.late[0] < BACK, f"{member.name} was late by {member.late[0]:.1f} s"
        assert herd.failures == []
        assert {member.pid for member in herd.members} == {first}
        await shows(cluster, "everybody", herd.ids, 20)
        while await seen(cluster) != {first: len(herd.members)}:
            assert time.monotonic() - began < 60, await seen(cluster)
            await asyncio.sleep(0.1)
        assert kept.items() <= cluster.pids.items()
        assert herd.problems == []


@pytest.mark.timeout(120)
def test_one_to_eight_to_one(spawn_cluster: Callable[..., RunningCluster]) -> None:
    run(_story(spawn_cluster("servers.herd_app:io", 1), clients=200, further=400))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_to_eight_to_one_under_a_thousand(
    spawn_cluster: Callable[..., RunningCluster],
) -> None:
    run(_story(spawn_cluster("servers.herd_app:io", 1), clients=1000, further=1000))
