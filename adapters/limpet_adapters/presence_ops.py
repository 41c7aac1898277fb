"""What workers and hub tell each other about presence: batches of operations, and queries.

A batch travels as the body of a control message ``presence``, as bytes of its own, so that the hub
can lay it aside undecoded. Control connections keep the order and lose nothing while they last;
after each new one the worker starts a *generation*: its whole state in parts (``BEGIN`` … ``END``),
with what changes meanwhile in between, then deltas. Every operation may be applied twice.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

NAME_LIMIT: Final = 4096
"""Characters that the name of a namespace, room or user may have to be shown in presence."""
ID_LIMIT: Final = 64
"""Characters of a socket id; ours have 20."""
OPS_LIMIT: Final = 4096
"""Operations in one batch."""
BATCH_BYTES: Final = 24 * 1024
"""Size above which a worker starts another batch; one operation alone may be larger."""

DELTA: Final = 0
BEGIN: Final = 1
"""Flag of the first batch of a generation."""
END: Final = 2
"""Flag of the batch that completes a generation: from here the hub shows it."""

Name = Annotated[str, Meta(max_length=NAME_LIMIT)]
SocketId = Annotated[str, Meta(min_length=1, max_length=ID_LIMIT)]
Wall = Annotated[float, Meta(ge=0, le=1e11)]
"""Seconds since 1970 by the wall clock: for display, no decision uses it."""
Transport = Annotated[str, Meta(max_length=32)]


class PresenceCodecError(ValueError):
    """Bytes that are no batch of presence operations."""


class Connected(Struct, frozen=True, array_like=True, tag=1):
    """A socket is there; one that is known already is replaced, with its rooms."""

    socket_id: SocketId
    namespace: Name
    user: Name
    transport: Transport
    at: Wall
    rooms: dict[Name, Wall] = {}
    """Rooms it is in, and since when."""


class Disconnected(Struct, frozen=True, array_like=True, tag=2):
    """A socket is gone, with all its rooms."""

    socket_id: SocketId


class Joined(Struct, frozen=True, array_like=True, tag=3):
    """A socket entered a room."""

    socket_id: SocketId
    room: Name
    at: Wall


class Left(Struct, frozen=True, array_like=True, tag=4):
    """A socket left a room."""

    socket_id: SocketId
    room: Name


class Changed(Struct, frozen=True, array_like=True, tag=5):
    """A socket has another user or transport; None means unchanged."""

    socket_id: SocketId
    user: Name | None
    transport: Transport | None


Op = Connected | Disconnected | Joined | Left | Changed


class Batch(Struct, frozen=True, array_like=True):
    """Operations of one worker, in order."""

    generation: Annotated[int, Meta(ge=0, le=2**53)]
    """Which of the worker's control connections this belongs to; grows."""
    flags: Annotated[int, Meta(ge=0, le=BEGIN | END)]
    ops: Annotated[list[Op], Meta(max_length=OPS_LIMIT)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Batch).decode


def encode(batch: Batch) -> bytes:
    """Return the bytes of a batch."""
    return _encode(batch)


def decode(data: object) -> Batch:
    """Return the batch that the body of a control message holds.

    Raises:
        PresenceCodecError: the body is no bytes, or these are no batch.
    """
    if not isinstance(data, bytes):
        raise PresenceCodecError(f"a batch is bytes, not {type(data).__name__}")
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PresenceCodecError(str(error)) from None


def reportable(name: str) -> bool:
    """Tell whether a room, namespace or user can be shown: not too long, and valid Unicode."""
    if len(name) > NAME_LIMIT:
        return False
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def weight(op: Op) -> int:
    """Return a bound of the bytes an operation takes in a batch."""
    if type(op) is Connected:
        size = 4 * (len(op.namespace) + len(op.user)) + 200
        for room in op.rooms:
            size += (len(room) if room.isascii() else 4 * len(room)) + 12
        return size
    if type(op) is Joined or type(op) is Left:
        return (len(op.room) if op.room.isascii() else 4 * len(op.room)) + 100
    if type(op) is Changed:
        return 4 * len(op.user or "") + 200
    return 100


# --- queries of a worker ----------------------------------------------------


class ListQuery(Struct, frozen=True, kw_only=True):
    """Asks for one page of a room's connections, by user and socket id: ``presence.list``."""

    room: str
    namespace: str = "/"
    after: tuple[str, str] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 500


class Seen(Struct, frozen=True, array_like=True):
    """One connection as an answer shows it."""

    user: str
    socket_id: str
    namespace: str
    node: str
    worker: str
    slot: int
    transport: str
    connected_at: float
    joined_at: float
    """When it entered the room asked for; when it connected, where no room was asked for."""


class ListPage(Struct, frozen=True, kw_only=True):
    """Answer to `ListQuery`."""

    connections: list[Seen]
    next: tuple[str, str] | None = None
    """Where the next page starts, None at the end."""
    complete: bool = True
    """False while workers have yet to tell a restarted hub what they hold."""


class CountQuery(Struct, frozen=True, kw_only=True):
    """Asks how many are in a room: ``presence.count``."""

    room: str
    namespace: str = "/"


class CountAnswer(Struct, frozen=True, kw_only=True):
    """Answer to `CountQuery`."""

    users: int
    connections: int
    complete: bool = True


class UserQuery(Struct, frozen=True, kw_only=True):
    """Asks where a user is: ``presence.user``; at most ``limit`` connections are named."""

    user: str
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class UserAnswer(Struct, frozen=True, kw_only=True):
    """Answer to `UserQuery`."""

    connections: list[Seen]
    rooms: list[tuple[str, str]]
    """Namespace and room, each once, in order; at most 10,000."""
    complete: bool = True
