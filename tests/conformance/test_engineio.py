"""The titles of the official Engine.IO v4 suite, against one worker and through the balancer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from conftest import SpawnCluster
from engineio_titles import Base, EngineIoTitles
from harness import RunningCluster
from servers.engineio_echo import EchoServer


class TestOneWorker(EngineIoTitles):
    @pytest.fixture
    async def base(self) -> AsyncIterator[Base]:
        server = EchoServer()
        yield await server.listen()
        await server.close()

    @pytest.fixture
    async def patient_base(self) -> AsyncIterator[Base]:
        server = EchoServer(ping_timeout=20)
        yield await server.listen()
        await server.close()

    @pytest.fixture
    async def calm_base(self) -> AsyncIterator[Base]:
        server = EchoServer(ping_interval=25, ping_timeout=20)
        yield await server.listen()
        await server.close()


@pytest.fixture(scope="session")
def echo_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """Two workers that send back every Engine.IO message."""
    return _new_cluster("servers.engineio_app:io", 2, "--path=/engine.io/")


@pytest.fixture(scope="session")
def calm_echo_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """The same with heartbeats that are far apart."""
    return _new_cluster("servers.engineio_app:calm", 2, "--path=/engine.io/")


@pytest.fixture(scope="session")
def patient_echo_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """The same with as many heartbeats, whose answers are waited for long."""
    return _new_cluster("servers.engineio_app:patient", 2, "--path=/engine.io/")


@pytest.mark.processes
class TestTwoWorkersBehindTheBalancer(EngineIoTitles):
    @pytest.fixture
    def base(self, echo_cluster: RunningCluster) -> Base:
        return echo_cluster.address

    @pytest.fixture
    def patient_base(self, patient_echo_cluster: RunningCluster) -> Base:
        return patient_echo_cluster.address

    @pytest.fixture
    def calm_base(self, calm_echo_cluster: RunningCluster) -> Base:
        return calm_echo_cluster.address
