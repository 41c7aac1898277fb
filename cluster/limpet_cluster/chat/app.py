"""The built-in chat: what `limpet start` serves without an application, and an example of one.

A client enters a room under a name, and everybody in the room sees who is there, who types, what
is said and which pictures are shown. Nothing is kept: who comes later has missed it. Every request
is answered by an acknowledgement: ``{"ok": true, …}`` or ``{"ok": false, "error": …}``.

======== ====================== =====================================================
event    arguments              acknowledgement
======== ====================== =====================================================
name     name                   ``name``
enter    room                   ``room``, ``users`` who are in it, ``count`` of them
leave    room
say      room, text, id         ``at``: when, in seconds since 1970; ``id``
typing   room, true or false
who      room                   ``users``, ``count``
shown    room, from, ids
picture  room, {id, type, size, ``at``
         name, next}
piece    id, number, bytes, to  ``got``: bytes that have passed so far
missing  room, from, id,
         numbers
======== ====================== =====================================================

Others in the room get ``entered``, ``left``, ``renamed``, ``said``, ``typing``, ``picture`` and
``piece``, each with one object, or ``people``, which tells all there is to tell of who is there:
``users`` is null when they are too many or nobody knows. A name may also come with the connection:
``auth: {name: "Ada"}``; the server begins with ``welcome``.

The id of what is said or shown is its sender's choice and may be left out. Who sends again, because
no acknowledgement came before the connection was lost, uses the same id, and receivers show it
once. A receiver on whose screen it was tells so with ``shown``, which reaches the sender.

A picture is announced by ``picture``, then comes in pieces, each acknowledged when it was passed
on. Pieces skip clients that cannot take them right now, so nobody is overrun; who lacks some asks
the sender for them with ``missing``, and the sender sends them ``to`` that one. After a new
connection the sender announces it again, with the ``next`` piece to come, under a new address;
who has missed that asks the room: ``from`` is null then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from inspect import isawaitable, signature
from typing import Any, Final, NoReturn, TypeVar

from limpet_adapters.identity import address_of
from limpet_cluster.chat.page import add_routes
from limpet_cluster.chat.people import People
from limpet_cluster.chat.pictures import PIECE, SIZE, TYPES, Picture, PictureError
from limpet_worker.presence import PresenceUnavailable
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket

NAME_LENGTH: Final = 40
ROOM_LENGTH: Final = 80
TEXT_LENGTH: Final = 4000
ROOMS: Final = 20
"""Rooms that one client may be in at a time."""
PICTURES: Final = 4
"""Pictures of one client that pieces may be asked of; the oldest makes room for the next."""
IDS: Final = 50
"""Ids, or numbers of pieces, in one request."""

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_RECEIPTS: Final = 2000
"""Messages of which a worker remembers that their senders know they were seen."""
_GAPS: Final = 2.0
"""Seconds for which one telling of lost messages is enough."""

Answer = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

# One event of a client after the other: who asks much waits for itself.
io = Server(cors_allowed_origins="*", ordered=True, max_pending_events=1000)
people = People(io)


class Told:
    """What this worker told clients and need not tell again."""

    __slots__ = ("gap_at", "seen")

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], None] = {}
        """Senders and ids of theirs that somebody saw; the oldest first."""
        self.gap_at = float("-inf")
        """When messages were missing, in monotonic seconds."""

    def first(self, sender: str, number: str) -> bool:
        """Return whether nobody had seen this before."""
        if (sender, number) in self.seen:
            return False
        self.seen[sender, number] = None
        if len(self.seen) > _RECEIPTS:
            del self.seen[next(iter(self.seen))]
        return True


told = Told()


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
    mine, other = address_of(socket.id), address_of(name)
    if mine is not None and other is not None and mine.node == other.node:
        raise ChatError(f"{name} is the id of a client")  # and so the name of its own room
    if len(_mine(socket)) >= ROOMS and name not in socket.rooms:
        raise ChatError(f"you are in {ROOMS} rooms already")
    return name


def _mine(socket: Socket) -> list[str]:
    return [room for room in socket.rooms if room != socket.id]


def _id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ChatError("id: expected 1 to 40 letters, digits, - or _")
    return value


def _client(value: object) -> str:
    if not isinstance(value, str) or address_of(value) is None:
        raise ChatError("expected the id of a client")
    return value


def _several(values: object, what: str) -> Sequence[object]:
    if not isinstance(values, list) or not 0 < len(values) <= IDS:
        raise ChatError(f"{what}: expected a list of 1 to {IDS}")
    return values


def _now() -> float:
    return round(time.time(), 3)


def request(event: str) -> Callable[[F], F]:
    """Register what answers a request; what it raises becomes the refusal.

    The function is plain or async. Values that are missing are None, and further ones ignored.
    """

    def register(handler: F) -> F:
        count = len(signature(handler).parameters) - 1

        async def answer(socket: Socket, *values: object) -> Answer:
            given = (*values[:count], *(None,) * (count - len(values)))
            try:
                found = handler(socket, *given)
                return {"ok": True, **(await found if isawaitable(found) else found)}
            except (ChatError, PictureError, PresenceUnavailable) as error:
                return {"ok": False, "error": str(error)}

        io.on(event, answer)
        return handler

    return register


# --- who is there ---------------------------------------------------------


@io.use
async def name_it(socket: Socket) -> None:
    """Give every client a name: its own choice, else a guest's."""
    wanted = socket.handshake.auth.get("name")
    try:
        socket.user = _text(wanted, "name", NAME_LENGTH)
    except ChatError:
        socket.user = f"guest-{socket.id[-4:]}"


@io.on("connect")
def welcome(socket: Socket) -> None:
    """Tell a client who it is, who serves it and what it may send."""
    limits = {
        "name": NAME_LENGTH,
        "room": ROOM_LENGTH,
        "text": TEXT_LENGTH,
        "rooms": ROOMS,
        "picture": SIZE,
        "piece": PIECE,
        "types": TYPES,
    }
    socket.emit("welcome", {"user": socket.user, "worker": io.worker_name, "limits": limits})


@request("name")
async def rename(socket: Socket, name: object) -> Answer:
    """Take another name, and tell the rooms."""
    wanted = _text(name, "name", NAME_LENGTH)
    before, socket.user = socket.user, wanted
    if before != wanted:
        for room in _mine(socket):
            await people.rename(socket, room, before)
    return {"name": wanted}


@request("enter")
async def enter(socket: Socket, room: object) -> Answer:
    """Enter a room; once this is answered, nothing said in it is missed."""
    name = _enterable(socket, room)
    await socket.join(name)
    return {"room": name, **await people.enter(socket, name)}


@request("leave")
def leave(socket: Socket, room: object) -> Answer:
    """Leave a room."""
    name = _entered(socket, room)
    socket.leave(name)
    people.left(name)
    return {}


@io.on("disconnect")
def gone(socket: Socket) -> None:
    """Leave all rooms."""
    for room in _mine(socket):
        people.left(room)


@request("who")
async def who(_socket: Socket, room: object) -> Answer:
    """Answer who is in a room, on every worker."""
    return await people.ask(_text(room, "room", ROOM_LENGTH))


# --- what is said ---------------------------------------------------------


@request("say")
def say(socket: Socket, room: object, text: object, number: object) -> Answer:
    """Say something to everybody else in a room."""
    name = _entered(socket, room)
    said = _text(text, "text", TEXT_LENGTH)
    answer = {"id": io.new_id() if number is None else _id(number), "at": _now()}
    socket.to(name).emit("said", {**_from(socket, name), **answer, "text": said})
    return answer


@request("typing")
def typing(socket: Socket, room: object, on: object) -> Answer:
    """Tell the others that somebody types; whoever is slow to read need not know."""
    name = _entered(socket, room)
    state = {"room": name, "user": socket.user, "on": on is not False}
    socket.to(name).volatile.emit("typing", state)
    return {}


@request("shown")
def shown(socket: Socket, room: object, sender: object, ids: object) -> Answer:
    """Tell a sender that something was on somebody's screen, once per worker."""
    name = _entered(socket, room)
    to = _client(sender)
    numbers = [_id(one) for one in _several(ids, "ids")]
    news = [one for one in numbers if told.first(to, one)]
    if news:
        io.to(to).emit("shown", {"room": name, "user": socket.user, "ids": news})
    return {}


# --- pictures -------------------------------------------------------------


@request("picture")
def picture(socket: Socket, room: object, what: object) -> Answer:
    """Announce a picture, or say after a new connection that it goes on."""
    name = _entered(socket, room)
    given = what if isinstance(what, dict) else {}
    number = _id(given.get("id"))
    title = _text(given.get("name"), "name", ROOM_LENGTH)
    it = Picture(name, given.get("type"), given.get("size"), given.get("next", 0))
    mine = _pictures(socket)
    mine.pop(number, None)
    mine[number] = it
    while len(mine) > PICTURES:
        del mine[next(iter(mine))]
    at = _now()
    about = {"id": number, "at": at, "name": title, "type": it.type, "size": it.size}
    state = {"piece": PIECE, "next": it.next}
    socket.to(name).emit("picture", {**_from(socket, name), **about, **state})
    return {"at": at}


@request("piece")
def piece(socket: Socket, number: object, index: object, data: object, to: object) -> Answer:
    """Pass a piece on to those who can take it now, or to the one who missed it."""
    it = _pictures(socket).get(_id(number)) or _unknown()
    name = _entered(socket, it.room)
    passed = {"room": name, "id": number, "from": socket.id, "number": index, "data": data}
    if to is None:
        it.take(index, data)
        socket.to(name).volatile.emit("piece", passed)
    else:
        receiver = _client(to)
        it.again(index, data)
        io.to(receiver).emit("piece", passed)
    return {"got": it.got}


@request("missing")
def missing(
    socket: Socket, room: object, sender: object, number: object, indices: object
) -> Answer:
    """Ask the sender of a picture for pieces that did not come; nobody named: everybody."""
    name = _entered(socket, room)
    wanted = [one for one in _several(indices, "numbers") if type(one) is int]
    asked = {"room": name, "id": _id(number), "by": socket.id, "numbers": wanted}
    whom = socket.to(name) if sender is None else io.to(_client(sender))
    whom.emit("missing", asked)
    return {}


def _from(socket: Socket, room: str) -> dict[str, object]:
    return {"room": room, "user": socket.user, "from": socket.id}


def _pictures(socket: Socket) -> dict[str, Picture]:
    """Return what a client has announced, by id, the oldest first."""
    pictures: dict[str, Picture] = socket.data.setdefault("pictures", {})
    return pictures


def _unknown() -> NoReturn:
    raise ChatError("no such picture was announced")


# --- the worker -----------------------------------------------------------


@io.on("bus_gap")
def gap(_what: dict[str, Any]) -> None:
    """Tell this worker's clients that something of other workers may not have reached them."""
    now = time.monotonic()
    if now - told.gap_at > _GAPS:  # a hub that restarts makes several at a time
        told.gap_at = now
        io.local.emit("gap")


@io.on_shutdown
async def end() -> None:
    """End what runs beside the handlers."""
    await people.close()
    told.seen.clear()


add_routes(io)
