"""An Engine.IO server that sends every message back; run, it prints where it listens.

    python tests/servers/engineio_echo.py --port 3000

Path and heartbeat are what the official protocol suite expects of its server.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, cast

import uvloop

from limpet_adapters.identity import IdFactory, WorkerAddress
from limpet_worker.engineio.options import EngineOptions
from limpet_worker.engineio.server import EngineServer
from limpet_worker.engineio.session import Session
from limpet_worker.http.frontdoor import Doorway, Migrator
from limpet_worker.http.routes import Site
from limpet_worker.websocket.transport import WebSocketConnection


class Echo:
    """A sink that sends back what it gets, and keeps what it was told."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.received: list[str | bytes] = []
        self.reasons: list[str] = []
        self.upgrades = 0

    def on_text(self, data: bytes) -> None:
        text = bytes(data).decode("utf-8")
        self.received.append(text)
        self.session.send(text)

    def on_binary(self, data: bytes) -> None:
        self.received.append(bytes(data))
        self.session.send(bytes(data))

    def on_upgrade(self) -> None:
        self.upgrades += 1

    def on_close(self, reason: str) -> None:
        self.reasons.append(reason)


class EchoServer:
    """An engine of echoes behind a doorway; ``echoes`` keeps every session there ever was."""

    def __init__(
        self,
        *,
        address: WorkerAddress | None = None,
        site: Site | None = None,
        migrator: Migrator | None = None,
        doorway: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.echoes: dict[str, Echo] = {}
        settings = {"path": "/engine.io/", "ping_interval": 0.3, "ping_timeout": 0.2, **options}
        self.engine = EngineServer(
            EngineOptions(**settings),
            self._begin,
            IdFactory(address or WorkerAddress(1, 0, 1)),
        )
        self.doorway = Doorway(self.engine, site, migrator, **(doorway or {}))

    def _begin(self, session: Session) -> Echo:
        echo = self.echoes[session.sid] = Echo(session)
        return echo

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen and return where."""
        server = await self.doorway.listen(host, port)
        name = server.sockets[0].getsockname()
        return name[0], name[1]

    async def close(self) -> None:
        self.engine.close_all()
        for connection in list(self.engine.goodbyes):
            # That its client has gone may not be known yet, and nobody waits any more.
            cast("WebSocketConnection", connection).abort()
        self.engine.stop()
        await self.doorway.close()


async def _serve(host: str, port: int) -> None:
    server = EchoServer()
    address = await server.listen(host, port)
    print(f"engineio echo ready on {address[0]}:{address[1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Engine.IO echo server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    arguments = parser.parse_args()
    factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(arguments.host, arguments.port))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
