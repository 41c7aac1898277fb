"""What a process tells its supervisor (ours or systemd): ready, alive, stopping (sd_notify)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Final, Self

log = logging.getLogger("limpet.notify")

_LARGEST: Final = 60_000
"""Bytes of one datagram; longer texts are cut."""
_PATIENCE: Final = 0.5
"""Seconds that a full queue is waited for."""
_AGAIN: Final = 1.0
"""Seconds until it is said again that this process is ready, where no watchdog sets the pace."""
_LAST_WORDS: Final = 5.0
"""The same for what is said just before this process ends."""


class Notifier:
    """The sending end of the sd_notify protocol; silent when nobody supervises this process.

    Nothing here raises: a supervisor that cannot be reached must not end the work.
    """

    __slots__ = ("_socket", "_timer", "_unheard", "address", "was_ready", "watchdog")

    def __init__(self, address: str | None = None, watchdog: float = 0.0) -> None:
        self.address = address
        """Path of the supervisor's socket, ``@name`` in the abstract namespace; None: nobody."""
        self.watchdog = watchdog
        """Seconds without a sign of life after which this process is replaced; 0: never."""
        self.was_ready = False
        """Whether it said so."""
        self._socket: socket.socket | None = None  # opened by the first message
        self._timer: asyncio.TimerHandle | None = None  # set while the watchdog is fed
        self._unheard = False  # whether it is ready and the queue had no room to say so

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Take NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of the environment.

        They are removed so that programs which the application starts do not speak in our name.
        """
        address = environ.pop("NOTIFY_SOCKET", None)
        microseconds = environ.pop("WATCHDOG_USEC", "0")
        meant_for = environ.pop("WATCHDOG_PID", "")
        if meant_for not in ("", str(os.getpid())) or not microseconds.isdigit():
            microseconds = "0"
        return cls(address or None, int(microseconds) / 1e6)

    def ready(self, status: str = "") -> None:
        """Say that this process does its work from now on."""
        self.was_ready = True
        text = "READY=1" + (f"\nSTATUS={_line(status)}" if status else "")
        self._unheard = not self._send(text)

    def alive(self) -> None:
        """Give a sign of life; say again that this process is ready if that was not to be heard."""
        if self._unheard:
            self._unheard = not self._send("READY=1", wait=0.0)
        if self.watchdog > 0:
            self._send("WATCHDOG=1", wait=0.0)

    def status(self, text: str) -> None:
        """Say in one line what this process is doing."""
        self._send(f"STATUS={_line(text)}", wait=0.0)

    def stopping(self) -> None:
        """Say that this process is on its way out."""
        self._unheard = False  # whoever was not told that it is ready need not know any more
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Ask for more time to start or to stop, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", wait=0.0)

    def failed(self, message: str) -> None:
        """Tell why this process cannot start, in as many lines as it takes.

        systemd ignores the field; our supervisor shows the message once for all workers.
        """
        while len(text := json.dumps(message)) > _LARGEST:
            message = "…" + message[-len(message) // 2 :]
        self._send(f"X_LIMPET_ERROR={text}", wait=_LAST_WORDS)

    def start_watchdog(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send a sign of life from the event loop, three times per interval, once it is ready.

        The first one would wind up systemd's watchdog, while an application that takes long to
        be imported holds the loop up: until it is ready, it has the time that a start may take.
        Where nobody wants signs of life, this goes on until it was heard that it is ready.
        """
        if self.address is None:
            return
        if self.was_ready:
            self.alive()
            if self.watchdog <= 0 and not self._unheard:
                return
        pause = self.watchdog / 3 if self.watchdog > 0 else _AGAIN
        self._timer = loop.call_later(pause, self.start_watchdog, loop)

    def close(self) -> None:
        """Give the socket back and let the watchdog starve."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str, *, wait: float = _PATIENCE) -> bool:
        """Send a datagram, or drop it when the queue stays full; return whether it is on its way.

        What is said again anyway waits for nobody.
        """
        if self.address is None:
            return True
        address = self.address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(wait)
            self._socket.sendto(text.encode("utf-8", "replace"), address)
        except OSError as error:
            log.debug("supervisor at %s not told %r: %s", self.address, text[:40], error)
            return False
        return True


def _line(text: str) -> str:
    return " ".join(text.split())
