"""Where connections go, decided without a socket: load, limits, waiting, deaths."""

from __future__ import annotations

import os
import resource
import socket
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from balancer_rig import NODE, silent_socket
from limpet_adapters.identity import WorkerAddress
from limpet_adapters.rundir import RunDirectory, Slot
from limpet_balancer.handover import Register
from limpet_balancer.placing import Arrival, Kind, Limits, Placing, Refusal, Worker
from limpet_balancer.slots import HeldSlots

SOCKET = silent_socket()
SOCKET.close()  # nothing here reads it
LIMITS = Limits(unacknowledged=3, waiting=5, worker_wait=5.0, busy_wait=20.0, unable_for=0.5)


def arrive(kind: Kind = Kind.NEW, owner: WorkerAddress | None = None) -> Arrival:
    arrival = Arrival(SOCKET, int(socket.AF_INET), ("192.0.2.1", 1), b"")
    arrival.kind = kind
    arrival.owner = owner
    return arrival


class Desk:
    """A placing with a clock and held slots to turn by hand."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 100.0
        self.held: set[int] = set()
        self.placing = Placing(NODE, limits, lambda: self.held)

    def worker(
        self, slot: int, incarnation: int = 0, *, ready: bool = True, limit: int = 0
    ) -> Worker:
        register = Register(WorkerAddress(NODE, slot, incarnation), 7, 4711, limit)
        worker, _ = self.placing.register(register, self.now)
        self.held.add(slot)
        if ready:
            self.placing.ready(worker)
        return worker

    def place(self, arrival: Arrival) -> Worker | Refusal | None:
        decision = self.placing.place(arrival, self.now)
        if isinstance(decision, Worker):
            self.placing.handed(decision, arrival, self.now)
        return decision

    def due(self) -> list[tuple[Arrival, Worker | Refusal]]:
        given = []
        for arrival, decision in self.placing.due(self.now):
            if isinstance(decision, Worker):
                self.placing.handed(decision, arrival, self.now)
            given.append((arrival, decision))
        return given

    def acknowledge(self, worker: Worker) -> None:
        worker.ledger.acknowledge(worker.ledger.next_number - 1)
        worker.blocked = False


def test_least_load_then_in_turns() -> None:
    desk = Desk(Limits())
    first, second, third = (desk.worker(slot) for slot in range(3))
    desk.placing.load(first, 4, False)
    placed = Counter(desk.place(arrive()) for _ in range(11))
    assert placed == {first: 1, second: 5, third: 5}
    # The report counts what was acknowledged, so our own count begins anew with what was not.
    desk.acknowledge(second)
    desk.placing.load(second, 0, False)
    assert {desk.place(arrive()) for _ in range(5)} == {second}


def test_slow_worker_gets_nothing_new_but_what_is_bound_to_it() -> None:
    desk = Desk()
    slow, prompt = desk.worker(0), desk.worker(1)
    desk.placing.load(prompt, 100, False)
    assert desk.place(arrive()) is slow
    desk.now += 0.11
    assert desk.place(arrive()) is prompt
    assert desk.place(arrive(Kind.BOUND, slow.address)) is slow
    desk.acknowledge(slow)
    assert desk.place(arrive()) is slow


def test_unacknowledged_are_bounded_and_the_rest_waits_in_order() -> None:
    desk = Desk()
    worker = desk.worker(0)
    bound = [arrive(Kind.BOUND, worker.address) for _ in range(8)]
    assert [desk.place(a) for a in bound] == [worker] * 3 + [None] * 5
    assert desk.placing.crowded
    assert desk.due() == []
    desk.acknowledge(worker)
    assert desk.due() == [(a, worker) for a in bound[3:6]]
    desk.acknowledge(worker)
    assert desk.due() == [(a, worker) for a in bound[6:]]
    assert not desk.placing.crowded


def test_new_ones_wait_behind_those_that_wait() -> None:
    desk = Desk()
    worker = desk.worker(0)
    arrivals = [arrive() for _ in range(5)]
    assert [desk.place(a) for a in arrivals] == [worker] * 3 + [None] * 2
    desk.acknowledge(worker)
    late = arrive()
    assert desk.place(late) is None
    assert [a for a, _ in desk.due()] == [*arrivals[3:], late]


def test_no_worker_is_waited_for() -> None:
    desk = Desk()
    arrival = arrive()
    assert desk.place(arrival) is None
    desk.now += 4.9
    assert desk.due() == []
    desk.now += 0.1
    assert desk.due() == [(arrival, Refusal.NO_WORKER)]
    again = arrive()
    desk.place(again)
    worker = desk.worker(0)
    assert desk.due() == [(again, worker)]


def test_wait_for_a_worker_begins_when_the_last_one_leaves() -> None:
    desk = Desk()
    worker = desk.worker(0)
    for _ in range(3):
        desk.place(arrive())
    arrival = arrive()
    assert desk.place(arrival) is None
    desk.now += 10
    desk.acknowledge(worker)
    worker.blocked = True
    desk.placing.leave(worker, desk.now)
    desk.now += 4.9
    assert desk.due() == []
    desk.now += 0.2
    assert desk.due() == [(arrival, Refusal.NO_WORKER)]


def test_busy_workers_are_waited_for_longer() -> None:
    desk = Desk()
    desk.worker(0)
    for _ in range(3):
        desk.place(arrive())
    arrival = arrive()
    desk.place(arrival)
    desk.now += 19.9
    assert desk.due() == []
    desk.now += 0.2
    assert desk.due() == [(arrival, Refusal.BUSY)]


def test_full_is_for_new_sessions_only() -> None:
    desk = Desk()
    worker = desk.worker(0, limit=2)
    desk.placing.load(worker, 2, False)
    assert desk.place(arrive()) is Refusal.FULL
    assert desk.place(arrive(Kind.ANY)) is worker
    assert desk.place(arrive(Kind.BOUND, worker.address)) is worker
    other = desk.worker(1)
    assert desk.place(arrive()) is other
    desk.placing.load(other, 0, True)
    assert desk.place(arrive()) is Refusal.FULL
    desk.placing.draining(other, desk.now)
    desk.placing.draining(worker, desk.now)
    assert desk.place(arrive()) is None  # draining is not full: one may come


def test_bound_to_a_slot_that_is_held_but_absent() -> None:
    desk = Desk()
    other = desk.worker(0)
    owner = WorkerAddress(NODE, 9, 4)
    desk.held.add(9)
    waiting = [arrive(Kind.BOUND, owner), arrive(Kind.BOUND, owner._replace(incarnation=3))]
    assert [desk.place(a) for a in waiting] == [None, None]
    assert desk.due() == []
    worker = desk.worker(9, 4, ready=False)
    assert desk.due() == [(waiting[0], worker), (waiting[1], other)]
    assert [a.final for a in waiting] == [False, True]


@pytest.mark.parametrize("how", ["released", "late"])
def test_absent_slot_that_does_not_come(how: str) -> None:
    desk = Desk()
    other = desk.worker(0)
    desk.held.add(9)
    arrival = arrive(Kind.BOUND, WorkerAddress(NODE, 9, 4))
    desk.place(arrival)
    desk.now += 4.9
    assert desk.due() == []
    if how == "released":
        desk.held.remove(9)
    else:
        desk.now += 0.2
    assert desk.due() == [(arrival, other)]
    assert arrival.final


def test_ids_that_lead_nowhere_are_final() -> None:
    desk = Desk()
    worker = desk.worker(0, 5)
    for owner in (None, WorkerAddress(NODE + 1, 0, 5)):
        arrival = arrive()
        desk.placing.bind(arrival, owner)
        assert (arrival.final, desk.place(arrival)) == (True, worker)
    stale = arrive()
    desk.placing.bind(stale, WorkerAddress(NODE, 0, 4))
    assert not stale.final
    assert desk.place(stale) is None or stale.final
    desk.acknowledge(worker)
    desk.due()
    tired = arrive()
    tired.final = True  # after too many hops: whoever gets it answers
    desk.placing.bind(tired, worker.address)
    assert tired.kind is Kind.ANY


def test_an_undrained_worker_takes_sessions_again() -> None:
    desk = Desk()
    worker, other = desk.worker(0), desk.worker(1)
    desk.placing.load(other, 10, False)
    desk.placing.draining(worker, desk.now)
    assert desk.place(arrive()) is other
    assert desk.place(arrive(Kind.BOUND, worker.address)) is worker  # its own still come
    desk.placing.draining(other, desk.now)
    waiting = arrive()
    assert desk.place(waiting) is None
    desk.placing.undrain(worker)
    assert desk.placing.health == "ok"
    assert desk.due() == [(waiting, worker)]
    assert desk.place(arrive()) is worker


def test_draining_and_leaving() -> None:
    desk = Desk()
    worker = desk.worker(0)
    desk.placing.draining(worker, desk.now)
    assert desk.placing.health == "draining"
    assert desk.place(arrive(Kind.BOUND, worker.address)) is worker
    nowhere = arrive()
    desk.placing.bind(nowhere, None)
    assert desk.place(nowhere) is worker
    desk.placing.bye(worker, desk.now)
    desk.held.clear()
    assert desk.placing.health == "no worker"
    last = arrive(Kind.BOUND, worker.address)
    assert desk.place(last) is None
    assert last.final


def test_health() -> None:
    desk = Desk()
    assert desk.placing.health == "starting"
    worker = desk.worker(0, ready=False)
    assert desk.placing.health == "starting"
    desk.placing.ready(worker)
    assert desk.placing.health == "ok"


def test_newer_registration_replaces_the_older() -> None:
    desk = Desk()
    older = desk.worker(0, 1)
    owed = arrive(Kind.BOUND, older.address)
    desk.place(owed)
    newer = desk.worker(0, 2)
    assert desk.place(arrive()) is newer
    assert desk.placing.leave(older, desk.now) == [owed]
    assert desk.placing.workers == {0: newer}
    desk.place(owed)
    assert owed.final


def test_worker_out_of_descriptors_rests() -> None:
    desk = Desk()
    worker = desk.worker(0)
    arrival = arrive()
    desk.place(arrival)
    desk.placing.rejected(worker, 1, desk.now)
    desk.acknowledge(worker)
    assert desk.due() == []
    desk.now += 0.6
    assert desk.due() == [(arrival, worker)]


def test_what_is_given_back_again_and_again_is_refused_in_the_end() -> None:
    desk = Desk()
    worker = desk.worker(0)
    arrival = arrive(Kind.ANY)
    assert desk.place(arrival) is worker
    decision: Worker | Refusal = worker
    for number in range(1, 100):
        desk.placing.rejected(worker, number, desk.now)
        worker.blocked = False
        desk.now += 0.3
        given = desk.due()
        if not given:
            desk.now += 0.3
            given = desk.due()
        [(_, decision)] = given
        if isinstance(decision, Refusal):
            break
    assert decision is Refusal.BUSY
    assert 20 <= desk.now - 100 < 21.5


def test_channel_that_takes_nothing() -> None:
    desk = Desk()
    worker = desk.worker(0)
    arrivals = [arrive(), arrive(Kind.ANY), arrive(Kind.BOUND, worker.address)]
    for arrival in arrivals:
        assert desk.placing.place(arrival, desk.now) is worker
        desk.placing.back(worker, arrival, desk.now)
        worker.blocked = False
    worker.blocked = True
    assert desk.due() == []
    other = desk.worker(1)
    assert desk.due() == [(arrivals[0], other), (arrivals[1], other)]
    worker.blocked = False
    assert desk.due() == [(arrivals[2], worker)]


def test_drop_waiting_returns_all_that_wait() -> None:
    desk = Desk()
    desk.held.add(9)
    waiting = [arrive(), arrive(Kind.ANY), arrive(Kind.BOUND, WorkerAddress(NODE, 9, 0))]
    for arrival in waiting:
        assert desk.place(arrival) is None
    assert desk.placing.waits == 3
    assert desk.placing.drop_waiting() == waiting
    assert desk.placing.waits == 0
    assert desk.due() == []


WORKERS_DO = ["ack", "die", "block", "drain", "undrain", "reject", "bye"]


class PlacingMachine(RuleBasedStateMachine):
    """Whatever happens, each connection is in exactly one place, and bounds hold."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.here: set[Arrival] = set()
        """Not acknowledged, not refused."""
        self.alive: list[Worker] = []
        self.incarnations: Counter[int] = Counter()

    @initialize()
    def one_worker(self) -> None:
        self.register(0)

    @rule(slot=st.integers(0, 2))
    def register(self, slot: int) -> None:
        for older in [w for w in self.alive if w.address.slot == slot]:
            self.die(older)
        self.incarnations[slot] = (self.incarnations[slot] + 1) % 256
        self.alive.append(self.desk.worker(slot, self.incarnations[slot], limit=20))

    def die(self, worker: Worker) -> None:
        self.alive.remove(worker)
        self.desk.held.discard(worker.address.slot)
        for arrival in self.desk.placing.leave(worker, self.desk.now):
            assert arrival in self.here
            self.note(arrival, self.desk.place(arrival))

    def note(self, arrival: Arrival, decision: Worker | Refusal | None) -> None:
        if isinstance(decision, Refusal):
            self.here.remove(arrival)
        elif decision is not None:
            assert decision in self.alive
            assert not decision.blocked
            if arrival.kind is Kind.BOUND:
                assert decision.address == arrival.owner
            else:
                assert not decision.draining or arrival.final

    @rule(
        kind=st.sampled_from(Kind),
        slot=st.integers(0, 3),
        incarnation=st.integers(0, 3),
    )
    def come(self, kind: Kind, slot: int, incarnation: int) -> None:
        arrival = arrive(kind)
        if kind is Kind.BOUND:
            self.desk.placing.bind(arrival, WorkerAddress(NODE, slot, incarnation))
        self.here.add(arrival)
        self.note(arrival, self.desk.place(arrival))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), count=st.integers(1, 5))
    def come_bound(self, data: st.DataObject, count: int) -> None:
        owner = data.draw(st.sampled_from(self.alive)).address
        for _ in range(count):
            arrival = arrive()
            self.desk.placing.bind(arrival, owner)
            self.here.add(arrival)
            self.note(arrival, self.desk.place(arrival))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), what=st.sampled_from(WORKERS_DO))
    def worker_does(self, data: st.DataObject, what: str) -> None:
        worker = data.draw(st.sampled_from(self.alive))
        if what == "ack":
            number = data.draw(st.integers(0, worker.ledger.count))
            upto = worker.ledger.next_number - 1 - number
            for arrival in worker.ledger.acknowledge(max(0, upto)):
                self.here.remove(arrival)
            worker.blocked = False
        elif what == "die":
            self.die(worker)
        elif what == "block":
            worker.blocked = True
        elif what == "drain":
            self.desk.placing.draining(worker, self.desk.now)
        elif what == "undrain":
            self.desk.placing.undrain(worker)
        elif what == "reject" and worker.ledger.count:
            number = worker.ledger.next_number - 1
            if worker.ledger._items[-1] is not None:
                self.desk.placing.rejected(worker, number, self.desk.now)
        elif what == "bye":
            self.desk.placing.bye(worker, self.desk.now)

    @rule(slot=st.integers(0, 3), held=st.booleans())
    def lock(self, slot: int, held: bool) -> None:
        (self.desk.held.add if held else self.desk.held.discard)(slot)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.2, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.desk.now += seconds
        for arrival, decision in self.desk.due():
            self.note(arrival, decision)

    @invariant()
    def each_is_in_one_place(self) -> None:
        placing = self.desk.placing
        places = [*placing._new, *placing._any]
        for queue in placing._absent.values():
            places += queue
        for worker in {*self.alive, *placing.workers.values()}:
            places += worker.waiting
            places += [a for a in worker.ledger._items if a is not None]
        assert Counter(places) == Counter(self.here)

    @invariant()
    def bounds_hold(self) -> None:
        for worker in self.alive:
            assert worker.ledger.count <= LIMITS.unacknowledged

    def teardown(self) -> None:
        """Left alone, everything is answered in the end."""
        for _ in range(4):
            self.desk.now += 30
            for worker in self.alive:
                worker.blocked = False
                for arrival in worker.ledger.acknowledge(worker.ledger.next_number - 1):
                    self.here.discard(arrival)
            for arrival, decision in self.desk.due():
                self.note(arrival, decision)
        for worker in list(self.alive):
            self.die(worker)
        for _ in range(3):
            self.desk.now += 30
            for arrival, decision in self.desk.due():
                self.note(arrival, decision)
        assert not self.here


TestPlacing = PlacingMachine.TestCase
TestPlacing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_slots_that_cannot_be_looked_at_stay_as_they_were_known(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    run = RunDirectory(tmp_path)
    slot = Slot(run, 3)
    held = HeldSlots(run)
    assert held() == {3}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = os.open(os.devnull, os.O_RDONLY)  # the lowest free descriptor
    os.close(opened)
    held.forget()
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened, limits[1]))
    try:
        assert held() == {3}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    slot.release()
    held.forget()
    assert held() == set()
