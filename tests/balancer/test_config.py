"""Wrong values are named, with what would be right."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet_adapters.rundir import RunDirectory
from limpet_balancer.config import BalancerConfig, ConfigError
from limpet_balancer.listening import BindError


@pytest.fixture(scope="module")
def run() -> Iterator[RunDirectory]:
    with tempfile.TemporaryDirectory(prefix="limpet-") as folder:
        yield RunDirectory(Path(folder))


def test_defaults(run: RunDirectory) -> None:
    config = BalancerConfig(run=run, node=1)
    assert (config.engine_path, config.limits.unacknowledged) == ("/socket.io/", 256)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"node": 70_000}, "node=70000: expected 0 to 65535"),
        ({"engine_path": "socket.io"}, "engine_path='socket.io': expected a path"),
        ({"engine_path": ""}, "engine_path='': expected a path"),
        ({"engine_path": "/"}, "engine_path='/': expected more than a slash"),
        ({"health_path": "healthz"}, "health_path='healthz': expected a path"),
        ({"head_timeout": 0}, "head_timeout=0: expected seconds > 0"),
        ({"ping_interval": float("nan")}, "ping_interval=nan: expected seconds > 0"),
        ({"backlog": 0}, "backlog=0: expected at least 1"),
    ],
)
def test_wrong_value(run: RunDirectory, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BalancerConfig(**{"run": run, "node": 1, **wrong})
    assert str(caught.value).startswith(message)


def test_wrong_address(run: RunDirectory) -> None:
    with pytest.raises(BindError, match="expected HOST:PORT"):
        BalancerConfig(run=run, node=1, bind=("nonsense",))
