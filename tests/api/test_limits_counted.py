"""Each limit that a client can run into has its counter; the table of them is in the docs."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness import RunningCluster
from limpet_cluster.hub.catalogue import HELP
from raw_clients import PATH, BadAnswerError, Client, frame
from rawhttp import Raw, request, websocket
from scrape import Scrape

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
POLLING = f"{PATH}polling"
SpawnCluster = Callable[..., RunningCluster]
Provoke = Callable[[RunningCluster], Awaitable[None]]


@pytest.fixture(scope="module", name="cluster")
def _cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    return _new_cluster("servers.metrics_app:io", 1, "--max-sessions=40")


async def opened(cluster: RunningCluster) -> tuple[Raw, str]:
    """A polling session that is in the main namespace; its connection and its sid."""
    raw = await Raw.open(cluster.address)
    sid = (await raw.request("GET", POLLING)).sid
    assert (await raw.request("POST", f"{POLLING}&sid={sid}", b"40")).status == 200
    await raw.request("GET", f"{POLLING}&sid={sid}")
    return raw, sid


async def last_packets(raw: Raw, sid: str) -> list[bytes]:
    """Poll until the session is closed, answering nothing; return what came."""
    came: list[bytes] = []
    while b"1" not in came:
        answer = await raw.request("GET", f"{POLLING}&sid={sid}")
        assert answer.status == 200, answer
        came += answer.body.split(b"\x1e")
    return came


async def counted(cluster: RunningCluster, series: str) -> float:
    """Return a counter as the worker has reported it last, which it does once a second."""
    name, labels = split(series)
    return (await asyncio.to_thread(Scrape.of, cluster.run_directory)).total(name, **labels)


async def post(cluster: RunningCluster, *bodies: bytes, status: int = 200) -> None:
    """Send bodies to a session of their own."""
    raw, sid = await opened(cluster)
    async with raw:
        for body in bodies:
            assert (await raw.request("POST", f"{POLLING}&sid={sid}", body)).status == status


async def refused_namespace(cluster: RunningCluster, *names: str) -> None:
    """Connect to namespaces until one is refused, then leave."""
    raw, sid = await opened(cluster)
    async with raw:
        answer = None
        for name in names:
            await raw.request("POST", f"{POLLING}&sid={sid}", f"40{name},".encode())
            answer = await raw.request("GET", f"{POLLING}&sid={sid}")
        assert answer is not None
        assert b"44" in answer.body
        await raw.request("POST", f"{POLLING}&sid={sid}", b"1")


async def big_head(cluster: RunningCluster) -> None:
    async with await Raw.open(cluster.address) as raw:
        await raw.send(request("GET", POLLING, Cookie="x" * 20_000))
        assert (await raw.ended()).startswith(b"HTTP/1.1 431 ")


async def big_upload(cluster: RunningCluster) -> None:
    """To a route of the application; a head that the front door takes is no hindrance there."""
    async with await Raw.open(cluster.address) as raw:
        answer = await raw.request("POST", "/upload", b"x" * 5000, Cookie="x" * 12_000)
        assert (answer.status, answer.body) == (200, b"5000")
        assert (await raw.request("POST", "/upload", b"x" * 2_000_000)).status == 413


async def big_second_head(cluster: RunningCluster) -> None:
    """The first head of a connection is the balancer's, the others are the worker's."""
    async with await Raw.open(cluster.address) as raw:
        await raw.request("GET", "/nowhere")
        await raw.send(request("GET", POLLING, Cookie="x" * 40_000))
        assert (await raw.ended()).startswith(b"HTTP/1.1 431 ")


async def no_http(cluster: RunningCluster) -> None:
    async with await Raw.open(cluster.address) as raw:
        await raw.send(b"\x16\x03\x01\x02\x00\r\n\r\n")
        await raw.ended()


async def big_body(cluster: RunningCluster) -> None:
    await post(cluster, b"4" + b"x" * 30_000, status=413)


async def big_frame(cluster: RunningCluster) -> None:
    async with await Raw.open(cluster.address) as raw:
        await raw.send(websocket(f"{PATH}websocket"))
        await raw.answer()
        await raw.send(frame(b"4" + b"x" * 30_000))
        assert b"message too big" in await raw.ended()


async def many_attachments(cluster: RunningCluster) -> None:
    await post(cluster, b"453-" + json.dumps(["x"]).encode())


async def big_attachments(cluster: RunningCluster) -> None:
    event = b'451-["x",{"_placeholder":true,"num":0}]'
    await post(cluster, event + b"\x1eb" + b"AAAA" * 400)


async def many_namespaces(cluster: RunningCluster) -> None:
    await refused_namespace(cluster, "/chat", "/room-1", "/room-2")


async def unknown_namespace(cluster: RunningCluster) -> None:
    await refused_namespace(cluster, "/nowhere")


async def long_namespace(cluster: RunningCluster) -> None:
    await refused_namespace(cluster, "/" + "x" * 2000)


async def many_pending_events(cluster: RunningCluster) -> None:
    await post(cluster, b"\x1e".join([b'42["wait"]'] * 8))


async def no_namespace(cluster: RunningCluster) -> None:
    """Nothing is connected to within ``connect_timeout``."""
    async with await Raw.open(cluster.address) as raw:
        sid = (await raw.request("GET", POLLING)).sid
        # There may be a ping as well.
        assert await last_packets(raw, sid) in ([b"1"], [b"2", b"1"])


async def silence(cluster: RunningCluster) -> None:
    """The ping is fetched and not answered."""
    raw, sid = await opened(cluster)
    async with raw:
        # The ping may have come with what `opened` fetched.
        assert await last_packets(raw, sid) in ([b"2", b"1"], [b"1"])


async def two_polls(cluster: RunningCluster) -> None:
    """Whichever comes second is refused, and the other is told that the session is closed."""
    raw, sid = await opened(cluster)
    async with raw, await Raw.open(cluster.address) as other:
        answers = await asyncio.gather(
            *(one.request("GET", f"{POLLING}&sid={sid}") for one in (raw, other))
        )
        assert sorted(one.status for one in answers) == [200, 400]


async def deaf(cluster: RunningCluster) -> Raw:
    """A WebSocket in the main namespace, whose kernel buffers are small."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, cluster.address)
    raw = Raw(*await asyncio.open_connection(sock=sock, limit=4096))
    await raw.send(websocket(f"{PATH}websocket"))
    await raw.answer()
    await raw.send(frame(b"40"))
    return raw


async def slow_consumer(cluster: RunningCluster) -> None:
    """More than the hard limit of 16 MiB waits."""
    series = "limpet_slow_consumer_disconnects_total"
    before = await counted(cluster, series)
    async with await deaf(cluster) as raw:
        await raw.send(frame(b'42["flood",30,1000000]'))
        async with asyncio.timeout(15):  # had we left before, that would be the reason
            while await counted(cluster, series) <= before:
                await asyncio.sleep(0.1)
        raw.writer.transport.abort()


async def volatile(cluster: RunningCluster) -> None:
    series = 'limpet_packets_dropped_total{reason="volatile"}'
    before = await counted(cluster, series)
    async with await deaf(cluster) as raw:
        await raw.send(frame(b'42["flood",5,1000000]'))
        async with asyncio.timeout(15):
            while await counted(cluster, series) <= before:
                # Nothing is dropped before the flood has filled what the kernel takes.
                await raw.send(frame(b'42["volatile",10,10]'))
                await asyncio.sleep(0.1)
        raw.writer.transport.abort()


async def many_sessions(cluster: RunningCluster) -> None:
    ones = [Client(cluster.address) for _ in range(50)]
    try:
        answers = await asyncio.gather(*(one.connect(20) for one in ones), return_exceptions=True)
    finally:
        await asyncio.gather(*(one.close() for one in ones))
    refused = [one.status for one in answers if isinstance(one, BadAnswerError)]
    assert len(refused) >= 10
    assert set(refused) == {503}


PROVOKED: tuple[tuple[Provoke, str], ...] = (
    (big_head, 'limpet_balancer_heads_failed_total{reason="head too large"}'),
    (no_http, 'limpet_balancer_heads_failed_total{reason="not http"}'),
    (big_second_head, 'limpet_http_refused_total{reason="head too large"}'),
    (big_body, 'limpet_requests_refused_total{reason="body too large"}'),
    (big_upload, 'limpet_requests_refused_total{reason="route body too large"}'),
    (big_frame, 'limpet_websockets_failed_total{code="1009"}'),
    (many_attachments, 'limpet_packets_refused_total{reason="too many attachments"}'),
    (big_attachments, 'limpet_packets_refused_total{reason="attachments too large"}'),
    (many_namespaces, 'limpet_connections_refused_total{reason="too many namespaces"}'),
    (unknown_namespace, 'limpet_connections_refused_total{reason="unknown namespace"}'),
    (long_namespace, 'limpet_connections_refused_total{reason="long namespace"}'),
    (many_pending_events, 'limpet_packets_refused_total{reason="too many pending events"}'),
    (no_namespace, 'limpet_connections_refused_total{reason="connect timeout"}'),
    (silence, "limpet_ping_timeouts_total"),
    (two_polls, 'limpet_polls_refused_total{reason="duplicate"}'),
    (slow_consumer, "limpet_slow_consumer_disconnects_total"),
    (volatile, 'limpet_packets_dropped_total{reason="volatile"}'),
    (many_sessions, 'limpet_balancer_refused_total{reason="full"}'),
)


def split(series: str) -> tuple[str, dict[str, str]]:
    name, _, labels = series.partition("{")
    return name, dict(re.findall(r'(\w+)="([^"]*)"', labels))


async def test_each_limit_has_its_counter(cluster: RunningCluster) -> None:
    """One after the other, and the figures once at the end: they come once a second."""
    before = await asyncio.to_thread(Scrape.of, cluster.run_directory)
    for provoke, _ in PROVOKED:
        await provoke(cluster)
    left: set[str] = set()
    for _ in range(150):
        after = await asyncio.to_thread(Scrape.of, cluster.run_directory)
        left = set()
        for _, series in PROVOKED:
            name, labels = split(series)
            if after.total(name, **labels) <= before.total(name, **labels):
                left.add(series)
        if not left:
            break
        await asyncio.sleep(0.1)
    assert left == set()


def test_the_table_names_counters_that_there_are() -> None:
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index("## Limits and their counters") : text.index("## Logs")]
    named = set(re.findall(r"`(limpet_[a-z_]+)", section))
    assert named - HELP.keys() == set()
    for _, series in PROVOKED:
        assert series in section, series


def test_the_documentation_names_metrics_that_there_are() -> None:
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index("## Metrics") : text.index("## Limits and their counters")]
    named = set(re.findall(r"`((?:limpet|process)_[a-z_]+)", section))
    assert named - HELP.keys() == set()
    assert HELP.keys() - set(re.findall(r"(?:limpet|process)_[a-z_]+", text)) == set()
