"""The command line as users call it: what each mistake is answered with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hubs import hub, run_directory
from limpet_cluster.cli import limpet
from limpet_cluster.settings import config
from limpet_cluster.settings.config import ConfigError

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="limpet-") as name:
        yield Path(name)


@pytest.fixture
def start(place: Path) -> Run:
    """Return ``start(*arguments)``: runs ``limpet start`` in an empty folder until it ends."""

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "limpet", "start", f"--run-dir={place / 'run'}",
             "--workers=2", "--bind=127.0.0.1:0", *arguments],
            cwd=place, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return start


@pytest.fixture
def role(place: Path) -> Run:
    """Return ``role(*arguments)``: runs one process of a cluster until it ends."""

    def role(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "limpet", name, f"--run-dir={place / 'run'}", *arguments],
            cwd=place, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return role


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(limpet, arguments)


# --- usage: exit code 2 -----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start", "app.py"], "app.py: expected module:attribute, for example app:io"),
        (["start", "--workers", "0"], "--workers 0: expected 1 to 255, or auto"),
        (["start", "--workers", "many"], "--workers many: expected 1 to 255, or auto"),
        (["start", "--workers", "256"], "--workers 256: expected 1 to 255, or auto"),
        (["start", "--bind", "8080"], "--bind 8080: expected HOST:PORT"),
        (["start", "--bind", "[::1]:99999"], "--bind '[::1]:99999': expected HOST:PORT"),
        (["start", "--health-path", "healthz"], "--health-path healthz: expected a path"),
        (["start", "--api", "9090"], "--api 9090: expected HOST:PORT"),
        (
            ["start", "--api", "127.0.0.1:9090"],
            "--api: api needs api_token_file (--api-token-file)",
        ),
        (["start", "--path", "/"], "--path /: expected a path such as /socket.io/"),
        (["start", "--name", "../x"], "--name ../x: expected 1 to 32 letters"),
        (["start", "--stall-after", "-1"], "--stall-after -1: expected a duration from 0"),
        (["start", "--stall-after", "2s"], "--stall-after: stall_after is 2s: expected 0 or at"),
        (["start", "--app-dir", "/none"], "--app-dir: app_dir is /none: there is no such folder"),
        (["start", "--no-such-option"], "No such option"),
        (["worker"], "Missing option '--slot'"),
        (["worker", "--slot", "256"], "256 is not in the range"),
        (["dance"], "No such command 'dance'"),
        (["status", "--timeout", "nan"], "'nan': expected a duration from 10ms to 24h"),
        (["doctor", "--timeout", "inf"], "'inf': expected a duration from 10ms to 24h"),
        (["reload", "--timeout", "0"], "'0': expected a duration from 10ms to 24h"),
        (["top", "--delay", "soon"], "'soon': expected a duration from 100ms to 24h"),
        (["drain", "w0", "--window", "25h"], "'25h': expected a duration from 0 to 24h"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["disconnect", "drain", "undrain"])
async def test_a_name_may_be_anything(command: str) -> None:
    with run_directory() as path:
        async with hub(path):
            given = (f"--run-dir={path}", "--timeout=20s")
            odd = await asyncio.to_thread(invoke, command, *given, "\udcff?/..")
            empty = await asyncio.to_thread(invoke, command, *given, "")
    assert odd.exit_code == empty.exit_code == 1
    assert "404" in odd.output
    assert "expected a name, and got an empty one" in empty.output


def test_the_environment_says_what_the_options_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMPET_WORKERS", "none")
    result = invoke("start")
    assert result.exit_code == 3
    assert "LIMPET_WORKERS=none: expected 1 to 255, or auto" in result.output


# --- failures that start names ------------------------------------------------


@pytest.mark.processes
def test_a_taken_port_is_one_message(start: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = start(f"--bind=127.0.0.1:{port}")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        f"limpet: bind '127.0.0.1:{port}': taken by another process; stop it or choose another port"
    ]


@pytest.mark.processes
def test_a_run_directory_that_others_can_read_is_refused(start: Run, place: Path) -> None:
    (place / "run").mkdir(mode=0o755)
    (place / "run").chmod(0o755)
    result = start()
    assert result.returncode == 3
    assert result.stderr.startswith(f"limpet: run directory {place / 'run'} has mode 0755")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.processes
def test_a_run_directory_that_cannot_be_made_is_refused(start: Run, place: Path) -> None:
    (place / "file").touch()
    result = start(f"--run-dir={place}/file/run")
    assert result.returncode == 3
    assert "choose another --run-dir" in result.stderr
    assert "Traceback" not in result.stderr


def _error(stderr: str) -> str:
    """Return what the supervisor says at the end; what the children logged stands before it."""
    return stderr[stderr.index("limpet: ") :]


@pytest.mark.processes
def test_a_missing_module_is_one_message(start: Run, place: Path) -> None:
    result = start("nowhere:io")
    assert result.returncode == 1
    assert _error(result.stderr).startswith(f"limpet: no module 'nowhere' in {place}")
    assert "Traceback" not in result.stderr


@pytest.mark.processes
def test_a_broken_module_is_shown_once_with_its_own_lines(start: Run, place: Path) -> None:
    (place / "broken.py").write_text("def f():\n    raise RuntimeError('on purpose')\nf()\n")
    result = start("broken:io")
    assert result.returncode == 1
    assert result.stderr.count("on purpose") == 2, "its line, and the error"
    assert f'File "{place}/broken.py", line 2, in f' in result.stderr
    assert "limpet_cluster" not in _error(result.stderr)
    assert result.stderr.count("Traceback") == 1


# A worker by itself, as systemd runs it, says the same on stderr.


@pytest.mark.processes
def test_a_missing_attribute_is_one_message(role: Run, place: Path) -> None:
    (place / "app.py").write_text("import limpet\nserver = limpet.Server()\n")
    result = role("worker", "--slot=0", "app:io")
    assert result.returncode == 1
    assert _error(result.stderr) == (
        "limpet: module 'app' has no attribute 'io'; did you mean app:server?\n"
    )


@pytest.mark.processes
def test_a_wrong_option_of_the_server_is_shown_at_the_users_line(role: Run, place: Path) -> None:
    (place / "app.py").write_text("import limpet\n\nio = limpet.Server(ping_interval=-1)\n")
    result = role("worker", "--slot=0", "app:io")
    assert result.returncode == 1
    error = _error(result.stderr)
    assert 'app.py", line 3' in error
    assert "ping_interval" in error.splitlines()[-1]
    assert "limpet_worker/" not in error


@pytest.mark.processes
def test_another_path_than_the_balancers_is_one_message(role: Run, place: Path) -> None:
    (place / "app.py").write_text("import limpet\n\nio = limpet.Server(path='/ws/')\n")
    result = role("worker", "--slot=0", "app:io")
    assert result.returncode == 1
    assert re.match(r"limpet: path='/ws/': .*--path '?/socket.io/", _error(result.stderr))
    assert "Traceback" not in result.stderr


@pytest.mark.processes
def test_a_startup_hook_that_fails_ends_the_start(start: Run, place: Path) -> None:
    (place / "app.py").write_text(
        "import limpet\nio = limpet.Server()\n@io.on_startup\ndef begin():\n    1 / 0\n"
    )
    result = start("app:io")
    assert result.returncode == 1
    error = _error(result.stderr)
    assert error.startswith("limpet: app:io failed")
    assert error.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "limpet_worker/" not in error


@pytest.mark.processes
def test_a_token_file_that_is_missing_is_one_message(role: Run, place: Path) -> None:
    result = role("hub", "--api=127.0.0.1:0", f"--api-token-file={place}/none")
    assert result.returncode == 3
    assert "api_token_file=" in _error(result.stderr)
    assert "Traceback" not in result.stderr


# --- those that ask a cluster ---------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["presence", "rooms"], ["presence", "members", "x"], ["presence", "user", "x"]],
)
def test_nobody_to_ask_is_exit_code_4(arguments: list[str], place: Path) -> None:
    result = invoke(*arguments, f"--run-dir={place}")
    assert result.exit_code == 4
    assert "no hub answers" in result.output
    assert "--run-dir" in result.output


def test_a_hub_that_does_not_answer_is_exit_code_5(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(place / "api.sock"))
        deaf.listen()
        began = time.monotonic()
        result = invoke("presence", "rooms", f"--run-dir={place}", "--timeout=0.2")
    assert result.exit_code == 5
    assert time.monotonic() - began < 4.5, "not the 5 s that are the default"
    assert "in 0.2 s" in result.output


# --- version ------------------------------------------------------------------


def test_versions() -> None:
    assert re.fullmatch(r"limpet \d+\.\d+\.\d+\n", invoke("--version").output)
    found = json.loads(invoke("version", "--json").output)
    assert found["python"] == sys.version.split()[0]
    assert found["pyzmq"]
    assert f"python          {found['python']}\n" in invoke("version").output


@pytest.mark.processes
@pytest.mark.parametrize("module", ["limpet", "limpet_cluster"])
def test_both_modules_are_the_command_line(module: str) -> None:
    output = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "start" in output
    assert "presence" in output


# --- where a cluster meets --------------------------------------------------------


def test_the_run_directory_is_found_where_the_options_and_the_environment_say() -> None:
    find = config.find_run_directory
    assert find("/x", "a", {"RUNTIME_DIRECTORY": "/r"}) == Path("/x")
    assert find(None, "a", {"RUNTIME_DIRECTORY": "/r:/s", "XDG_RUNTIME_DIR": "/u"}) == Path("/r")
    assert find(None, "a", {"XDG_RUNTIME_DIR": "/u"}) == Path("/u/limpet/a")
    alone = find(None, "a", {})
    assert alone in {Path("/run/limpet/a"), Path(f"/tmp/limpet-{os.getuid()}-a")}
    for name in ("", ".", "../x", "a/b", "x" * 33, "ä"):
        with pytest.raises(ConfigError):
            find(None, name, {})


def test_worker_counts() -> None:
    assert config.worker_count(3) == 3
    assert 1 <= config.worker_count("auto") <= len(os.sched_getaffinity(0))


def test_a_containers_limit_counts(place: Path) -> None:
    everything = len(os.sched_getaffinity(0))
    assert config.processors(place) == everything
    for limit, most in {"max 100000": 999, "50000 100000": 1, "150000 100000": 2}.items():
        (place / "cpu.max").write_text(f"{limit}\n")
        assert config.processors(place) == min(everything, most)


def test_the_number_of_a_host_comes_from_its_name_unless_it_is_given() -> None:
    assert config.node_number(7) == 7
    assert config.node_number(None) == config.node_number(None)
    assert 0 <= config.node_number(None) <= 65_535
