"""Fixtures for tests of the cluster's processes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet_cluster import logs
from log_sink import Sink
from supervised import Supervised


@pytest.fixture
def supervise() -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []
    base = Path(tempfile.mkdtemp(prefix="limpet-"))

    def start(prefix: list[str] | None = None, **options: Any) -> Supervised:
        one = Supervised(base / str(len(started)), prefix or [], **options)
        started.append(one)
        return one

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(10)
    # A stand-in that was just being started may still open its journal before it ends.
    deadline = time.monotonic() + 10
    while base.exists():
        shutil.rmtree(base, ignore_errors=time.monotonic() < deadline)


@pytest.fixture
def sink() -> Iterator[Sink]:
    """Return a logger with the JSON of a worker."""
    one = Sink(logs.JsonFormatter("worker-3", node="here"))
    yield one
    one.handler.close()


@pytest.fixture
def human() -> Iterator[Sink]:
    """Return a logger with a worker's lines for people."""
    one = Sink(logs.HumanFormatter("worker-3"))
    yield one
    one.handler.close()
