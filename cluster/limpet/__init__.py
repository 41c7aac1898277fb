"""limpet: a Socket.IO server that fills every core. What applications import is here.

Each name is imported when it is first asked for: the command line, the supervisor and the balancer
need none of it, and to import all takes half a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limpet_client.client import Client
    from limpet_client.errors import ConnectError, NotSent, SendBufferFull, TransportError
    from limpet_cluster.single import run
    from limpet_worker.errors import OptionError
    from limpet_worker.presence import Presence, PresenceUnavailable, PresentUser
    from limpet_worker.socketio.broadcast import BroadcastOperator
    from limpet_worker.socketio.errors import (
        AckTimeout,
        ConnectionRefused,
        Disconnected,
        NotStarted,
        SocketIOError,
    )
    from limpet_worker.socketio.handshake import Handshake
    from limpet_worker.socketio.namespace import Namespace, ParentNamespace
    from limpet_worker.socketio.server import Server
    from limpet_worker.socketio.socket import Socket

    __version__: str

__all__ = [
    "AckTimeout",
    "BroadcastOperator",
    "Client",
    "ConnectError",
    "ConnectionRefused",
    "Disconnected",
    "Handshake",
    "Namespace",
    "NotSent",
    "NotStarted",
    "OptionError",
    "ParentNamespace",
    "Presence",
    "PresenceUnavailable",
    "PresentUser",
    "SendBufferFull",
    "Server",
    "Socket",
    "SocketIOError",
    "TransportError",
    "__version__",
    "run",
]

_HOMES = {
    "AckTimeout": "limpet_worker.socketio.errors",
    "BroadcastOperator": "limpet_worker.socketio.broadcast",
    "Client": "limpet_client.client",
    "ConnectError": "limpet_client.errors",
    "ConnectionRefused": "limpet_worker.socketio.errors",
    "Disconnected": "limpet_worker.socketio.errors",
    "Handshake": "limpet_worker.socketio.handshake",
    "Namespace": "limpet_worker.socketio.namespace",
    "NotSent": "limpet_client.errors",
    "NotStarted": "limpet_worker.socketio.errors",
    "OptionError": "limpet_worker.errors",
    "ParentNamespace": "limpet_worker.socketio.namespace",
    "Presence": "limpet_worker.presence",
    "PresenceUnavailable": "limpet_worker.presence",
    "PresentUser": "limpet_worker.presence",
    "SendBufferFull": "limpet_client.errors",
    "Server": "limpet_worker.socketio.server",
    "Socket": "limpet_worker.socketio.socket",
    "SocketIOError": "limpet_worker.socketio.errors",
    "TransportError": "limpet_client.errors",
    "run": "limpet_cluster.single",
}


def __getattr__(name: str) -> object:
    """Import a public name on its first use (PEP 562)."""
    if name == "__version__":
        value: object = import_module("limpet_cluster.version").version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
