"""The servers that are compared: how each is installed, started, waited for and stopped."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from scripts.benchmark.accounting import role, tree
from scripts.benchmark.clients import Target, WebSocketClient
from scripts.benchmark.loop import Loop
from scripts.benchmark.scenarios import MAX_MESSAGE
from scripts.benchmark.stage import BenchError

PEERS: Final = Path(__file__).with_name("peers")
PYTHON_PEER: Final = ("python-socketio==5.18.1", "uvicorn", "uvloop", "httptools", "websockets")
_START_TIMEOUT: Final = 30.0
_STOP_TIMEOUT: Final = 15.0


def default_scratch() -> Path:
    """Return where the peers are installed unless told otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "limpet-bench"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that can be measured."""

    name: str
    title: str
    workers: int
    command: Callable[[Path, int, Path], list[str]]
    """Of the scratch folder, the port and an empty directory for what the server writes."""
    needs: str = ""
    """A path in the scratch folder that exists when the peer is installed."""
    pause: float = 0.0
    """Seconds that polling clients must wait after the handshake, else they are refused."""
    environment: dict[str, str] = field(default_factory=dict)

    def installed(self, scratch: Path) -> bool:
        """Whether the peer can be started."""
        return not self.needs or (scratch / self.needs).exists()


def _limpet(_scratch: Path, port: int, directory: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "limpet", "start", "limpet_app:io", "--workers", "2"),
        *("--bind", f"127.0.0.1:{port}", "--run-dir", str(directory / "run")),
        *("--app-dir", str(PEERS)),
    ]


def _node(script: str, *arguments: str) -> Callable[[Path, int, Path], list[str]]:
    def command(_scratch: Path, port: int, _directory: Path) -> list[str]:
        return ["node", "--expose-gc", str(PEERS / script), str(port), *arguments]

    return command


def _python(scratch: Path, port: int, _directory: Path) -> list[str]:
    return [str(scratch / "python/bin/python"), str(PEERS / "pysocketio.py"), str(port)]


_NODE_NEEDS: Final = "node/node_modules/socket.io"

ALL: Final = {
    peer.name: peer
    for peer in (
        Peer("limpet", "limpet, 2 workers", 2, _limpet),
        Peer(
            "node",
            "Node cluster, 2 workers",
            2,
            _node("node_cluster.js", "2"),
            _NODE_NEEDS,
            pause=0.02,
        ),
        Peer("node-single", "Node, one process", 1, _node("node_single.js"), _NODE_NEEDS),
        Peer("python", "python-socketio, one process", 1, _python, "python/bin/python"),
    )
}
USUAL: Final = ("limpet", "node", "python")


def install(scratch: Path) -> None:
    """Put the peers into the scratch folder with npm and pip.

    Raises:
        BenchError: one of them cannot be installed.
    """
    node = scratch / "node"
    node.mkdir(parents=True, exist_ok=True)
    shutil.copy(PEERS / "package.json", node / "package.json")
    steps = [
        (["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], node),
        ([sys.executable, "-m", "venv", str(scratch / "python")], scratch),
        (
            [
                *(str(scratch / "python/bin/python"), "-m", "pip", "install", "--quiet"),
                *("--disable-pip-version-check", *PYTHON_PEER),
            ],
            scratch,
        ),
    ]
    for command, folder in steps:
        try:
            subprocess.run(command, cwd=folder, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchError(f"cannot install the peers: {error}") from error


def free_port() -> int:
    """Return a port below the range of outgoing connections that nobody listens on."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """A running peer; a context manager that ends all its processes.

    Raises:
        BenchError: it does not answer in time; the message ends with its output.
    """

    def __init__(self, peer: Peer, scratch: Path, environment: dict[str, str]) -> None:
        self.peer = peer
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="limpet-bench-"))
        self._log = self.directory / "log"
        self._process = self._start(scratch, environment)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def run_directory(self) -> Path:
        """Where limpet's processes meet."""
        return self.directory / "run"

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def pids(self) -> list[int]:
        """Return the server's processes, the one that was started first."""
        return tree(self._process.pid)

    def roles(self) -> dict[int, str]:
        """Return what each of the server's processes is."""
        pids = self.pids()
        found = {pid: role(pid) for pid in pids}
        if self.peer.workers > 1 and "worker" not in found.values():
            found |= dict.fromkeys(pids[1:], "worker")
        return found

    def output(self) -> str:
        """Return the end of what the server wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def stop(self) -> None:
        """End the server: asked first, killed when it does not."""
        pids = self.pids()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            print(f"{self.peer.name} did not stop in {_STOP_TIMEOUT:g} s", file=sys.stderr)
            self._process.kill()
            self._process.wait()
        for pid in pids:
            # Children that outlive their parent; a process that became another's is not ours.
            if pid != self._process.pid and self._is_ours(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, scratch: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        variables = {
            **os.environ,
            "NODE_PATH": str(scratch / "node/node_modules"),
            "NODE_ENV": "production",
            "PYTHONPATH": str(PEERS),
            "BENCH_MAX_MESSAGE": str(MAX_MESSAGE),
            **self.peer.environment,
            **environment,
        }
        with self._log.open("wb") as log:
            return subprocess.Popen(
                self.peer.command(scratch, self.port, self.directory),
                cwd=PEERS,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self._process.pid
        except ProcessLookupError:
            return False

    def _wait(self) -> None:
        """Wait until every worker has answered a client."""
        seen: set[object] = set()
        deadline = time.monotonic() + _START_TIMEOUT
        while len(seen) < self.peer.workers:
            if self._process.poll() is not None:
                raise BenchError(
                    f"{self.peer.name} ended with {self._process.returncode}:\n{self.output()}"
                )
            if time.monotonic() > deadline:
                raise BenchError(f"{self.peer.name} does not answer:\n{self.output()}")
            seen |= set(ask_workers(self.port, 4))
            time.sleep(0.05)


def ask_workers(port: int, clients: int) -> list[object]:
    """Connect so many clients at once and return the pids they are told, fewer when refused."""
    loop = Loop()
    answers: list[object] = []
    done = 0

    def ended() -> None:
        nonlocal done
        done += 1

    def start() -> WebSocketClient:
        def told(values: list[object]) -> None:
            answers.extend(values[:1])
            ended()

        def ready() -> None:
            client.call("whoami", answer=told)

        client = WebSocketClient(loop, Target("127.0.0.1", port), ready, ended)
        return client

    opened = [start() for _ in range(clients)]
    loop.run_until(lambda: done >= clients, 2.0)
    for client in opened:
        client.close()
    loop.close()
    return answers
