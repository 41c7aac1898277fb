"""An application with small limits, and events that use up each of them."""

from __future__ import annotations

import asyncio
import re
import time

from aiohttp import web

from limpet import Server, Socket

io = Server(
    # Times that tests wait for, and yet no process stands still for so long.
    ping_interval=3.0,
    ping_timeout=3.0,
    upgrade_timeout=0.4,
    max_http_buffer_size=20_000,
    connect_timeout=3.0,
    max_attachments=2,
    max_attached_bytes=1000,
    max_namespaces=2,
    max_pending_events=5,
)
chat = io.of("/chat")
io.of(re.compile(r"/room-\d+"))


@io.on("echo")
async def echo(_socket: Socket, *args: object) -> tuple[object, ...]:
    return args


@io.on("plain")
def plain(_socket: Socket, value: object) -> object:
    return value


@io.on("slow")
async def slow(_socket: Socket) -> str:
    await asyncio.sleep(0.2)
    return "done"


@io.on("block")
def block(_socket: Socket, seconds: float) -> None:
    time.sleep(seconds)


@io.on("wait")
async def wait(_socket: Socket) -> None:
    await asyncio.sleep(30)


@io.on("fail")
def fail(_socket: Socket) -> None:
    raise ValueError("as asked")


@io.on("join")
async def join(socket: Socket, *rooms: str) -> int:
    await socket.join(rooms)
    return len(socket.rooms)


@io.on("say")
def say(_socket: Socket, room: str, text: str) -> str:
    io.to(room).emit("said", text)
    return "said"


@io.on("ask me")
async def ask_me(socket: Socket, seconds: float) -> str:
    try:
        await socket.timeout(seconds).emit_with_ack("question")
    except TimeoutError:
        return "no answer"
    return "answer"


@io.on("flood")
async def flood(socket: Socket, packets: int, size: int) -> None:
    for _ in range(packets):
        socket.emit("x", "x" * size)
        await asyncio.sleep(0)


@io.on("volatile")
def volatile(socket: Socket, packets: int, size: int) -> None:
    for _ in range(packets):
        socket.volatile.emit("x", "x" * size)


@io.on("who")
def who(_socket: Socket) -> str:
    return io.worker_name


@chat.on("hi")
def hi(_socket: Socket) -> str:
    return "hi"


async def upload(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await request.read())))


io.app.router.add_post("/upload", upload)
