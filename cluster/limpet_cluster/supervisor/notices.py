"""The supervisor's end of the sd_notify protocol: datagrams of children, known by their pid."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from limpet_adapters.counters import count

_CREDENTIALS: Final = struct.Struct("3i")
_LARGEST: Final = 65_536
_FIELDS: Final = 32
"""Fields of one datagram that are looked at."""

Told = Callable[[int, dict[str, str]], None]


class NoticeBoard:
    """The socket on which children say READY=1, WATCHDOG=1, STOPPING=1 and the like.

    The kernel says which process sent a datagram (SO_PASSCRED), so nobody speaks for another;
    what a stranger sends reaches ``told`` with the stranger's pid, to be ignored there.
    """

    def __init__(self, path: Path, told: Told) -> None:
        self.path = path
        self._told = told
        self._socket = _bound(path)
        self._file = path.stat()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read from now on."""
        loop.add_reader(self._socket.fileno(), self.drain)

    @property
    def lost(self) -> bool:
        """Whether its file was removed, or is another's by now: nobody finds us there."""
        try:
            return not os.path.samestat(self._file, self.path.stat())
        except OSError:
            return True

    def renew(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the socket's file anew, which somebody removed.

        Raises:
            OSError: it cannot be made; all stays as it is.
        """
        fresh = _bound(self.path)
        self._file = self.path.stat()
        loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = fresh
        self.attach(loop)

    def drain(self) -> None:
        """Read everything that has arrived."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, 256)
            except (BlockingIOError, InterruptedError):
                return
            pid = 0
            for level, kind, value in ancillary:
                if level != socket.SOL_SOCKET:
                    continue
                if kind == socket.SCM_CREDENTIALS and len(value) >= _CREDENTIALS.size:
                    pid = _CREDENTIALS.unpack_from(value)[0]
                elif kind == socket.SCM_RIGHTS:  # nothing of ours passes descriptors
                    _close_all(value)
            self._told(pid, parse(data))

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop reading and remove the socket."""
        loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if not self.lost:
            self.path.unlink(missing_ok=True)


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    bound = socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    bound.bind(os.fspath(path))
    path.chmod(0o600)
    return bound


def parse(data: bytes) -> dict[str, str]:
    """Return the fields of a datagram; what is not understood is left out and counted."""
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n", _FIELDS)[:_FIELDS]:
        name, separator, value = line.partition("=")
        if not separator or not name:
            if line:
                count("limpet_notify_bad_total", reason="no field")
            continue
        if name == "X_LIMPET_ERROR":
            try:
                value = str(json.loads(value))
            except ValueError:
                count("limpet_notify_bad_total", reason="not JSON")
                continue
        fields[name] = value
    return fields


def _close_all(rights: bytes) -> None:
    descriptors = array.array("i")
    descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
    for fd in descriptors:
        with suppress(OSError):
            os.close(fd)
