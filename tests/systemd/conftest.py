"""Fixtures: a host that systemd runs, and limpet's units on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness import require
from systemd_rig import Host, Units, missing


@pytest.fixture(scope="session")
def systemd_host() -> Iterator[Host]:
    """A booted host with limpet in /opt/limpet."""
    reason = missing()
    require("systemd", not reason, reason)
    host = Host()
    try:
        try:
            host.boot()
        except AssertionError as error:
            require("systemd", present=False, reason=str(error))
        host.make_venv()
        yield host
    finally:
        host.power_off()


@pytest.fixture(scope="session")
def _units(systemd_host: Host) -> Units:
    return Units(systemd_host)


@pytest.fixture
def units(_units: Units) -> Iterator[Units]:
    """limpet on two workers; what a test changes is put right before the next."""
    _units.settle()
    yield _units
    _units.host.run("systemctl", "reset-failed", check=False)
