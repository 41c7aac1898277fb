"""The application of the herd: numbers to everybody, and who serves whom."""

from __future__ import annotations

import os
import secrets

from limpet import Server, Socket

# Who gives up while waiting for a session leaves one that nobody will use, until its first ping.
io = Server(cors_allowed_origins="*", ping_interval=5, ping_timeout=5)

LIFE = secrets.token_hex(4)
"""Names this life of this worker."""


@io.on("enter")
async def enter(socket: Socket, *rooms: str) -> list[object]:
    for room in rooms:
        await socket.join(room)
    return [os.getpid(), LIFE]


@io.on("echo")
def echo(_socket: Socket, *args: object) -> tuple[object, ...]:
    return args


@io.on("say")
def say(_socket: Socket, source: str, number: int) -> int:
    io.emit("n", source, number)
    return number


@io.on("bus_gap")
def bus_gap(gap: dict[str, object]) -> None:
    """Tell the clients of this worker, and no others, what it was told."""
    io.local.emit("gap", str(gap.get("kind")), str(gap.get("reason")))
