"""What a server costs: CPU time and memory of all its processes, read from the kernel (Linux)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_CPUCLOCK_SCHED: Final = 2
_ROLES: Final = ("balancer", "worker", "hub")


def parents() -> dict[int, int]:
    """Return the parent of every process there is."""
    found: dict[int, int] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended while we looked
        # The name in parentheses may itself hold blanks and parentheses.
        found[int(entry.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    return found


def tree(root: int) -> list[int]:
    """Return the process and all its descendants, itself first."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found.extend(sorted(children.get(pid, ())))
    return found


def cpu_ns(pid: int) -> int:
    """Return the CPU time (user and system, all threads, ended ones too) of a process in ns.

    The process's CPU clock counts exactly; the ticks of /proc/<pid>/stat are too coarse for
    windows of a second. An ended process counts 0.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0


def pss_kib(pids: Iterable[int]) -> int:
    """Return the proportional set size of the processes together, in KiB.

    Shared pages count once: each process bears its part of them.
    """
    total = 0
    for pid in pids:
        try:
            text = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


def role(pid: int) -> str:
    """Return what a server process is, by its command line; ``main`` where that does not say."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "gone"
    return next((word for word in words if word in _ROLES), "main")


class CpuWindow:
    """CPU time of a set of processes between construction and `close`, by role."""

    __slots__ = ("_before", "_roles", "_start", "by_role", "own_ns", "wall_ns")

    def __init__(self, pids: Iterable[int], roles: dict[int, str] | None = None) -> None:
        self._roles = roles or {}
        self.by_role: dict[str, int] = {}
        self.wall_ns = 0
        self.own_ns = -time.process_time_ns()
        """CPU time of the process that measures."""
        self._start = time.monotonic_ns()
        self._before = {pid: cpu_ns(pid) for pid in pids}

    def close(self) -> int:
        """Return the ns of CPU that all the processes used in the window."""
        spent = {pid: max(0, cpu_ns(pid) - before) for pid, before in self._before.items()}
        self.wall_ns = time.monotonic_ns() - self._start
        self.own_ns += time.process_time_ns()
        for pid, used in spent.items():
            name = self._roles.get(pid, "main")
            self.by_role[name] = self.by_role.get(name, 0) + used
        return sum(spent.values())
