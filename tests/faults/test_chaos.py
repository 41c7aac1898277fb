"""Processes die at random under load, and every promise is asked for after each death.

LIMPET_SEED=N repeats the rounds of a failure; ``scripts/soak`` plays the long form.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from faults.chaos import DECK, Chaos, plan
from harness import RunningCluster
from herd import run

pytestmark = pytest.mark.processes

WORKERS = 3
STALL_AFTER = 6.0
"""Longer than what is meant to go unnoticed, and than a machine pauses."""
SEED = int(os.environ.get("LIMPET_SEED", "6"))


def test_a_seed_is_a_plan() -> None:
    assert plan(7, 20, WORKERS) == plan(7, 20, WORKERS)
    assert plan(7, 20, WORKERS)[:8] == plan(7, 8, WORKERS)
    assert plan(7, 20, WORKERS) != plan(8, 20, WORKERS)
    killed, stalled = Counter[str](), Counter[str]()
    for seed in range(50):
        blows = plan(seed, len(DECK), WORKERS)
        roles = Counter(blow.target.partition("-")[0] for blow in blows if blow.kind == "kill")
        assert roles == Counter(role for role in DECK if role != "stall")
        killed.update(blow.target for blow in blows if blow.kind == "kill")
        stalled.update(blow.target for blow in blows if blow.kind == "stall")
    workers = {f"worker-{slot}" for slot in range(WORKERS)}
    assert set(killed) == {*workers, "hub", "balancer", "supervisor"}
    assert set(stalled) == {*workers, "hub", "balancer"}
    assert str(plan(7, 1, WORKERS)[0]).startswith(("SIGKILL of ", "SIGSTOP of "))


async def _chaos(cluster: RunningCluster, rounds: int) -> None:
    chaos = Chaos(cluster, SEED, STALL_AFTER)
    print(f"seed {SEED} (LIMPET_SEED={SEED} repeats it)")
    try:
        await chaos.begin(websockets=60, polling=20)
        for number, blow in enumerate(plan(SEED, rounds, WORKERS), 1):
            await chaos.play(number, blow)
    finally:
        await chaos.end()


@pytest.fixture
def cluster_of_three(spawn_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    return spawn_cluster("servers.chaos_app:io", WORKERS, f"--stall-after={STALL_AFTER:g}")


@pytest.mark.timeout(240)
def test_eight_rounds(cluster_of_three: RunningCluster) -> None:
    run(_chaos(cluster_of_three, len(DECK)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_rounds(cluster_of_three: RunningCluster) -> None:
    run(_chaos(cluster_of_three, 50))
