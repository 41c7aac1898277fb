"""What the doctor finds, on machines that are made of files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness import RunningCluster
from limpet_cluster import doctor
from limpet_cluster.cli import limpet
from limpet_cluster.doctor import Finding, Level

MIB = 2**20


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def only(findings: Iterable[Finding]) -> Finding:
    (found,) = findings
    assert found.text
    assert bool(found.remedy) == (found.level is not Level.OK), "trouble comes with a remedy"
    return found


def level(findings: Iterable[Finding]) -> Level:
    return only(findings).level


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine on which all is well, with a worker of pid 7 in a cgroup."""
    proc = tmp_path / "proc"
    write(proc / "sys/net/core/somaxconn", "4096\n")
    write(proc / "sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
    write(proc / "sys/net/ipv4/ip_local_reserved_ports", "\n")
    write(proc / "meminfo", "MemTotal:  2097152 kB\nMemAvailable: 1048576 kB\n")
    write(proc / "7/cgroup", "0::/limpet.slice/worker\n")
    files(proc, "1048576")
    return proc


@pytest.fixture
def group(tmp_path: Path) -> Path:
    group = tmp_path / "cgroup/limpet.slice/worker"
    group.mkdir(parents=True)
    return group


def files(proc: Path, limit: str) -> None:
    write(
        proc / "7/limits",
        "Limit                     Soft Limit           Hard Limit           Units\n"
        f"Max open files            {limit:<20} 1048576              files\n",
    )


# --- the machine ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "sessions", "expected"),
    [
        ("1048576", None, Level.OK),
        ("unlimited", 500_000, Level.OK),
        ("1024", None, Level.WARN),
        ("1024", 700, Level.OK),
        ("1024", 1000, Level.FAIL),
    ],
)
def test_open_files(proc: Path, limit: str, sessions: int | None, expected: Level) -> None:
    files(proc, limit)
    assert level(doctor.open_files({"w0": 7}, sessions, proc)) is expected


def test_open_files_that_are_nearly_used_up(proc: Path) -> None:
    files(proc, "20000")
    (proc / "7/fd").mkdir()
    for number in range(17):
        (proc / f"7/fd/{number}").touch()
    assert level(doctor.open_files({"w0": 7}, 17, proc)) is Level.OK
    files(proc, "20")
    found = only(doctor.open_files({"w0": 7}, None, proc))
    assert found.level is Level.FAIL
    assert "17 of 20" in found.text


def test_a_process_that_cannot_be_looked_at_says_nothing(proc: Path) -> None:
    assert not list(doctor.open_files({"w0": 8}, None, proc))


def test_backlog(proc: Path) -> None:
    assert level(doctor.backlog(proc)) is Level.OK
    write(proc / "sys/net/core/somaxconn", "128\n")
    assert level(doctor.backlog(proc)) is Level.WARN


def test_local_ports(proc: Path) -> None:
    assert level(doctor.ports([8080], proc)) is Level.OK
    taken = only(doctor.ports([8080, 40_000], proc))
    assert taken.level is Level.WARN
    assert "40000" in taken.text
    write(proc / "sys/net/ipv4/ip_local_reserved_ports", "1,39000-41000\n")
    assert level(doctor.ports([40_000], proc)) is Level.OK
    write(proc / "sys/net/ipv4/ip_local_port_range", "32768 33000\n")
    assert level(doctor.ports([], proc)) is Level.WARN


@pytest.mark.parametrize(
    ("available", "expected"), [(1_048_576, Level.OK), (200_000, Level.WARN), (50_000, Level.FAIL)]
)
def test_memory_of_the_machine(proc: Path, available: int, expected: Level) -> None:
    write(proc / "meminfo", f"MemTotal:  2097152 kB\nMemAvailable: {available} kB\n")
    assert level(doctor.memory([], proc)) is expected


def test_memory_of_a_worker_against_its_cgroup(tmp_path: Path, proc: Path, group: Path) -> None:
    worker = {"name": "w0", "pid": 7, "rss_bytes": 90 * MIB}

    def found() -> list[Level]:
        return [one.level for one in doctor.memory([worker], proc, tmp_path / "cgroup")]

    write(group / "memory.max", "max\n")
    assert found() == [Level.OK]
    write(group.parent / "memory.max", f"{100 * MIB}\n")  # what holds above holds here
    assert found() == [Level.OK, Level.WARN]
    write(group / "memory.max", f"{91 * MIB}\n")
    assert found() == [Level.OK, Level.FAIL]


def test_limits_of_cgroups(tmp_path: Path, proc: Path, group: Path) -> None:
    def found(workers: int) -> Finding:
        return only(doctor.limits({"w0": 7}, workers, proc, tmp_path / "cgroup"))

    assert found(4).level is Level.OK
    write(group / "cpu.max", "150000 100000\n")
    assert found(2).level is Level.OK
    assert "1.5 processors" in found(4).text
    write(group / "cpu.max", "max 100000\n")
    write(group.parent / "pids.max", "100\n")
    write(group.parent / "pids.current", "90\n")
    assert "90 of the 100" in found(4).text


def test_disk(tmp_path: Path) -> None:
    assert level(doctor.disk({"here": tmp_path, "to be made": tmp_path / "x/y"})) is Level.OK


def test_clock() -> None:
    assert level(doctor.clock(True)) is Level.OK
    assert level(doctor.clock(False)) is Level.WARN
    assert not list(doctor.clock(None))
    assert doctor.clock_synchronised() in {True, False, None}


# --- the run directory ------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "r"
    run.mkdir(mode=0o700)
    return run


def test_run_directory(run: Path, tmp_path: Path) -> None:
    def found(path: Path, uid: int = os.getuid()) -> Level:
        return level(doctor.run_directory(path, uid, tmp_path / "no proc"))

    assert found(run) is Level.OK
    assert found(tmp_path / "none") is Level.OK
    assert found(run, os.getuid() + 1) is Level.FAIL
    assert found(tmp_path / ("x" * 100)) is Level.FAIL
    (tmp_path / "link").symlink_to(run)
    assert found(tmp_path / "link") is Level.FAIL
    run.chmod(0o750)
    assert found(run) is Level.FAIL


@pytest.fixture
def sockets(run: Path) -> list[Path]:
    paths = [run / "hub.sock", run / "balancer.sock"]
    for path in paths:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    return paths


def test_sockets_that_nobody_listens_on(run: Path, sockets: list[Path], proc: Path) -> None:
    head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
    line = "0000: 00000002 00000000 00010000 0001 01 12345 {}\n"
    hub, balancer = sockets
    write(proc / "net/unix", head + line.format(hub) + line.format(f"{balancer}.new"))
    assert level(doctor.stale_sockets(run, proc)) is Level.OK
    write(proc / "net/unix", head + line.format(hub))
    found = only(doctor.stale_sockets(run, proc))
    assert found.level is Level.WARN
    assert "balancer.sock" in found.text
    assert "hub.sock" not in found.text


def test_sockets_of_ours_are_seen_in_the_real_kernel(run: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as another:  # a host without any is one that hides them
        another.bind(str(tmp_path / "another.sock"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run / "hub.sock"))
            listener.listen()
            assert level(doctor.stale_sockets(run)) is Level.OK
        assert level(doctor.stale_sockets(run)) is Level.WARN


# --- the installation ---------------------------------------------------------------


def test_libraries() -> None:
    names = ("aiohttp", "httptools", "msgspec", "orjson", "pyzmq", "uvloop", "websockets")
    found: dict[str, str | None] = dict.fromkeys(names, "1.0")
    found |= {"python": "3.11", "implementation": "CPython"}
    assert level(doctor.libraries(found, (4, 3, 5))) is Level.OK
    assert level(doctor.libraries({**found, "uvloop": None}, (4, 3, 5))) is Level.WARN
    assert level(doctor.libraries(found, (4, 1, 8))) is Level.FAIL


def test_versions_after_an_upgrade() -> None:
    assert level(doctor.versions("0.2.0", 50.0, {"hub": "0.2.0"}, {"w0": 60.0})) is Level.OK
    other = only(doctor.versions("0.2.0", 50.0, {"hub": "0.1.0"}, {"w0": 60.0}))
    assert "restart needed" in other.text
    older = only(doctor.versions("0.2.0", 50.0, {"hub": "0.2.0"}, {"w0": 40.0, "w1": 60.0}))
    assert older.text.startswith("w0 started before")
    assert not list(doctor.versions("0.2.0", None, {}, {}))


def test_units_that_are_not_those_of_this_version(tmp_path: Path) -> None:
    shipped, installed = tmp_path / "shipped", tmp_path / "etc/systemd/system"
    write(shipped / "a.service", "[Service]\nExecStart=@LIMPET@ hub\n")
    write(shipped / "b.slice", "[Slice]\n")

    def found() -> list[Finding]:
        return list(doctor.units(tmp_path, shipped, iter(("a.service", "b.slice"))))

    assert not found(), "systemd does not run it here"
    write(installed / "a.service", "[Service]\nExecStart=/opt/python -m limpet hub\n")
    assert "b.slice is missing" in only(found()).text
    write(installed / "b.slice", "[Slice]\n")
    assert level(found()) is Level.OK
    write(installed / "b.slice", "[Slice]\nX=1\n")
    assert "b.slice differs" in only(found()).text


# --- the command ----------------------------------------------------------------------


def examine(*arguments: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    result = CliRunner().invoke(limpet, ["doctor", "--json", *arguments])
    document = json.loads(result.output)
    assert document["ok"] == (result.exit_code == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for one in document["findings"]:
        found.setdefault(one["check"], []).append(one)
    return result.exit_code, found


def test_without_a_cluster_the_machine_is_looked_at(run: Path) -> None:
    code, found = examine(f"--run-dir={run}")
    assert found["cluster"][0]["text"].startswith("does not run")
    assert found["run directory"][0]["level"] == "ok"
    assert code == any(one["level"] == "fail" for many in found.values() for one in many)


def test_what_fails_is_exit_code_1(run: Path) -> None:
    run.chmod(0o755)
    code, found = examine(f"--run-dir={run}")
    assert code == 1
    assert "chmod 700" in found["run directory"][0]["remedy"]


def test_a_configuration_that_cannot_be_used_fails(run: Path) -> None:
    file = write(run / "limpet.toml", "worker = 3\n")
    code, found = examine(f"--run-dir={run}", f"--config={file}")
    assert code == 1
    assert "worker" in found["configuration"][0]["text"]


def test_more_clients_than_files_fail(run: Path) -> None:
    code, found = examine(f"--run-dir={run}", "--clients=100000000")
    assert code == 1
    assert found["open files"][0]["level"] == "fail"


@pytest.mark.processes
def test_a_running_cluster_is_well(cluster: RunningCluster) -> None:
    code, found = examine(f"--run-dir={cluster.run_directory}", "--clients=10")
    assert code == 0, found
    assert found["cluster"][-1]["text"] == "2 workers answer"
    assert {one["level"] for one in found["versions"] + found["sockets"]} == {"ok"}
    result = CliRunner().invoke(limpet, ["doctor", f"--run-dir={cluster.run_directory}"])
    assert "0 failed" in result.output
