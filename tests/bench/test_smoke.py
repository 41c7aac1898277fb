"""A smoke run of the benchmark against limpet alone: it works, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = (
    *("connect", "upgrade", "echo-8", "broadcast-8", "rooms-32", "polling-echo", "latency"),
    *("binary-16k", "pool"),
)
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_quick_run_delivers_everything(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "scripts.benchmark", "--peers=limpet", "--rounds=1", "--quick"),
            f"--scenarios={','.join(SCENARIOS)}",
            *("--scratch", str(tmp_path), "--json", str(figures)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found.keys() == set(SCENARIOS)
    for name, peers in found.items():
        (outcome,) = peers["limpet"]
        assert outcome["complete"], name
        assert outcome["findings"]["delivered"] > 0, name
        assert outcome["cpu_ns"] > 0, name
    assert "other worker p50 ms" in found["latency"]["limpet"][0]["values"]
