"""Presence between real processes: deaths, restarts, lost connections, what handlers ask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from hubs import ROOM, Client, FakeWorker, client, hub, process, run_directory, worker
from limpet_adapters import control as control_module
from limpet_adapters.control import ControlClient, Hello
from limpet_adapters.rundir import RunDirectory, RunDirectoryError, Slot
from limpet_cluster.hub.control import HubControl
from limpet_cluster.hub.members import Members
from limpet_cluster.hub.process import HubConfig, run_hub
from limpet_worker.presence import LocalPresence, Presence, PresenceUnavailable
from scrape import Scrape

pytestmark = pytest.mark.processes

PURGE_DEADLINE = 20.0
"""Far more than it takes, and far less than `hubs.GRACE`, after which a worker that says nothing is
given up: so it was its end that was seen."""


async def until(condition: Callable[[], Awaitable[bool]], timeout: float, what: str) -> float:
    """Wait for a condition and return the seconds it took."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < timeout, f"{what}: not within {timeout} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def occupancy(api: Client, room: str = ROOM) -> tuple[int, int]:
    body = (await api(f"/v1/rooms/{room}")).body
    return body["occupancy"]["users"], body["occupancy"]["connections"]


async def test_a_killed_worker_is_gone_at_once() -> None:
    """5,000 entries, kill -9: nobody sees them a moment later, others are not concerned."""
    with (
        run_directory() as path,
        process("hub", path),
        process("worker", path, 1, 300),
        process("worker", path, 0, 5000) as doomed,
    ):
        async with client(path) as api:
            assert await occupancy(api) == (5300, 5300)
            doomed.kill()

            async def purged() -> bool:
                return await occupancy(api) == (300, 300)

            await until(purged, PURGE_DEADLINE, "purge")
            body = (await api("/v1/users/user-0-7")).body
            assert body["online"] is False
            assert body["rooms"] == []
            states = {w["slot"]: w["state"] for w in (await api("/v1/workers")).body["data"]}
            assert states == {0: "gone", 1: "ready"}
            # the slot's next life is not the one that died
            with process("worker", path, 0, 10):
                assert await occupancy(api) == (310, 310)
                body = (await api("/v1/workers")).body
                assert [w["slot"] for w in body["data"]] == [0, 1]
                assert body["data"][0]["connections"] == 10


async def test_who_never_came_up_takes_nobodys_place() -> None:
    """As the spare of a reload whose code is broken, and one that is tried again and again."""

    async def states() -> dict[int, str]:
        return {one["slot"]: one["state"] for one in (await api("/v1/workers")).body["data"]}

    async def drains() -> float:
        return (await asyncio.to_thread(Scrape.of, path)).total("limpet_drains_total", worker="w0")

    with run_directory() as path, process("hub", path), process("worker", path, 0, 1) as first:
        async with client(path) as api:
            assert await drains() == 7
            with process("worker", path, 3, 1, "starting"):
                assert await states() == {0: "ready", 3: "starting"}
            first.kill()

            async def only_the_first_is_missed() -> bool:
                return await states() == {0: "gone"}

            await until(only_the_first_is_missed, PURGE_DEADLINE, "ends")
            assert await drains() == 7
            with process("worker", path, 0, 1, "starting"):
                assert await states() == {0: "starting"}
            await until(only_the_first_is_missed, PURGE_DEADLINE, "end of its successor")
            assert await drains() == 0, "what has begun anew never jumps back"
            with process("worker", path, 0, 1):
                assert await states() == {0: "ready"}


async def test_a_killed_hub_is_told_everything_again() -> None:
    with (
        run_directory() as path,
        process("hub", path) as first,
        process("worker", path, 0, 3000),
        process("worker", path, 1, 200),
    ):
        async with client(path) as api:
            before = await api(f"/v1/rooms/{ROOM}")
            assert before.body["occupancy"]["users"] == 3200
        first.kill()
        first.wait(10)
        with process("hub", path):
            async with client(path) as api:
                seen: list[tuple[bool, int]] = []

                async def complete() -> bool:
                    body = (await api(f"/v1/rooms/{ROOM}")).body
                    seen.append((body["complete"], body["occupancy"]["users"]))
                    return bool(body["complete"])

                await until(complete, 20.0, "resync")
                # whoever believes `complete` never sees less than everybody
                assert all(users == 3200 for done, users in seen if done)
                # and a worker's part appears whole or not at all
                assert {users for _, users in seen} <= {0, 200, 3000, 3200}
                again = await api(
                    f"/v1/rooms/{ROOM}", headers={"If-None-Match": before.headers["ETag"]}
                )
                assert again.status == 304

                async def ready() -> bool:  # the bus waits 1 s for these workers
                    return bool((await api("/readyz")).body["detail"] == "not ready: workers")

                await until(ready, 20.0, "readiness")


async def test_a_slot_whose_holder_says_nothing() -> None:
    """It is held, but nobody speaks for it: incomplete until it is free, or the grace is over."""
    with run_directory() as path:
        held = Slot(RunDirectory(path), 9)
        async with hub(path), client(path) as api, worker(path, 0) as one:
            await one.sync()
            assert (await api("/v1/rooms/r")).body["complete"] is False
            answer = await api("/readyz")
            assert answer.status == 503
            assert "presence" in answer.body["detail"]
            assert not (await one.presence.list("r")).complete
            held.release()

            async def complete() -> bool:
                return bool((await api("/v1/rooms/r")).body["complete"])

            await until(complete, 20.0, "completeness")
            assert (await one.presence.list("r")).complete


async def test_a_stopped_worker_stays_until_it_is_killed() -> None:
    """A worker that hangs is no dead worker; killed while it hangs, it is gone at once."""
    with run_directory() as path, process("hub", path), process("worker", path, 0, 50) as one:
        async with client(path) as api:
            one.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.3)
            assert await occupancy(api) == (50, 50)
            one.kill()

            async def purged() -> bool:
                return await occupancy(api) == (0, 0)

            await until(purged, PURGE_DEADLINE, "purge")


async def test_a_worker_that_ends_cleanly_is_gone() -> None:
    with run_directory() as path, process("hub", path), process("worker", path, 0, 50) as one:
        async with client(path) as api:
            one.terminate()
            assert one.wait(10) == 0
            assert await occupancy(api) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_hub_ends_cleanly(number: signal.Signals) -> None:
    with run_directory() as path, process("hub", path) as one, process("worker", path, 0, 5):
        async with client(path) as api:
            assert await occupancy(api) == (5, 5)
        one.send_signal(number)
        assert one.wait(10) == 0
        left = sorted(entry.name for entry in path.iterdir())
        assert left == ["hub.lock", "slot-0"]


async def test_only_one_hub_of_a_run_directory() -> None:
    with run_directory() as path:
        async with hub(path):
            with pytest.raises(RunDirectoryError, match=rf"a hub runs in .*pid {os.getpid()}"):
                await run_hub(HubConfig(run_directory=path), lambda: None)
        async with hub(path):
            pass


async def test_a_lost_connection_changes_nothing_that_is_seen() -> None:
    """The control connection breaks, the worker lives: it comes again, and nobody flaps."""
    with run_directory() as path:
        async with hub(path), worker(path) as one, client(path) as api:
            for at in range(2000):
                one.add(f"user{at}", ROOM)
            await one.sync()
            before = await api(f"/v1/rooms/{ROOM}")
            assert before.body["occupancy"]["users"] == 2000
            for _ in range(3):
                connection = one.control.connection
                assert connection is not None
                connection.abort()
                added = one.add("late", "elsewhere")  # while nobody listens

                async def back(lost: object = connection) -> bool:
                    answer = await api(f"/v1/rooms/{ROOM}")
                    assert answer.body["occupancy"] == {"users": 2000, "connections": 2000}
                    return one.control.connection not in {None, lost} and answer.body["complete"]

                await until(back, 20.0, "reconnection")
                await one.sync()
                assert await occupancy(api, "elsewhere") == (1, 1)
                one.presence.disconnected("/", added)
                await one.sync()
            again = await api(f"/v1/rooms/{ROOM}")
            assert again.headers["ETag"] == before.headers["ETag"]


async def test_changes_during_a_resync_are_not_lost() -> None:
    """What joins, leaves and ends while the whole state is on its way is right afterwards."""
    with run_directory() as path:
        async with worker_before_hub(path) as one:
            ids = [one.add(f"user{at:04}", ROOM) for at in range(5000)]
            async with hub(path), client(path) as api:
                await one.control.connected()
                for turn in range(0, 1000, 2):
                    one.presence.disconnected("/", ids[turn])
                    one.presence.left("/", ids[-1 - turn], ROOM)
                    one.presence.joined("/", ids[-2 - turn], "other")
                    one.add(f"new{turn}", ROOM)
                    if turn % 50 == 0:
                        await asyncio.sleep(0)
                await one.sync()
                assert await occupancy(api) == (5000 - 500, 5000 - 500)
                assert await occupancy(api, "other") == (500, 500)
                assert (await api(f"/v1/users/user{4999}")).body["rooms"] == []


@contextlib.asynccontextmanager
async def worker_before_hub(path: Path) -> AsyncIterator[FakeWorker]:
    """A worker that looks for a hub which is not there yet."""
    RunDirectory(path)
    one = FakeWorker(path)
    one.control.start()
    try:
        yield one
    finally:
        await one.control.close()


async def test_many_rooms_of_one_socket() -> None:
    """More rooms than one batch can name reach the hub, in a delta and in a resync."""
    with run_directory() as path:
        async with worker_before_hub(path) as one:
            rooms = [f"room-{at}-{'x' * 100}" for at in range(3000)]
            one.add("ann", *rooms, "y" * 4096, "\U0001f600" * 4096)
            async with hub(path), client(path) as api:
                await one.sync()
                assert (await api("/v1/rooms")).body["total"] == 3002
                one.add("bob", *rooms)
                await one.sync()
                assert await occupancy(api, rooms[-1]) == (2, 2)


async def test_handlers_ask_for_the_room() -> None:
    """`presence.list` includes what was reported in the same turn, and other workers' users."""
    with run_directory() as path:
        async with hub(path), worker(path, 0) as one, worker(path, 1) as two:
            presence = Presence(one.presence)
            for at in range(1200):
                two.add(f"user{at:04}", ROOM)
            await two.sync()
            mine = one.add("user0000", ROOM)
            users = await presence.list(ROOM)
            assert users.complete
            assert [one.user for one in users] == [f"user{at:04}" for at in range(1200)]
            assert len(users[0].connections) == 2
            assert mine in {seen.socket_id for seen in users[0].connections}
            assert {seen.worker for seen in users[0].connections} == {"w0", "w1"}
            counted = await presence.count(ROOM)
            assert (counted.users, counted.connections) == (1200, 1201)
            where = await presence.user("user0000")
            assert len(where.connections) == 2
            assert where.rooms == [("/", ROOM)]
            assert await presence.list("nobody") == []
            assert await presence.list(ROOM, "/other") == []


async def test_a_worker_reads_its_own_writes_however_many() -> None:
    with run_directory() as path:
        async with hub(path), worker(path) as one:
            await one.sync()
            for turn in range(1, 4):
                for at in range(5000):
                    one.add(f"user{turn}-{at}", ROOM)
                assert (await one.presence.count(ROOM, timeout=20)).users == 5000 * turn


async def test_without_a_hub_presence_says_so() -> None:
    with pytest.raises(PresenceUnavailable, match="once the server has started"):
        await Presence().list(ROOM)
    with run_directory() as path:
        async with worker_before_hub(path) as one:
            started = time.monotonic()
            with pytest.raises(PresenceUnavailable, match="not reachable"):
                await Presence(one.presence).list(ROOM, timeout=0.2)
            assert time.monotonic() - started < 4.5  # without a timeout it takes 5 s
            # a question that waits is answered by the hub that comes
            asked = asyncio.create_task(Presence(one.presence).list(ROOM, timeout=20))
            one.add("ann", ROOM)
            await asyncio.sleep(0.05)
            async with hub(path):
                assert [user.user for user in await asked] == ["ann"]


async def test_a_hub_that_hangs_does_not_answer() -> None:
    with run_directory() as path, process("hub", path) as one:
        async with worker(path) as asking:
            await asking.sync()
            one.send_signal(signal.SIGSTOP)
            with pytest.raises(PresenceUnavailable, match="did not answer"):
                await asking.presence.list(ROOM, timeout=0.2)
            one.send_signal(signal.SIGCONT)
            assert await asking.presence.list(ROOM, timeout=20) == []


async def test_a_bad_batch_costs_the_connection_and_is_made_good() -> None:
    with run_directory() as path:
        async with hub(path), worker(path) as one, client(path) as api:
            one.add("ann", ROOM)
            await one.sync()
            first = one.control.connection
            assert first is not None
            first.send("presence", b"nonsense")

            async def back() -> bool:
                return one.control.connection not in {None, first}

            await until(back, 20.0, "reconnection")
            await one.sync()
            assert await occupancy(api) == (1, 1)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ({"pid": 1}, "the kernel says"),
        ({"node": 3}, "this is node 0"),
        ({"slot": 256}, "slot 0 to 255"),
        ({"worker_id": 0}, "worker_id > 0"),
        ({"name": "x" * 65}, "at most 64"),
    ],
)
async def test_workers_that_are_not_let_in(hello: dict[str, Any], reason: str) -> None:
    values = {"worker_id": 5, "node": 0, "slot": 0, "incarnation": 0, "pid": os.getpid()}
    with run_directory() as path:
        async with hub(path), client(path) as api:
            control = ControlClient(RunDirectory(path).hub, lambda: Hello(**{**values, **hello}))
            heard: list[str] = []
            original = control._opened

            def opened(connection: Any) -> None:
                original(connection)
                number = next(iter(connection._answers))
                answered = connection._answers[number]

                def tap(body: object, error: Exception | None) -> None:
                    heard.append(str(error))
                    answered(body, error)

                connection._answers[number] = tap

            control._opened = opened  # type: ignore[method-assign]
            control.start()

            async def refused() -> bool:
                return bool(heard)

            await until(refused, 20.0, "refusal")
            await control.close()
            assert reason in heard[0]
            assert (await api("/v1/workers")).body["data"] == []


async def test_a_slot_taken_over_ends_the_earlier_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of one slot: the later holds the lock, so the earlier is dead to us."""
    # And so it does not come back at once, to take the slot over in turn.
    monkeypatch.setattr(control_module, "RECONNECT", (60.0, 60.0))
    with run_directory() as path:
        async with hub(path), client(path) as api, worker(path, 0) as one:
            one.add("ann", ROOM)
            await one.sync()
            async with worker(path, 0) as two:
                two.add("bob", ROOM)
                await two.sync()
                body = (await api(f"/v1/rooms/{ROOM}/members")).body
                assert [item["user"] for item in body["data"]] == ["bob"]
                body = (await api("/v1/workers")).body
                assert [w["id"] for w in body["data"]] == [f"{two.hello.worker_id:016x}"]


async def test_no_timer_runs_while_nothing_changes() -> None:
    with run_directory() as path:
        async with hub(path), worker(path) as one:
            one.add("ann", ROOM)
            timers = [one.presence._timer]
            await asyncio.sleep(0.1)
            timers.append(one.presence._timer)
            assert timers[0] is not None
            assert timers[1] is None
            assert not one.presence._pending


async def test_presence_of_one_process_without_hub() -> None:
    local = LocalPresence()
    presence = Presence(local)
    local.connected("/", "s1", "ann", "polling", 1.0)
    local.connected("/", "s2", "ann", "websocket")
    local.connected("/", "s3", None, "websocket")
    for socket_id in ("s1", "s2", "s3"):
        local.joined("/", socket_id, ROOM)
    assert [(u.user, len(u.connections)) for u in await presence.list(ROOM)] == [
        ("ann", 2),
        ("s3", 1),
    ]
    local.changed("/", "s1", user="bob", transport="websocket")
    local.left("/", "s3", ROOM)
    assert [user.user for user in await presence.list(ROOM)] == ["ann", "bob"]
    assert (await presence.count(ROOM)).users == 2
    local.disconnected("/", "s2")
    assert (await presence.user("ann")).connections == []
    assert (await presence.user("bob")).rooms == [("/", ROOM)]


async def test_a_deaf_worker_is_killed_by_its_pidfd() -> None:
    """What the forwarder calls when a worker does not read the bus."""
    with run_directory() as path, contextlib.ExitStack() as stack:
        control = HubControl(RunDirectory(path).hub)
        members = Members(control, 0)
        stack.callback(members.close)
        gone: list[tuple[int, bool]] = []
        members.on_gone.append(lambda member, dead: gone.append((member.hello.slot, dead)))
        control.handle("presence", lambda *_: None)
        control.handle("presence.count", lambda *_: {"users": 0, "connections": 0})
        await control.start()
        # in a thread, since the hub it talks to is in this process
        one = await asyncio.to_thread(stack.enter_context, process("worker", path, 3, 5))
        (member,) = members.living.values()
        assert member.pid == one.pid
        assert member.connection is not None
        connection = member.connection
        members.on_deaf(connection, member.hello, "it is a test")
        assert await asyncio.to_thread(one.wait, 10) == -signal.SIGKILL

        async def noticed() -> bool:
            return bool(gone)

        await until(noticed, PURGE_DEADLINE, "end")
        assert gone == [(3, True)]
        members.on_deaf(connection, member.hello, "once more")  # nobody is there
        await control.close()


async def test_a_child_that_keeps_the_connection_open_hides_no_death() -> None:
    """The pidfd tells, although the end of file never comes."""
    with run_directory() as path, process("hub", path):
        parent = process("worker", path, 0, 20, "forked")
        async with client(path) as api:
            with parent as one:
                (forked,) = psutil.Process(one.pid).children()
                try:
                    assert await occupancy(api) == (20, 20)
                    one.kill()

                    async def purged() -> bool:
                        return await occupancy(api) == (0, 0)

                    await until(purged, PURGE_DEADLINE, "purge")
                    assert forked.is_running()
                finally:
                    forked.kill()
