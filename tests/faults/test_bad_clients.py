"""Slow, hostile and too many clients beside good ones, which notice nothing."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from faults.crowd import UNNOTICED, Crowd, assert_undisturbed, balancer, settled
from harness import RunningCluster
from raw_clients import PATH, Address, Client, WebSocket, eventually, frame
from rawhttp import Raw, request, websocket

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

POLLING = f"{PATH}polling"


@pytest.fixture(scope="module", name="cluster")
def _cluster(_new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    """Not shared with others: sessions that were left alone stay for a while."""
    return _new_cluster("servers.faults_app:io", 2)


async def slow_head(address: Address) -> None:
    """Send a head byte by byte, never its end."""
    async with await Raw.open(address) as raw:
        for byte in b"GET /socket.io/?EIO=4&trans":
            await raw.send(bytes((byte,)))
            await asyncio.sleep(0.05)


async def silence(address: Address) -> None:
    """Connect and say nothing."""
    async with await Raw.open(address):
        await asyncio.sleep(1)


async def garbage(address: Address) -> None:
    """Speak no HTTP; TLS, for example."""
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", os.urandom(500)):
        async with await Raw.open(address) as raw:
            await raw.send(data + b"\r\n\r\n")
            answer = await raw.ended()
            assert not answer or answer.startswith(b"HTTP/1.1 400 "), answer


async def oversize_head(address: Address) -> None:
    async with await Raw.open(address) as raw:
        await raw.send(request("GET", POLLING, Cookie="x" * 20_000))
        assert (await raw.ended()).startswith(b"HTTP/1.1 431 ")


async def oversize_head_later(address: Address) -> None:
    """The same on a connection that a worker has."""
    async with await Raw.open(address) as raw:
        assert (await raw.request("GET", POLLING)).status == 200
        await raw.send(request("GET", POLLING, Cookie="x" * 20_000))
        assert (await raw.ended()).startswith(b"HTTP/1.1 431 ")


async def oversize_body(address: Address) -> None:
    async with await Raw.open(address) as raw:
        sid = (await raw.request("GET", POLLING)).sid
        answer = await raw.request("POST", f"{POLLING}&sid={sid}", b"4" * 1_000_001)
        assert answer.status == 413


async def endless_body(address: Address) -> None:
    async with await Raw.open(address) as raw:
        sid = (await raw.request("GET", POLLING)).sid
        head = request("POST", f"{POLLING}&sid={sid}", b"", Transfer_Encoding="chunked")
        await raw.send(head)
        try:
            for _ in range(40):
                await raw.send(b"10000\r\n" + b"4" * 65_536 + b"\r\n")
        except ConnectionError:
            return
        assert (await raw.answer()).status == 413


async def unfinished_body(address: Address) -> None:
    """Announce a body and go."""
    async with await Raw.open(address) as raw:
        sid = (await raw.request("GET", POLLING)).sid
        await raw.send(request("POST", f"{POLLING}&sid={sid}", None, Content_Length="1000") + b"42")
        await asyncio.sleep(0.2)


async def bad_payloads(address: Address) -> None:
    for body in (b"\xff\xfe", b"4" + b"\x1e" * 2000, b"9", b"b!!!!", b"42{", b'451-["x"]'):
        async with await Raw.open(address) as raw:
            sid = (await raw.request("GET", POLLING)).sid
            await raw.request("POST", f"{POLLING}&sid={sid}", b"40")
            assert (await raw.request("POST", f"{POLLING}&sid={sid}", body)).status in {200, 400}


async def unknown_sessions(address: Address) -> None:
    async with await Raw.open(address) as raw:
        for sid in ("x", "A" * 20, "_" * 20, "%00" * 20, "x" * 2000):
            answer = await raw.request("GET", f"{POLLING}&sid={sid}")
            assert (answer.status, answer.json["code"]) == (400, 1)


async def bad_frames(address: Address) -> None:
    """WebSocket frames against RFC 6455, and packets that are none."""
    for data in (
        b"\x81\x05hello",  # not masked
        b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4),
        b"\xf1\x80" + bytes(4),  # reserved bits
        b"\x09\x80" + bytes(4),  # a control frame in fragments
        frame(b"\xff\xff"),
        frame(b"42[", 0x1),
        frame(b"45" + b"9" * 30 + b'-["x"]'),
        frame(b"4" + b"[" * 100_000),
    ):
        client = await Client(address).connect()
        assert isinstance(client.transport, WebSocket)
        client.transport.send_bytes(data)
        await asyncio.wait_for(client.ended, 10)
        await client.close()


async def unread_answers(address: Address) -> None:
    """Ask for much, read nothing."""
    async with await Raw.open(address) as raw:
        await raw.send(websocket(f"{PATH}websocket") + frame(b"40"))
        await asyncio.sleep(0.1)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        echo = frame(b'42["reply","' + b"x" * 100_000 + b'"]')
        for _ in range(20):
            raw.writer.write(echo)
        await asyncio.sleep(0.5)
        raw.writer.transport.abort()


HOSTILE: list[Callable[[Address], Awaitable[None]]] = [
    slow_head,
    silence,
    garbage,
    oversize_head,
    oversize_head_later,
    oversize_body,
    endless_body,
    unfinished_body,
    bad_payloads,
    unknown_sessions,
    bad_frames,
    unread_answers,
]


async def test_good_clients_beside_bad_ones(cluster: RunningCluster) -> None:
    pids = cluster.pids
    came: dict[str, int] = {}

    async def repeat(bad: Callable[[Address], Awaitable[None]]) -> None:
        while not crowd.ending:
            await bad(cluster.address)
            came[bad.__name__] = came.get(bad.__name__, 0) + 1

    async with Crowd(cluster, 50, polling=15, pause=0.05) as crowd:
        crowd.mark()
        tasks = [asyncio.create_task(repeat(bad)) for bad in HOSTILE for _ in range(3)]
        await asyncio.sleep(3)
        await eventually(lambda: min(caller.calls for caller in crowd.callers) > 10, 20)
        crowd.ending = True
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert_undisturbed(crowd.callers, UNNOTICED)
    assert crowd.problems == []
    assert crowd.failures == []
    assert set(came) == {bad.__name__ for bad in HOSTILE}
    assert cluster.pids == pids
    assert "Traceback" not in cluster.text


@contextmanager
def few_descriptors(pid: int, more: int) -> Iterator[None]:
    """Let a process have only some more open files than it has now."""
    used = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    free = (number for number in count() if number not in used)  # there are gaps between the used
    last = next(islice(free, more - 1, None))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (last + 1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _holds_nothing(figures: dict[str, Any]) -> bool:
    return not (figures["heads"] or figures["waiting"] or figures["unacknowledged"])


async def test_the_balancer_runs_out_of_descriptors(cluster: RunningCluster) -> None:
    refused = (await balancer(cluster))["emfile"]
    async with Crowd(cluster, 50, polling=15, pause=0.05) as crowd:
        # Else it gets more room as soon as it gives back what it holds for others.
        await settled(cluster, _holds_nothing)
        with few_descriptors(cluster.pids["balancer"], 20):
            crowd.mark()
            slow = [await Raw.open(cluster.address) for _ in range(40)]
            for raw in slow:
                await raw.send(b"GET /socket.io/?EIO=4")
            newcomers = [Client(cluster.address, problems=crowd.problems) for _ in range(20)]
            connecting = [asyncio.create_task(client.connect(30)) for client in newcomers]
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in connecting)  # they wait in the backlog
            # The heads of the slow ones are given up after 10 s; most leave earlier.
            for raw in slow[:30]:
                await raw.close()
            await asyncio.gather(*connecting)
            assert_undisturbed(crowd.callers, UNNOTICED)
        for client in newcomers:
            assert await client.call("echo", client.id) == client.id
            await client.close()
        for raw in slow[30:]:
            await raw.close()
    assert (await balancer(cluster))["emfile"] > refused
    assert crowd.problems == []
    assert crowd.failures == []


async def test_a_worker_runs_out_of_descriptors(cluster: RunningCluster) -> None:
    rejected = (await balancer(cluster))["rejected"]
    async with Crowd(cluster, 20, polling=6, pause=0.05) as crowd:
        newcomers: list[Client] = []
        with few_descriptors(cluster.pids["worker-0"], 5):
            crowd.mark()
            deadline = time.monotonic() + 20
            # A worker that is slow is given less: then more have to come until it runs out.
            while len(newcomers) < 60 or (await balancer(cluster))["rejected"] == rejected:
                assert time.monotonic() < deadline, "the worker does not run out"
                batch = [Client(cluster.address, problems=crowd.problems) for _ in range(60)]
                newcomers += batch
                await asyncio.gather(*(client.connect() for client in batch))
            pids = [(await client.call("whoami"))["pid"] for client in newcomers]
            assert_undisturbed(crowd.callers, UNNOTICED)
        assert pids.count(cluster.pids["worker-0"]) <= 6
        assert pids.count(cluster.pids["worker-1"]) >= len(pids) - 6
        for client in newcomers:
            await client.close()
    assert crowd.problems == []
    assert crowd.failures == []
