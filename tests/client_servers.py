"""Servers that the Python client is tested with: ours and the official one, in their processes."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import TESTS, npm_install

_READY = re.compile(rb"ready on (http://\S+)")
NODE_FOLDER = TESTS / "client"


class ClientServer:
    """One server in a process of its own."""

    def __init__(self, kind: str, options: Mapping[str, Any] | None = None) -> None:
        self.kind = kind
        """``limpet`` or ``node``."""
        self.url = ""
        self._options = options or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._held: socket.socket | None = None
        """Keeps the port for us while nobody listens; bound, and never listens itself."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def start(self) -> None:
        """Start it and wait until it listens; started again, it is where it was."""
        if self._held is None:
            self._held = socket.socket()
            # As servers have it: of those, one may listen where others are bound.
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.bind(("127.0.0.1", 0))
        port = self._held.getsockname()[1]
        argument = json.dumps({"port": port, "options": self._options})
        if self.kind == "node":
            command = ["node", str(install()), argument]
        else:
            command = [sys.executable, str(TESTS / "servers" / "python_client_app.py"), argument]
        process = self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert process.stdout is not None
        output = b""
        deadline = time.monotonic() + 20
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not (found := _READY.search(output)):
                assert time.monotonic() < deadline, f"{command} said only {output!r}"
                if selector.select(1.0):
                    chunk = os.read(process.stdout.fileno(), 4096)
                    assert chunk, f"{command} ended with {process.wait(5)}: {output!r}"
                    output += chunk
        self.url = found[1].decode()

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as an init system does."""
        self._end(signal.SIGTERM)

    def discard(self) -> None:
        """End it if it still runs, and give its port up."""
        self.kill()
        if self._held is not None:
            self._held.close()
            self._held = None

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


def install() -> Path:
    """Install the official server beside its script, once; return the script."""
    npm_install(NODE_FOLDER, "socket.io")
    return NODE_FOLDER / "server.mjs"
