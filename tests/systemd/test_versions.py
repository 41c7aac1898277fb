"""What only newer versions of systemd do, wherever the host that is booted has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import wait_until
from limpet_cluster.units.render import HUB, RESTART_STEPS_SINCE, SERVICES

if TYPE_CHECKING:
    from systemd_rig import Units

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


def test_pauses_grow_where_systemd_can(units: Units) -> None:
    host = units.host
    version = int(host.run("systemctl", "--version").stdout.split()[1])
    for service in (name.replace("@.", "@1.") for name in SERVICES):
        if version >= RESTART_STEPS_SINCE:
            assert host.show(service, "RestartSteps") == "6", service
            assert host.show(service, "RestartMaxDelayUSec") == "5s", service
        else:
            assert "restart-steps" not in host.show(service, "DropInPaths"), service


def test_a_restart_by_hand_forgets_the_crashes_before(units: Units) -> None:
    host = units.host
    before = host.pid(HUB)
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", HUB)
    units.wait_replaced(HUB, before)
    assert int(host.show(HUB, "NRestarts")) > 0
    host.limpet("restart", "hub")
    assert host.show(HUB, "NRestarts") == "0"
    wait_until(lambda: host.limpet("status", "--check", check=False).returncode == 0, 15)
