"""What a fork of this process (multiprocessing, os.fork) must not keep: our sockets and orphans.

A fork that holds a copy of a client's socket keeps the connection open after we closed it, and
one that holds our control socket hides our death from the hub. Programs that are started with
exec are no concern of this module: every descriptor of ours is close-on-exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1

_sources: list[Callable[[], Iterable[int]]] = []
_directories: list[str] = []
_from_main_thread = [False]
_registered = [False]


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send us a signal when the thread that started us ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def close_in_forks(source: Callable[[], Iterable[int]]) -> None:
    """Have the descriptors that ``source()`` returns at the time closed in each fork."""
    _register()
    _sources.append(source)


def close_directory_in_forks(directory: Path) -> None:
    """Have every unix socket with an address below the directory closed in each fork."""
    _register()
    _directories.append(f"{directory}/")


def _register() -> None:
    if not _registered[0]:
        _registered[0] = True
        os.register_at_fork(before=_before, after_in_child=_in_child)


def _before() -> None:
    _from_main_thread[0] = threading.current_thread() is threading.main_thread()


def _in_child() -> None:
    # The signal comes when the *thread* that forked ends, so only forks of the main thread get
    # it: a pool process that a short-lived thread started must outlive that thread.
    if _from_main_thread[0]:
        set_parent_death_signal(signal.SIGKILL)
    with suppress(Exception):  # a fork must come up whatever is in here
        doomed = {fd for source in _sources for fd in source()}
        doomed.update(_below_directories())
        for fd in doomed:
            with suppress(OSError):
                os.close(fd)


def _below_directories() -> list[int]:
    found: list[int] = []
    if not _directories:
        return found
    prefixes = tuple(_directories)
    for fd in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            borrowed = socket.socket(fileno=fd)
            try:
                if borrowed.family == socket.AF_UNIX and any(
                    isinstance(name, str) and name.startswith(prefixes)
                    for name in (borrowed.getsockname(), _peer(borrowed))
                ):
                    found.append(fd)
            finally:
                borrowed.detach()
    return found


def _peer(connection: socket.socket) -> object:
    try:
        return connection.getpeername()
    except OSError:
        return ""
