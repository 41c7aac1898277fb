"""Rolling changes over a fleet that is only pretended, with a failure at every step."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_cluster.fleet import rolling
from limpet_cluster.fleet.fleet import FleetError, names
from limpet_cluster.fleet.rolling import Rehearsal


class Pretended:
    """A fleet that keeps a journal; every start and every end takes one turn of the loop."""

    def __init__(self, *slots: int, failing: set[int] | None = None, after: int = 0) -> None:
        self.running: dict[int, str] = dict.fromkeys(slots, "old")
        self.wanted = set(slots)
        self.journal: list[str] = []
        self.least = len(slots)
        self.at_once = 0
        """Most changes that went on side by side."""
        self.said: list[str] = []
        self.idle: set[int] = set()
        """Slots whose workers were drained, and take no sessions."""
        self.short_lived: set[int] = set()
        """Slots whose new workers end soon after they were ready."""
        self._failing = failing or set()
        self._after = after  # starts that succeed before any may fail
        self._going_on = 0

    def say(self, text: str, /, **figures: object) -> None:
        self.said.append(text)

    async def slots(self) -> list[int]:
        return sorted(self.wanted)

    async def drained(self) -> list[int]:
        return sorted(self.idle)

    async def start(self, slot: int) -> None:
        assert slot not in self.running, "no slot is started twice"
        await self._turn(f"start {slot}")
        self.wanted.add(slot)
        if slot in self._failing and self._after <= 0:
            raise FleetError(f"w{slot}: SyntaxError")
        self._after -= 1
        self.running[slot] = "new"

    async def drain(self, slot: int) -> None:
        self.running.pop(slot, None)
        self.wanted.discard(slot)
        self.least = min(self.least, len(self.running))
        await self._turn(f"drain {slot}")

    async def check(self, slot: int) -> None:
        assert self.running[slot] == "new", "only new ones are looked after"
        if slot in self.short_lived:
            raise FleetError(f"w{slot} came up, but ended")

    async def _turn(self, what: str) -> None:
        self.journal.append(what)
        self._going_on += 1
        self.at_once = max(self.at_once, self._going_on)
        await asyncio.sleep(0)
        self._going_on -= 1


async def test_reload_starts_a_spare_replaces_each_and_leaves_the_slots_as_they_were() -> None:
    fleet = Pretended(0, 1, 2)
    await rolling.reload(fleet, fleet.say)
    assert fleet.journal == [
        "start 3",
        *("drain 0", "start 0", "drain 1", "start 1", "drain 2", "start 2"),
        "drain 3",
    ]
    assert fleet.running == {0: "new", 1: "new", 2: "new"}
    assert fleet.least == 3, "never fewer workers than before"
    assert fleet.said[-1] == "w0, w1 and w2 run the new code"


async def test_new_code_that_does_not_last_goes_no_further() -> None:
    fleet = Pretended(0, 1, 2)
    fleet.short_lived = {0}
    with pytest.raises(FleetError, match="w0 came up, but ended\n\nThe reload stops") as told:
        await rolling.reload(fleet, fleet.say)
    assert told.value.partly
    assert fleet.journal == ["start 3", "drain 0", "start 0"]
    assert fleet.running == {0: "new", 1: "old", 2: "old", 3: "new"}


async def test_a_spare_that_does_not_last_is_noticed_before_anybody_is_drained() -> None:
    fleet = Pretended(0, 1, 2)
    fleet.short_lived = {3}
    with pytest.raises(FleetError, match="w3 came up, but ended\n\nThe new code") as told:
        await rolling.reload(fleet, fleet.say)
    assert not told.value.partly
    assert fleet.journal == ["start 3", "drain 3"]
    assert fleet.running == {0: "old", 1: "old", 2: "old"}


async def test_a_spare_that_does_not_come_up_changes_nothing() -> None:
    fleet = Pretended(0, 1, failing={2})
    with pytest.raises(FleetError, match="w2: SyntaxError\n\nThe new code") as told:
        await rolling.reload(fleet, fleet.say)
    assert not told.value.partly
    assert "2 workers go on with the old" in str(told.value)
    assert fleet.journal == ["start 2", "drain 2"]
    assert fleet.running == {0: "old", 1: "old"}
    assert await fleet.slots() == [0, 1]


@pytest.mark.parametrize(
    ("slot", "new", "old", "missing"),
    [
        (0, "w3", "w1 and w2", "w0"),
        (1, "w0 and w3", "w2", "w1"),
        (2, "w0, w1 and w3", "none", "w2"),
    ],
)
async def test_a_later_worker_that_does_not_come_up_stops_the_reload_there(
    slot: int, new: str, old: str, missing: str
) -> None:
    fleet = Pretended(0, 1, 2, failing={slot})
    with pytest.raises(FleetError) as told:
        await rolling.reload(fleet, fleet.say)
    message = str(told.value)
    assert told.value.partly
    assert f"w{slot}: SyntaxError" in message
    assert f"New code: {new}. Old code: {old}. Not running: {missing}." in message
    assert "w3 in the spare slot is kept" in message
    assert fleet.running[3] == "new"
    assert fleet.journal[-1] == f"start {slot}", "nothing was done after it"
    assert len(fleet.running) == 3, "as many as before"


async def test_the_next_reload_takes_away_the_spare_that_was_kept() -> None:
    fleet = Pretended(0, 1, failing={1})
    with pytest.raises(FleetError):
        await rolling.reload(fleet, fleet.say)
    fleet = Pretended(*await fleet.slots())
    assert await fleet.slots() == [0, 1, 2]
    await rolling.reload(fleet, fleet.say, home=[0, 1])
    assert fleet.journal == [
        "start 3", "drain 0", "start 0", "drain 1", "start 1", "drain 2", "drain 3",
    ]  # fmt: skip
    assert fleet.running == {0: "new", 1: "new"}


async def test_a_spare_that_was_kept_may_be_named_among_those_to_be_replaced() -> None:
    fleet = Pretended(0, 1, 2)
    await rolling.reload(fleet, fleet.say, only=[0, 1, 2], home=[0, 1])
    assert fleet.running == {0: "new", 1: "new"}
    fleet = Pretended(0, 1, 2)
    await rolling.reload(fleet, fleet.say, only=[2], home=[0, 1])
    assert fleet.running == {0: "old", 1: "old"}


async def test_a_reload_to_fewer_workers_drains_those_beyond() -> None:
    fleet = Pretended(0, 1, 2)
    await rolling.reload(fleet, fleet.say, home=[0])
    assert fleet.running == {0: "new"}


async def test_only_some_may_be_replaced() -> None:
    fleet = Pretended(1, 2, 3)
    await rolling.reload(fleet, fleet.say, only=iter([3]))
    assert fleet.journal == ["start 4", "drain 3", "start 3", "drain 4"]
    assert fleet.running == {1: "old", 2: "old", 3: "new"}
    with pytest.raises(FleetError, match="there is no w9, but w1, w2 and w3"):
        await rolling.reload(fleet, fleet.say, only=[9])


@pytest.mark.parametrize("turns", range(1, 9))
async def test_cancelled_at_any_step_it_does_nothing_more_and_says_who_runs_what(
    turns: int,
) -> None:
    fleet = Pretended(0, 1)
    task = asyncio.create_task(rolling.reload(fleet, fleet.say))
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.done():
        return
    done = list(fleet.journal)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fleet.journal == done
    if done:
        assert "interrupted. New code: " in fleet.said[-1]


async def told_when_cancelled(
    change: Callable[[Pretended], Coroutine[Any, Any, object]], *slots: int
) -> set[str]:
    """Cancel a change after each number of turns; return what is said then of who runs what."""
    found = set()
    for turns in range(1, 12):
        fleet = Pretended(*slots)
        task = asyncio.create_task(change(fleet))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = list(fleet.journal)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert fleet.journal == done, "nothing was done after it"
        if done and task.cancelled():
            interrupted, _, standing = fleet.said[-1].partition(". ")
            assert interrupted == "interrupted"
            found.add(standing)
    return found


async def test_a_restart_or_scale_that_is_cancelled_says_who_runs_what() -> None:
    told = await told_when_cancelled(lambda fleet: rolling.restart(fleet, [0, 1], fleet.say), 0, 1)
    assert told >= {
        "New code: none. Old code: w0 and w1. Starting: w2.",
        "New code: w2. Old code: none. Not running: w0 and w1.",
        "New code: w2. Old code: none. Starting: w0 and w1.",
        "New code: w0 and w1. Old code: none. Draining: w2.",
    }
    told = await told_when_cancelled(lambda fleet: rolling.scale(fleet, 3, fleet.say), 0, 1)
    assert "Running: w0 and w1. Starting: w2." in told
    told = await told_when_cancelled(lambda fleet: rolling.scale(fleet, 1, fleet.say), 0, 1, 2)
    assert "Running: w0. Draining: w1 and w2." in told


async def test_where_the_last_slot_is_taken_the_spare_is_the_lowest_free_one() -> None:
    fleet = Pretended(1, 255)
    await rolling.reload(fleet, fleet.say)
    assert fleet.journal[0] == "start 0"
    assert fleet.running == {1: "new", 255: "new"}
    full = Pretended(*range(256))
    with pytest.raises(FleetError, match="all slots are taken"):
        await rolling.reload(full, full.say)
    assert full.journal == []


async def test_without_workers_there_is_nothing_to_reload() -> None:
    fleet = Pretended()
    with pytest.raises(FleetError, match="no worker is there"):
        await rolling.reload(fleet, fleet.say)


async def test_scaling_up_starts_all_at_once() -> None:
    fleet = Pretended(0, 1)
    assert await rolling.scale(fleet, 5, fleet.say) == [0, 1, 2, 3, 4]
    assert fleet.at_once == 3
    assert fleet.running[1] == "old"
    assert fleet.said[-1] == "5 workers now: w0, w1, w2, w3 and w4"


async def test_scaling_up_fills_gaps_first_and_counts_as_the_fleet_does() -> None:
    fleet = Pretended(1, 3)
    assert await rolling.scale(fleet, 4, fleet.say) == [1, 2, 3, 4]


async def test_after_scaling_the_lowest_slots_are_taken() -> None:
    fleet = Pretended(2, 3)  # as systemd counts, and somebody stopped the first by hand
    assert await rolling.scale(fleet, 2, fleet.say) == [1, 2]
    assert fleet.journal == ["start 1", "drain 3"]
    assert fleet.running == {1: "new", 2: "old"}
    broken = Pretended(2, 3, failing={1})
    with pytest.raises(FleetError, match="w1 did not come up and was taken away"):
        await rolling.scale(broken, 2, broken.say)
    assert await broken.slots() == [2, 3]


async def test_scaling_down_drains_the_highest_all_at_once() -> None:
    fleet = Pretended(0, 1, 2, 3)
    assert await rolling.scale(fleet, 1, fleet.say) == [0]
    assert fleet.at_once == 3
    assert fleet.running == {0: "old"}


async def test_scaling_down_leaves_no_drained_worker_in_the_place_of_one_that_serves() -> None:
    fleet = Pretended(0, 1)
    fleet.idle = {0}
    assert await rolling.scale(fleet, 1, fleet.say) == [0]
    assert fleet.journal == ["drain 0", "start 0", "drain 1"]
    assert fleet.running == {0: "new"}
    fleet = Pretended(1, 2, 3)
    fleet.idle = {3}
    assert await rolling.scale(fleet, 2, fleet.say) == [1, 2]
    assert fleet.journal == ["drain 3"], "who was drained and leaves anyway is not replaced"
    fleet = Pretended(0, 1)
    fleet.idle = {0}
    await rolling.scale(fleet, 3, fleet.say)
    assert fleet.running == {0: "old", 1: "old", 2: "new"}, "nobody leaves: it may stay drained"
    fleet = Pretended(0, 1, failing={0})
    fleet.idle = {0}
    with pytest.raises(FleetError, match="1 worker now, w1") as told:
        await rolling.scale(fleet, 1, fleet.say)
    assert fleet.running == {1: "old"}, "the one that serves goes on"
    assert told.value.partly, "w0 was there"


async def test_those_that_do_not_come_up_are_taken_away_the_others_stay() -> None:
    fleet = Pretended(0, failing={2})
    with pytest.raises(FleetError, match="w2: SyntaxError\n\nw2 did not come up") as told:
        await rolling.scale(fleet, 4, fleet.say)
    assert told.value.partly
    assert "3 workers now, w0, w1 and w3" in str(told.value)
    assert await fleet.slots() == [0, 1, 3]
    fleet = Pretended(0, failing={1, 2})
    with pytest.raises(FleetError, match="w1 and w2 did not come up and were taken") as told:
        await rolling.scale(fleet, 3, fleet.say)
    assert not told.value.partly
    assert await fleet.slots() == [0]


async def test_scaling_to_what_there_is_does_nothing() -> None:
    fleet = Pretended(0, 1)
    await rolling.scale(fleet, 2, fleet.say)
    assert fleet.journal == []
    for wrong in (0, 256):
        with pytest.raises(FleetError, match="expected 1 to 255"):
            await rolling.scale(fleet, wrong, fleet.say)


async def test_a_cancelled_scale_cancels_every_step() -> None:
    fleet = Pretended(0)
    task = asyncio.create_task(rolling.scale(fleet, 3, fleet.say))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fleet.running == {0: "old"}


async def test_restart_tries_the_new_code_then_replaces_all_at_once() -> None:
    fleet = Pretended(0, 1, 2)
    await rolling.restart(fleet, [0, 2], fleet.say)
    assert (fleet.journal[0], fleet.journal[-1]) == ("start 3", "drain 3")
    assert fleet.least == 2, "the spare serves meanwhile: w1 may be drained"
    assert fleet.at_once == 2
    assert fleet.running == {0: "new", 1: "old", 2: "new"}
    fleet = Pretended(0, 1, 2)
    await rolling.restart(fleet, [0, 1, 2], fleet.say)
    assert (fleet.journal[0], fleet.journal[-1]) == ("start 3", "drain 3")
    assert fleet.least == 1, "the spare serves while the others are away"
    assert fleet.running == dict.fromkeys(range(3), "new")


async def test_restart_with_code_that_does_not_come_up_touches_nobody() -> None:
    fleet = Pretended(0, 1, failing={2})
    with pytest.raises(FleetError) as told:
        await rolling.restart(fleet, [0, 1], fleet.say)
    assert not told.value.partly
    assert fleet.running == {0: "old", 1: "old"}


async def test_restart_says_who_did_not_come_back() -> None:
    fleet = Pretended(0, 1, failing={1})
    with pytest.raises(FleetError, match=r"Not running: w1\.") as told:
        await rolling.restart(fleet, [0, 1], fleet.say)
    assert told.value.partly
    assert fleet.running == {0: "new", 2: "new"}, "the spare is kept"
    with pytest.raises(FleetError, match="there is no w7"):
        await rolling.restart(fleet, [7], fleet.say)


async def test_restart_brings_back_who_is_to_be_there_and_ends_an_earlier_spare() -> None:
    fleet = Pretended(3)
    await rolling.restart(fleet, [1, 2], fleet.say, home=[1, 2])
    assert fleet.running == {1: "new", 2: "new"}
    fleet = Pretended(2, 3)
    await rolling.restart(fleet, [2], fleet.say, home=[1, 2])
    assert fleet.running == {2: "new", 3: "old"}, "w3 serves in the place of w1"
    await rolling.restart(fleet, [3], fleet.say, home=[1, 2])
    assert fleet.running == {2: "new", 3: "new"}
    with pytest.raises(FleetError, match="no worker is there"):
        await rolling.restart(Pretended(), [1], fleet.say, home=[1])


@pytest.mark.parametrize(
    ("text", "wanted"), [("6", 6), ("=6", 6), ("+2", 5), ("-1", 2), ("+252", 255)]
)
def test_how_many_are_asked_for(text: str, wanted: int) -> None:
    assert rolling.target(text, 3) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("six", "'six': expected a number of workers as 6, +2 or -1"),
        ("", "expected a number"),
        ("+", "expected a number"),
        ("1.5", "expected a number"),
        ("-3", "-3 from 3: expected to come to 1 to 255 workers; to end the cluster there is stop"),
        ("0", "0: expected to come to 1 to 255"),
        ("=300", "=300: expected to come to 1 to 255 workers"),
        ("+253", "+253 from 3: expected"),
        ("99999", "expected a number"),
    ],
)
def test_numbers_that_cannot_be(text: str, why: str) -> None:
    with pytest.raises(FleetError) as told:
        rolling.target(text, 3)
    assert why in str(told.value)
    if text[:1] not in ("+", "-"):
        with pytest.raises(FleetError, match=re.escape(str(told.value))):
            rolling.check_count(text)


def test_what_may_be_is_only_known_where_the_workers_are() -> None:
    assert rolling.check_count("-300") == ("-", 300)
    assert rolling.check_count("=4") == ("=", 4)


async def test_a_rehearsal_says_what_would_be_done_without_times() -> None:
    said: list[str] = []
    real = Pretended(0, 1)

    def say(text: str, /, **figures: object) -> None:
        said.append(text)

    await rolling.reload(Rehearsal([0, 1]), say)
    await rolling.reload(real, real.say)
    assert said == [line.partition(" (")[0] for line in real.said]
    assert await rolling.scale(Rehearsal([0, 1]), 4, say) == [0, 1, 2, 3]
    said.clear()
    await rolling.scale(Rehearsal([0, 1], [0]), 1, say)
    assert said[:3] == ["draining w0", "w0 has ended", "starting w0"]


def test_names_in_a_sentence() -> None:
    assert [names(slots) for slots in ([], [4], [0, 1], [0, 1, 9])] == [
        "none", "w4", "w0 and w1", "w0, w1 and w9",
    ]  # fmt: skip


_SLOTS = st.sets(st.integers(0, 255), min_size=1, max_size=12)


@given(_SLOTS, st.sets(st.integers(0, 255)), st.integers(0, 14), st.booleans())
def test_whatever_fails_no_worker_less_than_before_serves_during_a_reload(
    slots: set[int], failing: set[int], after: int, again: bool
) -> None:
    async def story() -> None:
        fleet = Pretended(*slots, failing=failing, after=after)
        error: FleetError | None = None
        try:
            await rolling.reload(fleet, fleet.say)
        except FleetError as failure:
            error = failure
        if error is None:
            assert fleet.running == dict.fromkeys(slots, "new")
        else:
            assert error.partly == ("new" in fleet.running.values())
        assert fleet.least >= len(slots)
        if again:
            healed = Pretended(*await fleet.slots())
            await rolling.reload(healed, healed.say, home=slots)
            assert healed.running == dict.fromkeys(slots, "new")

    asyncio.run(story())
