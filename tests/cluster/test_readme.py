"""The README is true: its first app runs as it says, and a stock client talks to it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import socketio

from harness import RunningCluster

ROOT = Path(__file__).parents[2]


def code_block() -> str:
    readme = (ROOT / "README.md").read_text()
    [block] = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return str(block)


def test_the_first_app_is_short_and_is_among_the_examples() -> None:
    assert len(code_block().splitlines()) <= 15
    assert code_block() == (ROOT / "examples/first.py").read_text()


def test_the_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("script", ["run", "test", "check"])
def test_the_scripts_are_there(script: str) -> None:
    assert (ROOT / "scripts" / script).stat().st_mode & 0o100


@pytest.mark.processes
async def test_the_first_app_runs(
    spawn_cluster: Callable[..., RunningCluster], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(code_block())
    cluster = spawn_cluster("app:io", 2, f"--app-dir={tmp_path}")
    clients = [socketio.AsyncClient(reconnection=False) for _ in range(4)]
    heard: list[str] = []
    try:
        for client in clients:
            client.on("said", heard.append)
            # The default is a second.
            await client.connect(cluster.url, transports=["websocket"], wait_timeout=10)
        for number, client in enumerate(clients, 1):
            assert len(await client.call("enter", "harbour", timeout=10)) == number
        await clients[0].call("say", ("harbour", "Hello"), timeout=10)
        async with asyncio.timeout(10):
            while len(heard) < len(clients):
                await clients[0].sleep(0.01)
        assert heard == ["Hello"] * 4
        workers = cluster.api.get("workers")["data"]
        assert sorted(one["connections"] for one in workers) == [2, 2]
    finally:
        for client in clients:
            await client.shutdown()
