"""The drain of one worker on a loop turned by hand: who is closed when, and who is waited for."""

from __future__ import annotations

import logging

import pytest

from engine_fakes import Rig
from limpet_adapters.counters import gauges
from limpet_worker.drain import DrainOptions
from limpet_worker.drainer import REASON, Drainer
from limpet_worker.engineio.session import Session

OPTIONS = DrainOptions(grace=1.0, window=60.0, budget=10.0, handler_grace=5.0)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def drainer(rig: Rig, chance: float = 0.5) -> Drainer:
    return Drainer(rig.engine, OPTIONS, lambda: chance)


def ended(session: Session) -> bool:
    return session.closed


def test_everybody_is_closed_and_told_why(rig: Rig) -> None:
    sessions = [rig.websocket()[0] for _ in range(5)] + [rig.polling() for _ in range(5)]
    drain = drainer(rig)
    drain.begin()
    assert drain.draining
    assert (drain.remaining, drain.left()) == (10, 2.0)
    rig.loop.sleep(1.45)
    assert drain.remaining == 10
    rig.loop.sleep(0.1)
    assert drain.remaining == 0
    assert drain.left() == 0.0
    assert {reason for session in sessions for reason in rig.sink(session).reasons} == {REASON}
    drain.close()


async def test_emptied(rig: Rig) -> None:
    session, _ = rig.websocket()
    drain = drainer(rig)
    drain.begin(grace=0.0, window=10.0)
    assert not drain._empty.is_set()
    session.fail("transport close")  # it left by itself: nobody waits for its instant
    rig.loop.sleep(0.3)
    await drain.emptied()
    late, _ = rig.websocket()  # the balancer had sent it before
    rig.loop.sleep(10.0)
    assert ended(late)
    nobody = drainer(Rig())
    nobody.begin()
    await nobody.emptied()


def test_undone(rig: Rig) -> None:
    sessions = [rig.websocket()[0] for _ in range(3)]
    drain = drainer(rig)
    drain.begin()
    drain.show()
    assert gauges["limpet_draining"] == 1
    assert gauges["limpet_drain_sessions_remaining"] == 3
    drain.undo()
    assert gauges["limpet_draining"] == 0
    assert gauges["limpet_drain_sessions_remaining"] == 0
    rig.loop.sleep(10.0)
    assert not any(ended(session) for session in sessions)
    assert not drain.draining
    drain.hurry(0.0, alone=True)  # nothing to hurry


def test_whose_packets_wait_is_put_off(rig: Rig) -> None:
    blocked, transport = rig.websocket()
    transport.room = 0
    blocked.send("x" * 100_000)
    rig.loop.settle()
    blocked.send("more")
    rig.loop.settle()
    assert blocked.out is not None
    drain = drainer(rig)
    drain.begin(grace=0.0, window=0.0)
    rig.loop.sleep(4.9)
    assert not ended(blocked)
    rig.loop.sleep(0.2)
    assert ended(blocked)
    drain.close()


def test_alone_waits_for_no_packets(rig: Rig) -> None:
    waiting = rig.polling()
    waiting.send("last")
    rig.loop.settle()
    drain = drainer(rig)
    drain.begin(grace=0.0, window=0.0)
    rig.loop.sleep(0.5)
    assert not ended(waiting)
    drain.hurry(1.0, alone=True)
    assert ended(waiting)
    assert rig.poll(waiting).payload == b"4last"


def test_half_a_message_is_waited_for_even_alone(rig: Rig) -> None:
    session = rig.polling()
    assert session.polling is not None
    session.polling.poster = object()
    drain = drainer(rig)
    drain.begin(grace=0.0)
    drain.hurry(1.0, alone=True)
    rig.loop.sleep(0.9)
    assert not ended(session)
    session.polling.poster = None
    rig.loop.sleep(0.1)
    assert ended(session)


def test_what_is_done_before_each_close_cannot_stop_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Session] = []

    def fails(_session: Session) -> None:
        raise RuntimeError("no room")

    session, _ = rig.websocket()
    drain = drainer(rig)
    drain.before_close += [fails, seen.append]
    drain.begin(grace=0.0, window=0.0)
    assert ended(session)
    assert seen == [session]
    assert "could not be handed over" in caplog.text
    assert session.sid not in caplog.text
    drain.close()


def test_a_second_begin_takes_the_new_times(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    session, _ = rig.websocket()
    drain = drainer(rig)
    drain.begin(window=3600.0)
    rig.loop.sleep(10.0)
    assert not ended(session)
    drain.begin(grace=0.0)
    assert drain.left() == pytest.approx(0.1)
    rig.loop.sleep(0.2)
    assert ended(session)
    assert "draining for 0.1 s, sessions: 1" in caplog.text


def test_workers_that_drain_at_a_time_share_the_budget(rig: Rig) -> None:
    sessions = [rig.websocket()[0] for _ in range(10)]
    drain = drainer(rig)
    drain.share(7)  # it does not drain yet
    drain.begin()
    assert drain.left() == 2.0
    rig.loop.sleep(0.5)
    drain.share(4)
    assert drain.left() == pytest.approx(0.5 + 4.0)
    rig.loop.sleep(2.4)
    assert not any(ended(session) for session in sessions)
    drain.share(7)  # too late
    rig.loop.sleep(0.2)
    assert all(ended(session) for session in sessions)
    drain.begin(window=1.0)
    drain.share(4)
    assert drain.left() == 0.0
    rig.websocket()
    drain.begin(window=1.0)
    drain.share(4)
    assert drain.left() == 2.0  # somebody said so
    drain.close()
