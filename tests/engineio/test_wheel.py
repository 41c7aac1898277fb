"""The timer wheel: nothing fires early, nothing is forgotten, work is sliced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_worker.engineio.wheel import Wheel


class Item:
    def __init__(self, wheel: Wheel, deadline: float, again: list[float] | None = None) -> None:
        self.tick = 0
        self.fired: list[float] = []
        self.deadline = deadline
        self.again = again or []
        wheel.add(self, deadline)

    def on_deadline(self, now: float) -> float | None:
        self.fired.append(now)
        return self.again.pop(0) if self.again else None


@given(
    st.lists(st.floats(1000.0, 1100.0), max_size=30),
    st.lists(st.floats(0.0, 40.0), max_size=20),
    st.integers(1, 5),
)
def test_each_fires_once_at_its_time(deadlines: list[float], steps: list[float], most: int) -> None:
    wheel = Wheel(0.1)
    items = [Item(wheel, deadline) for deadline in deadlines]
    now = 1000.0
    for step in [*steps, 200.0]:
        now += step
        while wheel.advance(now, most):
            pass
        for item in items:
            if item.fired:
                assert len(item.fired) == 1
                assert item.fired[0] >= item.deadline - 1e-9
            else:
                assert item.deadline > now - 0.2
    assert not wheel
    assert all(item.tick == 0 for item in items)


def test_again() -> None:
    wheel = Wheel(0.5)
    item = Item(wheel, 10.0, again=[12.0, 12.0])
    for now in (10.0, 11.0, 12.0, 12.6, 13.1):
        wheel.advance(now, 10)
    assert item.fired == [10.0, 12.0, 12.6]
    assert not wheel


def test_moved_and_cancelled() -> None:
    wheel = Wheel(0.5)
    item = Item(wheel, 10.0)
    wheel.add(item, 20.0)
    wheel.advance(15.0, 10)
    assert item.fired == []
    wheel.cancel(item)
    wheel.cancel(item)
    assert not wheel
    wheel.advance(25.0, 10)
    assert item.fired == []


def test_cancelled_or_moved_by_another_of_the_same_slot() -> None:
    wheel = Wheel(1.0)

    class Rival(Item):
        rivals: list[Item]

        def on_deadline(self, now: float) -> float | None:
            for rival in self.rivals:
                if now < 30.0 and rival is not self and not rival.fired:
                    wheel.cancel(rival)
                    wheel.add(rival, 30.0)
            return super().on_deadline(now)

    rivals: list[Item] = [Rival(wheel, 10.0) for _ in range(5)]
    Rival.rivals = rivals
    wheel.advance(11.0, 100)
    assert sum(len(item.fired) for item in rivals) == 1
    wheel.advance(31.0, 100)
    assert sorted(item.fired[0] for item in rivals) == [11.0, 31.0, 31.0, 31.0, 31.0]
    assert all(len(item.fired) == 1 for item in rivals)
    assert not wheel


def test_slices_and_errors() -> None:
    wheel = Wheel(1.0)

    class Bad(Item):
        def on_deadline(self, now: float) -> float | None:
            super().on_deadline(now)
            raise RuntimeError("bad")

    items = [Item(wheel, 10.0) for _ in range(7)]
    bad = Bad(wheel, 10.0)
    errors = 0
    turns = 0
    more = True
    while more:
        turns += 1
        try:
            more = wheel.advance(10.0, 2)
        except RuntimeError:
            errors += 1
    assert errors == 1
    assert turns >= 4
    assert all(item.fired == [10.0] for item in [*items, bad])
    assert not wheel


@pytest.mark.parametrize("rest", [0.0, 5.0, 1e6])
def test_after_a_rest(rest: float) -> None:
    wheel = Wheel(0.1)
    start = 1e6 + rest
    wheel.advance(start, 10)
    late = Item(wheel, start - 50.0)
    soon = Item(wheel, start + 1.0)
    wheel.advance(start + 0.2, 10)
    assert late.fired
    assert not soon.fired
    wheel.advance(start + 1.2, 10)
    assert soon.fired
