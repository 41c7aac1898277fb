"""Fixtures for tests that need a real cluster."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from xprocess import XProcess

from harness import RunningCluster

SpawnCluster = Callable[..., RunningCluster]


@pytest.fixture(scope="session")
def _new_cluster(xprocess: XProcess) -> Iterator[SpawnCluster]:
    """Start clusters that all end with the session; names are never used twice."""
    for earlier in xprocess.rootdir.listdir():  # logs of earlier runs
        if not xprocess.getinfo(earlier.basename).isrunning():
            earlier.remove(rec=1)
    run = uuid.uuid4().hex[:8]
    started: list[RunningCluster] = []

    def start(application: str, workers: int = 2, *arguments: str) -> RunningCluster:
        label = application.partition(":")[0].rpartition(".")[2]
        name = f"{label}-{run}-{len(started)}"
        cluster = RunningCluster(xprocess, name, application, workers, list(arguments))
        started.append(cluster)
        cluster.start()
        return cluster

    yield start
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
def interop_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """The stock clients' application on two workers, shared by the session."""
    return _new_cluster("servers.interop_app:io", 2)
