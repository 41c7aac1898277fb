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


@pytest.fixture(scope="session")
def echo_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """Two workers that send back every Engine.IO message."""
    return _new_cluster("servers.engineio_app:io", 2, "--path=/engine.io/")


@pytest.mark.processes
class TestTwoWorkersBehindTheBalancer(EngineIoTitles):
    @pytest.fixture
    def base(self, echo_cluster: RunningCluster) -> Base:
        return echo_cluster.address
