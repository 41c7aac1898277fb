"""Thousands of idle clients in one process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client_servers import ClientServer
from harness import require

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(180)]

AMOUNT = 5000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process and those it starts open as many files as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require("descriptors", hard > AMOUNT + 500 or hard == resource.RLIM_INFINITY, f"only {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize(
    ("transport", "loop", "limit"),
    [("websocket", "uvloop", 12), ("websocket", "asyncio", 12), ("upgrade", "uvloop", 16)],
)
def test_five_thousand_idle_clients(
    transport: str,
    loop: str,
    limit: int,
    spawn: Callable[..., ClientServer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = spawn("limpet")
    script = str(Path(__file__).parent / "idle.py")
    ended = subprocess.run(
        [sys.executable, script, server.url, str(AMOUNT), transport, loop],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    with capsys.disabled():
        print(f"\n{loop}: {ended.stdout.strip()}")
    assert figures["transport"] == "websocket"
    assert figures["tasks"] < 50
    assert figures["kib_each"] < limit
