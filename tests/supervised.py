"""A supervisor whose children are stand-ins, run in a process of its own: for its tests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from limpet_cluster.supervisor.commands import Answer, CommandError, ask

DRIVE = str(Path(__file__).with_name("cluster") / "drive.py")
QUICK = {"stop_timeout": 10.0, "abort_grace": 0.3, "stall_after": 5.0}


class Supervised:
    """A supervisor with stand-ins, in a process of its own."""

    def __init__(self, directory: Path, prefix: list[str], **options: Any) -> None:
        self.directory = directory
        options["policy"] = {**QUICK, **options.get("policy", {})}
        self.output = directory.parent / f"{directory.name}.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, DRIVE, str(directory), json.dumps(options)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.output.read_bytes().decode("utf-8", "replace")  # it may end within a letter

    def journal(self, name: str = "", what: str = "") -> list[list[Any]]:
        path = self.directory / "log"
        text = path.read_text() if path.exists() else ""
        # Somebody may be writing: what has no end yet is no line.
        entries = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [one for one in entries if name in one[0] and one[1].startswith(what)]

    def status(self) -> dict[str, dict[str, Any]]:
        try:
            answer = ask(self.directory, "status", 20.0)
        except CommandError:
            return {}
        return {one["name"]: one for one in answer["processes"]}

    def ask(self, verb: str, **arguments: Any) -> Answer:
        """Ask for something and wait for it."""
        return ask(self.directory, verb, 20.0, **arguments)

    def renew(self, **options: Any) -> None:
        """Change what a reload finds: ways, mark, policy, changes, or error."""
        (self.directory / "renewal").write_text(json.dumps(options))

    def tell(self, name: str) -> None:
        """Have a stand-in do what it does "when told"; its successors will do so at once."""
        (self.directory / f"told-{name}").touch()

    def pid(self, name: str) -> int:
        return int(self.status()[name]["pid"])

    def ready(self) -> Supervised:
        until(lambda: "READY" in self.text, self)
        return self

    def ended(self) -> int:
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text) from None


def until(condition: Callable[[], object], supervised: Supervised, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, supervised.text
        time.sleep(0.02)


def rewrite(path: Path, text: str) -> None:
    """Change a file in one step: a watcher that looks meanwhile sees no half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def is_back(supervised: Supervised, name: str) -> bool:
    """Whether a process is ready again for the first time."""
    one = supervised.status().get(name, {})
    return one.get("restarts") == 1 and one["state"] == "ready"


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
