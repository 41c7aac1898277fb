"""The application that the stock clients of the interoperability tests talk to."""

from __future__ import annotations

import asyncio
import os

from limpet import ConnectionRefused, Server, Socket

io = Server(cors_allowed_origins="*")
admin = io.of("/admin")


@io.on("echo")
def echo(_socket: Socket, *args: object) -> tuple[object, ...]:
    return args


@io.on("reply")
def reply(socket: Socket, *args: object) -> None:
    socket.emit("replied", *args)


@io.on("whoami")
def whoami(socket: Socket) -> dict[str, object]:
    return {"pid": os.getpid(), "transport": socket.transport_name, "id": socket.id}


@io.on("join")
async def join(socket: Socket, room: str) -> int:
    await socket.join(room)
    return os.getpid()


@io.on("leave")
async def leave(socket: Socket, room: str) -> None:
    await socket.leave(room)


@io.on("say")
def say(_socket: Socket, room: str, *args: object) -> int:
    io.to(room).emit("said", *args)
    return os.getpid()


@io.on("say others")
def say_others(socket: Socket, room: str, *args: object) -> None:
    socket.to(room).emit("said", *args)


@io.on("say all")
def say_all(_socket: Socket, *args: object) -> None:
    io.emit("said", *args)


@io.on("ask me")
async def ask_me(socket: Socket, question: object) -> object:
    return await socket.timeout(20).emit_with_ack("question", question)


@io.on("never")
async def never(_socket: Socket) -> None:
    await asyncio.sleep(3600)


@io.on("kick me")
async def kick_me(socket: Socket, close: bool) -> None:
    await asyncio.sleep(0)
    socket.disconnect(close)


@admin.use
async def only_with_token(socket: Socket) -> None:
    if socket.handshake.auth.get("token") != "secret":
        raise ConnectionRefused("wrong token", {"hint": "ask the admin"})


@admin.on("echo")
def admin_echo(_socket: Socket, *args: object) -> tuple[object, ...]:
    return args
