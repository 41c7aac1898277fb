"""The bus between real processes: losses, joins, restarts, and workers that do not read."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from bus_processes import host, until

pytestmark = pytest.mark.processes


async def test_a_broadcast_reaches_members_on_other_workers_and_nobody_else() -> None:
    async with host(3, linger=0) as running:
        a, b, c = running.nodes
        first, second, third = [await node.do("add") for node in (a, b, c)]
        await b.do("join", socket=second, rooms=["r"])
        await a.do("emit", text="hello", rooms=["r"], attachments=["00ff"])
        assert await b.do("received", socket=second, count=1) == [["hello", ["00ff"], False]]
        await a.do("emit", text="all")
        for node, socket in ((b, second), (c, third), (a, first)):
            assert await node.do("numbers", socket=socket, count=1) == ["all"]
        await b.do("leave", socket=second, room="r")
        await a.do("emit", text="gone", rooms=["r"])
        await a.do("emit", text="after")
        for node, socket in ((b, second), (c, third)):
            assert await node.do("numbers", socket=socket, count=1) == ["after"]


async def test_a_socket_id_goes_to_its_worker_alone_and_a_room_like_one_is_a_room() -> None:
    async with host(2) as running:
        a, b = running.nodes
        first, second = await a.do("add"), await b.do("add")
        before = (await running.hub.tell("stats"))["messages"]
        await a.do("emit", text="you", rooms=[second])
        assert await b.do("numbers", socket=second, count=1) == ["you"]
        await b.do("emit", text="several", rooms=[first, second])
        assert await a.do("numbers", socket=first, count=1) == ["several"]
        room = "A" * 20  # decodes to a worker that does not live
        await b.do("join", socket=second, rooms=[room])
        await a.do("emit", text="room", rooms=[room])
        assert await b.do("numbers", socket=second, count=2) == ["several", "room"]
        await a.do("emit", text="self", rooms=[first])
        assert await a.do("numbers", socket=first, count=1) == ["self"]
        await asyncio.sleep(0.05)
        assert (await running.hub.tell("stats"))["messages"] - before == 3


async def test_uninterested_workers_are_not_sent_to() -> None:
    async with host(3, buckets=65_536) as running:
        a, b, c = running.nodes
        first, second, third = [await node.do("add") for node in (a, b, c)]
        await b.do("join", socket=second, rooms=["only b"])
        bytes_before = (await running.hub.tell("stats"))["bytes"]
        await c.do("emit", text="x" * 100_000, rooms=["nobody"])
        await c.do("emit", text="x" * 100_000, rooms=["only b"])
        assert len(await b.do("received", socket=second, count=1)) == 1
        stats = await running.hub.tell("stats")
        assert 100_000 < stats["bytes"] - bytes_before < 150_000  # one of the two was sent on
        for node, socket in ((a, first), (c, third)):
            assert await node.do("received", socket=socket, within=0) == []


async def join_then_broadcast(rounds: int, lag: float, wait: bool = True) -> None:
    async with host(2, buckets=65_536, linger=0) as running:
        a, b = running.nodes
        socket = await a.do("add")
        await running.hub.tell("lag", seconds=lag)
        got: list[str] = []
        for number in range(rounds):
            room = f"room {number}"
            await a.do("join", socket=socket, rooms=[room], wait=wait)
            await b.do("emit", text=str(number), rooms=[room])
            if number % 10 == 9:  # they are left when their messages have arrived
                got += await a.do("numbers", socket=socket, count=10, within=20 if wait else 0.5)
                for left in range(number - 9, number + 1):
                    await a.do("leave", socket=socket, room=f"room {left}")
        stats = [await a.do("stats"), await b.do("stats"), await running.hub.tell("stats")]
        assert got == [str(number) for number in range(rounds)], stats
        assert stats[0]["gaps"] == stats[0]["incomplete"] == 0


async def test_a_join_that_was_awaited_is_in_force_on_every_worker() -> None:
    await join_then_broadcast(300, lag=0.003)
    with pytest.raises(AssertionError):  # else the test above would show nothing
        await join_then_broadcast(10, lag=30, wait=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_joins() -> None:
    await join_then_broadcast(10_000, lag=0.0)


async def test_lost_frames_are_repaired_in_order() -> None:
    async with host(2) as running:
        a, b = running.nodes
        socket = await b.do("add", rooms=["r"])
        for lost in (1, 3, 20):
            await running.hub.tell("drop", count=lost)
            texts = [f"{lost}:{n}" for n in range(50)]
            await a.do("emit", text=texts, rooms=["r"])
            assert await b.do("numbers", socket=socket, count=50) == texts
        stats = await b.do("stats")
        assert stats["gaps"] >= 3
        assert stats["repaired"] == 24
        assert stats["lost"] == 0
        assert await b.do("gaps") == []


async def test_a_lost_tail_is_found_by_the_next_beat() -> None:
    async with host(2, hub={"beat_seconds": 0.1, "stall_after": 5}) as running:
        a, b = running.nodes
        socket = await b.do("add", rooms=["r"])
        await a.do("emit", text=["1", "2"], rooms=["r"])
        await running.hub.tell("drop", count=2)
        await a.do("emit", text=["3", "4"], rooms=["r"])
        assert await b.do("numbers", socket=socket, count=4) == ["1", "2", "3", "4"]
        assert (await b.do("stats"))["repaired"] == 2


async def test_what_the_ring_lacks_is_counted_and_told() -> None:
    # No beat comes: one between two of the messages would have the first of them asked for alone.
    async with host(2, hub={"ring_bytes": 4000, "beat_seconds": 60, "stall_after": 180}) as running:
        a, b = running.nodes
        socket = await b.do("add", rooms=["r"])
        await a.do("emit", text="before", rooms=["r"])
        assert await b.do("numbers", socket=socket, count=1) == ["before"]
        await running.hub.tell("drop", count=10)
        texts = [f"{n:02}" + "x" * 1000 for n in range(10)]
        await a.do("emit", text=[*texts, "10"], rooms=["r"])  # the last one shows the gap
        (*got, last) = await b.do("numbers", socket=socket, count=4)
        gaps = await b.do("gaps", count=1)
        assert last == "10"
        assert got == [f"{n:02}" for n in range(10 - len(got), 10)]
        assert 0 < len(got) < 10
        assert sum(gap["count"] for gap in gaps) == 10 - len(got)
        assert gaps[0]["kind"] == "lost"
        assert (await b.do("stats"))["lost"] == 10 - len(got)
        await a.do("emit", text="after", rooms=["r"])
        assert await b.do("numbers", socket=socket, count=1) == ["after"]


async def test_killed_hub_comes_back_without_doubles_and_the_gap_is_told() -> None:
    # No beat comes: what it would confirm may wait in the hub for a reader that pauses, and end
    # with the hub, and of that the sender cannot know.
    async with host(2, hub={"beat_seconds": 60, "stall_after": 180}, queue=60) as running:
        a, b = running.nodes
        first = await a.do("add", rooms=["r"])
        second = await b.do("add", rooms=["r", "other"])
        flood = asyncio.create_task(
            a.do("emit", text=[str(n) for n in range(1500)], rooms=["r"], every=0.001)
        )
        await asyncio.sleep(0.3)
        await running.hub.kill()
        await asyncio.sleep(0.2)
        await a.do("emit", text="local", rooms=["r"])  # local rooms go on
        assert "local" in await a.do("numbers", socket=first, count=1)
        assert await a.do("is_ready") is False
        await running.start_hub(open_seconds=20)
        began = time.monotonic()
        await asyncio.gather(a.do("ready"), b.do("ready"))
        await b.do("emit", text="back", rooms=["r"])
        numbers = await a.do("numbers", socket=first, count=1)
        assert time.monotonic() - began < 10
        await flood
        await a.do("emit", text="end", rooms=["other"])
        got: list[str] = []
        async with asyncio.timeout(20):
            while "end" not in got:
                got += await b.do("numbers", socket=second, count=1)
        sent = [int(n) for n in got if n.isdigit()]
        assert sent == sorted(set(sent))  # no double, in order
        missing = 1500 - len(sent)
        gaps = await a.do("gaps", count=1)
        assert [gap["kind"] for gap in gaps] == ["uncertain"]
        assert missing <= gaps[0]["count"]
        assert (await a.do("stats"))["dropped"] == 0
        async with asyncio.timeout(20):
            while "back" not in numbers:
                numbers += await a.do("numbers", socket=first, count=1)
        # joins and addressing work in the new life
        await b.do("join", socket=second, rooms=["new"])
        await a.do("emit", text="new", rooms=["new"])
        await a.do("emit", text="id", rooms=[second])
        assert sorted((await b.do("numbers", socket=second, count=2))[-2:]) == ["id", "new"]


async def test_a_worker_that_comes_late_to_a_restarted_hub_is_told() -> None:
    async with host(2) as running:
        a, b = running.nodes
        await b.do("add", rooms=["r"])
        b.signal(signal.SIGSTOP)
        await running.hub.kill()
        await running.start_hub()
        await a.do("ready")  # after a second: the hub does not wait for ever
        b.signal(signal.SIGCONT)
        await b.do("ready")
        gaps = await b.do("gaps", count=1)
        assert "late to the hub" in [gap["reason"] for gap in gaps]


async def test_stopped_hub_loses_nothing() -> None:
    async with host(2) as running:
        a, b = running.nodes
        socket = await b.do("add", rooms=["r"])
        running.hub.signal(signal.SIGSTOP)
        await a.do("flood", room="r", count=30_000, size=100)
        began = time.monotonic()
        while time.monotonic() - began < 2:
            await a.do("emit", text="tick", rooms=["r"])
            await asyncio.sleep(0.05)
        running.hub.signal(signal.SIGCONT)
        await a.do("emit", text="end", rooms=["r"])
        got: list[str] = []
        async with asyncio.timeout(20):
            while not got or got[-1] != "end":
                got += await b.do("numbers", socket=socket, count=1)
        assert [n for n in got if n.isdigit()] == [str(n) for n in range(30_000)]
        for node in (a, b):
            stats = await node.do("stats")
            assert (stats["lost"], stats["dropped"], stats["uncertain"]) == (0, 0, 0)
        assert not [said for said in running.hub.said if "deaf" in said]


async def test_a_stopped_worker_does_not_disturb_the_others() -> None:
    async with host(3) as running:
        a, b, c = running.nodes
        second = await b.do("add", rooms=["r"])
        third = await c.do("add", rooms=["r"])
        b.signal(signal.SIGSTOP)
        await a.do("flood", room="r", count=20_000)
        got: list[str] = []
        async with asyncio.timeout(20):
            while len(got) < 20_000:
                got += await c.do("numbers", socket=third, count=1)
        assert got == [str(n) for n in range(20_000)]
        assert (await c.do("stats"))["gaps"] == 0
        b.signal(signal.SIGCONT)
        assert await b.do("numbers", socket=second, count=20_000, within=30) == got


async def test_a_silent_worker_is_found_deaf_once_and_a_stopped_hub_blames_nobody() -> None:
    async with host(2, hub={"beat_seconds": 0.1, "stall_after": 4}) as running:
        _, b = running.nodes
        running.hub.signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        running.hub.signal(signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert not [said for said in running.hub.said if "deaf" in said]
        b.signal(signal.SIGSTOP)
        # A beat that is late by a half accuses nobody, and on a busy machine many are.
        await until(lambda: any("deaf" in said for said in running.hub.said), 30)
        await asyncio.sleep(0.5)
        assert [said["deaf"] for said in running.hub.said if "deaf" in said] == [1]
        b.signal(signal.SIGCONT)


async def test_a_worker_far_behind_is_found_deaf() -> None:
    async with host(2, hub={"unread_bytes": 1_000_000}) as running:
        a, b = running.nodes
        await b.do("add", rooms=["r"])
        b.signal(signal.SIGSTOP)
        for _ in range(3):  # one beat is not enough: b must have had the time to echo
            await a.do("flood", room="r", count=700, size=1000)
            await asyncio.sleep(0.4)
        await until(lambda: any(said.get("deaf") == 1 for said in running.hub.said), 30)
        # The sender is as far behind when it does not come to read for a second.
        (deaf,) = [said for said in running.hub.said if said.get("deaf") == 1]
        assert "bytes behind" in deaf["why"]
        b.signal(signal.SIGCONT)


async def test_messages_wait_for_a_hub_that_is_not_there_yet() -> None:
    async with host(2, queue=60, barrier=0.5) as running:
        a, b = running.nodes
        await running.hub.kill()
        await asyncio.sleep(0.1)
        socket = await b.do("add", rooms=["r"])  # joins do not wait for ever
        await a.do("emit", text=["1", "2", "3"], rooms=["r"])
        assert (await a.do("stats"))["queued"] == 3
        await running.start_hub(open_seconds=20)
        assert await b.do("numbers", socket=socket, count=3, within=20) == ["1", "2", "3"]
