"""The application of the Python client's tests: the official suite's events, and some more.

python tests/servers/python_client_app.py '{"port": 0, "options": {}}'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # when this is run as a file

from limpet import Socket, run
from servers.client_suite_app import io


@io.of("/early").use
def early(socket: Socket) -> None:
    socket.emit("early", 1)


@io.on("mirror")
def mirror(socket: Socket, *values: object) -> None:
    socket.emit("mirrored", *values)


@io.on("values")
def values(_socket: Socket, *values: object) -> tuple[object, ...]:
    return values


@io.on("whoami")
def whoami(socket: Socket) -> dict[str, object]:
    return {"id": socket.id, "transport": socket.transport_name, "pid": os.getpid()}


@io.on("ask me")
async def ask_me(socket: Socket, question: object) -> Any:
    return await socket.emit_with_ack("question", question)


@io.on("items")
def items(socket: Socket, count: int, text: str) -> None:
    for number in range(count):
        socket.emit("item", number, text)


@io.on("kick me")
def kick_me(socket: Socket, close: bool) -> None:
    socket.disconnect(close)


@io.on("end it")
def end_it(socket: Socket) -> None:
    socket.session.close()


if __name__ == "__main__":
    run(io, "127.0.0.1", json.loads(sys.argv[1]).get("port", 0))
