"""The application of the drain tests: slow handlers, numbers to everybody, a page, last words."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from aiohttp import web

from limpet import Server, Socket

io = Server(cors_allowed_origins="*")


@io.on("connect")
def connected(socket: Socket) -> None:
    socket.data["seen"] = 0


@io.on("whoami")
def whoami(_socket: Socket) -> int:
    return os.getpid()


@io.on("say")
def say(_socket: Socket, number: int) -> None:
    io.emit("n", number)


@io.on("slow")
async def slow(_socket: Socket, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@io.on("until")
async def until(_socket: Socket, path: str) -> str:
    """Take until a file is there."""
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return "done"


@io.on("burst")
async def burst(socket: Socket, count: int, size: int, seconds: float) -> int:
    """Send much, take a while, send the rest, all just before the client is closed."""
    for number in range(count):
        socket.emit("b", number, "x" * size)
    await asyncio.sleep(seconds)
    for number in range(count, 2 * count):
        socket.emit("b", number, "x" * size)
    return 2 * count


@io.on("watch")
async def watch(socket: Socket) -> None:
    await socket.join("watchers")


@io.on("disconnect")
def gone(socket: Socket, reason: str) -> None:
    io.to("watchers").emit("gone", socket.id, reason)


async def page(_request: web.Request) -> web.Response:
    return web.Response(text=str(os.getpid()))


async def slow_page(_request: web.Request) -> web.Response:
    print("the slow page is asked for", flush=True)
    await asyncio.sleep(1.0)
    return web.Response(text=str(os.getpid()))


io.app.router.add_get("/page", page)
io.app.router.add_get("/slow", slow_page)
