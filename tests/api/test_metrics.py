"""``GET /metrics`` of hubs and clusters: what it says is what happened."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harness import RunningCluster, stopped, wait_until
from hubs import client, hub, run_directory, worker
from limpet_cluster.hub.catalogue import HELP
from raw_clients import PATH, Client
from rawhttp import Raw, websocket
from scrape import Scrape, fetch

SpawnCluster = Callable[..., RunningCluster]
APP = "servers.metrics_app:io"
PATIENT = "--ping-timeout=20"
"""The application's own is short, for tests that wait for it."""


async def scraped(path: Path) -> Scrape:
    return await asyncio.to_thread(Scrape.of, path)


async def reported(path: Path, seen: Callable[[Scrape], object], timeout: float = 10.0) -> Scrape:
    """Scrape until what the workers report, once a second, has come."""
    async with asyncio.timeout(timeout):
        while not seen(scrape := await scraped(path)):
            await asyncio.sleep(0.1)
    return scrape


def answered(scrape: Scrape) -> bool:
    """Whether balancer and supervisor are in it: they have half a second to answer."""
    return all(scrape.total("limpet_up", process=one) == 1 for one in ("balancer", "supervisor"))


def whole(scrape: Scrape) -> bool:
    """Whether all processes of a cluster of two workers are in it."""
    workers = all(scrape.total("limpet_up", worker=one) == 1 for one in ("w0", "w1"))
    return workers and answered(scrape)


# --- a hub alone, with workers that say what the test wants -------------------------------------


async def test_a_hub_alone() -> None:
    with run_directory() as path:
        async with hub(path), client(path) as api:
            scrape = await scraped(path)
            assert scrape.each("limpet_up", process="hub") == [1]
            assert scrape.each("limpet_up", process="balancer") == [0]
            assert scrape.each("limpet_up", process="supervisor") == []  # there is no socket
            assert scrape.total("limpet_workers") == 0
            assert len(scrape.each("limpet_workers")) == 4
            assert scrape.total("limpet_build_info", process="hub") == 1
            assert scrape.total("process_open_fds") > 5
            assert scrape.total("process_resident_memory_bytes") > 1 << 20
            assert (await api("/metrics?x=1")).status == 400
            assert (await api("/metrics", "POST")).status == 405
            plain = await asyncio.to_thread(Scrape.plain, path)
            assert {one.name for one in plain.samples} >= {one.name for one in scrape.samples}


async def test_what_the_api_itself_did() -> None:
    with run_directory() as path:
        async with hub(path), client(path) as api:
            before = await scraped(path)  # a hub in this process counts with its forerunners
            for _ in range(3):
                await api("/v1/rooms/some-room")
            await api("/v1/rooms/other-room", "DELETE")
            await api("/nowhere")
            await api("/livez", "PROPFIND")
            scrape = await scraped(path)

            def grown(name: str, **labels: str) -> float:
                return scrape.total(name, **labels) - before.total(name, **labels)

            requests = "limpet_http_requests_total"
            room = "/v1/rooms/{room}"
            assert grown(requests, route=room, method="GET", status="200") == 3
            assert grown(requests, route="none", method="DELETE", status="405") == 1
            assert grown(requests, route="none", method="GET", status="404") == 1
            assert grown(requests, method="other") == 1
            assert "some-room" not in scrape.text
            duration = "limpet_http_request_duration_seconds"
            assert grown(f"{duration}_count", route=room) >= 3
            assert 0 < grown(f"{duration}_sum", route=room) < 10


async def test_what_workers_report() -> None:
    with run_directory() as path:
        async with hub(path), worker(path, 0) as one, worker(path, 7) as two:
            one.control.send(
                "stats",
                {
                    "state": "ready",
                    "counters": {'limpet_x_total{reason="a"}': 3, "not a name": 1},
                    "gauges": {'limpet_sessions{transport="polling"}': 5},
                    "histograms": [("limpet_ping_rtt_seconds", (0.1, 1.0), (2, 1, 1), 3.5)],
                },
            )
            two.control.send("stats", {"state": "ready", "gauges": {"limpet_x": "many"}})
            two.add("ann", "r")
            await asyncio.gather(one.sync(), two.sync())
            scrape = await scraped(path)
            assert scrape.each("limpet_x_total", worker="w0", reason="a") == [3]
            assert scrape.each("limpet_sessions", worker="w0", transport="polling") == [5]
            rtt = "limpet_ping_rtt_seconds"
            assert scrape.each(f"{rtt}_bucket", worker="w0", le="0.1") == [2]
            assert scrape.each(f"{rtt}_bucket", worker="w0", le="1.0") == [3]
            assert scrape.each(f"{rtt}_bucket", worker="w0", le="+Inf") == [4]
            assert scrape.each(f"{rtt}_sum", worker="w0") == [3.5]
            assert scrape.each("limpet_up", worker="w0") == [1]
            assert scrape.each("limpet_up", worker="w7") == [0]  # it said nothing one could read
            assert scrape.total("limpet_workers", state="ready") == 1
            assert scrape.total("limpet_presence_entries", scope="local") == 1
            assert scrape.total("limpet_presence_users") == 1


async def test_a_worker_that_ended_leaves_totals_and_nothing_else() -> None:
    with run_directory() as path:
        async with hub(path):
            figures = {
                "counters": {"limpet_x_total": 3},
                "gauges": {"limpet_sessions": 5},
                "histograms": [("limpet_h", (1.0,), (1, 0), 0.5)],
            }
            async with worker(path, 2) as one:
                one.control.send("stats", {"state": "ready", **figures})
                await one.sync()
                assert (await scraped(path)).total("limpet_sessions", worker="w2") == 5
                one.control.send("bye", None)
                await one.control.close()
            scrape = await scraped(path)
            assert scrape.each("limpet_x_total", worker="w2") == [3]
            assert scrape.each("limpet_h_count", worker="w2") == [1]
            assert scrape.each("limpet_sessions", worker="w2") == []
            assert scrape.each("limpet_up", worker="w2") == []
            assert scrape.total("limpet_workers", state="gone") == 0  # it said goodbye
            async with worker(path, 2) as successor:
                successor.control.send("stats", {"counters": {"limpet_x_total": 1}})
                await successor.sync()
                scrape = await scraped(path)
                assert scrape.each("limpet_x_total", worker="w2") == [1]  # a reset, no second one
                assert scrape.total("limpet_workers", state="gone") == 0


async def test_probes_of_a_start() -> None:
    """Ready and started want a worker; started stays so when the last one is gone."""
    with run_directory() as path:
        async with hub(path):

            def ask(probe: str) -> int:
                return fetch(path, path=probe)[0]

            async with worker(path, 0) as one:
                probes = ("/livez", "/readyz", "/startupz")
                assert [await asyncio.to_thread(ask, probe) for probe in probes] == [200, 503, 503]
                one.control.send("stats", {"state": "ready"})
                await one.sync()
                assert [await asyncio.to_thread(ask, probe) for probe in probes] == [200, 200, 200]
                one.control.send("bye", None)
                await one.control.close()
            assert [await asyncio.to_thread(ask, probe) for probe in probes] == [200, 503, 200]


# --- a whole cluster ----------------------------------------------------------------------------


@pytest.fixture(scope="module", name="cluster")
def _cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """Not shared with others: its figures are looked at."""
    return _new_cluster(APP, 2, PATIENT)


class Mute(Client):
    """Takes whatever comes and acknowledges nothing."""

    def packet(self, packet: str) -> None:
        self.on_event = lambda _event, _args: None
        if not re.match(r"42\d", packet):
            super().packet(packet)


@asynccontextmanager
async def crowd(
    cluster: RunningCluster, websockets: int, pollers: int = 0
) -> AsyncIterator[list[Client]]:
    """Clients that are there for a while."""
    ones: list[Client] = [Mute(cluster.address) for _ in range(websockets)]
    ones += [Mute(cluster.address, "polling") for _ in range(pollers)]
    try:
        for one in ones:
            await one.connect()
        yield ones
    finally:
        for one in ones:
            await one.close()


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_figures_are_what_clients_did(cluster: RunningCluster) -> None:
    path = cluster.run_directory
    handlers = "limpet_handler_duration_seconds"
    messages = "limpet_transport_messages_total"
    before = await reported(path, whole)
    began = time.monotonic()

    def more(scrape: Scrape, name: str, **labels: str) -> float:
        return scrape.total(name, **labels) - before.total(name, **labels)

    def all_told(scrape: Scrape) -> bool:
        return (
            whole(scrape)
            and scrape.total("limpet_connections", namespace="/") == 10
            and more(scrape, "limpet_ping_rtt_seconds_count") >= 6
            and more(scrape, "limpet_events_total", direction="in") >= 10 * 15 + 2
            and more(scrape, "limpet_events_total", direction="out") >= 10 + 1
            and more(scrape, f"{handlers}_count") >= 10 * 14 + 2
            and scrape.total("limpet_balancer_backend_sessions") >= 10
            # open, CONNECT, 13 acknowledgements and the broadcast of each; pings
            and more(scrape, messages, transport="websocket", direction="out") >= 6 * 16
            and more(scrape, messages, transport="polling", direction="out") >= 4 * 16
        )

    async with crowd(cluster, 6, 4) as ones:
        for number, one in enumerate(ones):
            for n in range(10):
                assert await one.call("echo", n) == n
            assert await one.call("plain", 1) == 1
            assert await one.call("slow") == "done"
            assert await one.call("join", "everyone", f"room {number}") == 3
            one.emit("fail")
            one.emit("nobody handles this")
        assert await ones[0].call("say", "everyone", "hello") == "said"
        assert await ones[0].call("ask me", 0.05) == "no answer"
        during = await reported(path, all_told, 20)  # a ping is sent after three seconds
        elapsed = time.monotonic() - began
        assert [one.problems for one in ones] == [[]] * 10

    def grown(name: str, **labels: str) -> float:
        return more(during, name, **labels)

    assert during.total("limpet_sessions", transport="websocket") == 6
    assert during.total("limpet_sessions", transport="polling") == 4
    assert during.total("limpet_rooms", namespace="/") in {11, 12}  # everyone on both workers
    assert grown("limpet_sessions_opened_total", transport="websocket") == 6
    assert grown("limpet_sessions_opened_total", transport="polling") == 4
    assert grown("limpet_handshakes_total", result="ok") == 10
    # 10 echo, plain, slow, join, fail and one unhandled of each; say and ask me of one
    assert grown("limpet_events_total", namespace="/", direction="in") == 10 * 15 + 2
    assert grown("limpet_events_total", namespace="/", direction="out") == 10 + 1
    assert grown("limpet_events_unhandled_total") == 10
    assert grown("limpet_handler_errors_total", kind="event") == 10
    assert grown("limpet_ack_timeouts_total") == 1
    assert grown(f"{handlers}_count", namespace="/") == 10 * 14 + 2
    # Ten of them slept for 0.2 s, and the one that asked for 0.05 s.
    assert 2.0 <= grown(f"{handlers}_sum", namespace="/") < 20
    assert grown(f"{handlers}_bucket", namespace="/", le="0.1") <= 10 * 13 + 2
    fanout = "limpet_broadcast_fanout"
    assert grown(f"{fanout}_sum") == 10
    assert grown(f"{fanout}_count") == 2  # one on each worker
    for transport, people in (("websocket", 6), ("polling", 4)):
        came = grown(messages, transport=transport, direction="in")
        # CONNECT and 15 events of each, two more of the first, and pongs
        least = people * 16 + (2 if transport == "websocket" else 0)
        assert least <= came <= least + people * (elapsed + 2)
        assert grown("limpet_transport_bytes_total", transport=transport, direction="in") > came
        sent = grown(messages, transport=transport, direction="out")
        assert sent >= people * 16
        assert grown("limpet_transport_bytes_total", transport=transport, direction="out") > sent
    assert during.total("limpet_send_queue_bytes") < 10_000
    assert during.total("limpet_presence_entries") == 10
    rooms = during.values("limpet_connections", "namespace")
    assert rooms == {"/", "/chat"}
    assert "everyone" not in during.text
    assert ones[0].id not in during.text
    assert ones[0].sid not in during.text
    assert grown("limpet_balancer_fd_passed_total") >= 10
    assert grown("limpet_balancer_routed_total", decision="new") == 10
    assert during.total("limpet_balancer_route_duration_seconds_count") >= 10
    assert during.total("limpet_balancer_backend_sessions") >= 10
    assert grown("limpet_bus_messages_total", process="hub", direction="in") >= 1
    assert during.total("limpet_bus_delivery_lag_seconds_count") >= 2

    after = await reported(path, lambda scrape: scrape.total("limpet_sessions") == 0)
    closed = after.total("limpet_sessions_closed_total") - before.total(
        "limpet_sessions_closed_total"
    )
    assert closed == 10
    lived = "limpet_session_duration_seconds"
    assert after.total(f"{lived}_count") - before.total(f"{lived}_count") == 10
    assert after.total(f"{lived}_sum") - before.total(f"{lived}_sum") > 10


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_upgrades_and_sessions_nobody_knows(cluster: RunningCluster) -> None:
    path = cluster.run_directory
    before = await scraped(path)
    async with await Raw.open(cluster.address) as raw:
        sid = (await raw.request("GET", f"{PATH}polling")).sid
        # Who is in no namespace is sent away soon, perhaps before the upgrade has timed out.
        await raw.request("POST", f"{PATH}polling&sid={sid}", b"40")
        async with await Raw.open(cluster.address) as other:
            await other.send(websocket(f"{PATH}websocket&sid={sid}"))
            assert (await other.answer()).status == 101
            assert await other.reader.readexactly(2) == b"\x88\x00"  # after upgrade_timeout
        answer = await raw.request("GET", f"{PATH}polling&sid=AAAAAAAAAAAAAAAAAAAA")
        assert (answer.status, answer.json["code"]) == (400, 1)
        assert (await raw.request("GET", f"{PATH}carrier-pigeon")).status == 400
        await raw.request("POST", f"{PATH}polling&sid={sid}", b"1")
    expected = (
        ("limpet_upgrades_total", {"result": "timeout"}),
        ("limpet_unknown_sid_total", {"action": "rejected"}),
        ("limpet_handshakes_total", {"result": "Transport unknown"}),
    )
    after = await reported(
        path,
        lambda scrape: all(
            scrape.total(name, **labels) > before.total(name, **labels) for name, labels in expected
        ),
    )
    for name, labels in expected:
        assert after.total(name, **labels) - before.total(name, **labels) == 1, name


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_everything_is_described_and_labels_are_few(cluster: RunningCluster) -> None:
    scrape = await reported(cluster.run_directory, whole)
    assert "Not described." not in scrape.text
    assert {one.labels.get("worker") for one in scrape.samples} == {"w0", "w1", None}
    assert {one.labels.get("process") for one in scrape.samples} == {
        "hub",
        "balancer",
        "supervisor",
        None,
    }
    assert all(one.labels.get("worker") or one.labels.get("process") for one in scrape.samples)
    for family in scrape.families.values():
        assert f"{family.name}_total" in HELP or family.name in HELP, family.name
        assert len(family.samples) < 500, family.name


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_what_can_go_wrong_is_shown_before_it_does(cluster: RunningCluster) -> None:
    scrape = await reported(cluster.run_directory, whole)
    sources = {"worker": ["w0", "w1"], "process": ["hub", "balancer", "supervisor"]}
    expected = {
        "limpet_bus_lost_total": ["w0", "w1"],
        "limpet_slow_consumer_disconnects_total": ["w0", "w1"],
        "limpet_bus_deaf_total": ["hub"],
        "limpet_balancer_no_worker_total": ["balancer"],
        "limpet_log_records_lost_total": sources["worker"] + sources["process"],
    }
    for name, whose in expected.items():
        shown = scrape.values(name, "worker") | scrape.values(name, "process")
        assert shown - {""} == set(whose), name


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_dynamic_namespaces_share_a_label(cluster: RunningCluster) -> None:
    path = cluster.run_directory
    label = r"/room-\d+"
    async with crowd(cluster, 5) as ones:
        for number, one in enumerate(ones):
            one.transport.send(f"40/room-{number},")
        scrape = await reported(
            path, lambda scrape: scrape.total("limpet_connections", namespace=label) == 5
        )
    assert scrape.values("limpet_connections", "namespace") == {"/", "/chat", label}


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_a_blocked_loop_is_seen(cluster: RunningCluster) -> None:
    path = cluster.run_directory
    lag = "limpet_event_loop_lag_seconds"
    before = await reported(path, whole)
    async with crowd(cluster, 1) as (one,):
        where = str(await one.call("who"))

        def above(scrape: Scrape, name: str, bound: str) -> float:
            count = scrape.total(f"{name}_count", worker=where)
            return count - scrape.total(f"{name}_bucket", worker=where, le=bound)

        def grown(scrape: Scrape, name: str) -> float:
            return above(scrape, name, "0.25") - above(before, name, "0.25")

        def seen(scrape: Scrape) -> bool:
            total, earlier = (each.total(f"{lag}_sum", worker=where) for each in (scrape, before))
            return (
                total > earlier + 0.4
                and grown(scrape, lag) >= 1
                and grown(scrape, "limpet_handler_duration_seconds") >= 1
            )

        one.emit("block", 0.8)
        await reported(path, seen)  # not the lag alone: the machine may pause by itself


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_a_killed_worker_and_a_killed_hub(spawn_cluster: SpawnCluster) -> None:
    """Totals begin anew under the same labels; nothing appears twice, gauges tell the truth."""
    cluster = spawn_cluster(APP, 2, PATIENT)
    path = cluster.run_directory
    opened = "limpet_sessions_opened_total"
    async with crowd(cluster, 6):
        first = await reported(path, lambda scrape: scrape.total("limpet_sessions") == 6)
        assert first.total(opened) == 6
        mine = first.total(opened, worker="w0")
        assert mine >= 1
        old = cluster.pids["worker-0"]
        with stopped(cluster.pid):  # no successor before we have looked
            os.kill(old, signal.SIGKILL)
            dead = await reported(path, lambda scrape: not scrape.each("limpet_up", worker="w0"))
    assert dead.total(opened, worker="w0") == mine  # what it did stays done
    assert dead.each("limpet_sessions", worker="w0") == []
    await asyncio.to_thread(cluster.wait_restarted, "worker-0", old)
    anew = await reported(path, whole)
    assert anew.each(opened, worker="w0", transport="websocket") == [0], "not missing"
    assert anew.total("limpet_sessions", worker="w0") == 0
    assert anew.total("limpet_worker_restarts_total") == 1
    assert anew.total("limpet_worker_restarts_total", reason="signal") == 1
    assert anew.total("limpet_process_restarts_total", name="worker-0") == 1

    others = anew.total(opened, worker="w1")
    old = cluster.kill_role("hub")
    await asyncio.to_thread(cluster.wait_restarted, "hub", old)
    after = await reported(path, whole)
    assert after.total(opened, worker="w1") == others  # workers keep theirs
    assert after.total("limpet_process_restarts_total", name="hub") == 1
    assert len(after.each("limpet_up")) == 5

    old = cluster.kill_role("balancer")
    await asyncio.to_thread(cluster.wait_restarted, "balancer", old)
    await reported(path, answered)


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_a_drain_is_seen(spawn_cluster: SpawnCluster) -> None:
    cluster = spawn_cluster(APP, 2, PATIENT)
    path = cluster.run_directory
    async with crowd(cluster, 8):
        await reported(path, lambda scrape: scrape.total("limpet_sessions") == 8)

        async def drain(seconds: float) -> None:
            times = {"window": seconds, "grace": seconds}
            await asyncio.to_thread(cluster.api.post, "workers", "w0", "drain", body=times)

        await drain(60)  # nobody has left when we look
        busy = await reported(path, lambda scrape: scrape.total("limpet_draining", worker="w0"))
        assert 1 <= busy.total("limpet_drain_sessions_remaining", worker="w0") <= 8
        assert busy.each("limpet_draining", worker="w1") == [0]
        assert busy.total("limpet_workers", state="draining") == 1
        assert (await asyncio.to_thread(fetch, path, "", "/readyz"))[0] == 200  # w1 is there
        await drain(0)
        await reported(
            path,
            lambda scrape: (
                scrape.total("limpet_sessions", worker="w0") == 0
                and scrape.total("limpet_drain_sessions_remaining", worker="w0") == 0
            ),
        )


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_a_balancer_that_does_not_answer(spawn_cluster: SpawnCluster) -> None:
    cluster = spawn_cluster(APP, 1, PATIENT)
    pid = cluster.pids["balancer"]
    os.kill(pid, 19)  # SIGSTOP
    try:
        wait_until(lambda: Scrape.of(cluster.run_directory).each("limpet_up", worker="w0"))
        scrape = Scrape.of(cluster.run_directory)
        assert scrape.each("limpet_up", process="balancer") == [0]
        assert scrape.each("limpet_up", process="hub") == [1]
    finally:
        os.kill(pid, 18)  # SIGCONT
    wait_until(
        lambda: Scrape.of(cluster.run_directory).each("limpet_up", process="balancer") == [1]
    )
