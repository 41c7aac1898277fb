"""What a supervisor stands on: its lock on the run directory, its terminal, its children's ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from limpet_adapters.rundir import RunDirectory


class StartError(Exception):
    """The cluster cannot start; the message is for the user."""


def tidy(run: RunDirectory) -> None:
    """Remove the sockets of processes that had no time to do so themselves."""
    for path in (run.hub, run.api, run.balancer, *run.path.glob("bus-*")):
        with suppress(OSError):
            path.unlink()


def lock(directory: Path) -> int:
    """Make this process the only supervisor of a run directory, until it closes the descriptor.

    Raises:
        StartError: another one runs there.
        OSError: the file cannot be made.
    """
    fd = os.open(directory / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StartError(
            f"a cluster runs in {directory} already (pid {holder}); "
            "stop it, or start this one with another --name"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def lock_again(directory: Path, held: int) -> int:
    """Return a lock like the one we hold, on the file that is there now; the same if that is ours.

    Raises:
        StartError: another one runs there by now.
        OSError: the file cannot be made.
    """
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(held), (directory / "supervisor.lock").stat()):
            return held
    fresh = lock(directory)
    os.close(held)
    return fresh


def has_terminal() -> bool:
    """Return whether somebody sits at a terminal that this process belongs to."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def peek(pid: int) -> os.waitid_result | None:
    """Return how a child ended, and leave it to be collected; None while it lives."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
