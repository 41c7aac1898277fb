"""An application that logs, as applications do: through a logger of its own."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from limpet import ConnectionRefused, Server, Socket

log = logging.getLogger("shop")
io = Server()
routes = web.RouteTableDef()
_tasks: set[asyncio.Task[None]] = set()


@io.use
async def who(socket: Socket) -> None:
    socket.user = socket.handshake.auth.get("user")
    log.info("asks to come in")
    if socket.user is None:
        raise ConnectionRefused("who are you?")


@io.on("plain")
def plain(_socket: Socket, text: str) -> str:
    log.info("plain %s", text)
    return text


@io.on("waits")
async def waits(_socket: Socket, text: str) -> str:
    await asyncio.sleep(0.01)
    log.info("waited %s", text)
    return text


@io.on("starts")
def starts(_socket: Socket, text: str) -> str:
    async def later() -> None:
        await asyncio.sleep(0.01)
        log.info("later %s", text)

    task = asyncio.create_task(later())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return text


@io.on("fails")
def fails(_socket: Socket) -> None:
    raise RuntimeError("as it should")


@io.on("tells")
def tells(socket: Socket) -> str:
    log.warning("its session is %s", socket.session.sid)
    return socket.session.sid


@io.on("repeats")
def repeats(_socket: Socket) -> str:
    for number in range(50):
        log.warning("again %d", number)
    log.info("odd %d %d", 1)  # noqa: PLE1206 - a mistake that applications make
    return "done"


@io.on("disconnect")
def gone(_socket: Socket, reason: str) -> None:
    log.info("gone: %s", reason)


@routes.get("/basket")
async def basket(_request: web.Request) -> web.Response:
    log.info("basket")
    return web.Response(text="empty")


io.app.add_routes(routes)
