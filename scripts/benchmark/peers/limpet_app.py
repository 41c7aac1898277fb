"""The benchmark's events on limpet; `scripts/bench` starts it with two workers."""

from __future__ import annotations

import gc
import os

from limpet import Server, Socket

# Seconds and bytes come from the environment, so that every peer is told the same.
io = Server(
    ping_interval=float(os.environ.get("BENCH_PING_INTERVAL", "25")),
    ping_timeout=float(os.environ.get("BENCH_PING_TIMEOUT", "20")),
    max_http_buffer_size=int(os.environ.get("BENCH_MAX_MESSAGE", "1000000")),
)
gaps: list[object] = []


@io.on("echo")
def echo(_socket: Socket, data: object) -> object:
    """Acknowledge with what came."""
    return data


@io.on("bin")
def binary(_socket: Socket, data: object) -> object:
    """Acknowledge with what came, bytes this time."""
    return data


@io.on("join")
async def join(socket: Socket, room: str) -> str:
    """Enter a room; the acknowledgement says that the whole cluster knows."""
    await socket.join(room)
    return room


@io.on("broadcast")
def broadcast(_socket: Socket, room: str, payload: object) -> None:
    """Emit to everybody in the room."""
    io.to(room).emit("msg", payload)


@io.on("whoami")
def whoami(_socket: Socket) -> int:
    """Tell which process serves this connection."""
    return os.getpid()


@io.on("collect")
def collect(_socket: Socket) -> bool:
    """Collect garbage, for the memory scenario."""
    gc.collect()
    return True


@io.on("bus_gap")
def bus_gap(gap: object) -> None:
    """Remember what the bus says it may have lost, for the fault scenarios."""
    gaps.append(gap)


@io.on("gaps")
def told(_socket: Socket) -> int:
    """Tell how many gaps this worker's app was told of."""
    return len(gaps)
