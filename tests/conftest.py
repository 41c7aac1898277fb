"""Fixtures for tests that need a real cluster."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]
from xprocess import XProcess

from harness import RunningCluster

SpawnCluster = Callable[..., RunningCluster]

# Examples are not timed: a machine that pauses for a moment is no failure. All else is as
# Hypothesis has it, which differs where a variable like CI is set.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:8]
PART = os.environ.get("PYTEST_XDIST_WORKER", "")
"""Which of the processes that share the tests this is; empty when there is only one."""
TOGETHER = {
    "bench": "load",
    "conformance": "suites",
    "faults": "load",
    "interop": "suites",
    "systemd": "load",
    "test_reload_under_load.py": "load",
    "test_scaling.py": "load",
}
"""Folders and files that run in one process, one after the other: they share what takes long to
start, or each needs the machine for itself. Elsewhere the tests of a file do."""


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out tests by `TOGETHER`.

    Not by marks: xdist writes the group of a mark into the name of its test, which pytest 9.2
    does not take any more. Each test would go to the process that is free.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = PurePosixPath(nodeid.partition("::")[0])
        return TOGETHER.get(path.name) or TOGETHER.get(path.parent.name) or str(path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together | None:
    """Say which tests run in the same process."""
    return Together(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def _new_cluster(xprocess: XProcess) -> Iterator[SpawnCluster]:
    """Start clusters that all end with the session; names are never used twice."""
    for earlier in xprocess.rootdir.listdir():
        old = RUN not in earlier.basename and PART in ("", "gw0")
        if old and not xprocess.getinfo(earlier.basename).isrunning():
            earlier.remove(rec=1)
    started: list[RunningCluster] = []

    def start(application: str, workers: int = 2, *arguments: str) -> RunningCluster:
        label = application.partition(":")[0].rpartition(".")[2]
        name = f"{label}-{RUN}{PART}-{len(started)}"
        cluster = RunningCluster(xprocess, name, application, workers, list(arguments))
        started.append(cluster)
        cluster.start()
        return cluster

    yield start
    for cluster in started:  # they end side by side
        cluster.ask_to_end()
    for cluster in reversed(started):
        cluster.discard()


@pytest.fixture
def spawn_cluster(_new_cluster: SpawnCluster) -> Iterator[SpawnCluster]:
    """Return ``spawn_cluster(application, workers, *arguments)``: clusters of this test alone."""
    mine: list[RunningCluster] = []

    def start(application: str, workers: int = 2, *arguments: str) -> RunningCluster:
        cluster = _new_cluster(application, workers, *arguments)
        mine.append(cluster)
        return cluster

    yield start
    for cluster in mine:
        cluster.discard()


@pytest.fixture(scope="session")
def cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """The suites' application on two workers, shared by the session: do not break it."""
    return _new_cluster("servers.suite_app:io", 2)


@pytest.fixture(scope="session")
def calm_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """The same with heartbeats that are far apart, shared by the session: do not break it."""
    return _new_cluster("servers.suite_app:calm", 2)


@pytest.fixture(scope="session")
def interop_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """The stock clients' application on two workers, shared by the session."""
    return _new_cluster("servers.interop_app:io", 2)
