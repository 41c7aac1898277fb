"""The end of a worker process: what it asks of its supervisor, and what it no longer does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine_fakes import Rig
from limpet_adapters.notify import Notifier
from limpet_adapters.rundir import RunDirectory
from limpet_worker import process
from limpet_worker.drain import DrainOptions
from limpet_worker.drainer import Drainer
from limpet_worker.engineio.options import EngineOptions
from limpet_worker.engineio.server import EngineServer
from limpet_worker.engineio.session import Session
from limpet_worker.engineio.sink import Sink
from limpet_worker.process import Worker, WorkerConfig
from limpet_worker.socketio.server import Server


class Heard(Notifier):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.extended: list[float] = []

    def extend(self, seconds: float) -> None:
        self.extended.append(seconds)


class Endless(Server):
    """An application whose end takes for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = asyncio.Event()

    async def close(self, reason: str = "", *, grace: float = 0.0) -> None:
        self.closing.set()
        await asyncio.sleep(60)


def nobody(_session: Session) -> Sink:
    raise AssertionError("nobody comes")


async def test_a_shutdown_hook_that_never_returns_is_not_covered_by_asking_for_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_WATCH", 0.02)
    heard = Heard()
    worker = Worker(WorkerConfig(run=RunDirectory(tmp_path / "run"), slot=0), notifier=heard)
    app = worker.app = Endless()
    engine = EngineServer(EngineOptions(), nobody, str)
    worker.drainer = Drainer(engine, DrainOptions(grace=0.2))

    async def end() -> None:
        await worker.leave()
        await worker.stop()

    ending = asyncio.create_task(end())
    try:
        await asyncio.wait_for(app.closing.wait(), 15)
        asked = len(heard.extended)
        assert asked >= 1
        await asyncio.sleep(0.2)
        assert heard.extended[asked:] == [], "the supervisor alone decides how long it takes"
    finally:
        ending.cancel()
        await asyncio.wait({ending})
        worker.drainer.close()
        worker.slot.release()


async def test_who_is_told_to_end_and_then_at_once_before_it_began_hurries(tmp_path: Path) -> None:
    """The supervisor sends TERM and QUIT one after the other; both wait when the loop turns."""
    worker = Worker(WorkerConfig(run=RunDirectory(tmp_path / "run"), slot=0))
    rig = Rig()
    for _ in range(20):
        rig.websocket()
    drainer = worker.drainer = Drainer(rig.engine, DrainOptions(grace=5.0, window=60.0))
    worker.end_now()
    leaving = asyncio.create_task(worker.leave())
    await asyncio.sleep(0)
    rig.loop.sleep(0.5)
    assert drainer.remaining == 0
    await asyncio.wait_for(leaving, 15)
    assert worker._watching is not None
    worker._watching.cancel()
    drainer.close()
    worker.slot.release()


async def test_an_end_at_once_fits_into_the_second_that_the_supervisor_gives_it(
    tmp_path: Path,
) -> None:
    worker = Worker(WorkerConfig(run=RunDirectory(tmp_path / "run"), slot=0))
    loop = asyncio.get_running_loop()
    worker.end_now()
    took = 5.0
    for _ in range(20):  # one in which the machine did not pause will do
        began = loop.time()
        assert not await worker._until(lambda: False, 5.0)  # for last words
        assert not await worker._until(lambda: False, 5.0)  # for idle connections
        took = min(took, loop.time() - began + worker._handler_grace())
        if took < 0.8:
            break
    assert took < 0.8
    worker.slot.release()
