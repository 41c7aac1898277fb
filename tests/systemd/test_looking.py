"""What the commands that look at a cluster show of one that systemd runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness import wait_until

if TYPE_CHECKING:
    from systemd_rig import Units

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


def test_status_shows_the_units(units: Units) -> None:
    host = units.host
    # What an earlier test did to the hub may not be over.
    wait_until(lambda: host.limpet("status", "--check", check=False).returncode == 0)
    found = json.loads(host.limpet("status", "--json", "--check").stdout)
    assert found["supervisor"] is None
    shown = {one["name"]: one for one in found["units"]}
    assert shown.keys() == {
        "limpet-hub", "limpet-balancer", "limpet-worker@1", "limpet-worker@2",
    }  # fmt: skip
    assert {one["state"] for one in shown.values()} == {"ready"}
    assert all(one["pid"] and one["seconds"] >= 0 for one in shown.values())
    assert found["balancer"]["health"] == "ok"
    text = host.limpet("status").stdout
    assert "under systemd on http://" in text
    assert "limpet-worker@2" in text


def test_a_unit_that_is_down_makes_it_partial(units: Units) -> None:
    host = units.host
    host.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "limpet-hub")
    try:
        result = host.limpet("status", "--check", "--timeout=0.5", check=False)
    finally:
        host.run("systemctl", "kill", "--signal=CONT", "--kill-whom=main", "limpet-hub")
    assert result.returncode == 75
    assert "the hub" in result.stdout


def test_a_worker_that_was_stopped_by_hand_is_missing(units: Units) -> None:
    host = units.host
    host.run("systemctl", "stop", "limpet-worker@2")
    try:
        result = host.limpet("status", "--check", check=False)
    finally:
        host.run("systemctl", "start", "limpet-worker@2")
    assert result.returncode == 75
    assert "limpet-worker@2 is stopped" in result.stdout


def test_the_doctor_finds_the_units(units: Units) -> None:
    host = units.host
    result = host.limpet("doctor", "--json", check=False)
    found = {one["check"]: one for one in json.loads(result.stdout)["findings"]}
    assert found["systemd units"]["level"] == "ok", found["systemd units"]
    assert found["cluster"]["text"] == "2 workers answer"
    assert found["run directory"]["level"] == "ok"


def test_the_bench_finds_where_clients_connect(units: Units) -> None:
    result = units.host.limpet("bench", "connect", "-c", "2", "-s", "3", "--json")
    found = json.loads(result.stdout)
    assert found["failures"] == {}
    assert found["answers"] == 0
    assert found["clients"] > 2
