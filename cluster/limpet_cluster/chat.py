"""The built-in chat: what `limpet start` serves without an application, and an example of one.

A client enters a room under a name, and everybody in the room sees who is there, who types and
what is said. Every request is answered by an acknowledgement: ``{"ok": true, …}`` or
``{"ok": false, "error": …}``.

======== ==================== ====================================================
event    arguments            acknowledgement
======== ==================== ====================================================
name     name                 ``name``
enter    room                 ``room``, and ``users`` who are in it
leave    room
say      room, text           ``at``: when, in seconds since 1970
typing   room, true or false
who      room                 ``users``
======== ==================== ====================================================

Others in the room get ``entered``, ``left``, ``renamed``, ``said`` and ``typing``, each with one
object. A name may also come with the connection: ``auth: {name: "Ada"}``.
"""

from __future__ import annotations

import time
from typing import Any, Final

from aiohttp import web

from limpet_cluster.page import page
from limpet_worker.presence import PresenceUnavailable
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket

NAME_LENGTH: Final = 40
ROOM_LENGTH: Final = 80
TEXT_LENGTH: Final = 4000
ROOMS: Final = 20
"""Rooms that one client may be in at a time."""

Answer = dict[str, Any]

io = Server(cors_allowed_origins="*")


class ChatError(Exception):
    """What the client asked for cannot be done; it is told why."""


def _text(value: object, what: str, longest: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ChatError(f"{what}: expected some text")
    if len(value) > longest:
        raise ChatError(f"{what}: at most {longest} characters")
    return value.strip()


def _entered(socket: Socket, room: object) -> str:
    name = _text(room, "room", ROOM_LENGTH)
    if name not in socket.rooms or name == socket.id:
        raise ChatError(f"you are not in {name}")
    return name


def _enterable(socket: Socket, room: object) -> str:
    name = _text(room, "room", ROOM_LENGTH)
    if len(_mine(socket)) >= ROOMS and name not in socket.rooms:
        raise ChatError(f"you are in {ROOMS} rooms already")
    return name


def _mine(socket: Socket) -> list[str]:
    return [room for room in socket.rooms if room != socket.id]


async def _who(room: str) -> list[str]:
    """Return the names of who is in a room, on every worker."""
    return [one.user for one in await io.presence.list(room)]


@io.use
async def name_it(socket: Socket) -> None:
    """Give every client a name: its own choice, else a guest's."""
    wanted = socket.handshake.auth.get("name")
    try:
        socket.user = _text(wanted, "name", NAME_LENGTH)
    except ChatError:
        socket.user = f"guest-{socket.id[-4:]}"


@io.on("name")
def rename(socket: Socket, name: object = None) -> Answer:
    """Take another name, and tell the rooms."""
    try:
        wanted = _text(name, "name", NAME_LENGTH)
    except ChatError as error:
        return _refusal(error)
    before, socket.user = socket.user, wanted
    for room in _mine(socket):
        socket.to(room).emit("renamed", {"room": room, "from": before, "to": wanted})
    return {"ok": True, "name": wanted}


@io.on("enter")
async def enter(socket: Socket, room: object = None) -> Answer:
    """Enter a room; once this is answered, nothing said in it is missed."""
    try:
        name = _enterable(socket, room)
        await socket.join(name)
        users = await _who(name)
    except (ChatError, PresenceUnavailable) as error:
        return _refusal(error)
    socket.to(name).emit("entered", {"room": name, "user": socket.user})
    return {"ok": True, "room": name, "users": users}


@io.on("leave")
def leave(socket: Socket, room: object = None) -> Answer:
    """Leave a room."""
    try:
        name = _entered(socket, room)
    except ChatError as error:
        return _refusal(error)
    socket.leave(name)
    socket.to(name).emit("left", {"room": name, "user": socket.user})
    return {"ok": True}


@io.on("say")
def say(socket: Socket, room: object = None, text: object = None) -> Answer:
    """Say something to everybody else in a room."""
    try:
        name = _entered(socket, room)
        said = _text(text, "text", TEXT_LENGTH)
    except ChatError as error:
        return _refusal(error)
    at = round(time.time(), 3)
    socket.to(name).emit("said", {"room": name, "user": socket.user, "text": said, "at": at})
    return {"ok": True, "at": at}


@io.on("typing")
def typing(socket: Socket, room: object = None, on: object = True) -> Answer:
    """Tell the others that somebody types; whoever is slow to read need not know."""
    try:
        name = _entered(socket, room)
    except ChatError as error:
        return _refusal(error)
    told = {"room": name, "user": socket.user, "on": bool(on)}
    socket.to(name).volatile.emit("typing", told)
    return {"ok": True}


@io.on("who")
async def who(_socket: Socket, room: object = None) -> Answer:
    """Answer who is in a room, on every worker."""
    try:
        return {"ok": True, "users": await _who(_text(room, "room", ROOM_LENGTH))}
    except (ChatError, PresenceUnavailable) as error:
        return _refusal(error)


@io.on("disconnecting")
def left(socket: Socket, _reason: str) -> None:
    """Tell the rooms that somebody is gone."""
    for room in _mine(socket):
        socket.to(room).emit("left", {"room": room, "user": socket.user})


def _refusal(error: Exception) -> Answer:
    return {"ok": False, "error": str(error)}


async def index(request: web.Request) -> web.Response:
    """Serve the page that says what runs here and how to connect."""
    text = page(
        base=str(request.url.origin()),
        path=io.options.path,
        transports=io.options.transports,
        worker=io.worker_name,
    )
    return web.Response(
        text=text,
        content_type="text/html",
        headers={
            "Cache-Control": "no-store",
            # The page brings everything along; whatever else gets into it is not run.
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "X-Content-Type-Options": "nosniff",
        },
    )


io.app.router.add_get("/", index)
