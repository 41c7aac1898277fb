"""What the supervisor starts, and how: command, environment and passed sockets, by exec."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from limpet_cluster.child import PARENT
from limpet_cluster.supervisor.lifecycle import Policy

_FIRST_FD: Final = 3
"""Where passed sockets begin, as sd_listen_fds(3) says."""
_FEEDS: Final = 3.0
"""Seconds of silence that a process is told to avoid: the least ``stall_after`` there is, so that
a reload may lower it, or begin with it, under processes that run already."""


@dataclass(frozen=True, slots=True)
class Command:
    """One process to start."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
    listeners: tuple[tuple[str, socket.socket], ...] = ()
    """Name and socket of each listener to pass, as LISTEN_FDS and LISTEN_FDNAMES."""
    foreground: bool = False
    """Stay in the supervisor's process group, with the terminal: for breakpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The processes of one cluster on this host."""

    hub: Command
    balancer: Command
    workers: Sequence[Command]
    """Those of the first slots; their number is how many the settings ask for."""
    worker: Callable[[int], Command] | None = None
    """Makes the worker of any slot; None: from the first one's, with another ``--slot``."""

    def for_slot(self, slot: int) -> Command:
        """Return the worker of a slot."""
        if self.worker is not None:
            return self.worker(slot)
        if slot < len(self.workers):
            return self.workers[slot]
        first = self.workers[0]
        here = f"--slot={slot}"
        argv = tuple(here if one.startswith("--slot=") else one for one in first.argv)
        return replace(first, argv=argv)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What the settings, read again, make of a running cluster."""

    plan: Plan
    policy: Policy
    changes: Sequence[tuple[str, str]] = ()
    """What is different, each as a line for people, and what brings it into force."""
    describe: Mapping[str, Any] = field(default_factory=dict)
    """What ``status`` tells of the cluster."""


def role(*arguments: str) -> tuple[str, ...]:
    """Return the command line of a role of this installation, for example ``role("hub")``.

    ``-P`` keeps the current directory off the path: a user's ``queue.py`` is not for the hub.
    """
    return (sys.executable, "-P", "-m", "limpet_cluster", *arguments)


def spawn(command: Command, notify: str, watchdog: float) -> int:
    """Start a process and return its pid.

    It is started by exec, never by a bare fork; it leads a process group of its own, so that a
    terminal's Ctrl-C reaches the supervisor alone and what the process leaves behind can be
    ended with it.

    Args:
        command: what to start.
        notify: path of the socket on which it tells that it is ready and alive.
        watchdog: seconds of silence after which it is killed, for now; 0 for never.
    """
    environment = {
        "PYTHONUNBUFFERED": "1",  # what an application prints is to be seen when it happens
        **{key: value for key, value in os.environ.items() if key not in _OURS},
        **command.environment,
        PARENT: str(os.getpid()),
        "NOTIFY_SOCKET": notify,
    }
    environment["WATCHDOG_USEC"] = str(int(min(watchdog or _FEEDS, _FEEDS) * 1e6))
    actions: list[tuple[int, int, int]] = []
    # They wait above their places, so that placing one never overwrites another.
    above = _FIRST_FD + len(command.listeners)
    staged = [fcntl.fcntl(s, fcntl.F_DUPFD_CLOEXEC, above) for _, s in command.listeners]
    try:
        for number, fd in enumerate(staged):
            actions.append((os.POSIX_SPAWN_DUP2, fd, _FIRST_FD + number))
        if staged:
            environment["LISTEN_FDS"] = str(len(staged))
            environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in command.listeners)
        if not command.foreground:
            actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))  # type: ignore[arg-type]
        return _posix_spawn(command, environment, actions)
    finally:
        for fd in staged:
            os.close(fd)


_OURS: Final = frozenset(
    {
        PARENT,
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
    }
)
"""What the supervisor was told by its own supervisor is not for its children."""


def _posix_spawn(
    command: Command, environment: Mapping[str, str], actions: Sequence[tuple[int, int, int]]
) -> int:
    # SIGINT stays blocked until the child ignores it (see child.enter).
    mask = {signal.SIGINT}
    defaults = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE}
    if command.foreground:
        return os.posix_spawnp(
            command.argv[0],
            command.argv,
            environment,
            file_actions=actions,
            setsigmask=mask,
            setsigdef=defaults,
        )
    return os.posix_spawnp(
        command.argv[0],
        command.argv,
        environment,
        file_actions=actions,
        setpgroup=0,
        setsigmask=mask,
        setsigdef=defaults,
    )


def close_on_exec() -> None:
    """Mark all descriptors above stderr that we inherited: no child of ours is to get them."""
    for fd in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        if fd >= _FIRST_FD:
            try:
                os.set_inheritable(fd, False)
            except OSError:  # the descriptor of the listing itself
                continue
