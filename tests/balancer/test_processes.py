"""The balancer among real processes: placing, routing, migration, and what happens at deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from balancer_rig import ENGINE, NODE, Client, Rig, until
from limpet_adapters.identity import IdFactory, WorkerAddress
from limpet_balancer.handover import Parcel, Register, encode_register
from limpet_balancer.transfer import MESSAGES_PER_TURN, Link, Sent, connect

pytestmark = pytest.mark.processes

PATIENT = {"prompt": 30.0}
"""Limits for tests that count who gets how many: a worker that is slow to take one gets more."""
AT_ONCE = 10.0
"""Far less than a worker is waited for where this is asked."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """A balancer and three workers for tests that break nothing."""
    with Rig() as rig:
        rig.balancer(limits={**PATIENT, "worker_wait": 60.0}, linger=60.0)
        for slot in range(3):
            rig.worker(slot)
        yield rig


async def open_session(rig: Rig) -> tuple[str, int]:
    """Return sid and pid of the worker."""
    answer = (await rig.get()).json
    return answer["sid"], answer["pid"]


def with_sid(sid: str) -> str:
    return f"{ENGINE}&sid={sid}"


# --- placing and routing ----------------------------------------------------------------


async def test_quick_connections_spread_evenly(shared: Rig) -> None:
    async def used() -> Counter[int]:
        return Counter(
            {w["slot"]: w["sessions"] + w["recent"] for w in (await shared.stats())["workers"]}
        )

    before = await used()
    target = max(before.values()) * 3 - sum(before.values()) + 21
    answers = await asyncio.gather(*(shared.get() for _ in range(target)))
    placed = Counter(answer.json["slot"] for answer in answers)
    assert len(set((before + placed).values())) == 1, (before, placed)


async def test_twenty_quick_ones_on_two_workers() -> None:
    with Rig() as rig:
        rig.balancer(limits=PATIENT)
        rig.worker(0)
        rig.worker(1)
        answers = await asyncio.gather(*(rig.get() for _ in range(20)))
        assert Counter(a.json["slot"] for a in answers) == {0: 10, 1: 10}


async def test_sid_leads_to_its_worker(shared: Rig) -> None:
    sessions = [await open_session(shared) for _ in range(6)]
    assert len({pid for _, pid in sessions}) == 3
    for sid, pid in sessions * 3:
        answer = await shared.get(with_sid(sid))
        assert (answer.status, answer.json["pid"], answer.json["hops"]) == (200, pid, 0)


@pytest.mark.parametrize(
    "sid",
    [
        "malformed",
        "!" * 20,
        IdFactory(WorkerAddress(NODE, 200, 0))(),
        IdFactory(WorkerAddress(NODE + 1, 0, 0))(),
    ],
    ids=["short", "alphabet", "slot", "node"],
)
async def test_sid_that_leads_nowhere_is_final_at_once(shared: Rig, sid: str) -> None:
    async with asyncio.timeout(AT_ONCE):
        answer = await shared.get(with_sid(sid))
    assert answer.status == 400
    assert answer.json["final"] is True


async def test_wrong_incarnation_is_final_at_once(shared: Rig) -> None:
    workers = (await shared.stats())["workers"]
    worker = workers[0]
    stale = WorkerAddress(NODE, worker["slot"], (worker["incarnation"] + 1) % 256)
    async with asyncio.timeout(AT_ONCE):
        answer = await shared.get(with_sid(IdFactory(stale)()))
    assert (answer.status, answer.json["final"]) == (400, True)


async def test_sid_counts_only_in_the_query_of_the_engine_path(shared: Rig) -> None:
    sid, pid = await open_session(shared)
    slots = set()
    for _ in range(6):
        answer = await shared.get(f"/page?sid={sid}")
        assert answer.json["final"] is False
        slots.add(answer.json["slot"])
    assert len(slots) > 1
    async with await shared.open() as client:
        client.writer.write(
            f"GET {ENGINE} HTTP/1.1\r\nReferer: /socket.io/?sid=malformed\r\n\r\n".encode()
        )
        assert (await client.answer()).json["final"] is False
    encoded = "".join(f"%{ord(c):02x}" for c in sid)
    answer = await shared.get(f"{ENGINE}&sid=malformed&%73id={encoded}")
    assert (answer.status, answer.json["pid"]) == (200, pid)


async def test_client_address_travels(shared: Rig) -> None:
    async with await shared.open() as client:
        own = client.writer.get_extra_info("sockname")
        assert tuple((await client.get()).json["address"]) == own


async def test_body_read_with_the_head_travels(shared: Rig) -> None:
    sid, pid = await open_session(shared)
    answer = await shared.get(with_sid(sid), method="POST", body=b"x" * 300_000)
    assert (answer.json["pid"], answer.json["length"]) == (pid, 300_000)


# --- migration --------------------------------------------------------------------------


async def test_alternating_sids_on_one_connection(shared: Rig) -> None:
    sessions = [await open_session(shared) for _ in range(3)]
    async with await shared.open() as client:
        for turn in range(200):
            sid, pid = sessions[turn % 3]
            answer = await client.get(with_sid(sid))
            assert (answer.status, answer.json["pid"]) == (200, pid)
            assert answer.json["final"] is False


async def test_pipelined_requests_for_several_workers(shared: Rig) -> None:
    sessions = [await open_session(shared) for _ in range(3)]
    async with await shared.open() as client:
        for sid, _ in sessions * 5:
            client.ask(with_sid(sid))
        for _, pid in sessions * 5:
            assert (await client.answer()).json["pid"] == pid


async def test_migration_with_more_bytes_than_one_message(shared: Rig) -> None:
    (sid, pid), other = await open_session(shared), ("", 0)
    while other[1] in {0, pid}:
        other = await open_session(shared)
    body = os.urandom(200_000)
    async with await shared.open() as client:
        await client.get(with_sid(sid))
        client.ask(with_sid(other[0]), method="POST", body=body)
        answer = (await client.answer()).json
        assert (answer["pid"], answer["length"]) == (other[1], len(body))


async def test_request_without_sid_on_an_owned_connection_is_placed_anew(shared: Rig) -> None:
    async with await shared.open() as client:
        slots = {(await client.get()).json["slot"] for _ in range(12)}
    assert len(slots) > 1


async def test_unknown_sid_on_an_owned_connection(shared: Rig) -> None:
    async with await shared.open() as client:
        await client.get()
        answer = await client.get(with_sid("x" * 20))
        assert (answer.status, answer.json["final"]) == (400, True)
        assert (await client.get()).status == 200


async def test_workers_that_disown_a_session_do_not_pass_it_around_for_ever() -> None:
    with Rig() as rig:
        rig.balancer()
        rig.worker(0, disowns=True)
        answer = (await rig.get()).json
        assert (answer["final"], answer["hops"]) == (True, 8)
        assert (await rig.stats())["migrated"] == 8


# --- heads ------------------------------------------------------------------------------


async def test_head_split_in_segments(shared: Rig) -> None:
    sid, pid = await open_session(shared)
    request = f"GET {with_sid(sid)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with await shared.open() as client:
        for at in range(0, len(request), 7):
            client.writer.write(request[at : at + 7])
            await asyncio.sleep(0.002)
        assert (await client.answer()).json["pid"] == pid


async def test_head_too_large(shared: Rig) -> None:
    async with await shared.open() as client:
        client.writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000)
        assert (await client.answer()).status == 431
        assert await client.reader.read() == b""
        for _ in range(3):  # what is still on its way meets no reset
            client.writer.write(b"x" * 1000)
            await asyncio.sleep(0.01)
            assert not client.writer.transport.is_closing()


async def test_head_of_just_the_limit(shared: Rig) -> None:
    head = b"GET /page HTTP/1.1\r\nX: "
    async with await shared.open() as client:
        client.writer.write(head + b"x" * (16_384 - len(head) - 4) + b"\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_not_http(shared: Rig) -> None:
    async with await shared.open() as client:
        client.writer.write(bytes.fromhex("16030100c8010000c403"))
        assert (await client.answer()).status == 400


async def slow_heads(rig: Rig, count: int) -> list[Client]:
    """Open connections that send a part of a head and no more."""
    slow = []
    for _ in range(count):
        slow.append(await rig.open())
        slow[-1].writer.write(b"GET / HT")
        await slow[-1].writer.drain()
    return slow


async def test_slow_heads_block_nobody_and_the_oldest_make_way() -> None:
    with Rig() as rig:
        rig.balancer(head_timeout=60.0, heads=50)  # none ends before all are there
        rig.worker(0)
        slow = await slow_heads(rig, 60)

        async def aside() -> bool:
            closed = [client.reader.at_eof() for client in slow]  # without a word
            oldest = closed == [True] * 10 + [False] * 50
            return bool(oldest and (await rig.stats())["heads"] == 50)

        await until(aside)
        assert (await rig.get()).status == 200


async def test_slow_heads_end() -> None:
    with Rig() as rig:
        rig.balancer(head_timeout=2.0)
        slow = await slow_heads(rig, 50)
        for client in slow:
            assert (await client.reader.read()).startswith(b"HTTP/1.1 408")
            await client.close()
        assert (await rig.stats())["heads"] == 0


async def test_client_that_closes_before_its_head(shared: Rig) -> None:
    async with await shared.open() as client:
        client.writer.write(b"GET / HT")
        await client.writer.drain()

    async def gone() -> bool:
        return bool((await shared.stats())["heads"] == 0)

    await until(gone)


# --- deaths -----------------------------------------------------------------------------


async def test_unacknowledged_hand_overs_of_a_killed_worker_are_served_by_the_other() -> None:
    with Rig() as rig:
        rig.balancer(limits=PATIENT)
        first, second = rig.worker(0), rig.worker(1)
        sid, _ = (await rig.get()).json["sid"], None
        doomed = first if (await rig.get(with_sid(sid))).json["pid"] == first.pid else second
        other = second if doomed is first else first
        doomed.send(signal.SIGSTOP)
        clients = [await rig.open() for _ in range(40)]
        bound = [await rig.open() for _ in range(20)]
        for client in clients:
            client.ask()
        for client in bound:
            client.ask(with_sid(sid))

        async def piled_up() -> bool:
            return bool((await rig.stats())["unacknowledged"] >= 21)

        await until(piled_up)
        doomed.end(signal.SIGKILL)
        for client in clients:
            answer = await client.answer()
            assert (answer.status, answer.json["pid"]) == (200, other.pid)
        for client in bound:
            answer = await client.answer()
            assert (answer.status, answer.json["final"]) == (400, True)
            assert answer.json["pid"] == other.pid
        for client in clients + bound:
            await client.close()
        stats = await rig.stats()
        assert stats["redispatched"] >= 21
        assert stats["unacknowledged"] == 0


async def test_all_that_a_worker_gave_back_before_its_end_are_served() -> None:
    request = f"GET {ENGINE} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    count = 3 * MESSAGES_PER_TURN
    with Rig() as rig, ExitStack() as clients:
        balancer = rig.balancer()
        rig.worker(0)
        await rig.ready(1)
        link = Link(connect(rig.run.balancer))
        register = Register(WorkerAddress(NODE, 7, 1), 99, os.getpid(), 0)
        link.send(encode_register(register))

        def give_back(number: int) -> socket.socket:
            ours, theirs = socket.socketpair()
            clients.enter_context(ours)
            with theirs:
                parcel = Parcel(theirs, socket.AF_UNIX, "unix", request)
                assert link.send_connection(number, parcel) is Sent.YES
            ours.settimeout(20)
            return ours

        first = give_back(1)
        assert await asyncio.to_thread(first.recv, 15) == b"HTTP/1.1 200 OK"
        balancer.send(signal.SIGSTOP)
        waiting = [give_back(number) for number in range(2, count + 2)]
        link.close()  # with the acknowledgement of the first unread
        balancer.send(signal.SIGCONT)
        for client in waiting:
            assert await asyncio.to_thread(client.recv, 15) == b"HTTP/1.1 200 OK"


async def test_session_of_a_slot_that_comes_back_is_final_at_once() -> None:
    with Rig() as rig:
        rig.balancer()
        worker = rig.worker(0)
        sid, _ = await open_session(rig)
        worker.end(signal.SIGKILL)
        again = rig.worker(0)
        answer = await rig.get(with_sid(sid))
        assert (answer.status, answer.json["pid"], answer.json["final"]) == (400, again.pid, True)


async def test_balancer_killed_and_started_again() -> None:
    with Rig() as rig:
        balancer = rig.balancer()
        for slot in range(2):
            rig.worker(slot, patience=30.0)  # until the next balancer has come up
        sessions = [await open_session(rig) for _ in range(4)]
        async with await rig.open() as lasting, await rig.open() as migrating:
            await lasting.get(with_sid(sessions[0][0]))
            await migrating.get(with_sid(sessions[0][0]))
            balancer.end(signal.SIGKILL)
            # Refused by nobody: the listener lives on.
            waiting = [await rig.open() for _ in range(10)]
            for client in waiting:
                client.ask()
            answer = await lasting.get(with_sid(sessions[0][0]))
            assert answer.json["pid"] == sessions[0][1]
            other = next(s for s in sessions if s[1] != sessions[0][1])
            migrating.ask(with_sid(other[0]))  # waits in its worker for a balancer
            await asyncio.sleep(0.2)
            rig.balancer(limits={"worker_wait": 30.0})
            for client in waiting:
                assert (await client.answer()).status == 200
                await client.close()
            assert (await migrating.answer()).json["pid"] == other[1]
            for sid, pid in sessions:
                answer = await rig.get(with_sid(sid))
                assert (answer.status, answer.json["pid"]) == (200, pid)
            assert (await lasting.get(with_sid(sessions[0][0]))).json["pid"] == sessions[0][1]


async def test_held_slot_that_has_not_registered_is_waited_for() -> None:
    with Rig() as rig:
        balancer = rig.balancer()
        first, second = rig.worker(0), rig.worker(1)
        sessions = dict([(await open_session(rig))[::-1] for _ in range(2)])
        assert len(sessions) == 2
        balancer.end(signal.SIGKILL)
        first.send(signal.SIGSTOP)  # alive, but it cannot register
        rig.balancer(limits={"worker_wait": 30.0})
        await rig.ready(1)
        async with await rig.open() as client:
            client.ask(with_sid(sessions[first.pid]))
            assert (await rig.get(with_sid(sessions[second.pid]))).json["pid"] == second.pid

            async def waits() -> bool:
                return bool((await rig.stats())["waiting"] == 1)

            await until(waits)
            first.send(signal.SIGCONT)
            answer = await client.answer()
            assert (answer.status, answer.json["pid"]) == (200, first.pid)


async def test_hand_overs_in_the_channel_of_a_killed_balancer_are_served() -> None:
    with Rig() as rig:
        balancer = rig.balancer(limits=PATIENT)
        worker = rig.worker(0)
        worker.send(signal.SIGSTOP)
        clients = [await rig.open() for _ in range(10)]
        for client in clients:
            client.ask()

        async def handed() -> bool:
            return bool((await rig.stats())["handed_over"] == 10)

        await until(handed)
        balancer.end(signal.SIGKILL)
        worker.send(signal.SIGCONT)
        for client in clients:
            assert (await client.answer()).status == 200
            await client.close()


async def test_new_sessions_avoid_a_worker_that_does_not_answer() -> None:
    with Rig() as rig:
        rig.balancer()
        stopped, other = rig.worker(0), rig.worker(1)
        stopped.send(signal.SIGSTOP)
        early = [await rig.open() for _ in range(2)]
        for client in early:
            client.ask()

        async def handed() -> bool:
            return bool((await rig.stats())["handed_over"] == 2)

        await until(handed)
        await asyncio.sleep(0.15)
        for _ in range(20):
            assert (await rig.get()).json["pid"] == other.pid
        stopped.send(signal.SIGCONT)
        for client in early:
            assert (await client.answer()).status == 200
            await client.close()
        slots = {(await rig.get()).json["slot"] for _ in range(20)}
        assert 0 in slots


async def test_at_most_256_wait_in_a_worker_and_the_rest_in_the_balancer() -> None:
    with Rig() as rig:
        rig.balancer(limits={"waiting": 100, "prompt": 30.0, "busy_wait": 60.0})
        worker = rig.worker(0)
        sid, _ = await open_session(rig)
        worker.send(signal.SIGSTOP)
        clients = []
        for index in range(700):
            clients.append(await rig.open())
            # At once: one that says nothing for a second is accepted, and then no pause stops it.
            clients[-1].ask(with_sid(sid) if index % 2 else ENGINE)

        async def full() -> bool:
            stats = await rig.stats()
            return bool(stats["unacknowledged"] == 256 and stats["paused"] == ["waiting"])

        await until(full)
        assert (await rig.stats())["waiting"] <= 328  # two reasons, each a round of accepts over
        worker.send(signal.SIGCONT)
        for client in clients:
            assert (await client.answer()).status == 200
            await client.close()
        stats = await rig.stats()
        assert (stats["paused"], stats["waiting"], stats["unacknowledged"]) == ([], 0, 0)


# --- no worker, full, draining, health --------------------------------------------------


async def test_no_worker_is_waited_for_then_503() -> None:
    with Rig() as rig:
        rig.balancer(limits={"worker_wait": 0.3})
        answer = await rig.get()
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["connection"] == "close"
        assert answer.json["reason"] == "no worker"
        assert (await rig.stats())["refused"] == {"no worker": 1}


async def test_worker_that_comes_in_time() -> None:
    with Rig() as rig:
        rig.balancer(limits={"worker_wait": 30.0})
        async with await rig.open() as client:
            client.ask()
            await asyncio.sleep(0.1)
            rig.worker(0)
            assert (await client.answer()).status == 200


async def test_full_refuses_new_sessions_only() -> None:
    with Rig() as rig:
        rig.balancer()
        rig.worker(0, limit=3)
        sids = [(await open_session(rig))[0] for _ in range(3)]
        answer = await rig.get()
        assert (answer.status, answer.json["reason"]) == (503, "full")
        assert (await rig.get(with_sid(sids[0]))).status == 200
        assert (await rig.get("/page")).status == 200


async def test_draining_worker_keeps_its_sessions_and_gets_no_new_ones() -> None:
    with Rig() as rig:
        rig.balancer()
        draining, other = rig.worker(0), rig.worker(1)
        sessions = [await open_session(rig) for _ in range(4)]
        draining.send(signal.SIGUSR1)

        async def noticed() -> bool:
            return any(w["draining"] for w in (await rig.stats())["workers"])

        await until(noticed)
        assert {(await rig.get()).json["pid"] for _ in range(6)} == {other.pid}
        for sid, pid in sessions:
            assert (await rig.get(with_sid(sid))).json["pid"] == pid
        assert (await rig.get("/healthz")).status == 200
        other.send(signal.SIGUSR1)

        async def all_drain() -> bool:
            return bool((await rig.get("/healthz")).status == 503)

        await until(all_drain)
        assert (await rig.get("/healthz")).json == {"status": "draining"}
        # Somebody can still say that a session is unknown.
        assert (await rig.get(with_sid("nonsense"))).json["final"] is True


async def test_health() -> None:
    with Rig() as rig:
        rig.balancer()
        answer = await rig.get("/healthz")
        assert (answer.status, answer.json) == (503, {"status": "starting"})
        worker = rig.worker(0)
        answer = await rig.get("/healthz?x=1")
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        async with await rig.open() as client:
            client.ask("/healthz", method="HEAD")
            assert (await client.answer(head_only=True)).status == 200
            assert await client.reader.read() == b""
        assert worker.end() == 0

        async def none() -> bool:
            return bool((await rig.get("/healthz")).json == {"status": "no worker"})

        await until(none)


async def test_worker_that_is_not_ready_gets_no_sessions() -> None:
    with Rig() as rig:
        rig.balancer(limits={"worker_wait": 0.3})
        rig.worker(0, ready=False)
        assert (await rig.get("/healthz")).json == {"status": "starting"}
        assert (await rig.get()).status == 503


# --- listeners and limits of the system -------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "host"), [("[::1]:0", "::1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")]
)
async def test_ipv6(bound: str, host: str) -> None:
    with Rig(bound) as rig:
        rig.balancer()
        rig.worker(0)
        rig.worker(1)
        rig.target = (host, rig.target[1])
        sid, pid = await open_session(rig)
        for _ in range(4):
            answer = await rig.get(with_sid(sid))
            assert (answer.json["pid"], answer.json["address"][0]) == (pid, host)


async def test_unix_listener() -> None:
    with Rig("unix:{folder}/public.sock") as rig:
        rig.balancer()
        rig.worker(0)
        rig.worker(1)
        sessions = [await open_session(rig) for _ in range(2)]
        async with await rig.open() as client:
            for sid, pid in sessions * 5:
                answer = await client.get(with_sid(sid))
                assert (answer.json["pid"], answer.json["address"]) == (pid, "unix")


async def test_balancer_out_of_descriptors_pauses_and_goes_on() -> None:
    with Rig() as rig:
        rig.balancer(nofile=40)
        rig.worker(0)
        began = time.monotonic()
        idle = [await rig.open() for _ in range(60)]
        for client in idle:
            client.writer.write(b"GET / HT")

        served = [await rig.open() for _ in range(3)]
        for client in served:
            client.ask()
        await asyncio.sleep(0.3)
        for client in idle:
            await client.close()
        for client in served:
            assert (await client.answer()).status == 200
            await client.close()
        # Each time it pauses for a tenth of a second.
        assert 1 <= (await rig.stats())["emfile"] <= 5 + 15 * (time.monotonic() - began)


async def test_worker_out_of_descriptors_gives_connections_back() -> None:
    with Rig() as rig:
        # However slow it is to take them, the poor one gets its half: more than it can hold.
        rig.balancer(limits={**PATIENT, "unable_for": 0.1})
        poor = rig.worker(0, nofile=40)
        rich = rig.worker(1)
        clients = [await rig.open() for _ in range(120)]
        for client in clients:
            client.ask()
        answers = [await client.answer() for client in clients]
        assert {answer.status for answer in answers} == {200}
        pids = Counter(answer.json["pid"] for answer in answers)
        assert 1 <= pids[poor.pid] < 40
        assert pids[poor.pid] + pids[rich.pid] == 120
        assert (await rig.stats())["rejected"] >= 1
        for client in clients:
            await client.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_too_many_descriptors_in_flight_of_an_unprivileged_user() -> None:
    """They count per user, against the limit of whoever sends: ETOOMANYREFS until they land."""
    nobody = 65_534
    with Rig() as rig:
        rig.folder.chmod(0o711)
        os.chown(rig.run.path, nobody, nobody)
        rig.balancer(uid=nobody, limits={"prompt": 30.0})
        sender = rig.worker(0, uid=nobody, nofile=64, patience=30.0)
        receiver = rig.worker(1, uid=nobody)
        sessions = {pid: sid for sid, pid in [await open_session(rig) for _ in range(2)]}
        async with await rig.open() as client:
            await client.get(with_sid(sessions[sender.pid]))
            receiver.send(signal.SIGSTOP)
            clients = [await rig.open() for _ in range(200)]
            for each in clients:
                each.ask(with_sid(sessions[receiver.pid]))

            async def in_flight() -> bool:
                return bool((await rig.stats())["unacknowledged"] == 200)

            await until(in_flight)
            client.ask(with_sid("unknown"))  # has to go back to the balancer
            await asyncio.sleep(0.2)
            assert (await rig.stats())["migrated"] == 0
            receiver.send(signal.SIGCONT)
            assert (await client.answer()).json["final"] is True
            assert (await rig.stats())["migrated"] == 1
            for each in clients:
                assert (await each.answer()).json["pid"] == receiver.pid


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_processes_of_other_users_cannot_register() -> None:
    with Rig() as rig:
        rig.balancer()
        rig.folder.chmod(0o711)
        rig.run.path.chmod(0o711)
        rig.run.balancer.chmod(0o666)
        code = (
            "import os, socket, sys; os.setuid(65534);"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]);"
            "sys.exit(len(s.recv(1)))"
        )
        command = [sys.executable, "-c", code, str(rig.run.balancer)]
        stranger = await asyncio.create_subprocess_exec(*command)
        assert await asyncio.wait_for(stranger.wait(), 10) == 0


async def test_a_second_balancer_is_refused_and_the_first_keeps_its_workers() -> None:
    with Rig() as rig:
        rig.balancer()
        first = rig.worker(0)
        with pytest.raises(RuntimeError, match="did not become ready"):
            rig.balancer()
        second = rig.worker(1)
        assert {(await rig.get()).json["pid"] for _ in range(4)} == {first.pid, second.pid}


# --- the end ----------------------------------------------------------------------------


async def test_terminated_balancer_hands_out_what_it_holds() -> None:
    with Rig() as rig:
        balancer = rig.balancer()
        worker = rig.worker(0)
        sid, pid = await open_session(rig)
        worker.send(signal.SIGSTOP)
        busy = [await rig.open() for _ in range(5)]
        for client in busy:
            client.ask(with_sid(sid))
        partial: Client = await rig.open()
        partial.writer.write(f"GET {with_sid(sid)} HTTP/1.1\r\nHo".encode())

        async def held() -> bool:
            stats = await rig.stats()
            return bool(stats["unacknowledged"] == 5 and stats["heads"] == 1)

        await until(held)
        balancer.send(signal.SIGTERM)
        worker.send(signal.SIGCONT)
        assert balancer.ended() == 0
        assert not rig.run.balancer.exists()
        for client in busy:
            assert (await client.answer()).json["pid"] == pid
            await client.close()
        partial.writer.write(b"st: localhost\r\n\r\n")
        assert (await partial.answer()).json["pid"] == pid
        await partial.close()


async def test_terminated_balancer_says_503_to_those_without_worker() -> None:
    with Rig() as rig:
        balancer = rig.balancer(finish_timeout=0.1, limits={"worker_wait": 60.0})
        async with await rig.open() as client:
            client.ask()

            async def waits() -> bool:
                return bool((await rig.stats())["waiting"] == 1)

            await until(waits)
            assert balancer.end(signal.SIGINT) == 0
            assert (await client.answer()).status == 503


async def test_terminated_balancer_waits_for_no_worker_where_none_can_come() -> None:
    with Rig() as rig:
        balancer = rig.balancer(finish_timeout=60.0, limits={"worker_wait": 60.0})
        async with await rig.open() as client:
            client.ask()

            async def waits() -> bool:
                return bool((await rig.stats())["waiting"] == 1)

            await until(waits)
            assert balancer.end() == 0  # long before the 60 s, or it would have been killed
            assert (await client.answer()).status == 503


def test_silent_connection_is_not_accepted_at_once() -> None:
    with Rig() as rig:
        assert rig.listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) >= 1
