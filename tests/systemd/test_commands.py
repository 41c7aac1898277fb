"""`limpet systemd` and what stands on systemctl, with a systemctl that only takes notes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness import require
from limpet_cluster import place
from limpet_cluster.cli import limpet
from limpet_cluster.failures import note_failure
from limpet_cluster.fleet.fleet import FleetError
from limpet_cluster.hub.process import HubConfigError, passed_listeners
from limpet_cluster.units import install, systemctl
from limpet_cluster.units import render as units
from limpet_cluster.units.systemctl import SystemctlError, SystemdFleet

Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return ``command("install", …)``; limpet seems to be in /opt."""
    monkeypatch.setattr(units, "interpreter", lambda: Path("/opt/limpet/bin/python"))
    monkeypatch.setattr(units, "code_places", lambda: [Path("/opt/limpet")])

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(limpet, ["systemd", *map(str, arguments)])

    return run


def tree(root: Path) -> list[str]:
    """Return the files and links below a folder."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() or path.is_symlink()
    )


def test_a_strict_umask_closes_nothing(command: Command, tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        done = command("install", f"--root={tmp_path}", "--workers=1", "--bind=127.0.0.1:9000")
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(mask)
    assert done.exit_code == 0, done.output
    for path in tmp_path.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o777
            assert mode == (0o755 if path.is_dir() else 0o644), (path, oct(mode))


def test_an_image_is_installed_and_cleaned(command: Command, tmp_path: Path) -> None:
    done = command("install", f"--root={tmp_path}", "--workers=3", "--bind=127.0.0.1:9000")
    assert done.exit_code == 0, done.output
    wants = tmp_path / "etc/systemd/system/limpet.target.wants"
    assert sorted(one.name for one in wants.iterdir()) == [
        f"limpet-worker@{slot}.service" for slot in (1, 2, 3)
    ]
    link = wants / "limpet-worker@1.service"
    assert os.readlink(link) == "/etc/systemd/system/limpet-worker@.service"  # noqa: PTH115
    before = tree(tmp_path)
    assert "etc/limpet/config.toml" in before
    again = command("install", f"--root={tmp_path}")
    assert again.exit_code == 0
    assert again.output == ""
    assert tree(tmp_path) == before
    told = command("uninstall", f"--root={tmp_path}")
    assert told.exit_code == 0
    assert tree(tmp_path) == []


def test_a_dry_run_writes_nothing(command: Command, tmp_path: Path) -> None:
    done = command("install", f"--root={tmp_path}", "--dry-run", "--json")
    assert {change["what"] for change in json.loads(done.output)["changes"]} == {"write"}
    assert tree(tmp_path) == []


def test_a_second_install_brings_units_up_to_date_and_keeps_choices(
    command: Command, tmp_path: Path
) -> None:
    command("install", f"--root={tmp_path}", "--allow-wx", "--workers=2")
    hub = tmp_path / "etc/systemd/system/limpet-hub.service"
    hub.write_text("[Service]\n")
    own = tmp_path / "etc/systemd/system/limpet-worker@.service.d/override.conf"
    own.write_text("[Service]\nMemoryMax=1G\n")
    done = command("install", f"--root={tmp_path}", "--json")
    told = json.loads(done.output)
    assert told["changes"] == [{"what": "update", "path": str(hub)}]
    assert told["workers"] == 2
    assert (own.parent / "limpet-wx.conf").exists()
    command("uninstall", f"--root={tmp_path}")
    assert tree(tmp_path) == [str(own.relative_to(tmp_path))]


def test_a_configuration_is_never_written_over(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "etc/limpet/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('app = "other:io"\nlinger = 5\n')
    refused = command("install", f"--root={tmp_path}", "--app=app:io", "--app-dir=/usr/share")
    assert refused.exit_code == 1
    assert str(config) in refused.output
    assert 'app = "app:io"' in refused.output
    agreed = command("install", f"--root={tmp_path}")
    assert agreed.exit_code == 0
    assert config.read_text() == 'app = "other:io"\nlinger = 5\n'
    command("uninstall", f"--root={tmp_path}")
    assert tree(tmp_path) == ["etc/limpet/config.toml"]
    command("uninstall", f"--root={tmp_path}", "--purge")
    assert tree(tmp_path) == []


def test_all_that_is_wrong_is_told_at_once(command: Command, tmp_path: Path) -> None:
    done = command(
        *("install", f"--root={tmp_path}", "--app-dir=/home/me/app", "--writable=/none"),
        "--bind=example.org:80",
    )
    assert done.exit_code == 1
    assert done.output.count("\n- ") == 3
    assert tree(tmp_path) == []


def test_print_one_or_all(command: Command) -> None:
    one = command("print", "limpet.slice")
    assert one.output.startswith("# What all processes")
    assert command("print").output.count("# --- /etc/") == len(units.UNITS) + 1
    assert "expected one of limpet.target" in command("print", "x.service").output
    assert json.loads(command("print", "--json").output)["/etc/systemd/system/limpet.slice"]


def test_verify_finds_what_systemd_only_warns_of(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require("systemd", shutil.which("systemd-analyze"), "no systemd-analyze")
    monkeypatch.setattr(units, "interpreter", lambda: Path("/bin/true"))
    monkeypatch.setattr(systemctl, "installed", lambda: False)
    good = command("verify", "--json")
    assert good.exit_code == 0, good.output
    assert max(json.loads(good.output)["exposure"].values()) <= 1.5
    strict = command("verify", "--threshold=0.5")
    assert strict.exit_code == 1
    assert "expected at most 0.5" in strict.output
    folder = tmp_path / "templates"
    shutil.copytree(units.templates(), folder)
    hub = folder / "limpet-hub.service"
    hub.write_text(hub.read_text().replace("RestartSec=", "RestartSecs="))
    monkeypatch.setattr(units, "templates", lambda: folder)
    bad = command("verify")
    assert bad.exit_code == 1
    assert "RestartSecs" in bad.output


def test_without_systemd_or_root(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemctl, "booted", lambda: False)
    for verb in ("install", "uninstall"):
        done = command(verb)
        assert done.exit_code == 4
        assert "limpet start" in done.output
    monkeypatch.setattr(systemctl, "booted", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for verb in ("install", "uninstall"):
        done = command(verb)
        assert done.exit_code == 1
        assert f"sudo limpet systemd {verb}" in done.output


def test_nothing_is_installed_or_removed_while_the_workers_are_changed(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(systemctl, "booted", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for step in ("write", "remove"):
        monkeypatch.delattr(install, step)
    monkeypatch.setattr(install, "leaving", lambda root, purge: [])

    async def disable(say: object) -> None:
        pass

    monkeypatch.setattr(install, "disable", disable)
    fleet = SystemdFleet(tmp_path)
    monkeypatch.setattr(systemctl, "SystemdFleet", lambda: SystemdFleet(tmp_path))
    with fleet.turn():
        for verb in ("install", "uninstall"):
            done = command(verb)
            assert done.exit_code == 1
            assert "another command changes the workers; wait for it" in done.output


def test_a_cluster_that_runs_keeps_its_place(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemctl, "booted", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delattr(install, "plan")  # whatever happens, nothing is written here
    with tempfile.TemporaryDirectory(prefix="limpet-") as folder:
        monkeypatch.setattr(units, "RUN_DIRECTORY", Path(folder))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/supervisor.sock")
            listener.listen()
            done = command("install")
    assert done.exit_code == 1
    assert f"pid {os.getpid()}) runs a cluster in {folder}" in done.output
    assert "limpet stop" in done.output


# --- systemctl --------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Put a systemctl in front that takes notes, and fails as the file ``fail`` says."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("systemctl", "journalctl"):
        tool = tools / name
        tool.write_text(
            f"#!/bin/sh\ncd {tmp_path}\n"
            f'echo "{name} $*" >>notes\n'
            'case "$*" in *"$(cat fail 2>/dev/null || echo none)"*)'
            ' cat why >&2; exit 1 ;; esac\ncat "answer" 2>/dev/null || true\n'
        )
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def taken() -> list[str]:
        path = tmp_path / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.replace("systemctl --no-ask-password --no-pager ", "") for line in lines]

    return taken


async def test_slots_are_the_instances_that_run(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text(
        "limpet-worker@10.service loaded active running x\n"
        "limpet-worker@2.service  loaded activating auto-restart x\n"
    )
    assert await SystemdFleet(tmp_path).slots() == [2, 10]
    assert "--state=active,activating,reloading" in notes()[0]


async def test_a_worker_that_fails_is_told_in_its_own_words(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    fleet = SystemdFleet(tmp_path)
    await fleet.start(3)
    assert notes() == ["start limpet-worker@3.service"]
    (tmp_path / "fail").write_text("start limpet-worker")
    (tmp_path / "why").write_text("Job for limpet-worker@3.service failed because …\n")
    (tmp_path / "answer").write_text("limpet: from the journal\n")
    with pytest.raises(FleetError, match=r"^from the journal$"):
        await fleet.start(3)

    async def fails_meanwhile() -> None:
        await asyncio.sleep(0)
        note_failure(tmp_path, "worker-3", "SyntaxError: why")

    with pytest.raises(FleetError, match=r"^SyntaxError: why$"):
        await asyncio.gather(fleet.start(3), fails_meanwhile())
    notes()
    await fleet.drain(3)
    assert notes() == ["stop limpet-worker@3.service", "reset-failed limpet-worker@3.service"]
    assert not (tmp_path / "failed-worker-3").exists()


async def test_why_there_was_no_process_is_told_by_systemd(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "fail").write_text("start limpet-worker")
    (tmp_path / "why").write_text(
        "Job for limpet-worker@3.service failed because the control process exited with error "
        'code.\nSee "systemctl status limpet-worker@3.service" for details.\n'
    )
    fleet = SystemdFleet(tmp_path)
    with pytest.raises(FleetError) as caught:
        await fleet.start(3)
    assert str(caught.value) == (
        "limpet-worker@3.service did not come up: the control process exited with error code; "
        "journalctl -u limpet-worker@3.service"
    )
    asked = [line.split()[-1] for line in notes() if line.startswith("journalctl")]
    assert asked == ["_SYSTEMD_INVOCATION_ID=", "INVOCATION_ID="]


async def test_who_may_not_is_told_so(notes: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / "fail").write_text("start")
    (tmp_path / "why").write_text("Failed to start x: Interactive authentication required.\n")
    with pytest.raises(SystemctlError, match="run it with sudo"):
        await SystemdFleet(tmp_path).start(1)
    (tmp_path / "why").write_text("Unit limpet-worker@1.service not found.\n")
    with pytest.raises(SystemctlError, match="not found"):
        await SystemdFleet(tmp_path).start(1)
    assert len(notes()) == 2  # no journal was asked


@pytest.mark.parametrize(
    "told",
    [
        "Failed to connect to bus: No such file or directory",
        "Failed to connect to system scope bus via local transport: No such file or directory",
    ],
)
async def test_who_reaches_no_bus_is_told_so(
    notes: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    (tmp_path / "fail").write_text("list-units")
    (tmp_path / "why").write_text(f"{told}\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemctlError, match="run it with sudo"):
        await SystemdFleet(tmp_path).slots()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SystemctlError, match="No such file"):  # sudo is no remedy for root
        await SystemdFleet(tmp_path).slots()
    assert len(notes()) == 2


async def test_exactly_what_is_kept_is_enabled(
    notes: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = SystemdFleet(tmp_path)

    async def home() -> list[int]:
        return [1, 2, 5]

    monkeypatch.setattr(fleet, "home", home)
    await fleet.keep([1, 2, 3])
    assert notes() == [
        "disable --quiet limpet-worker@5.service",
        "enable --quiet limpet-worker@3.service",
    ]
    await fleet.keep([1, 2, 5])
    assert notes() == []


async def test_stop_names_every_unit_and_waits(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text("limpet-worker@1.service loaded active running x\n")
    said: list[str] = []

    def say(text: str, /, **figures: object) -> None:
        said.append(text)

    await SystemdFleet(tmp_path).stop(say, quick=True)
    parts = (
        "limpet.target limpet-balancer.socket limpet-api.socket limpet-balancer.service "
        "limpet-hub.service limpet-worker@1.service"
    )
    listed, *taken = notes()
    assert "--state=active,activating,reloading,deactivating" in listed
    assert taken[:3] == [
        f"stop --no-block --job-mode=replace-irreversibly {parts}",
        "kill --kill-whom=main --signal=QUIT limpet-worker@1.service",
        f"stop {parts}",
    ]
    # Here, some are there again, whoever has started them.
    assert taken[4:] == ["stop limpet-balancer.socket limpet-api.socket limpet-worker@1.service"]
    assert said == ["stopping 1 workers, the balancer and the hub", "everything has ended"]
    with pytest.raises(FleetError, match="expected hub or balancer"):
        await SystemdFleet(tmp_path).restart(["worker"], say)
    await SystemdFleet(tmp_path).restart(["hub", "balancer"], say)
    assert notes() == ["restart limpet-hub.service", "restart limpet-balancer.service"]


async def test_stop_waits_for_the_command_that_changes_the_workers(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    fleet, said = SystemdFleet(tmp_path), []

    def say(text: str, /, **figures: object) -> None:
        said.append(text)

    with fleet.turn():
        with pytest.raises(FleetError, match="another command changes the workers"), fleet.turn():
            pass
        stopping = asyncio.create_task(fleet.stop(say))
        while "waiting for the command that changes the workers" not in said:
            await asyncio.sleep(0.01)
        assert len(notes()) == 3, "all has ended, but what that command may start"
        await asyncio.sleep(0.1)
        assert not stopping.done()
    await stopping
    (looked,) = notes()
    assert looked.endswith(
        "--state=active,activating,reloading "
        "limpet-hub.service limpet-balancer.service limpet-worker@*.service"
    )
    assert said[-1] == "everything has ended"
    with SystemdFleet(tmp_path / "none").turn():
        pass  # before the first start there is nothing to change


async def test_nothing_starts_once_the_target_was_stopped(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    fleet = SystemdFleet(tmp_path)
    (tmp_path / "why").write_text("")
    (tmp_path / "fail").write_text("is-active")
    await fleet.watch()  # somebody has started the workers alone
    await fleet.start(1)
    (tmp_path / "fail").unlink()
    await fleet.watch()
    await fleet.start(1)
    assert not await fleet.stopped()
    assert notes()[-3:] == [
        "is-active --quiet limpet.target",
        "start limpet-worker@1.service",
        "is-active --quiet limpet.target",
    ]
    (tmp_path / "fail").write_text("is-active")
    assert await fleet.stopped()
    with pytest.raises(FleetError, match="the cluster is being stopped"):
        await fleet.start(1)
    with pytest.raises(FleetError, match="the cluster is being stopped"):
        await fleet.restart(["hub"], lambda text, /, **figures: None)
    assert set(notes()) == {"is-active --quiet limpet.target"}
    await fleet.ask_for([1, 2])  # one that still drains starts when it has ended
    assert notes() == ["start --no-block limpet-worker@1.service limpet-worker@2.service"]


async def test_who_was_drained_says_so_in_the_unit(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text(
        "StatusText=draining, no sessions left\nId=limpet-worker@1.service\n\n"
        "StatusText=takes sessions again\nId=limpet-worker@2.service\n\n"
        "StatusText=\nId=limpet-worker@3.service\n"
    )
    assert await SystemdFleet(tmp_path).drained() == [1]
    assert notes() == ["show --property=Id,StatusText limpet-worker@*.service"]


async def test_a_systemctl_that_hangs_is_left(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    assert notes() == []
    (tmp_path / "tools" / "systemctl").write_text("#!/bin/sh\nexec sleep 20\n")
    with pytest.raises(SystemctlError, match=r"no answer in 0\.2 s"):
        await systemctl.systemctl("status", timeout=0.2)


def test_versions(notes: Callable[[], list[str]], tmp_path: Path) -> None:
    for told, number in (("systemd 252 (252.38-1~deb12u1)", 252), ("systemd 257~rc2 (x)", 257)):
        (tmp_path / "answer").write_text(told)
        assert systemctl.version() == number
    (tmp_path / "fail").write_text("version")
    (tmp_path / "why").write_text("")
    assert systemctl.version() == 0
    assert len(notes()) == 3


# --- the API's sockets --------------------------------------------------------------


def test_the_api_is_where_it_can_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tmp_path / "session"
    usual = session / "limpet" / "default"
    usual.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    shared = tmp_path / "limpet-api.sock"
    own = usual / "api.sock"
    assert place.api_socket(usual, "default", shared) == own  # neither: the one that is meant
    shared.touch()
    assert place.api_socket(usual, "default", shared) == shared
    assert place.api_socket(usual, "other", shared) == own
    assert place.api_socket(tmp_path, "default", shared) == tmp_path / "api.sock"  # --run-dir
    own.touch()
    assert place.api_socket(usual, "default", shared) == own


def test_whoever_names_another_cluster_is_told_that_of_the_units(tmp_path: Path) -> None:
    shared = tmp_path / "shared.sock"
    assert place.which_one(tmp_path / "prod", shared).endswith("(--name, --run-dir)?")
    shared.touch()
    assert place.which_one(tmp_path / "prod", shared).endswith("units is named default.")
    assert place.which_one(tmp_path / "default", shared).endswith("(--name, --run-dir)?")


def test_only_a_unix_socket_is_taken_for_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_INET) as tcp:
        unix.bind("")
        passed: list[socket.socket] = []
        monkeypatch.setattr("limpet_cluster.hub.process.inherited", lambda environ: passed)
        assert passed_listeners({}) == []
        passed[:] = [unix]
        assert passed_listeners({"LISTEN_FDNAMES": "api"}) == [unix]
        assert passed_listeners({}) == [unix]
        with pytest.raises(HubConfigError, match=r"public.*FileDescriptorName=api"):
            passed_listeners({"LISTEN_FDNAMES": "public"})
        passed[:] = [tcp]
        with pytest.raises(HubConfigError, match="expected a unix socket"):
            passed_listeners({"LISTEN_FDNAMES": "api"})
