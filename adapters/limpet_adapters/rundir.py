"""The run directory: where the processes of one cluster on one host meet."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Final

from limpet_adapters.forks import close_in_forks

PATH_LIMIT: Final = 107
"""Bytes a unix socket path may have."""
_LONGEST_NAME: Final = 24
_REFUSALS: Final = 20
"""Times that somebody else must hold a lock before it counts as held."""
_LONGEST_LOOK: Final = 10.0
"""Seconds that a process which only looks may keep a lock from us."""


class RunDirectoryError(Exception):
    """The run directory cannot be used; the message says why and what to do."""


class RunDirectory:
    """Paths of sockets and slot files below one directory that is ours alone (mode 0700).

    Raises:
        RunDirectoryError: the directory is not ours, is open to others, or its path is too long.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if len(os.fsencode(path)) + 1 + _LONGEST_NAME > PATH_LIMIT:
            raise RunDirectoryError(
                f"run directory {path} is too long: at most "
                f"{PATH_LIMIT - 1 - _LONGEST_NAME} bytes (set a shorter --run-dir)"
            )
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise RunDirectoryError(f"run directory {path} is a link; name what it points to")
        if status.st_uid != os.getuid():
            raise RunDirectoryError(f"run directory {path} belongs to uid {status.st_uid}, not us")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise RunDirectoryError(
                f"run directory {path} has mode {stat.S_IMODE(status.st_mode):04o}; "
                "it must be 0700 (chmod 700, or choose another --run-dir)"
            )

    @property
    def balancer(self) -> Path:
        """Where workers register with the balancer (SEQPACKET)."""
        return self.path / "balancer.sock"

    @property
    def hub(self) -> Path:
        """Where workers hold their control connection to the hub (stream)."""
        return self.path / "hub.sock"

    @property
    def api(self) -> Path:
        """The HTTP API of the hub."""
        return self.path / "api.sock"

    @property
    def notify(self) -> Path:
        """Where children tell the supervisor that they are ready and alive (sd_notify)."""
        return self.path / "notify.sock"

    def bus(self, direction: str, incarnation: int) -> str:
        """Return the ZeroMQ address of one life of the hub; direction is ``in`` or ``out``."""
        return f"ipc://{self.path}/bus-{direction}-{incarnation & 0xFFFFFFFF:08x}"

    def slot(self, number: int) -> Path:
        """Return the lock file of a slot."""
        return self.path / f"slot-{number}"


class Slot:
    """The lock that makes a worker the only holder of its slot, kept until the process ends.

    The file also keeps the incarnation: +1 under the lock at each start, random when missing.

    Raises:
        RunDirectoryError: another process holds the slot (named by its pid).
    """

    def __init__(self, directory: RunDirectory, number: int) -> None:
        if not 0 <= number <= 255:
            raise RunDirectoryError(f"slot {number} is out of range: 0 to 255")
        self.number = number
        self._fd = os.open(directory.slot(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(self._fd):
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").partition(" ")[2].strip()
            os.close(self._fd)
            raise RunDirectoryError(f"slot {number} is held by pid {holder or 'unknown'}")
        text = os.pread(self._fd, 64, 0).decode("ascii", "replace").split()
        before = int(text[0]) if text and text[0].isdigit() else secrets.randbelow(256)
        self.incarnation = (before + 1) % 256
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{self.incarnation} {os.getpid()}\n".encode(), 0)
        # A fork with a copy of the descriptor would hold the slot after our end.
        close_in_forks(lambda: (self._fd,))

    def release(self) -> None:
        """Give the slot back; the end of the process does the same."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RoleLock:
    """Makes a process the only one of its role in a run directory, until it ends.

    Args:
        directory: the run directory.
        role: ``hub`` or ``balancer``.

    Raises:
        RunDirectoryError: another process has the role (named by its pid).
    """

    def __init__(self, directory: RunDirectory, role: str) -> None:
        path = directory.path / f"{role}.lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(self._fd):
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise RunDirectoryError(
                f"a {role} runs in {directory.path} already (pid {holder or 'unknown'})"
            )
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process have the role."""
        os.close(self._fd)


def _lock(fd: int) -> bool:
    """Take the lock; a look by ``held_slots`` shares it for an instant, or for as long as the
    process that looks is held up, so such a refusal is none."""
    refusals = 0
    until = time.monotonic() + _LONGEST_LOOK
    while refusals < _REFUSALS and time.monotonic() < until:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _is_looked_at(fd):
                refusals += 1
            time.sleep(0.005)
        else:
            return True
    return False


def _is_looked_at(fd: int) -> bool:
    """Say whether nobody holds the lock: then those who look share it with us."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def held_slots(directory: RunDirectory) -> list[int]:
    """Return the slots that a living process holds, by trying their locks."""
    held = []
    try:
        names = os.listdir(directory.path)  # noqa: PTH208 - glob hides errors from Python 3.13 on
    except (FileNotFoundError, PermissionError):
        return []
    for path in (directory.path / name for name in names if name.startswith("slot-")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(int(path.name.removeprefix("slot-")))
        finally:
            os.close(fd)
    return sorted(held)
