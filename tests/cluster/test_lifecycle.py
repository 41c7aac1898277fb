"""The life of a child, told to a clock that the test holds."""

from __future__ import annotations

import signal
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_cluster.supervisor.lifecycle import (
    RUNNING,
    SPAWN,
    Child,
    End,
    Policy,
    State,
    describe_exit,
)

POLICY = Policy(start_timeout=60, stall_after=15, abort_grace=2, stop_timeout=10)


def child(jitter: float = 0.5, policy: Policy = POLICY) -> Child:
    return Child("worker-0", policy, lambda: jitter)


def ready(one: Child, now: float = 0.0) -> Child:
    one.start(now)
    assert one.due(now) is SPAWN
    one.spawned(100, now)
    one.told({"READY": "1", "STATUS": "at work"}, now)
    assert one.state is State.READY
    return one


def test_is_started_once_until_it_exists() -> None:
    one = child()
    assert one.due(0) is None
    one.start(0)
    one.start(0)
    assert one.due(0) is SPAWN
    assert one.due(0) is None
    one.spawned(100, 0)
    assert (one.state, one.pid, one.restarts) == (State.STARTING, 100, 0)


def test_back_off_doubles_to_its_longest_and_jitters() -> None:
    one = ready(child())
    pauses = []
    now = 0.0
    for _ in range(12):
        now += one.exited(now)
        pauses.append(one.due_at())
        assert one.due(now - 1e-6) is None
        assert one.due(now) is SPAWN
        one.spawned(100, now)
    gaps = [after - before for before, after in zip([0.0, *pauses], pauses, strict=False)]
    assert gaps == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30])
    assert one.restarts == 12
    low, high = ready(child(0.0)), ready(child(1.0))
    assert (low.exited(1), high.exited(1)) == pytest.approx((0.1875, 0.3125))


def test_a_minute_of_health_forgives_earlier_failures() -> None:
    one = ready(child())
    one.exited(1)
    one.due(2)
    one.spawned(101, 2)
    one.told({"READY": "1"}, 3)
    assert one.exited(3 + 59.9) == pytest.approx(0.5)
    one.due(70)
    one.spawned(102, 70)
    one.told({"READY": "1"}, 71)
    assert one.exited(71 + 60) == pytest.approx(0.25)


def test_an_hour_of_starting_is_no_health() -> None:
    one = child(policy=Policy(start_timeout=0))
    one.start(0)
    one.due(0)
    one.spawned(100, 0)
    one.exited(3600)
    assert one.failures == 1
    one.due(3601)
    one.spawned(100, 3601)
    one.exited(9999)
    assert one.failures == 2


def test_a_silent_child_is_aborted_then_killed() -> None:
    one = ready(child())
    one.told({"WATCHDOG": "1"}, 10)
    assert one.due_at() == 25
    assert one.due(24.9) is None
    assert one.due(25) is signal.SIGABRT
    one.told({"WATCHDOG": "1"}, 25.5)
    assert one.due(26.9) is None, "too late"
    assert one.due(27) is signal.SIGKILL
    assert one.due_at() == inf
    assert one.exited(27.1) == pytest.approx(0.25)
    assert one.state is State.WAITING


def test_silence_before_it_is_ready_is_only_its_slow_start() -> None:
    one = child()
    one.start(0)
    one.due(0)
    one.spawned(100, 0)
    assert one.due(59.9) is None
    assert one.due(60) is signal.SIGABRT


def test_a_slow_start_or_stop_may_ask_for_more_time() -> None:
    one = child()
    one.start(0)
    one.due(0)
    one.spawned(100, 0)
    one.told({"EXTEND_TIMEOUT_USEC": "30000000"}, 50)
    assert one.due_at() == 80
    one.told({"EXTEND_TIMEOUT_USEC": "1"}, 51)
    assert one.due_at() == 80, "never less"
    one.told({"EXTEND_TIMEOUT_USEC": "soon"}, 51)
    one.told({"READY": "1"}, 60)
    assert one.stop(60)
    assert one.due_at() == 70
    one.told({"EXTEND_TIMEOUT_USEC": "60000000"}, 65)
    assert one.due_at() == 125


def test_who_asked_for_more_time_to_stop_has_the_usual_time_when_he_asks_no_more() -> None:
    one = ready(child(policy=Policy(stop_timeout=30)))
    assert one.stop(10)
    one.told({"EXTEND_TIMEOUT_USEC": "10000000"}, 90)
    assert one.due_at() == 120


def test_nobody_is_watched_in_development() -> None:
    one = ready(child(policy=Policy(stall_after=0, start_timeout=0)))
    assert one.due_at() == inf


def test_stops_with_term_then_kill_and_stays_away() -> None:
    one = ready(child())
    assert one.stop(100)
    assert not one.stop(101), "told already"
    assert one.due(109.9) is None
    assert one.due(110) is signal.SIGKILL
    assert one.exited(110.1) == inf
    assert (one.state, one.pid, one.due_at()) == (State.IDLE, 0, inf)


def test_one_that_waits_to_start_just_stays_away() -> None:
    one = ready(child())
    one.exited(1)
    assert not one.stop(1)
    assert one.state is State.IDLE
    assert one.due(100) is None


def test_restarts_at_once_when_asked_and_forgets_its_failures() -> None:
    one = ready(child())
    for now in (1, 2, 3):
        one.exited(now)
        one.due(100)
        one.spawned(100, 100)
    assert one.restart(200)
    assert one.exited(201) == 0
    assert one.failures == 0
    assert one.due(201) is SPAWN
    one.spawned(101, 201)
    one.exited(202)
    one.hold()
    assert one.due(1e9) is None
    assert not one.restart(300)
    assert one.due(300) is SPAWN


def test_killed_as_it_did_not_end_it_still_restarts_at_once_and_not_when_it_was_silent() -> None:
    one = ready(child())
    assert one.restart(10)
    assert one.due(20) is signal.SIGKILL
    assert one.exited(20, -9) == 0.0
    assert (one.failures, one.last_reason, one.due(20)) == (0, End.RESTART, SPAWN)
    one.spawned(101, 20)
    one.told({"READY": "1"}, 20)
    assert one.due(35) is signal.SIGABRT
    assert not one.restart(36), "the watchdog has begun"
    assert one.due(37) is signal.SIGKILL
    assert one.exited(37, -9) > 0
    assert (one.failures, one.last_reason) == (1, End.STALLED)


def test_the_supervisors_own_sleep_is_forgiven() -> None:
    one = ready(child())
    one.forgive(100)
    assert one.due(100) is None
    assert one.due_at() == 115


EVENTS = st.sampled_from(
    [
        "start",
        "ready",
        "beat",
        "exit",
        "stop",
        "restart",
        "kill",
        "hold",
        "hurry",
        "wait",
        "long wait",
    ]
)


@given(st.lists(EVENTS, max_size=60), st.floats(0, 1))
def test_whatever_happens_there_is_a_process_exactly_in_the_states_that_say_so(
    events: list[str], jitter: float
) -> None:
    one = child(jitter)
    now = 0.0
    alive = False
    for event in events:
        if event == "start":
            one.start(now)
        elif event == "ready":
            one.told({"READY": "1"}, now)
        elif event == "beat":
            one.told({"WATCHDOG": "1"}, now)
        elif event == "exit" and alive:
            alive = False
            assert one.exited(now) <= 37.5 or not one.wanted
        elif event in ("stop", "restart"):
            assert (one.stop if event == "stop" else one.restart)(now) <= alive
        elif event == "kill":
            assert one.kill() == alive
        elif event == "hold":
            one.hold()
        elif event == "hurry":
            assert one.hurry(now, 1.0) <= alive
        else:
            now += 0.3 if event == "wait" else 90.0
        action = one.due(now)
        if action is SPAWN:
            assert not alive
            assert one.wanted
            alive = True
            one.spawned(7, now)
        elif action is not None:
            assert alive
        assert (one.state in RUNNING) == alive == bool(one.pid)
        assert one.due(now) is None or one.due_at() == inf
    # Whatever it has been through, it ends.
    one.stop(now)
    for _ in range(3):
        now += 100
        one.due(now)
    if alive:
        assert one.state is State.KILLED
        one.exited(now)
    assert one.state is State.IDLE


def test_the_reason_of_each_end_is_kept() -> None:
    one = ready(child())
    one.exited(1, -signal.SIGSEGV)
    assert (one.last_reason, one.last_end) == (End.SIGNAL, "was killed by SIGSEGV")
    _again(one, 2)
    one.exited(2, 3)
    assert (one.last_reason, one.last_end) == (End.EXIT, "ended with exit code 3")
    _again(one, 10)
    assert one.due(10 + 15) is signal.SIGABRT
    one.exited(26, -signal.SIGABRT)
    assert str(one.last_reason) == "stalled"
    one.due(100)
    one.spawned(103, 100)
    assert one.due(160) is signal.SIGABRT
    one.exited(161, -signal.SIGABRT)
    assert str(one.last_reason) == "start_timeout"
    _again(one, 200)
    one.restart(200, End.RELOAD)
    one.exited(200)
    assert one.last_end == "was replaced by a reload; ended with exit code 0"
    _again(one, 200)
    one.stop(201, End.SCALE)
    one.due(300)
    one.exited(300, -signal.SIGKILL)
    assert str(one.last_reason) == "scale", "killed at its deadline, but for that"
    assert one.ends == {
        "signal": 1, "exit": 1, "stalled": 1, "start_timeout": 1, "reload": 1, "scale": 1,
    }  # fmt: skip


def _again(one: Child, now: float) -> None:
    one.due(now + 100)
    one.spawned(100, now)
    one.told({"READY": "1"}, now)


def test_hurried_it_gets_no_more_time() -> None:
    one = ready(child())
    assert not one.hurry(1, 1.0), "nobody told it to end"
    one.stop(1)
    one.told({"EXTEND_TIMEOUT_USEC": "60000000"}, 2)
    assert one.due_at() == 62
    assert one.hurry(3, 1.0)
    one.told({"EXTEND_TIMEOUT_USEC": "60000000"}, 3.5)
    assert one.due_at() == 4
    assert one.due(4) is signal.SIGKILL
    one.exited(4)
    one.start(5)
    _again(one, 5)
    one.stop(6)
    one.told({"EXTEND_TIMEOUT_USEC": "60000000"}, 7)
    assert one.due_at() == 67, "its next process is not hurried"


def test_one_that_still_starts_has_less_time_to_end() -> None:
    one = child()
    one.start(0)
    one.due(0)
    one.spawned(100, 0)
    assert not one.is_up
    assert one.stop(1)
    one.told({"EXTEND_TIMEOUT_USEC": "60000000"}, 1)
    assert one.due_at() == 3
    assert one.due(3) is signal.SIGKILL


def test_killed_before_it_was_told_to_end_it_was_stopped() -> None:
    one = ready(child())
    one.stop(1)
    one.restart(1, End.RELOAD)
    one.exited(1)
    _again(one, 1)
    assert one.kill()
    one.exited(2, -signal.SIGKILL)
    assert one.last_reason is End.STOP
    assert describe_exit(-200) == "was killed by signal 200"
