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
custom = io.of("/custom")


@io.on("connect")
@custom.on("connect")
def connected(socket: Socket, auth: dict[str, object]) -> None:
    socket.emit("auth", auth)


@io.on("message")
def message(socket: Socket, *args: object) -> None:
    socket.emit("message-back", *args)


@io.on("message-with-ack")
def message_with_ack(_socket: Socket, *args: object) -> tuple[object, ...]:
    return args
