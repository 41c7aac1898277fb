"""The benchmark's events on python-socketio: one process, uvicorn and uvloop."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Any

# By name at run time: type checkers run where neither need be installed.
socketio: Any = import_module("socketio")
uvicorn: Any = import_module("uvicorn")

# Seconds and bytes come from the environment, so that every peer is told the same.
io: Any = socketio.AsyncServer(
    async_mode="asgi",
    ping_interval=float(os.environ.get("BENCH_PING_INTERVAL", "25")),
    ping_timeout=float(os.environ.get("BENCH_PING_TIMEOUT", "20")),
    max_http_buffer_size=int(os.environ.get("BENCH_MAX_MESSAGE", "1000000")),
)


async def echo(_sid: str, data: object) -> object:
    """Acknowledge with what came."""
    return data


async def join(sid: str, room: str) -> str:
    """Enter a room; the acknowledgement says that it is done."""
    await io.enter_room(sid, room)
    return room


async def broadcast(_sid: str, room: str, payload: object) -> None:
    """Emit to everybody in the room."""
    await io.emit("msg", payload, room=room)


async def whoami(_sid: str) -> int:
    """Tell which process serves this connection."""
    return os.getpid()


async def collect(_sid: str) -> bool:
    """Collect garbage, for the memory scenario."""
    gc.collect()
    return True


for name, handler in {
    "echo": echo,
    "bin": echo,
    "join": join,
    "broadcast": broadcast,
    "whoami": whoami,
    "collect": collect,
}.items():
    io.on(name, handler)

if __name__ == "__main__":
    uvicorn.run(
        socketio.ASGIApp(io),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        backlog=4096,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        ws_max_size=int(os.environ.get("BENCH_MAX_MESSAGE", "1000000")),
    )
