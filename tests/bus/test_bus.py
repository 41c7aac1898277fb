"""The bus within one process: bounds, refusals, lingering, and what a part that fails leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus_processes import until
from limpet_adapters import bus as bus_module
from limpet_adapters import wire
from limpet_adapters.bus import Bus
from limpet_adapters.contract import BroadcastOptions
from limpet_adapters.control import ControlClient, ControlError, Hello
from limpet_adapters.counters import counters
from limpet_adapters.identity import IdFactory, WorkerAddress, new_worker_id
from limpet_adapters.outgoing import Outgoing
from limpet_adapters.packet import EncodedPacket
from limpet_adapters.rundir import RunDirectory, Slot
from limpet_cluster.hub import forwarder as forwarder_module
from limpet_cluster.hub.control import HubControl
from limpet_cluster.hub.forwarder import Forwarder


class Socket:
    def __init__(self, socket_id: str) -> None:
        self.id = socket_id
        self.joined: Collection[str] = ()
        self.received: list[bytes] = []


class Worker:
    """A bus with one socket in one namespace.

    It holds its slot, so that a hub that starts again waits for it before it takes messages.
    """

    def __init__(self, rundir: RunDirectory, slot: int, **options: Any) -> None:
        self.slot = Slot(rundir, slot)
        address = WorkerAddress(1, slot, 0)
        worker_id = new_worker_id()
        hello = Hello(worker_id=worker_id, node=1, slot=slot, incarnation=0, pid=os.getpid())
        self.control = ControlClient(rundir.hub, hello)
        self.bus = Bus(rundir, self.control, worker_id, address, **options)
        self.gaps: list[dict[str, object]] = []
        self.bus.on_gap = self.gaps.append
        self.adapter = self.bus.adapter("/", self.deliver)
        self.socket = Socket(IdFactory(address)())
        self.adapter.add(self.socket)

    def deliver(self, members: Collection[Socket], packet: EncodedPacket, _volatile: bool) -> None:
        for member in members:
            member.received.append(packet.text)

    def emit(self, text: bytes, *rooms: str) -> None:
        self.adapter.broadcast(EncodedPacket(text), BroadcastOptions(frozenset(rooms)))

    async def close(self) -> None:
        await self.adapter.close()
        await self.bus.close()
        await self.control.close()
        self.slot.release()


class Rig:
    def __init__(self, rundir: RunDirectory) -> None:
        self.rundir = rundir
        self.workers: list[Worker] = []
        self.control: HubControl
        self.forwarder: Forwarder

    async def start_hub(self, **options: Any) -> None:
        self.control = HubControl(self.rundir.hub)
        self.forwarder = Forwarder(self.rundir, self.control, **options)
        await self.forwarder.start()
        await self.control.start()

    async def stop_hub(self) -> None:
        await self.control.close()
        await self.forwarder.close()

    def worker(self, **options: Any) -> Worker:
        worker = Worker(self.rundir, len(self.workers), **options)
        self.workers.append(worker)
        return worker

    async def pair(self, **options: Any) -> tuple[Worker, Worker]:
        one, two = self.worker(**options), self.worker(**options)
        for worker in (one, two):
            worker.control.start()
        for worker in (one, two):
            await asyncio.wait_for(worker.bus.ready.wait(), 10)
        return one, two


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a thread of ZeroMQ pauses for a second, joins and a hub that starts wait for it."""
    monkeypatch.setattr(bus_module, "BARRIER_SECONDS", 20.0)
    monkeypatch.setattr(forwarder_module, "OPEN_SECONDS", 20.0)


@pytest.fixture
def rundir() -> Iterator[RunDirectory]:
    path = Path(tempfile.mkdtemp(prefix="limpet-"))
    yield RunDirectory(path)
    shutil.rmtree(path)


@asynccontextmanager
async def rig(rundir: RunDirectory, **options: Any) -> AsyncIterator[Rig]:
    running = Rig(rundir)
    await running.start_hub(**options)
    try:
        yield running
    finally:
        for worker in running.workers:
            await worker.close()
        await running.stop_hub()
    assert not list(rundir.path.glob("bus-*"))  # nothing is left behind


async def heard(socket: Socket, *texts: bytes) -> None:
    await until(lambda: len(socket.received) >= len(texts))
    assert socket.received == list(texts)
    socket.received.clear()


async def test_wrong_options_are_named(rundir: RunDirectory) -> None:
    control = ControlClient(rundir.hub, Hello(worker_id=1, node=1, slot=1, incarnation=1, pid=1))
    address = WorkerAddress(1, 1, 1)
    with pytest.raises(ValueError, match="buckets=0: expected 1 to 65536"):
        Bus(rundir, control, 1, address, buckets=0)
    with pytest.raises(ValueError, match="linger=-1: expected seconds >= 0"):
        Bus(rundir, control, 1, address, linger=-1)
    hub = HubControl(rundir.hub)
    with pytest.raises(ValueError, match="buckets=70000"):
        Forwarder(rundir, hub, buckets=70_000)
    with pytest.raises(ValueError, match="beat_seconds=0: expected seconds > 0"):
        Forwarder(rundir, hub, beat_seconds=0)
    with pytest.raises(ValueError, match="stall_after=2: expected at least three beats"):
        Forwarder(rundir, hub, stall_after=2)


async def test_another_number_of_buckets_is_refused(
    rundir: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(rundir, buckets=512) as running:
        worker = running.worker()
        worker.control.start()
        await until(lambda: "buckets=1024: the hub has buckets=512" in caplog.text)
        assert not worker.bus.ready.is_set()


async def test_a_second_adapter_of_a_namespace_is_refused(rundir: RunDirectory) -> None:
    async with rig(rundir) as running:
        worker = running.worker()
        with pytest.raises(ValueError, match="'/' has an adapter already"):
            worker.bus.adapter("/", worker.deliver)
        await worker.adapter.close()
        worker.adapter = worker.bus.adapter("/", worker.deliver)


async def test_too_large_a_message_stays_here_and_is_told(
    rundir: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(rundir) as running:
        one, two = await running.pair()
        monkeypatch.setattr(wire, "MESSAGE_LIMIT", 1000)
        one.emit(bytes(2000))
        one.emit(b"small")
        await heard(two.socket, b"small")
        assert one.socket.received == [bytes(2000), b"small"]
        assert one.gaps == [{"kind": "lost", "count": 1, "reason": "too large"}]


async def test_messages_without_a_hub_are_bounded_and_told(rundir: RunDirectory) -> None:
    async with rig(rundir) as running:
        one, two = await running.pair()
        await running.stop_hub()
        await until(lambda: not one.bus.ready.is_set())
        one.bus._outgoing = Outgoing(limit=250, seconds=0.2)
        for number in range(4):
            one.emit(str(number).encode() * 80)
        assert one.gaps == [{"kind": "lost", "count": 1, "reason": "queue full"}] * 2
        await until(lambda: one.bus.stats()["dropped"] >= 4)
        assert one.bus.stats()["dropped"] == 4
        late = one.gaps[2:]  # one for both, or one for each where time passed between them
        assert {(gap["kind"], gap["reason"]) for gap in late} == {("lost", "too old")}
        assert {gap["count"] for gap in late} == {2 // len(late)}
        one.bus._outgoing = Outgoing()
        one.emit(b"kept")
        await running.start_hub()
        await until(lambda: two.socket.received == [b"kept"])


async def test_what_a_closed_bus_cannot_send_is_told(rundir: RunDirectory) -> None:
    async with rig(rundir) as running:
        one, _ = await running.pair()
        await running.stop_hub()
        await until(lambda: not one.bus.ready.is_set())
        one.emit(b"waits")
        await one.bus.close()
        one.emit(b"late")
        assert one.gaps == [{"kind": "lost", "count": 1, "reason": "closed"}] * 2
        assert one.socket.received == [b"waits", b"late"]
        await running.start_hub()
        await asyncio.wait_for(one.control.connected(), 10)
        assert one.bus._context is None, "a hub that comes later finds it closed"


async def test_a_barrier_ends_in_time_and_one_cancelled_harms_no_other(
    rundir: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(rundir) as running:
        one, _ = await running.pair()
        monkeypatch.setattr(bus_module, "BARRIER_SECONDS", 0.05)
        held: list[bytes] = []
        send = running.forwarder._send

        def withhold(frame: bytes, flags: int) -> object:
            if frame[3] == wire.ACKNOWLEDGED:
                held.append(frame)
                return None
            return send(frame, flags)

        running.forwarder._send = withhold
        before = counters["limpet_join_barrier_incomplete_total"]
        joined = one.adapter.join(one.socket, ["r", "s", "r"])
        await joined
        assert counters["limpet_join_barrier_incomplete_total"] == before + 1
        assert not one.bus._barriers
        monkeypatch.setattr(bus_module, "BARRIER_SECONDS", 10)

        async def wait(something: Awaitable[object]) -> None:
            await something

        tasks = [asyncio.create_task(wait(joined)) for _ in range(2)]
        late = asyncio.create_task(wait(one.adapter.join(one.socket, ["r"])))
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await until(lambda: len(held) >= 2)
        assert len({frame[:3] for frame in held}) == 2
        for frame in held:
            send(frame, 0)
        await asyncio.wait_for(asyncio.gather(tasks[1], late), 5)
        assert tasks[0].cancelled()


async def test_an_answer_that_was_lost_is_asked_for_again(
    rundir: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "_UNHEARD", 0.5)
    async with rig(rundir, beat_seconds=0.05) as running:
        one, two = await running.pair()
        send = running.forwarder._send
        lost: list[bytes] = []

        def lose_one(frame: bytes, flags: int) -> object:
            if frame[3] == wire.ACKNOWLEDGED and not lost:
                lost.append(frame)
                return None
            return send(frame, flags)

        running.forwarder._send = lose_one
        await asyncio.wait_for(_joined(one, "r"), 15)  # less than a join waits for no answer
        assert lost
        two.emit(b"found", "r")
        await heard(one.socket, b"found")


async def _joined(worker: Worker, *rooms: str) -> None:
    await worker.adapter.join(worker.socket, rooms)


async def test_a_cut_control_connection_loses_nothing(rundir: RunDirectory) -> None:
    async with rig(rundir) as running:
        one, two = await running.pair()
        await _joined(one, "r")
        running.control.workers[one.bus.worker_id].abort()
        await until(lambda: not one.bus.ready.is_set())
        two.emit(b"down", "r")
        one.emit(b"queued")
        await heard(one.socket, b"queued", b"down")
        await asyncio.wait_for(one.bus.ready.wait(), 10)
        await until(lambda: two.socket.received == [b"queued"])
        two.emit(b"up", one.socket.id)
        await heard(one.socket, b"up")
        assert one.gaps == two.gaps == []


async def test_topics_linger_after_their_last_room(rundir: RunDirectory) -> None:
    async with rig(rundir) as running:
        one, two = await running.pair(linger=2.0, buckets=1024)
        before = one.bus.stats()["topics"]
        await _joined(one, "r")
        one.adapter.leave(one.socket, "r")
        assert one.bus.stats()["lingering_topics"] == 1
        assert one.adapter.join(one.socket, ["r"])._waiting is None  # still in force
        one.adapter.leave(one.socket, "r")
        await _joined(one, "s")
        one.adapter.leave(one.socket, "s")
        assert one.bus.stats()["topics"] == before + 2
        await until(lambda: one.bus.stats()["topics"] == before)
        await _joined(one, "r")
        two.emit(b"again", "r")
        await heard(one.socket, b"again")


async def test_rooms_of_one_bucket_share_its_topic(rundir: RunDirectory) -> None:
    async with rig(rundir, buckets=1) as running:
        one, two = await running.pair(buckets=1, linger=0)
        before = one.bus.stats()["topics"]
        await _joined(one, "r", "s")
        assert one.bus.stats()["topics"] == before
        one.adapter.leave(one.socket, "r")
        two.emit(b"r", "r")
        two.emit(b"s", "s")
        two.emit(b"both", "r", "s")
        await heard(one.socket, b"s", b"both")


async def test_many_topics_are_subscribed_before_the_hub_opens(rundir: RunDirectory) -> None:
    running = Rig(rundir)
    one = running.worker(buckets=65_536)
    rooms = [f"room {number}" for number in range(2500)]
    one.adapter.join(one.socket, rooms)
    await running.start_hub(buckets=65_536)
    one.control.start()
    await asyncio.wait_for(one.bus.ready.wait(), 10)
    assert one.bus.stats()["unconfirmed_topics"] == 0
    two = running.worker(buckets=65_536)
    two.control.start()
    await asyncio.wait_for(two.bus.ready.wait(), 10)
    for room in rooms:
        two.emit(room.encode(), room)
    await until(lambda: len(one.socket.received) == 2500)
    assert one.socket.received == [room.encode() for room in rooms]
    for worker in (one, two):
        await worker.close()
    await running.stop_hub()


async def test_unconfirmed_bytes_are_bounded(
    rundir: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(rundir, beat_seconds=0.05) as running:
        one, two = await running.pair()
        monkeypatch.setattr(bus_module, "UNCONFIRMED_BYTES", 1000)
        one.bus._outgoing = Outgoing(seconds=60.0)
        texts = [str(number).encode() * 100 for number in range(100)]
        for text in texts:
            one.emit(text)
        assert one.bus.stats()["queued"] > 80
        await heard(two.socket, *texts)
        assert one.bus.stats()["queued"] == 0


async def test_what_fails_in_the_application_harms_nothing(
    rundir: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(rundir) as running:
        one, two = await running.pair()

        def fail(*_arguments: object) -> None:
            raise RuntimeError("mine")

        two.adapter.deliver = fail
        two.bus.on_gap = fail
        one.emit(b"first")
        await until(lambda: "delivering a broadcast of / failed" in caplog.text)
        two.bus._drop(1, "queue full")
        assert "the handler of bus gaps failed" in caplog.text
        two.adapter.deliver = two.deliver
        one.emit(b"second")
        await heard(two.socket, b"second")


async def test_bad_frames_are_counted_and_nothing_else(rundir: RunDirectory) -> None:
    async with rig(rundir) as running:
        one, two = await running.pair()
        before = counters["limpet_bus_bad_frames_total"]
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = context.socket(zmq.PUSH)
        stranger.connect(rundir.bus("in", running.forwarder.incarnation))
        whole = one.adapter._whole
        bad = [b"", b"x", whole, whole + bytes(29), b"\0\0\x2f" + bytes(40)]
        for frame in bad:
            stranger.send(frame)
        # well formed for the hub, bad for the workers
        stranger.send(wire.frame(whole, wire.BROADCAST, 1, 1, b"\xc1"))
        await until(lambda: counters["limpet_bus_bad_frames_total"] >= before + len(bad) + 2)
        stranger.close(linger=0)
        context.term()
        for worker in (one, two):
            stream = worker.bus.sequencer.streams[whole]
            for frame in (b"", bytes(40), wire.stamped(bad[3], 5, 1)):
                worker.bus._received(stream, frame)
            worker.bus._beat(wire.frame(whole, wire.BEAT, 0, 0, b"\xc1"))
        one.emit(b"goes on")
        await heard(two.socket, b"goes on")


async def test_a_frame_of_an_unknown_kind_does_not_end_the_beats(rundir: RunDirectory) -> None:
    async with rig(rundir, beat_seconds=0.05, stall_after=1.0) as running:
        one, _ = await running.pair()
        forwarder = running.forwarder
        frame = wire.frame(one.adapter._whole, wire.BROADCAST, 7, 1, b"")
        forwarder._latest[frame[4:12]] = frame[:3] + b"\x63" + frame[4:]
        before = forwarder._beat_number
        await until(lambda: forwarder._beat_number >= before + 3 and not forwarder._latest)


async def test_repairs_are_for_workers_and_for_what_there_is(rundir: RunDirectory) -> None:
    async with rig(rundir) as running:
        one, _ = await running.pair()
        whole = one.adapter._whole
        for body, why in (
            ({"topic": b"xyz", "first": 1, "last": 2}, "nothing to repair"),
            ({"topic": whole, "first": 2, "last": 1}, "nothing to repair"),
            ({"topic": 1}, "Expected"),
            (None, "Expected"),
        ):
            with pytest.raises(ControlError, match=why):
                await one.control.request("bus.repair", body, 5)
        one.emit(b"kept")
        await until(lambda: running.forwarder.stats()["messages"] >= 3)
        answer = await one.control.request(
            "bus.repair", {"topic": whole, "first": 0, "last": 2**60}, 5
        )
        assert isinstance(answer, dict)
        assert answer["through"] == 2**60
        assert len(answer["frames"]) == 1
        one.control.send("bus.heard", "not a number")
        one.control.send("bus.heard", 10**9)
        assert await one.control.request("bus.repair", {"topic": whole, "first": 9, "last": 9}, 5)


async def test_a_bad_answer_is_no_answer(rundir: RunDirectory) -> None:
    async with rig(rundir, beat_seconds=0.05) as running:
        one, two = await running.pair()
        handlers: dict[str, Callable[..., object]] = running.control.handlers
        for answer in (
            None,
            {"frames": [b"x"], "through": 9},
            {"frames": [wire.frame(one.adapter._whole, 1, 1, 1, b"")], "through": 9},
        ):
            handlers["bus.repair"] = lambda _connection, _body, answer=answer: answer
            send = running.forwarder._send
            running.forwarder._send = lambda _frame, _flags: None
            one.emit(b"lost")
            sent = running.forwarder.stats()["messages"] + 1
            await until(lambda sent=sent: running.forwarder.stats()["messages"] >= sent)  # type: ignore[misc]
            running.forwarder._send = send
            one.emit(b"after")
            await heard(two.socket, b"after")
            assert two.gaps.pop()["reason"] == "not repaired"
            one.socket.received.clear()
            # Its own frame, as far as it can know; a beat may have gone missing as well.
            await until(lambda: len(one.gaps) >= 1)
            one.gaps.clear()
