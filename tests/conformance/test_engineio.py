"""The titles of the official Engine.IO v4 suite against one worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engineio_titles import Base, EngineIoTitles
from servers.engineio_echo import EchoServer


class TestOneWorker(EngineIoTitles):
    @pytest.fixture
    async def base(self) -> AsyncIterator[Base]:
        server = EchoServer()
        yield await server.listen()
        await server.close()
