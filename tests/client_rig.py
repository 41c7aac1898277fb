"""What the tests of the Python client have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from limpet_client.client import Client
from limpet_client.manager import Manager
from limpet_client.socket import Socket

NewClient = Callable[..., Client]


class Heard:
    """What handlers were called with, and how to wait for it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._new = asyncio.Event()

    def __call__(self, *arguments: Any) -> None:
        self.calls.append(arguments)
        self._new.set()

    async def wait(self, amount: int = 1) -> list[tuple[Any, ...]]:
        async with asyncio.timeout(15):
            while len(self.calls) < amount:
                self._new.clear()
                await self._new.wait()
        return self.calls


def closed_port() -> int:
    """Return a port that nobody listens on, and that no server that starts meanwhile gets."""
    return 1


def cut(target: Socket | Manager) -> None:
    """End the connection below, as the official suite does with ``engine.close()``."""
    manager = target if isinstance(target, Manager) else target.manager
    assert manager.connection is not None
    manager.connection.close()
