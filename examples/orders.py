"""Who may connect, a namespace of its own, HTTP routes beside it, and a task per worker.

Run it with ``limpet start orders:io --app-dir examples``.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from limpet import ConnectionRefused, Server, Socket

TOKENS = {"secret-of-ada": "ada", "secret-of-grace": "grace"}

io = Server(cors_allowed_origins=["http://localhost:3000"])
orders = io.of("/orders")
tasks: set[asyncio.Task[None]] = set()


@orders.use
async def authenticate(socket: Socket) -> None:
    """Let in who bears a token; presence then shows the user by name."""
    user = TOKENS.get(socket.handshake.auth.get("token", ""))
    if user is None:
        raise ConnectionRefused("unknown token", {"hint": "auth: {token: …}"})
    socket.user = user


@orders.on("connect")
async def connected(socket: Socket) -> None:
    """Put all connections of a user into one room."""
    await socket.join(f"user:{socket.user}")


@orders.on("order")
async def order(socket: Socket, item: str, count: object) -> dict[str, object]:
    """Take an order, and tell every tab of the same user, whichever worker it is on."""
    if not isinstance(count, int) or not 1 <= count <= 100:
        return {"ok": False, "error": "count: 1 to 100"}
    orders.to(f"user:{socket.user}").emit("ordered", {"item": item, "count": count})
    return {"ok": True}


@io.on_startup
async def begin() -> None:
    """Start what runs beside the handlers, once in each worker."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(60)
            orders.local.emit("minute")

    tasks.add(asyncio.create_task(tick()))


@io.on_shutdown
async def end() -> None:
    """End it with the worker."""
    for task in tasks:
        task.cancel()


async def shipped(request: web.Request) -> web.Response:
    """``POST /shipped/ada``: tell a user from outside, wherever the user is connected."""
    orders.to(f"user:{request.match_info['user']}").emit("shipped", await request.json())
    return web.json_response({"ok": True})


io.app.router.add_post("/shipped/{user}", shipped)
