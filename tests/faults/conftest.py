"""The cluster that tests of faults share: each leaves it whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from faults.crowd import all_open, balancer
from harness import RunningCluster


@pytest.fixture(scope="session")
def _shared(_new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    # Some stand still for seconds, and are not to be replaced.
    return _new_cluster("servers.faults_app:io", 2, "--stall-after=30")


@pytest.fixture
async def whole_cluster(_shared: RunningCluster) -> RunningCluster:
    """Two workers, balancer and hub, all ready, without any client."""
    deadline = time.monotonic() + 20
    while not await _is_whole(_shared):
        assert time.monotonic() < deadline, f"not as it was: {_shared.status}"
        await asyncio.sleep(0.1)
    return _shared


async def _is_whole(cluster: RunningCluster) -> bool:
    if {one["state"] for one in cluster.status.values()} != {"ready"}:
        return False
    figures = await balancer(cluster)
    busy = any(one["sessions"] + one["recent"] for one in figures["workers"])
    return all_open(figures) and not busy
