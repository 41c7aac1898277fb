"""The plan of a drain: everybody once, at random instants, the busy ones as late as allowed."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limpet_worker.drain import LOOK_AGAIN, Drain, DrainOptions
from limpet_worker.errors import OptionError

OPTIONS = DrainOptions(grace=1.0, window=60.0, budget=100.0, handler_grace=5.0)


def idle(_client: int) -> bool:
    return False


def busy(_client: int) -> bool:
    return True


def run(plan: Drain[int], until: float = 1e6) -> list[tuple[float, int]]:
    """Follow a plan whose clients are idle; return who was closed when."""
    closed = []
    while (now := plan.next_look()) <= until and now < math.inf:
        closed += [(now, client) for client in plan.due(now, idle)]
    return closed


@pytest.mark.parametrize(
    "wrong",
    [
        {"grace": -1},
        {"window": math.nan},
        {"handler_grace": math.inf},
        {"budget": 0},
        {"budget": "many"},
        {"grace": True},
    ],
)
def test_wrong_options(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        DrainOptions(**wrong)  # type: ignore[arg-type]


def test_the_window_is_what_the_budget_takes_and_no_longer_than_allowed() -> None:
    assert OPTIONS.length(0) == 0.0
    assert OPTIONS.length(500) == 5.0
    assert OPTIONS.length(1_000_000) == 60.0


@given(
    st.integers(0, 300),
    st.floats(0, 100),
    st.integers(0, 2**32),
    st.none() | st.floats(0, 300),
)
def test_everybody_is_closed_once_within_the_window(
    clients: int, now: float, seed: int, length: float | None
) -> None:
    plan = Drain(OPTIONS, range(clients), now, random.Random(seed).random, length=length)
    assert len(plan) == clients
    closed = run(plan)
    assert sorted(client for _, client in closed) == list(range(clients))
    span = OPTIONS.length(clients) if length is None else length
    assert plan.ends == now + 1.0 + span
    assert all(now + 1.0 <= at <= plan.ends for at, _ in closed)
    assert len(plan) == 0
    assert plan.next_look() == math.inf


def test_the_instants_are_spread_evenly() -> None:
    plan = Drain(OPTIONS, range(1000), 0.0, random.Random(4).random)
    tenths = [0] * 10
    for at, _ in run(plan):
        tenths[min(9, int(at - 1.0))] += 1
    assert min(tenths) > 60
    assert max(tenths) < 140


def test_a_busy_client_is_put_off_until_it_is_idle_or_its_patience_ends() -> None:
    plan = Drain(OPTIONS, [1, 2], 0.0, lambda: 0.0)
    assert plan.due(0.999, idle) == []
    assert plan.due(1.0, lambda client: client == 1) == [2]
    assert plan.next_look() == 1.0 + LOOK_AGAIN
    assert plan.due(3.0, busy) == []
    assert plan.due(5.999, busy) == []
    assert plan.next_look() == 6.0
    assert plan.due(6.0, busy) == [1]
    assert len(plan) == 0

    plan = Drain(OPTIONS, [1], 0.0, lambda: 0.0)
    assert plan.due(1.0, busy) == []
    assert plan.due(1.0 + LOOK_AGAIN, idle) == [1]


def test_newcomers_get_an_instant_in_what_is_left_and_nobody_gets_two() -> None:
    plan = Drain(OPTIONS, range(200), 0.0, lambda: 0.5)
    assert plan.ends == 3.0
    plan.add([7, 1000], 2.0)
    assert len(plan) == 201
    assert {client: at for at, client in run(plan)}[1000] == 2.5
    plan.add([2000], 50.0)
    assert plan.due(50.0, idle) == [2000]


def test_so_many_at_a_time() -> None:
    plan = Drain(OPTIONS, range(1000), 0.0, random.random)
    plan.hurry(0.0, 0.0)
    portions = []
    while plan:
        portions.append(len(plan.due(0.0, idle, 300)))
    assert portions == [300, 300, 300, 100]


def test_in_a_hurry_the_idle_go_at_once_and_the_busy_soon() -> None:
    plan = Drain(OPTIONS, range(10), 0.0, lambda: 0.5)
    plan.hurry(0.25, 2.0)
    assert plan.due(0.25, lambda client: client == 3) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert plan.due(2.24, busy) == []
    assert plan.due(2.25, busy) == [3]
    plan.add([77], 3.0)
    assert plan.due(3.0, idle) == [77]


def test_a_hurry_never_gives_more_time() -> None:
    plan = Drain(OPTIONS, [1], 0.0, lambda: 0.0)
    assert plan.due(1.0, busy) == []
    plan.hurry(5.0, 600.0)
    assert plan.due(5.999, busy) == []
    assert plan.due(6.0, busy) == [1]


class Model(RuleBasedStateMachine):
    """Any order of time passing, clients coming, becoming busy and idle, and a hurry."""

    @initialize(count=st.integers(0, 20), seed=st.integers(0, 1000))
    def begin(self, count: int, seed: int) -> None:
        self.now = 100.0
        self.numbers = itertools.count(count)
        self.left: dict[int, float] = dict.fromkeys(range(count), self.now)
        self.busy: set[int] = set()
        self.hurried = False
        chance = random.Random(seed).random
        self.plan = Drain(OPTIONS, list(self.left), self.now, chance, length=4.0)

    @rule()
    def comes(self) -> None:
        client = next(self.numbers)
        self.left[client] = self.now
        self.plan.add([*self.left], self.now)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def turns(self, data: st.DataObject) -> None:
        self.busy ^= {data.draw(st.sampled_from(sorted(self.left)))}

    @rule(patience=st.floats(0, 10))
    def hurries(self, patience: float) -> None:
        self.plan.hurry(self.now, patience)
        self.hurried = True

    @rule(seconds=st.floats(0, 3))
    def passes(self, seconds: float) -> None:
        self.now += seconds
        for client in self.plan.due(self.now, self.busy.__contains__, 1000):
            since = self.left.pop(client)  # KeyError: it was closed already
            if not self.hurried:
                assert self.now >= 101.0
                # Only who has been waited for may be busy still.
                assert client not in self.busy or self.now >= since + OPTIONS.handler_grace

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if hasattr(self, "plan"):
            assert len(self.plan) == len(self.left)
            assert all(client in self.plan for client in self.left)
            assert (self.plan.next_look() < math.inf) is bool(self.left)

    def teardown(self) -> None:
        if hasattr(self, "plan"):
            self.plan.due(max(self.now, self.plan.ends) + 30.0, busy, 1000)
            assert len(self.plan) == 0


TestModel = Model.TestCase
