"""The units under a booted systemd: they start, survive, grow, shrink, reload, and leave."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from faults.crowd import UNNOTICED, Failure, attempt, noticed
from harness import wait_until
from herd import Herd, Member, Source, run
from limpet_cluster.api_client import ApiClient
from raw_clients import Client, eventually
from systemd_rig import APP, Units, free_port, names

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


BUDGET = 500.0
"""Reconnects per second that a drain may cause."""


async def fill(herd: Herd, count: int) -> list[Member]:
    """Let members come one after the other: whoever is slow to take one gets no second."""
    came = []
    for _ in range(count):
        came += herd.add(1)
        await herd.complete(15)
    return came


async def aside(function: Callable[..., Any], *arguments: object, **more: Any) -> Any:
    """Run something that waits while the clients go on."""
    return await asyncio.to_thread(function, *arguments, **more)


def test_units_start_and_are_well_confined(units: Units) -> None:
    host = units.host
    assert host.active("limpet*.service") == [
        "limpet-balancer.service",
        "limpet-hub.service",
        *names(1, 2),
    ]
    assert host.active("limpet.target") == ["limpet.target"]
    assert host.enabled() == [1, 2]
    report = json.loads(host.limpet("systemd", "verify", "--json").stdout)
    assert report["problems"] == []
    assert sorted(report["exposure"]) == [
        "limpet-balancer.service",
        "limpet-hub.service",
        "limpet-worker@.service",
    ]
    assert max(report["exposure"].values()) <= 1.5
    status = host.run("systemctl", "show", "-p", "NRestarts", *names(1, 2)).stdout.split()
    assert status == ["NRestarts=0", "NRestarts=0"]
    told = host.run("journalctl", "-o", "cat", "-t", "systemd", check=False).stdout
    assert "ignoring" not in told.lower(), told


def test_members_of_the_group_reach_the_api(units: Units) -> None:
    host = units.host
    host.shell(
        "useradd --no-create-home --groups limpet insider; useradd --no-create-home stranger"
    )

    def ask(user: str, *command: str) -> Any:
        return host.run(
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"),
            *("limpet", *command),
            check=False,
        )

    asked = ask("insider", "status", "--json")
    assert asked.returncode == 0, asked.stderr
    workers = json.loads(asked.stdout)["workers"]
    assert sorted(one["slot"] for one in workers if one["state"] == "ready") == [1, 2]
    assert ask("insider", "drain", "w1").returncode == 0
    assert ask("insider", "undrain", "w1").returncode == 0
    for command in (("scale", "3"), ("reload",), ("restart", "hub")):
        left = ask("insider", *command)
        assert left.returncode == 1
        assert "sudo" in left.stderr
    refused = ask("stranger", "status")
    assert refused.returncode == 4, refused
    assert "usermod -aG limpet" in refused.stderr
    (found,) = (
        one
        for one in json.loads(ask("stranger", "doctor", "--json").stdout)["findings"]
        if one["check"] == "cluster"
    )
    assert found["level"] == "warn"
    assert "not open to you" in found["text"]
    assert "usermod -aG limpet" in found["remedy"]
    assert host.limpet("status", "--json").returncode == 0


def test_the_watchdog_replaces_a_stuck_worker(units: Units) -> None:
    host = units.host
    # Longer than a machine pauses, and than what is meant to go unnoticed.
    host.put(
        "/etc/systemd/system/limpet-worker@.service.d/quick.conf", "[Service]\nWatchdogSec=8\n"
    )
    host.shell("systemctl daemon-reload; systemctl restart limpet-worker@1 limpet-worker@2")
    units.wait_open(1, 2)

    async def story() -> None:
        async with Herd(units.address, pause=0.2, rooms=("all",)) as herd:
            herd.add(20)
            await herd.complete(15)
            victim = herd.members[0].pid
            unit = next(one for one in names(1, 2) if host.pid(one) == victim)
            others = [member for member in herd.members if member.pid != victim]
            assert others
            client = herd.members[0].client
            assert client is not None
            began = time.monotonic()
            client.emit("block")
            await aside(units.wait_replaced, unit, victim, 25)
            assert time.monotonic() - began < 25, "it blocks for 30 s"
            await herd.complete(10)
            assert all(member.losses == [] for member in others)
            assert max(member.slowest for member in others) < UNNOTICED
            assert herd.failures == []

            def told() -> bool:
                text = host.journal(unit)
                return "Aborted" in text and "in block" in text

            # The journal may still be reading what the process wrote before its end.
            await aside(wait_until, told, 15, "the journal does not tell where it stood")

    try:
        run(story())
    finally:
        host.path("/etc/systemd/system/limpet-worker@.service.d/quick.conf").unlink()
        host.shell("systemctl daemon-reload; systemctl restart limpet-worker@1 limpet-worker@2")


class Attempts:
    """Clients that come and go without a pause, and those that could not."""

    def __init__(self, units: Units, at_a_time: int = 8) -> None:
        self.units = units
        self.made = 0
        self.slowest = 0.0
        self.failures: list[Failure] = []
        self.problems: list[str] = []
        self._ending = False
        self._tasks = [asyncio.create_task(self._run(n % 4 == 0)) for n in range(at_a_time)]

    async def _run(self, polling: bool) -> None:
        while not self._ending:
            began = time.monotonic()
            transport = "polling" if polling else "websocket"
            client = Client(self.units.address, transport, problems=self.problems)
            client.on_event = lambda event, arguments: None
            if await attempt(client, self.failures):
                self.made += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
            await client.close()
            await asyncio.sleep(0.005)

    async def go_on(self) -> None:
        """Wait until some more have come."""
        made = self.made
        await eventually(lambda: self.made > made + 50, 10)

    async def end(self) -> None:
        """Come no more."""
        self._ending = True
        await asyncio.gather(*self._tasks)
        assert self.problems == []


def test_no_attempt_is_lost_while_the_balancer_is_replaced(units: Units) -> None:
    host = units.host

    async def story() -> None:
        async with Herd(units.address, pause=0.2, rooms=("all",)) as herd:
            herd.add(20, polling=0)
            await herd.complete(15)
            attempts = Attempts(units)
            for _ in range(2):
                pid = await aside(host.pid, "limpet-balancer.service")
                await aside(host.limpet, "restart", "balancer")
                assert await aside(host.pid, "limpet-balancer.service") != pid
                await attempts.go_on()
            assert attempts.failures == []
            for _ in range(4):
                before = len(attempts.failures)
                pid = await aside(host.pid, "limpet-balancer.service")
                gone = f"kill -KILL {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.01; done"
                await aside(host.shell, gone)
                died = time.monotonic()
                await aside(units.wait_replaced, "limpet-balancer.service", pid)
                await attempts.go_on()
                # What it had accepted and not handed over at the instant of its death is reset:
                # seldom one, and more when clients stood still before they had sent a request.
                # Who came after it lost nothing.
                lost = attempts.failures[before:]
                assert all(one.began < died for one in lost), (died, lost)
            await attempts.end()
            assert len(attempts.failures) <= 8, "as many as are under way at once, of four kills"
            assert all(one.ended for one in attempts.failures), "nobody is refused"
            assert attempts.made > 100
            assert attempts.slowest < 9, "somebody's patience of ten seconds was nearly over"
            assert all(member.losses == [] for member in herd.members)
            assert not herd.failures
            assert not herd.problems

    run(story())


def test_the_hub_is_replaced_behind_its_open_socket(units: Units) -> None:
    host = units.host
    api = ApiClient(host.path("/run/limpet-api.sock"), 20)  # as long as a hub may take to start
    pid = host.pid("limpet-hub.service")
    host.run("kill", "-KILL", pid)
    assert len(api.get("workers")["data"]) <= 2  # it waits for the next hub, and is not refused
    units.wait_replaced("limpet-hub.service", pid)
    wait_until(lambda: sum(one["state"] == "ready" for one in api.get("workers")["data"]) == 2, 10)
    done = host.limpet("restart", "hub")
    assert "hub is ready" in done.stdout + done.stderr


def test_install_takes_up_a_socket_that_nobody_holds(units: Units) -> None:
    host = units.host
    host.run("systemctl", "stop", "limpet-api.socket")
    assert not host.path("/run/limpet-api.sock").exists()
    assert host.pid("limpet-hub.service")
    host.limpet("systemd", "install")
    assert host.active("limpet-api.socket") == ["limpet-api.socket"]
    api = ApiClient(host.path("/run/limpet-api.sock"))
    wait_until(lambda: sum(one["state"] == "ready" for one in api.get("workers")["data"]) == 2, 10)


def test_scale_up_and_down(units: Units) -> None:
    host = units.host

    async def story() -> None:
        async with Herd(units.address, pause=0.2, rooms=("all",)) as herd:
            await fill(herd, 20)
            told = await aside(host.limpet, "scale", "4", "--json")
            assert json.loads(told.stdout)["slots"] == [1, 2, 3, 4]
            assert await aside(host.active) == names(1, 2, 3, 4)
            assert await aside(host.enabled) == [1, 2, 3, 4]
            assert all(member.losses == [] for member in herd.members)
            await aside(units.wait_open, 1, 2, 3, 4)
            more = await fill(herd, 10)
            new = {await aside(host.pid, one) for one in names(3, 4)}
            assert {member.pid for member in more} == new  # they had the least
            await aside(host.limpet, "scale", "--", "-2")
            assert await aside(host.active) == names(1, 2)
            assert await aside(host.enabled) == [1, 2]
            await noticed(more, 10)
            await herd.complete(10)
            assert not herd.failures
            assert not herd.problems
            assert all(len(member.losses) == 1 for member in more)
            for member in herd.members:
                assert not member.late or max(member.late) < UNNOTICED

    run(story())


async def reload_under_load(units: Units, clients: int) -> None:
    """Reload the workers under clients that hear a number each 10 ms."""
    host = units.host
    host.put("/srv/app/app.py", APP.replace("VERSION = 1", "VERSION = 2"))
    kept = {one: host.pid(one) for one in ("limpet-hub.service", "limpet-balancer.service")}
    old = {host.pid(one) for one in names(1, 2)}
    async with Herd(units.address, pause=2.0, rooms=("all",), repeating=(Source.NAME,)) as herd:
        herd.add(clients, polling=clients // 5)
        source = Source(herd, 0.01)
        await herd.complete(30)
        attempts = Attempts(units, 2)
        herd.mark()
        done = await aside(host.limpet, "reload", "--json", timeout=100)
        answer = json.loads(done.stdout)
        assert answer["slots"] == [1, 2]
        assert [step["slot"] for step in answer["steps"] if step["step"] == "ready"] == [3, 1, 2]
        await attempts.end()
        await herd.complete(10)
        said = source.said
        await eventually(
            lambda: all(member.next.get(Source.NAME, 0) > said for member in herd.members), 10
        )
        await source.end()
        assert herd.failures == attempts.failures == []
        assert attempts.made > 20
        for member in herd.members:
            assert member.losses
            assert member.holes == [], f"{member.name} missed {member.holes[:3]}"
            assert not member.late or max(member.late) < UNNOTICED
            assert member.client is not None
            assert await member.client.call("version") == 2
        assert not {member.pid for member in herd.members} & old
        for pid in old:
            at = [loss.at for one in herd.members for loss in one.losses if loss.worker == pid]
            assert at
            assert max(at) - min(at) < len(at) / BUDGET + UNNOTICED
        assert herd.problems == []
    assert {one: host.pid(one) for one in kept} == kept
    assert host.active() == names(1, 2)
    assert host.enabled() == [1, 2]


def test_rolling_reload_under_five_hundred_clients(units: Units) -> None:
    run(reload_under_load(units, 500))


def test_a_reload_of_broken_code_changes_nothing(units: Units) -> None:
    host = units.host
    before = [host.pid(one) for one in names(1, 2)]
    host.put("/srv/app/app.py", APP + "\nthis is no Python\n")
    done = host.limpet("reload", check=False)
    assert done.returncode == 1, done
    assert "SyntaxError" in done.stderr
    assert "this is no Python" in done.stderr
    assert "go on with the old" in done.stderr
    assert [host.pid(one) for one in names(1, 2)] == before
    assert host.active() == names(1, 2)
    assert host.enabled() == [1, 2]
    time.sleep(0.5)
    assert host.show("limpet-worker@3.service", "ActiveState") == "inactive"  # not tried again


def test_a_reload_that_stops_half_way_leaves_as_many_as_there_are_to_be(units: Units) -> None:
    host = units.host
    fails = "\nimport sys\n\nif '1' in sys.argv:\n    raise RuntimeError('no database')\n"
    host.put("/srv/app/app.py", APP + fails)
    done = host.limpet("reload", check=False)
    assert done.returncode == 75, done
    assert "no database" in done.stderr
    assert "New code: w3. Old code: w2. Not running: w1. w3 in the spare slot" in done.stderr
    assert host.enabled() == [1, 2]
    assert host.active() == names(1, 2, 3)  # the first is tried again
    told = host.limpet("scale", "+1", "--dry-run", "--json")
    assert json.loads(told.stdout)["slots"] == [1, 2, 3]
    host.put("/srv/app/app.py", APP)
    assert json.loads(host.limpet("reload", "--json").stdout)["slots"] == [1, 2]
    assert host.active() == names(1, 2)


def test_who_is_drained_is_not_what_stays(units: Units) -> None:
    host = units.host
    host.limpet("drain", "w1")
    host.limpet("scale", "1")
    assert host.active() == names(1)
    found = json.loads(host.limpet("status", "--json", "--check").stdout)["workers"]
    assert [one["state"] for one in found if one["state"] != "gone"] == ["ready"]


def test_a_restart_that_is_cut_short_leaves_no_worker_stopped(units: Units) -> None:
    host = units.host
    (unit,) = names(1)
    pid = host.pid(unit)
    host.put("/srv/app/slow-end", "")
    try:
        # Time enough for the spare to come up before, and less than systemd waits for the end.
        done = host.limpet("restart", "w1", "--timeout=10", check=False)
        assert done.returncode == 5, done
        assert "interrupted. " in done.stderr
        assert host.pid(unit) == pid
    finally:
        host.path("/srv/app/slow-end").unlink()
    units.wait_replaced(unit, pid)


def test_a_broken_configuration_is_told_by_the_command(units: Units) -> None:
    host = units.host
    config = host.path("/etc/limpet/config.toml")
    good = config.read_text()
    config.write_text(good + "stall_afer = 20\n")
    try:
        done = host.limpet("reload", check=False)
        assert done.returncode != 0
        assert "stall_afer" in done.stderr
        assert "config.toml:" in done.stderr
        assert host.active() == names(1, 2)
    finally:
        config.write_text(good)


def test_failures_make_the_pauses_grow(units: Units) -> None:
    host = units.host
    unit = "limpet-worker@9.service"
    host.put("/srv/app/app.py", "raise RuntimeError('out of order')\n")
    failed = host.path("/run/limpet/default/failed-worker-9")

    at: dict[int, float] = {}

    def pair() -> int:
        """Return the number of a failure, not the first, that we know with the next; else 0."""
        if failed.exists():
            count, instant = failed.read_text().split(maxsplit=2)[:2]
            at[int(count)] = float(instant)
        return next((number for number in at if number > 1 and number + 1 in at), 0)

    try:
        host.run("systemctl", "start", unit, check=False)
        wait_until(pair, 30)
        number = pair()
        # RestartSec=, and the pause of the second failure, which doubles from one to the next
        assert at[number + 1] - at[number] > 0.2 + 0.5 * 2 ** (number - 2)
        assert "out of order" in failed.read_text()
        # It is said after the note of the failure, and gone while the unit starts once more.
        wait_until(lambda: "out of order" in host.show(unit, "StatusText"), 15)
    finally:
        host.run("systemctl", "stop", unit)


def test_a_start_may_take_longer_than_the_watchdog_waits(units: Units) -> None:
    host = units.host
    drop_in = "/etc/systemd/system/limpet-worker@.service.d/quick.conf"
    host.put(drop_in, "[Service]\nWatchdogSec=5\n")
    host.put("/srv/app/app.py", f"{APP}\ntime.sleep(8)\n")
    host.run("systemctl", "daemon-reload")
    try:
        host.limpet("scale", "3")
        assert host.show(names(3)[0], "NRestarts") == "0"
        assert host.show(names(3)[0], "WatchdogUSec") == "5s"
        host.limpet("scale", "2")
    finally:
        host.path(drop_in).unlink()
        host.run("systemctl", "daemon-reload")


def test_a_drain_may_take_longer_than_systemd_waits(units: Units) -> None:
    host = units.host
    config = host.path("/etc/limpet/config.toml")
    good = config.read_text()
    drop_in = "/etc/systemd/system/limpet-worker@.service.d/impatient.conf"
    # systemd waits for longer than a machine pauses, and the drain takes twice that time.
    config.write_text(good + "drain_budget = 4\n")
    host.put(drop_in, "[Service]\nTimeoutStopSec=3\n")
    host.shell("systemctl daemon-reload; systemctl restart limpet-worker@1 limpet-worker@2")
    units.wait_open(1, 2)

    async def story() -> None:
        async with Herd(units.address, pause=0.2, rooms=("all",)) as herd:
            await fill(herd, 50)
            leaving = herd.of(host.pid(names(1)[0]))
            assert len(leaving) >= 20
            began = time.monotonic()
            await aside(host.run, "systemctl", "stop", *names(1))
            assert 3.5 < time.monotonic() - began < 20
            assert host.show(names(1)[0], "Result") == "success"
            await noticed(leaving, 10)
            at = [member.losses[0].at for member in leaving]
            assert max(at) - min(at) > 1  # spread, and not all at once at the end
            await herd.complete(10)
            assert not herd.failures
            assert not herd.problems

    try:
        run(story())
    finally:
        config.write_text(good)
        host.path(drop_in).unlink()
        host.shell("systemctl daemon-reload; systemctl restart limpet-worker@1 limpet-worker@2")


def test_after_a_reboot_the_same_instances_run(units: Units) -> None:
    host = units.host
    host.limpet("scale", "3")
    host.reboot()
    wait_until(lambda: host.active() == names(1, 2, 3), 20, "the workers are not all back")
    assert host.enabled() == [1, 2, 3]

    async def story() -> None:
        async with Herd(units.address, pause=0.2, rooms=("all",)) as herd:
            herd.add(6)
            await herd.complete(15)
            assert not herd.failures
            assert not herd.problems

    run(story())
    host.limpet("scale", "2")
    assert host.enabled() == [1, 2]


def test_stop_waits_for_the_last_process(units: Units) -> None:
    host = units.host

    async def story() -> None:
        async with Herd(units.address, pause=0.2, rooms=("all",)) as herd:
            herd.add(10)
            await herd.complete(15)
            began = time.monotonic()
            await aside(host.limpet, "stop")
            assert time.monotonic() - began < 14, "systemd had to kill somebody"
            assert await aside(host.active, "limpet*.service") == []
            left = await aside(host.run, "pgrep", "-u", "limpet", check=False)
            assert left.stdout == ""

    run(story())
    assert host.run("pgrep", "-u", "limpet", check=False).stdout == ""
    assert host.enabled() == [1, 2]
    host.run("systemctl", "start", "limpet.target")
    wait_until(lambda: host.active() == names(1, 2), 15, "limpet.target started no workers")


def test_stop_interrupts_a_reload(units: Units) -> None:
    host = units.host
    # The new code does not come up before the cluster is being stopped, however long that takes.
    waits = "\nwhile os.path.exists('/srv/app/slow-start'):\n    time.sleep(0.1)\n"
    host.put("/srv/app/slow-start", "")
    host.put("/srv/app/app.py", APP + waits)
    with ThreadPoolExecutor() as aside:
        try:
            reload = aside.submit(host.limpet, "reload", check=False)
            wait_until(lambda: names(3)[0] in host.active(), 20)
            stop = aside.submit(host.limpet, "stop")
            wait_until(lambda: host.show("limpet.target", "ActiveState") == "inactive", 20)
        finally:
            host.path("/srv/app/slow-start").unlink()
        stop.result()
        assert host.active("limpet*.service") == []
        done = reload.result()
    assert done.returncode == 1, done
    assert "reload was interrupted: the cluster is being stopped" in done.stderr
    assert host.active("limpet*.service") == []
    assert host.enabled() == [1, 2]


def test_site_choices_are_drop_ins_that_a_second_install_keeps(units: Units) -> None:
    host = units.host
    port = free_port()
    token = "a-token-of-more-than-16-characters"
    host.put("/etc/limpet/api-token", token)
    host.path("/etc/limpet/api-token").chmod(0o600)
    host.run("mkdir", "-p", "/srv/data")
    units.install(
        *(f"--api=127.0.0.1:{port}", "--api-token-file=/etc/limpet/api-token"),
        *("--writable=/srv/data", "--allow-wx"),
    )
    host.limpet("systemd", "install")
    base = host.path("/etc/systemd/system/limpet-hub.service").read_text()
    assert "redential" not in base
    host.limpet("restart", "hub")

    def asked(**headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/v1/cluster", headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    assert asked() == 401
    assert asked(Authorization=f"Bearer {token}") == 200
    unit = names(1)[0]
    assert host.show(unit, "MemoryDenyWriteExecute") == "no"
    assert host.show(unit, "ReadWritePaths") == "/srv/data"
    assert host.show(unit, "WorkingDirectory") == "/srv/app"
    for name in ("limpet-hub.service.d/limpet-api-token", "limpet-worker@.service.d/limpet-wx"):
        host.path(f"/etc/systemd/system/{name}.conf").unlink()
    host.path("/etc/limpet/api-token").unlink()
    host.shell("systemctl daemon-reload; systemctl restart limpet-hub")
    with pytest.raises(ConnectionRefusedError):
        asked()


def test_an_app_in_a_home_folder_is_refused(units: Units) -> None:
    host = units.host
    host.run("mkdir", "-p", "/home/somebody/app")
    done = host.limpet(
        "systemd", "install", "--app=app:io", "--app-dir=/home/somebody/app", check=False
    )
    assert done.returncode == 1
    assert "/home" in done.stderr
    assert "/srv/app" in done.stderr
    host.make_venv(Path("/root/venv"))
    done = host.run("/root/venv/bin/limpet", "systemd", "install", check=False)
    assert done.returncode == 1
    assert "/usr/bin/python3 -m venv /opt/limpet" in done.stderr


def test_uninstall_leaves_nothing(units: Units) -> None:
    host = units.host
    look = "find /etc /run /var/lib /usr -name '*limpet*' -not -name limpet-rig | sort"
    assert "/etc/limpet" in host.shell(look).stdout
    kept = host.limpet("systemd", "uninstall")
    units.installed = False
    assert re.findall(r"kept: (.*) \(", kept.stdout) == ["/etc/limpet/config.toml, /var/lib/limpet"]
    assert set(host.shell(look).stdout.split()) == {"/etc/limpet", "/var/lib/limpet"}
    host.limpet("systemd", "uninstall", "--purge")
    assert host.shell(look).stdout == ""
    assert host.run("getent", "passwd", "limpet", check=False).stdout == ""
    assert host.run("getent", "group", "limpet", check=False).stdout == ""
    assert host.run("systemctl", "list-units", "--all", "--no-legend", "limpet*").stdout == ""
    assert host.run("pgrep", "-f", "limpet (hub|balancer|worker)", check=False).stdout == ""
