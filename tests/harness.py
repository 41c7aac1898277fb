"""Real clusters for tests: started as users start them, found by what they print and answer."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from xprocess import ProcessStarter, XProcess

from limpet_cluster.api_client import ApiClient
from limpet_cluster.supervisor.commands import CommandError, ask

TESTS = Path(__file__).parent
READY = re.compile(r"limpet is ready on (?P<url>\S+)")


def require(name: str, present: object, reason: str = "") -> None:
    """Skip the test when what it needs is absent, or fail it where it must be there.

    LIMPET_REQUIRE names what must be there, separated by commas or blanks, or is ``all``:
    continuous integration sets it so that no test goes missing unseen.
    """
    if present:
        return
    message = f"{name} is not available" + (f": {reason}" if reason else "")
    required = re.split(r"[,\s]+", os.environ.get("LIMPET_REQUIRE", ""))
    if name in required or "all" in required:
        pytest.fail(f"{message}, but LIMPET_REQUIRE names it")
    pytest.skip(message)


def npm_install(folder: Path, package: str) -> None:
    """Install what a folder's ``package.json`` asks for, once, also when several want it."""
    require("node", shutil.which("node") and shutil.which("npm"))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "node_modules" / package / "package.json").exists():
            command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
            subprocess.run(command, cwd=folder, check=True, timeout=150)
    finally:
        os.close(lock)


def wait_until(condition: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
    """Wait until a condition holds; fail with ``what`` when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(what or f"not true within {timeout:g} s")
        time.sleep(0.02)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still; a supervisor starts nothing meanwhile."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # killed meanwhile
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        os.close(pidfd)


class RunningCluster:
    """One ``limpet start``, kept by xprocess, and where to find its parts."""

    def __init__(
        self, xprocess: XProcess, name: str, application: str, workers: int, arguments: list[str]
    ) -> None:
        self.name = name
        self.run_directory = Path(tempfile.mkdtemp(prefix="limpet-"))
        self.log = Path()
        self.url = ""
        """Where clients connect, for example ``http://127.0.0.1:31234``."""
        self._xprocess = xprocess
        self._arguments = [
            "start",
            application,
            f"--workers={workers}",
            f"--run-dir={self.run_directory}",
            f"--app-dir={TESTS}",
            *arguments,
        ]

    def start(self, bind: str = "127.0.0.1:0") -> None:
        """Start it and wait until it is ready; a restart passes the old port."""
        command = [sys.executable, "-m", "limpet", *self._arguments, f"--bind={bind}"]

        class Starter(ProcessStarter):  # type: ignore[misc]
            pattern = READY.pattern
            timeout = 30  # the default is 120 s
            max_read_lines = 2000  # the default, 50, is soon used up by a debug log
            terminate_on_interrupt = True
            args = command
            env = {**os.environ, "PYTHONUNBUFFERED": "1"}

            def get_lines(self, log_file: object) -> Iterator[str]:
                """Give up at once when the process died instead of waiting for the timeout."""
                popen = self.process.resources[-1].popen
                for line in super().get_lines(log_file):
                    yield line
                    if not line and popen.poll() is not None:
                        raise RuntimeError(f"{command} exited with {popen.returncode}")

        _, log = self._xprocess.ensure(self.name, Starter, restart=True)
        self.log = Path(log)
        self.url = list(READY.finditer(self.text))[-1]["url"]

    @property
    def text(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the public socket."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def api(self) -> ApiClient:
        """The hub's HTTP API."""
        return ApiClient(self.run_directory / "api.sock")

    @property
    def status(self) -> dict[str, dict[str, Any]]:
        """What the supervisor says of each process, by name; empty when it does not answer."""
        try:
            answer = ask(self.run_directory, "status")
        except CommandError:
            return {}
        return {one["name"]: one for one in answer["processes"]}

    @property
    def pids(self) -> dict[str, int]:
        """Pid of each process: ``supervisor``, ``hub``, ``balancer``, ``worker-0``, …"""
        found = {name: one["pid"] for name, one in self.status.items() if one["pid"]}
        return {"supervisor": self.pid, **found}

    @property
    def pid(self) -> int:
        """Pid of the supervisor."""
        return int(self._xprocess.getinfo(self.name).pid)

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs."""
        return bool(self._xprocess.getinfo(self.name).isrunning())

    def kill_role(self, name: str) -> int:
        """End one process as a crash does; return the pid it had."""
        pid = self.pids[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_restarted(self, name: str, old_pid: int, timeout: float = 15.0) -> None:
        """Wait until another process is ready in the place of one that ended."""

        def restarted() -> bool:
            one = self.status.get(name, {})
            return one.get("state") == "ready" and one.get("pid") != old_pid

        wait_until(restarted, timeout, f"{name} did not come back\n{self.text[-4000:]}")

    def kill(self) -> None:
        """End the supervisor as a crash does: no warning, no clean-up."""
        self._process.kill()
        self._process.wait(20)

    def stop(self) -> int:
        """End it as systemd does, SIGTERM to the supervisor alone; return its exit code."""
        # Not by xprocess: it collects the exit code and keeps it to itself.
        process = self._process
        process.send_signal(signal.SIGTERM)
        try:
            return int(process.wait(20))
        except subprocess.TimeoutExpired:
            process.kill()
            return int(process.wait(20))

    def ask_to_end(self) -> None:
        """Send SIGTERM and do not wait."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)

    def discard(self) -> None:
        """End it if it still runs, and remove what it leaves behind."""
        if self.alive:
            self.stop()
        for process in self._processes:
            process.wait(20)  # one that nobody waited for is a ResourceWarning, an error here
        pidpath = self._xprocess.getinfo(self.name).pidpath
        if pidpath.check():
            pidpath.remove()
        shutil.rmtree(self.run_directory, ignore_errors=True)

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        """The supervisor; after a restart the last one."""
        return self._processes[-1]

    @property
    def _processes(self) -> list[subprocess.Popen[bytes]]:
        started = [one for one in self._xprocess.resources if one.info and one.popen]
        return [one.popen for one in started if one.info[0].name == self.name]
