"""`limpet status`, `presence` and `version`: what people and programs get."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness import RunningCluster, wait_until
from limpet.sync import Client
from limpet_cluster.cli import limpet
from limpet_cluster.cli.overview import Overview, listening, read_units
from limpet_cluster.cli.presence import differences


def ask(cluster: RunningCluster, *arguments: str) -> Result:
    return CliRunner().invoke(limpet, [*arguments, f"--run-dir={cluster.run_directory}"])


# --- what is known -------------------------------------------------------------

UNITS = """\
Id=limpet-hub.service
MainPID=12
ActiveState=active
NRestarts=2
StatusText=
ActiveEnterTimestampMonotonic=5000000
Result=success

Id=limpet-worker@1.service
MainPID=0
ActiveState=activating
NRestarts=7
StatusText=
ActiveEnterTimestampMonotonic=0
Result=exit-code

Id=limpet-worker@2.service
MainPID=15
ActiveState=deactivating
NRestarts=0
StatusText=draining, 12 sessions left
ActiveEnterTimestampMonotonic=1000000
Result=success

Id=limpet-worker@3.service
MainPID=0
ActiveState=inactive
NRestarts=0
Result=success
UnitFileState=enabled

Id=limpet-worker@4.service
MainPID=0
ActiveState=inactive
NRestarts=0
Result=success
UnitFileState=disabled
"""


def test_units_of_systemd_are_processes() -> None:
    overview = Overview(units=read_units(UNITS, 10.0))
    hub, starting, draining, stopped = overview.processes()
    assert (hub.name, hub.pid, hub.state, hub.seconds) == ("limpet-hub", 12, "ready", 5.0)
    assert (hub.restarts, hub.serves) == (2, True)
    assert (starting.name, starting.state, starting.why) == (
        "limpet-worker@1",
        "starting",
        "exit-code",
    )
    assert not starting.serves
    assert draining.why == "draining, 12 sessions left"
    assert draining.serves, "it leaves as it was asked to"
    assert stopped.name == "limpet-worker@3", "it comes up with the host, and is not there"
    assert "limpet-worker@3 is stopped" in overview.missing()


def test_sockets_of_systemd_are_urls() -> None:
    shown = (
        "Listen=0.0.0.0:8080 (Stream)\nListen=[::]:8080 (Stream)\nListen=/run/app.sock (Stream)\n"
    )
    assert listening(shown) == [
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "unix:/run/app.sock",
    ]
    assert listening("") == []


def child(**changed: Any) -> dict[str, Any]:
    return {
        "name": "worker-0", "pid": 5, "state": "ready", "status": "", "seconds": 3.0,
        "restarts": 0, "error": "", "last_end": "", **changed,
    }  # fmt: skip


def test_why_a_process_was_started_again() -> None:
    def why(**changed: Any) -> str:
        supervisor = {"processes": [child(**changed)]}
        return Overview(supervisor=supervisor).processes()[0].why

    assert why(last_end="was killed by SIGKILL") == "before: was killed by SIGKILL"
    assert why(status="draining, 3 sessions left") == "draining, 3 sessions left"
    assert why(error="Traceback\n  …\nNameError: x\n", status="starting") == "NameError: x"


def test_what_keeps_a_cluster_from_being_whole() -> None:
    whole: dict[str, Any] = {"complete": True}
    ready, draining = {"name": "w0", "state": "ready"}, {"name": "w1", "state": "draining"}
    assert Overview(cluster=whole, workers=[ready, draining]).missing() == []
    assert Overview(cluster=whole, workers=[draining]).missing() == ["no worker takes new sessions"]
    assert Overview(cluster={"complete": False}, workers=[ready]).missing()
    assert Overview(workers=[ready]).missing() == ["the hub does not answer"]
    gone = {"name": "w2", "state": "gone"}
    assert Overview(cluster=whole, workers=[ready, gone]).missing() == ["worker w2 is gone"]
    supervisor: dict[str, Any] = {"processes": [child(state="waiting")]}
    found = Overview(supervisor=supervisor, cluster=whole, workers=[ready])
    assert found.missing() == ["worker-0 is waiting"]
    supervisor["processes"] = [child(state="ready")]
    found.workers.append(gone)
    assert found.missing() == [], "a spare that ended is not missed"
    found.workers[-1] = {"name": "w0", "state": "gone"}
    assert found.missing() == ["worker w0 is gone"]
    found.workers.pop()
    supervisor["processes"] = [child(state="waiting")]
    supervisor["operation"] = {"verb": "reload"}
    found.workers.append(gone)
    assert found.missing() == [], "they come and go as they should"
    found.workers.remove(ready)
    assert found.missing() == ["no worker takes new sessions"]


def test_units_that_a_command_changes_are_not_missed() -> None:
    shown = "Id=limpet-worker@1.service\nActiveState=inactive\nUnitFileState=enabled\n"
    starting = {"name": "w3", "state": "starting"}
    found = Overview(
        units=read_units(shown, 1.0),
        cluster={"complete": True},
        workers=[{"name": "w2", "state": "ready"}, starting],
    )
    assert found.missing() == ["limpet-worker@1 is stopped", "worker w3 is starting"]
    found.units_change = True
    assert found.missing() == []


def test_a_balancer_that_runs_and_does_not_answer_is_missed() -> None:
    supervisor = {"processes": [child(name="balancer")]}
    whole: dict[str, Any] = {"complete": True}
    ready = {"name": "w0", "state": "ready"}
    found = Overview(supervisor=supervisor, cluster=whole, workers=[ready])
    assert found.missing() == ["the balancer does not answer"]
    found.balancer_hidden = True
    assert found.missing() == [], "who may not ask it cannot tell"


# --- status --------------------------------------------------------------------


@pytest.mark.processes
def test_status(cluster: RunningCluster) -> None:
    result = ask(cluster, "status")
    assert result.exit_code == 0
    for text in ("hub", "worker-1", "balancer", "LOOP LAG", "bus open", "balancer ok"):
        assert text in result.output
    assert "not whole" not in result.output


@pytest.mark.processes
def test_status_for_programs(cluster: RunningCluster) -> None:
    result = ask(cluster, "status", "--json", "--check")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert {one["name"] for one in found["supervisor"]["processes"]} >= {"hub", "worker-0"}
    assert len(found["workers"]) == 2
    assert found["balancer"]["health"] == "ok"
    assert found["missing"] == []


@pytest.mark.processes
def test_status_that_is_watched_is_a_line_each_time(cluster: RunningCluster) -> None:
    command = [sys.executable, "-m", "limpet", "status", "--json", "--watch", "0.1"]
    with subprocess.Popen(
        [*command, f"--run-dir={cluster.run_directory}"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.terminate()
    assert all(len(one["workers"]) == 2 for one in looks)


def test_check_finds_a_part_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    partial = Overview(supervisor={"processes": [child(state="waiting")], "ready": False,
                                   "phase": "running"})  # fmt: skip
    monkeypatch.setattr("limpet_cluster.cli.status.look", lambda *_: partial)
    arguments = ["status", f"--run-dir={tmp_path}"]
    assert CliRunner().invoke(limpet, arguments).exit_code == 0
    assert CliRunner().invoke(limpet, [*arguments, "--check"]).exit_code == 75
    assert CliRunner().invoke(limpet, [*arguments, "--check", "--watch"]).exit_code == 2


def test_nobody_there_is_exit_code_4(tmp_path: Path) -> None:
    result = CliRunner().invoke(limpet, ["status", "--check", f"--run-dir={tmp_path}/none"])
    assert result.exit_code == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("top",), ("presence", "rooms"), ("presence", "rooms", "-o", "ndjson"),
        ("scale", "2"), ("drain", "w0"), ("undrain", "w0"), ("disconnect", "x"), ("stop",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_for_programs_an_error_is_a_document_as_well(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    form = () if "-o" in arguments else ("--json",)
    result = CliRunner().invoke(limpet, [*arguments, *form, f"--run-dir={tmp_path}/none"])
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert (document["ok"], document["exit_code"]) == (False, 4)
    assert document["error"]
    assert result.stderr == ""


def test_doctor_tells_of_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("limpet.toml").write_text("workers = = 2\n")
    result = CliRunner().invoke(limpet, ["doctor", "--json", "--run-dir", f"{tmp_path}/none"])
    found = {one["check"]: one for one in json.loads(result.stdout)["findings"]}
    assert result.exit_code == 1
    assert found["configuration"]["level"] == "fail"
    assert "limpet.toml:1" in found["configuration"]["text"]
    result = CliRunner().invoke(limpet, ["doctor", "--json"])
    assert json.loads(result.stdout)["ok"] is False


# --- presence ------------------------------------------------------------------


@pytest.fixture
def enter(interop_cluster: RunningCluster) -> Iterator[Callable[..., Client]]:
    """Return ``enter(*rooms)``: connects a client and has it join rooms."""
    clients: list[Client] = []

    def enter(*rooms: str) -> Client:
        client = Client(interop_cluster.url, transports=["websocket"])
        client.connect()
        clients.append(client)
        for room in rooms:
            client.timeout(5).emit_with_ack("join", room)
        return client

    yield enter
    for client in clients:
        client.close()


def wait_for_users(cluster: RunningCluster, room: str, users: int) -> None:
    """Wait until the hub knows of them; each has one connection."""

    def known() -> bool:
        shown = ask(cluster, "presence", "count", room).output
        return shown == f"{users} users on {users} connections\n"

    wait_until(known, 10, f"{users} in {room}")


@pytest.mark.processes
def test_counts_and_lines(interop_cluster: RunningCluster, enter: Callable[..., Client]) -> None:
    enter("counted", "港口")
    enter("counted")
    wait_for_users(interop_cluster, "counted", 2)
    wait_for_users(interop_cluster, "港口", 1)
    found = json.loads(ask(interop_cluster, "presence", "count", "counted", "--json").output)
    assert found["occupancy"] == {"users": 2, "connections": 2}
    result = ask(interop_cluster, "presence", "rooms", "-o", "ndjson")
    lines = [json.loads(one) for one in result.output.splitlines()]
    assert {one["room"] for one in lines} >= {"counted", "港口"}
    result = ask(interop_cluster, "presence", "count")
    assert result.output.split()[:5] == ["NAMESPACE", "ROOMS", "USERS", "CONNECTIONS", "/"]


@pytest.mark.processes
def test_watching_a_room(interop_cluster: RunningCluster, enter: Callable[..., Client]) -> None:
    first = enter("watched")
    wait_for_users(interop_cluster, "watched", 1)
    command = [
        sys.executable, "-m", "limpet", "presence", "watch", "watched", "--every=0.1",
        "--changes=2", "--output=ndjson", f"--run-dir={interop_cluster.run_directory}",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        here = json.loads(process.stdout.readline())
        assert (here["event"], here["user"]) == ("here", first.id)
        second = enter("watched")
        join = json.loads(process.stdout.readline())
        assert (join["event"], join["user"]) == ("join", second.id)
        second.close()
        leave = json.loads(process.stdout.readline())
        assert (leave["event"], leave["connections"]) == ("leave", 0)
        assert process.wait(10) == 0


def test_differences() -> None:
    before = {"ada": (1, 1), "bob": (1, 2)}
    now = {"bob": (1, 1), "cy": (1, 1)}
    assert list(differences(before, now, of_room=True)) == [
        {"event": "leave", "user": "ada", "connections": 0},
        {"event": "update", "user": "bob", "connections": 1},
        {"event": "join", "user": "cy", "connections": 1},
    ]
    assert list(differences({}, {"x": (2, 3)}, of_room=False)) == [
        {"event": "open", "room": "x", "users": 2, "connections": 3}
    ]
    assert not list(differences(now, now, of_room=True))


# --- version --------------------------------------------------------------------


def test_what_a_bug_report_needs() -> None:
    found = json.loads(CliRunner().invoke(limpet, ["version", "--json"]).output)
    assert {"limpet", "python", "kernel", "systemd", "libc", "libzmq", "uvloop"} <= found.keys()
    assert found["libzmq"].startswith("4.")
