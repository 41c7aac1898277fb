"""The presence index against a naive model: counts, users, rooms, digests, paging, memory."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass, field, replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limpet_adapters.presence import TOMBSTONES, Home, PresenceIndex
from limpet_adapters.presence_ops import (
    BEGIN,
    DELTA,
    END,
    Batch,
    Changed,
    Connected,
    Disconnected,
    Joined,
    Left,
    Op,
)

SPACES = ("/", "/chat")
ROOMS = ("a", "b", "ab", "ä/ö")
USERS = ("ann", "bob", "cy", "")
WORKERS = (1, 2, 3)


@dataclass(frozen=True)
class Socket:
    """One connection of the model."""

    id: str
    namespace: str
    user: str
    transport: str
    at: float
    rooms: tuple[tuple[str, float], ...] = ()

    def op(self) -> Connected:
        return Connected(
            self.id, self.namespace, self.user, self.transport, self.at, dict(self.rooms)
        )


@dataclass
class Worker:
    """What a worker of the model holds, and what the hub has of it."""

    worker_id: int
    generation: int = 0
    held: dict[str, Socket] = field(default_factory=dict)
    shown: dict[str, Socket] = field(default_factory=dict)
    """What queries must show: as held, frozen while a resync is under way."""
    to_send: list[str] | None = None
    """Ids that the resync under way has yet to tell of; None when there is none."""


def home(slot: int) -> Home:
    return Home("host", f"w{slot}", slot)


class Against(RuleBasedStateMachine):
    """Random joins, leaves, deaths, resyncs and late messages, checked after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PresenceIndex()
        self.next_id = 0
        self.next_worker = 10
        self.slots: dict[int, Worker] = {}
        self.late: list[tuple[int, Batch]] = []
        self.time = 1_700_000_000.0

    @initialize()
    def begin(self) -> None:
        for slot in WORKERS:
            self.start(slot)

    def start(self, slot: int) -> None:
        self.next_worker += 1
        worker = self.slots[slot] = Worker(self.next_worker)
        assert self.index.register(worker.worker_id, home(slot))
        self.send(worker, Batch(1, BEGIN | END, []))
        worker.generation = 1

    def send(self, worker: Worker, batch: Batch) -> bool:
        self.late.append((worker.worker_id, batch))
        del self.late[:-50]
        return self.index.receive(worker.worker_id, batch)

    def tell(self, worker: Worker, *ops: Op) -> None:
        assert not self.send(worker, Batch(worker.generation, DELTA, list(ops)))
        if worker.to_send is None:
            worker.shown = dict(worker.held)

    def pick(self, data: st.DataObject) -> tuple[Worker, Socket] | None:
        worker = self.slots[data.draw(st.sampled_from(WORKERS))]
        if not worker.held:
            return None
        return worker, worker.held[data.draw(st.sampled_from(sorted(worker.held)))]

    @rule(
        slot=st.sampled_from(WORKERS),
        namespace=st.sampled_from(SPACES),
        user=st.sampled_from(USERS),
        rooms=st.sets(st.sampled_from(ROOMS)),
    )
    def connect(self, slot: int, namespace: str, user: str, rooms: set[str]) -> None:
        self.next_id += 1
        self.time += 0.5
        worker = self.slots[slot]
        socket = Socket(
            f"s{self.next_id * 7919 % 997:03}{self.next_id}",
            namespace,
            user,
            "polling",
            self.time,
            tuple((room, self.time) for room in sorted(rooms)),
        )
        worker.held[socket.id] = socket
        self.tell(worker, socket.op())

    @rule(data=st.data(), room=st.sampled_from(ROOMS))
    def join(self, data: st.DataObject, room: str) -> None:
        if chosen := self.pick(data):
            worker, socket = chosen
            self.time += 0.5
            if room not in dict(socket.rooms):
                rooms = (*socket.rooms, (room, self.time))
                worker.held[socket.id] = replace(socket, rooms=rooms)
            self.tell(worker, Joined(socket.id, room, self.time))

    @rule(data=st.data(), room=st.sampled_from(ROOMS))
    def leave(self, data: st.DataObject, room: str) -> None:
        if chosen := self.pick(data):
            worker, socket = chosen
            rooms = tuple(one for one in socket.rooms if one[0] != room)
            worker.held[socket.id] = replace(socket, rooms=rooms)
            self.tell(worker, Left(socket.id, room))

    @rule(data=st.data(), user=st.none() | st.sampled_from(USERS), upgraded=st.booleans())
    def change(self, data: st.DataObject, user: str | None, upgraded: bool) -> None:
        if chosen := self.pick(data):
            worker, socket = chosen
            transport = "websocket" if upgraded else socket.transport
            worker.held[socket.id] = replace(
                socket, user=socket.user if user is None else user, transport=transport
            )
            self.tell(worker, Changed(socket.id, user, "websocket" if upgraded else None))

    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        if chosen := self.pick(data):
            worker, socket = chosen
            del worker.held[socket.id]
            self.tell(worker, Disconnected(socket.id))

    @rule(slot=st.sampled_from(WORKERS), swept=st.integers(0, 5))
    def die(self, slot: int, swept: int) -> None:
        worker = self.slots[slot]
        assert self.index.drop_worker(worker.worker_id) == len(worker.shown)
        self.start(slot)
        self.index.sweep(swept)

    @rule(slot=st.sampled_from(WORKERS))
    def lose(self, slot: int) -> None:
        """The connection is lost for long, but the worker lives and comes back as itself."""
        worker = self.slots[slot]
        self.index.drop_worker(worker.worker_id, dead=False)
        worker.shown = {}
        assert self.index.register(worker.worker_id, home(slot))
        self.resync_begins(slot)

    @rule(slot=st.sampled_from(WORKERS))
    def resync_begins(self, slot: int) -> None:
        worker = self.slots[slot]
        worker.generation += 1
        worker.to_send = sorted(worker.held)
        assert not self.send(worker, Batch(worker.generation, BEGIN, []))

    @precondition(lambda self: any(one.to_send is not None for one in self.slots.values()))
    @rule(data=st.data(), count=st.integers(0, 4))
    def resync_goes_on(self, data: st.DataObject, count: int) -> None:
        syncing = [slot for slot in WORKERS if self.slots[slot].to_send is not None]
        worker = self.slots[data.draw(st.sampled_from(syncing))]
        assert worker.to_send is not None
        chosen, worker.to_send = worker.to_send[:count], worker.to_send[count:]
        ops: list[Op] = [worker.held[one].op() for one in chosen if one in worker.held]
        ended = not worker.to_send
        assert self.send(worker, Batch(worker.generation, END if ended else DELTA, ops)) is ended
        if ended:
            worker.to_send = None
            worker.shown = dict(worker.held)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def late_message(self, data: st.DataObject) -> None:
        """A message of a dead worker or an earlier generation arrives once more: ignored."""
        worker_id, batch = data.draw(st.sampled_from(self.late))
        living = {one.worker_id: one for one in self.slots.values()}
        worker = living.get(worker_id)
        if worker is not None and batch.generation >= worker.generation:
            return
        assert not self.index.receive(worker_id, batch)

    @rule(limit=st.integers(0, 10))
    def sweep(self, limit: int) -> None:
        self.index.sweep(limit)

    @rule()
    def settle(self) -> None:
        assert not self.index.sweep(1_000_000)

    @rule(gap=st.floats(0, 100))
    def expire(self, gap: float) -> None:
        self.time += gap
        self.index.expire(self.time)

    def shown(self) -> list[tuple[int, Socket]]:
        return [(slot, one) for slot in WORKERS for one in self.slots[slot].shown.values()]

    def rebuilt(self) -> PresenceIndex:
        """What an index says that was told the state in one go."""
        index = PresenceIndex()
        for slot in WORKERS:
            assert index.register(slot, home(slot))
            ops: list[Op] = [one.op() for one in self.slots[slot].shown.values()]
            assert index.receive(slot, Batch(1, BEGIN | END, ops))
        return index

    @invariant()
    def agrees(self) -> None:
        index, shown, rebuilt = self.index, self.shown(), self.rebuilt()
        assert index.settled is (
            not index._dying and all(one.to_send is None for one in self.slots.values())
        )
        for namespace in SPACES:
            there = [one for _, one in shown if one.namespace == namespace]
            space = index.namespaces.get(namespace)
            expected = (len({one.user for one in there}), len(there))
            assert index.occupancy(space) == expected
            assert index.digest(space) == rebuilt.digest(rebuilt.namespaces.get(namespace))
            names = sorted({room for one in there for room, _ in one.rooms})
            assert [room.name for room in index.rooms(space, self.time)] == names
            if space is not None:
                assert index.occupied(space) == len(names)
            for name in ROOMS:
                self.room_agrees(namespace, name, shown, rebuilt)
        for user in USERS:
            found = [one.id for one in index.where(user)]
            mine = sorted((o.namespace, o.id) for _, o in shown if o.user == user)
            assert found == [one for _, one in mine]
        for slot in WORKERS:
            assert index.held_by(self.slots[slot].worker_id) == len(self.slots[slot].shown)
        for slot, one in shown:
            connection = index.connection(one.id)
            assert connection is not None
            assert connection.share.home == home(slot)
            assert (connection.user, connection.transport) == (one.user, one.transport)
            assert connection.rooms == dict(one.rooms)

    def room_agrees(
        self, namespace: str, name: str, shown: list[tuple[int, Socket]], rebuilt: PresenceIndex
    ) -> None:
        index = self.index
        there = [one for _, one in shown if one.namespace == namespace and name in dict(one.rooms)]
        room = index.room(namespace, name)
        users = sorted({one.user for one in there})
        assert index.occupancy(room) == (len(users), len(there))
        assert index.digest(room) == rebuilt.digest(rebuilt.room(namespace, name))
        listed = list(index.members(room, self.time))
        assert [user for user, _ in listed] == users
        for user, connections in listed:
            ids = sorted(one.id for one in there if one.user == user)
            assert [one.id for one in connections] == ids
        flat = [one.id for one in index.member_connections(room, self.time, after=None)]
        assert flat == [one.id for one in sorted(there, key=lambda one: (one.user, one.id))]
        for place, user in enumerate(users):
            rest = [one for one, _ in index.members(room, self.time, after=user)]
            assert rest == users[place + 1 :]
            assert [one for one, _ in index.members(room, self.time, prefix=user[:1])] == [
                one for one in users if one.startswith(user[:1])
            ]
        for place, one in enumerate(flat):
            connection = index.connection(one)
            assert connection is not None
            after = (connection.user, one)
            rest = [o.id for o in index.member_connections(room, self.time, after=after)]
            assert rest == flat[place + 1 :]

    def teardown(self) -> None:
        """When all are gone and swept, nothing at all is left."""
        for worker in self.slots.values():
            self.index.drop_worker(worker.worker_id)
        assert not self.index.sweep(1_000_000)
        assert self.index.namespaces == {}
        assert self.index.entries == 0
        assert not self.index._ordered


Against.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainst = Against.TestCase


def filled(index: PresenceIndex, worker_id: int, count: int, rooms: int = 2) -> None:
    """Give an index a worker with so many connections, each its own user."""
    assert index.register(worker_id, home(worker_id))
    index.receive(worker_id, Batch(1, BEGIN | END, []))
    for at in range(count):
        ids = {f"room:{(at * 7 + one) % (count // 10 + 1)}": 1e9 + at for one in range(rooms)}
        op = Connected(
            f"{worker_id:03}{at:017}", "/", f"user-{worker_id}-{at}", "websocket", 1e9, ids
        )
        index.receive(worker_id, Batch(1, DELTA, [op]))


def test_paging_meets_stable_members_exactly_once() -> None:
    """Others come and go between the pages; who stays is met once, in either view."""
    index = PresenceIndex()
    assert index.register(1, home(1))
    stay = {f"stay{at:03}" for at in range(50)}
    ops: list[Op] = [Connected(f"id-{u}", "/", u, "polling", 1.0, {"r": 1.0}) for u in stay]
    assert index.receive(1, Batch(1, BEGIN | END, ops))
    met: list[str] = []
    after: str | None = None
    turn = 0
    while True:
        page = [u for u, _ in index.members(index.room("/", "r"), 0.0, after=after)][:7]
        if not page:
            break
        met += page
        after = page[-1]
        turn += 1
        come: list[Op] = [
            Connected(f"id-{turn}-{at}", "/", f"stay{at:03}x{turn}", "polling", 1.0, {"r": 1.0})
            for at in range(0, 50, 5)
        ]
        gone: list[Op] = [Disconnected(f"id-{turn - 1}-{at}") for at in range(0, 50, 5)]
        index.receive(1, Batch(1, DELTA, come + gone))
    assert sorted(one for one in met if one in stay) == sorted(stay)
    assert len(met) == len(set(met))


def test_a_dead_worker_is_hidden_at_once_and_its_successor_is_not_concerned() -> None:
    index = PresenceIndex()
    filled(index, 1, 500)
    filled(index, 2, 10)
    before = index.entries
    assert index.drop_worker(1) == 500
    assert index.occupancy(index.namespaces["/"]) == (10, 10)
    assert index.entries == before  # nothing was taken out yet
    assert index.register(3, home(1))  # the slot's next life
    assert index.receive(3, Batch(1, BEGIN | END, [Connected("new", "/", "new", "polling", 1.0)]))
    assert index.sweep(100)
    assert index.occupancy(index.namespaces["/"]) == (11, 11)
    while index.sweep(100):
        pass
    assert index.settled
    assert index.occupancy(index.namespaces["/"]) == (11, 11)
    assert not index.register(1, home(1))
    assert not index.receive(1, Batch(9, BEGIN | END, []))


def test_what_belongs_to_an_earlier_generation_is_ignored() -> None:
    index = PresenceIndex()
    assert index.register(1, home(1))
    assert index.receive(1, Batch(1, BEGIN | END, []))
    assert index.receive(1, Batch(2, BEGIN | END, []))
    late = Connected("s1", "/", "ann", "polling", 1.0, {"r": 1.0})
    index.receive(1, Batch(1, DELTA, [late]))
    index.receive(1, Batch(1, BEGIN, [late]))
    assert not index.receive(1, Batch(1, END, [late]))
    assert not index.receive(1, Batch(3, DELTA, [late]))  # its beginning never came
    assert index.occupancy(index.room("/", "r")) == (0, 0)
    # nor does a generation that was overtaken while it arrived ever come to light
    index.receive(1, Batch(4, BEGIN, [late]))
    index.receive(1, Batch(5, BEGIN, []))
    assert not index.receive(1, Batch(4, END, [late]))
    assert not index.receive(1, Batch(2, DELTA, [late]))  # nor does what is shown change then
    assert index.occupancy(index.room("/", "r")) == (0, 0)
    assert index.receive(1, Batch(5, END, []))
    assert index.occupancy(index.room("/", "r")) == (0, 0)
    assert not index.sweep(100)
    assert index.namespaces == {}


def test_tombstones_are_bounded() -> None:
    index = PresenceIndex()
    for worker_id in range(1, TOMBSTONES + 10):
        index.drop_worker(worker_id)
    assert len(index._tombstones) == TOMBSTONES
    assert not index.register(TOMBSTONES, home(1))


def test_a_resync_that_changes_nothing_keeps_the_digest_throughout() -> None:
    index = PresenceIndex()
    op = Connected("s1", "/", "ann", "polling", 1.0, {"r": 2.0})
    assert index.register(1, home(1))
    assert index.receive(1, Batch(1, BEGIN | END, [op]))
    digest = index.digest(index.room("/", "r"))
    assert digest
    index.receive(1, Batch(2, BEGIN, [op]))
    assert index.digest(index.room("/", "r")) == digest
    assert index.occupancy(index.room("/", "r")) == (1, 1)
    assert index.receive(1, Batch(2, END, []))
    assert index.digest(index.room("/", "r")) == digest
    assert not index.sweep(10)
    assert index.digest(index.room("/", "r")) == digest
    assert index.occupancy(index.room("/", "r")) == (1, 1)


def test_many_connections_of_one_user_stay_cheap() -> None:
    """No quadratic work: 20,000 connections of one user come and go one by one."""
    index = PresenceIndex()
    assert index.register(1, home(1))
    assert index.receive(1, Batch(1, BEGIN | END, []))
    for at in range(20_000):
        op = Connected(f"s{at}", "/", "bot", "polling", 1.0, {"r": 1.0})
        index.receive(1, Batch(1, DELTA, [op]))
    assert index.occupancy(index.room("/", "r")) == (1, 20_000)
    for at in range(20_000):
        index.receive(1, Batch(1, DELTA, [Disconnected(f"s{at}")]))
    assert index.namespaces == {}


@pytest.mark.parametrize("rooms", [2, 3])
def test_memory_per_entry(rooms: int) -> None:
    """At most 500 bytes an entry, strings of the connection included."""
    gc.collect()
    tracemalloc.start()
    try:
        index = PresenceIndex()
        filled(index, 1, 10_000, rooms)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.entries == 10_000 * rooms
    assert used / index.entries <= 500, used / index.entries
