"""What holds while nothing breaks: pooled connections, even placing, the join barrier."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from faults.crowd import BATCH, balancer
from harness import RunningCluster, stopped
from raw_clients import Client, Pool, eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

ROUNDS = 20


async def test_pollers_that_share_their_connections(whole_cluster: RunningCluster) -> None:
    """A request of any session may come on any connection, as through a proxy that pools them."""
    problems: list[str] = []
    pool = Pool(whole_cluster.address, problems, spare=100)
    migrated = (await balancer(whole_cluster))["migrated"]

    async def poller(number: int, client: Client) -> int:
        log: list[tuple[str, list[Any]]] = []
        client.on_event = lambda event, args: log.append((event, args))
        for n in range(ROUNDS):
            client.emit("reply", number, n)
            log.append(("echoed", await client.call_all("echo", number, n, timeout=20)))
        # What the server sends twice comes before this answer.
        pid = (await client.call("whoami", timeout=20))["pid"]
        assert log == [
            entry
            for n in range(ROUNDS)
            for entry in (("replied", [number, n]), ("echoed", [number, n]))
        ]
        await client.close()
        assert client.reason == "client closed"
        return int(pid)

    clients = [
        Client(whole_cluster.address, "polling", pool=pool, problems=problems) for _ in range(200)
    ]
    try:
        for first in range(0, len(clients), BATCH):
            batch = clients[first : first + BATCH]
            await asyncio.gather(*(client.connect(20) for client in batch))
        pids = await asyncio.gather(*map(poller, count(), clients))
    finally:
        pool.close()
    assert problems == []
    served = Counter(pids)
    assert len(served) == 2
    assert min(served.values()) >= 200 // 5
    # There are 40 requests and more of each client, and every second finds the other worker's
    # connection.
    assert (await balancer(whole_cluster))["migrated"] - migrated > 200 * 40 / 3


def _backlog(port: int) -> int:
    """How many connections have sent a request to a port and wait to be accepted."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if state == "0A" and int(local.partition(":")[2], 16) == port:  # it listens
            return int(queues.partition(":")[2], 16)
    return 0


async def test_quick_connections_are_spread_evenly(whole_cluster: RunningCluster) -> None:
    clients = [Client(whole_cluster.address) for _ in range(20)]
    # All wait when the balancer goes on, and are placed in one go: a worker that stands still for
    # a moment in between would rightly be given less.
    with stopped(whole_cluster.pids["balancer"]):
        connecting = asyncio.gather(*(client.connect() for client in clients))
        await eventually(lambda: _backlog(whole_cluster.address[1]) == len(clients), 10)
    await connecting
    pids = Counter([(await client.call("whoami"))["pid"] for client in clients])
    assert len(pids) == 2
    assert max(pids.values()) - min(pids.values()) <= 2
    for client in clients:
        await client.close()
        assert client.problems == []


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_bursts_of_connections(whole_cluster: RunningCluster, transport: str) -> None:
    problems: list[str] = []

    async def visit(number: int) -> str:
        client = Client(whole_cluster.address, transport, problems=problems)
        await client.connect(20)
        assert await client.call("echo", number) == number
        await client.close()
        return client.sid

    sids: set[str] = set()
    for burst in range(10 if transport == "websocket" else 3):
        sids.update(await asyncio.gather(*(visit(burst * 100 + n) for n in range(100))))
        assert len(sids) == burst * 100 + 100
    assert problems == []


async def _join_barrier(cluster: RunningCluster, rounds: int) -> None:
    """Join a fresh room on one worker, broadcast to it on the other upon the answer."""
    joining, saying = await _apart(cluster)
    heard: asyncio.Queue[list[object]] = asyncio.Queue()
    joining.on_event = lambda event, args: heard.put_nowait([event, *args])
    late = n = 0
    while n < rounds + late:
        room = f"room {n}"
        began = time.monotonic()
        await joining.call("join", room)
        if time.monotonic() - began < 0.9:
            saying.emit("say", room, n)
            # Were it missed, the next one or nothing would be heard.
            assert await asyncio.wait_for(heard.get(), 10) == ["said", n]
        else:
            late += 1  # a join goes on after a second, and counts that: another room instead
            assert late <= rounds // 10
        joining.emit("leave", room)
        n += 1
    await joining.call("echo", "end")
    assert heard.empty()
    for client in (joining, saying):
        await client.close()
        assert client.problems == []
    counters = [worker["counters"] for worker in cluster.api.get("workers")["data"]]
    assert sum(one.get("limpet_join_barrier_incomplete_total", 0) for one in counters) <= late


async def _apart(cluster: RunningCluster) -> tuple[Client, Client]:
    """Return two clients that different workers own."""
    first = await Client(cluster.address).connect()
    pid = (await first.call("whoami"))["pid"]
    for _ in range(20):
        second = await Client(cluster.address).connect()
        if (await second.call("whoami"))["pid"] != pid:
            return first, second
        await second.close()
    raise AssertionError("every connection went to one worker")


@pytest.fixture
def fresh_buckets(spawn_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    """Nearly every room has a bucket of its own, and no worker still listens to an earlier one."""
    return spawn_cluster("servers.interop_app:io", 2, "--buckets=65536", "--linger=0")


async def test_no_broadcast_after_a_join_is_missed(fresh_buckets: RunningCluster) -> None:
    await _join_barrier(fresh_buckets, 300)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_broadcast_after_a_join_is_missed_ten_thousand_times(
    fresh_buckets: RunningCluster,
) -> None:
    await _join_barrier(fresh_buckets, 10_000)
