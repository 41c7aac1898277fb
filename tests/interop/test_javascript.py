"""The stock JavaScript client (npm socket.io-client) against two workers behind one port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness import RunningCluster, npm_install

HERE = Path(__file__).parent

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

POLLING = {"transports": ["polling"]}
WEBSOCKET = {"transports": ["websocket"]}
UPGRADE: dict[str, list[str]] = {}

Node = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture(scope="session")
def client_script() -> Path:
    """Install the client beside its script, once."""
    npm_install(HERE, "socket.io-client")
    return HERE / "client.mjs"


async def _start(
    script: Path, scenario: str, url: str, options: dict[str, list[str]]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "node",
        str(script),
        json.dumps({"scenario": scenario, "url": url, "options": options}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _finish(process: asyncio.subprocess.Process) -> dict[str, object]:
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    done: dict[str, object] = json.loads(output.splitlines()[-1])["done"]
    return done


async def _run(
    script: Path, scenario: str, cluster: RunningCluster, options: dict[str, list[str]]
) -> dict[str, object]:
    return await _finish(await _start(script, scenario, cluster.url, options))


async def test_connects_by_polling(client_script: Path, interop_cluster: RunningCluster) -> None:
    assert await _run(client_script, "transport", interop_cluster, POLLING) == {
        "transport": "polling",
        "named": "polling",
    }


async def test_connects_by_websocket(client_script: Path, interop_cluster: RunningCluster) -> None:
    assert await _run(client_script, "transport", interop_cluster, WEBSOCKET) == {
        "transport": "websocket",
        "named": "websocket",
    }


@pytest.mark.parametrize("scenario", ["upgrade", "upgrade_in_flight"])
async def test_upgrades(
    client_script: Path, interop_cluster: RunningCluster, scenario: str
) -> None:
    done = await _run(client_script, scenario, interop_cluster, UPGRADE)
    assert done == {"transport": "websocket"}


@pytest.mark.parametrize("options", [POLLING, WEBSOCKET, UPGRADE], ids=["poll", "ws", "upgrade"])
@pytest.mark.parametrize("scenario", ["events", "binary", "rooms"])
async def test_talks(
    client_script: Path,
    interop_cluster: RunningCluster,
    scenario: str,
    options: dict[str, list[str]],
) -> None:
    await _run(client_script, scenario, interop_cluster, options)


@pytest.mark.parametrize("scenario", ["direct", "namespaces", "disconnect"])
async def test_manners(client_script: Path, interop_cluster: RunningCluster, scenario: str) -> None:
    await _run(client_script, scenario, interop_cluster, UPGRADE)


@pytest.mark.parametrize("options", [POLLING, WEBSOCKET, UPGRADE], ids=["poll", "ws", "upgrade"])
async def test_comes_back_after_its_worker_was_killed(
    client_script: Path,
    spawn_cluster: Callable[..., RunningCluster],
    options: dict[str, list[str]],
) -> None:
    cluster = spawn_cluster("servers.interop_app:io", 2)
    process = await _start(client_script, "reconnect", cluster.url, options)
    assert process.stdout is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["ready"]
    os.kill(ready, signal.SIGKILL)
    done = await _finish(process)
    assert done["reason"] in {"transport close", "transport error"}
