"""limpet: a Socket.IO server that fills every core. What applications import is here."""

from __future__ import annotations

from limpet_client.client import Client
from limpet_client.errors import ConnectError, NotSent, SendBufferFull, TransportError
from limpet_cluster.single import run
from limpet_cluster.version import version as _version
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

__version__ = _version()

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
