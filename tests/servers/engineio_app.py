"""An application below Socket.IO: every Engine.IO message is sent back, for the official suite."""

from __future__ import annotations

from limpet_worker.engineio.session import Session
from limpet_worker.engineio.sink import Sink
from limpet_worker.socketio.server import Server
from servers.engineio_echo import Echo


class EchoEverything(Server):
    """A server whose sessions are echoes instead of Socket.IO clients."""

    def _on_session(self, session: Session) -> Sink:  # type: ignore[override]
        return Echo(session)


io = EchoEverything(
    path="/engine.io/", cors_allowed_origins="*", ping_interval=0.3, ping_timeout=0.2
)
calm = EchoEverything(path="/engine.io/", cors_allowed_origins="*")
"""The same without hurry: no ping comes in between, however slow the machine is."""
patient = EchoEverything(path="/engine.io/", cors_allowed_origins="*", ping_interval=0.3)
"""The same with many pings, whose answers may come late."""
