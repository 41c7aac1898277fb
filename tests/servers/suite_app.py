"""The application that the official Socket.IO suite expects of a server, and our port of it."""

from __future__ import annotations

from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket

PING_INTERVAL = 0.3
PING_TIMEOUT = 0.2

io = Server(
    cors_allowed_origins="*",
    ping_interval=PING_INTERVAL,
    ping_timeout=PING_TIMEOUT,
    connect_timeout=1.0,
)
calm = Server(cors_allowed_origins="*")
"""The same without hurry: no ping comes in between, however slow the machine is."""
patient = Server(cors_allowed_origins="*", ping_interval=PING_INTERVAL, ping_timeout=5.0)
"""With many pings, whose answers may come late, for tests of those: all it does is to connect."""


@io.on("connect")
@io.of("/custom").on("connect")
@calm.on("connect")
@calm.of("/custom").on("connect")
@patient.on("connect")
def connected(socket: Socket, auth: dict[str, object]) -> None:
    socket.emit("auth", auth)


@io.on("message")
@calm.on("message")
def message(socket: Socket, *args: object) -> None:
    socket.emit("message-back", *args)


@io.on("message-with-ack")
@calm.on("message-with-ack")
def message_with_ack(_socket: Socket, *args: object) -> tuple[object, ...]:
    return args
