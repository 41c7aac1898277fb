"""The hub's end of the control connections: who said hello, and what each is welcomed with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from limpet_adapters.control import ControlConnection, ControlError, ControlServer, Hello

logger = logging.getLogger("limpet.control")

Greeter = Callable[[ControlConnection, Hello], dict[str, object]]
"""Adds its part to the welcome of a worker; raises ControlError to refuse the worker."""


class HubControl(ControlServer):
    """The control server of the hub: one connection per worker, found by worker id.

    Each part of the hub appends a greeter, whose answers are merged into the welcome, and is told
    by ``on_lost`` when a worker's connection is gone. The same worker connecting again replaces
    its earlier connection, whose end is told first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.workers: dict[int, ControlConnection] = {}
        """The connection of each worker that said hello, by worker id."""
        self.greeters: list[Greeter] = []
        self.on_lost: list[Callable[[ControlConnection, Hello], None]] = []
        """Called once for each worker whose connection ended."""
        self.handle("hello", self._hello)
        self.on_close.append(self._gone)

    def _hello(self, connection: ControlConnection, body: object) -> dict[str, object]:
        if connection.owner is not None:
            raise ControlError("hello was said already")
        hello = msgspec.convert(body, Hello)
        earlier = self.workers.get(hello.worker_id)
        if earlier is not None:
            self._gone(earlier)
            earlier.abort()
        connection.owner = hello
        self.workers[hello.worker_id] = connection
        welcome: dict[str, object] = {}
        try:
            for greeter in self.greeters:
                welcome |= greeter(connection, hello)
        except ControlError:
            self._gone(connection)
            raise
        return welcome

    def _gone(self, connection: ControlConnection) -> None:
        hello = connection.owner
        if isinstance(hello, Hello) and self.workers.get(hello.worker_id) is connection:
            del self.workers[hello.worker_id]
            connection.owner = None
            for told in self.on_lost:
                told(connection, hello)
