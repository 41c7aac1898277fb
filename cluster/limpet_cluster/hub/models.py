"""What the HTTP API answers: one type for each document, which makes its JSON.

Times are RFC 3339 in UTC, by the wall clock and for display. ``complete`` is false while workers
have yet to tell a restarted hub what they hold; ``stale_nodes`` names hosts that have not been
heard from lately.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar

from msgspec import UNSET, Struct, UnsetType

T = TypeVar("T")


def moment(at: float) -> datetime:
    """Return a wall time in seconds as the API shows it, in milliseconds."""
    return datetime.fromtimestamp(round(at, 3), UTC)


class Page(Struct, Generic[T], kw_only=True):
    """A list, or a part of one."""

    data: list[T]
    next_cursor: str | None = None
    """Give it back as ``cursor`` for what follows; None at the end."""
    total: int | None = None
    """Length of the whole list; None where only counting would tell."""
    complete: bool
    stale_nodes: list[str] = []
    version: str | None = None
    """The weak ETag; equal wherever the content is equal."""


class Counts(Struct, kw_only=True):
    """How many are there; two tabs of one user are one user with two connections."""

    users: int
    connections: int


class NamespaceItem(Struct, kw_only=True):
    """A namespace somebody is connected to."""

    namespace: str
    rooms: int
    occupancy: Counts


class RoomItem(Struct, kw_only=True):
    """An occupied room, in a list."""

    room: str
    namespace: str
    occupancy: Counts


class RoomDetail(Struct, kw_only=True):
    """One room; a room nobody is in is an empty room."""

    room: str
    namespace: str
    occupancy: Counts
    version: str
    complete: bool
    stale_nodes: list[str] = []


class ConnectionItem(Struct, kw_only=True):
    """One connection: a socket of one namespace."""

    socket_id: str
    user: str
    """``socket.user``, or the socket id where the application sets none."""
    namespace: str
    node: str
    worker: str
    slot: int
    transport: str
    connected_at: datetime
    joined_at: datetime | UnsetType = UNSET
    """When it entered the room asked for; absent where no room was asked for."""


class MemberItem(Struct, kw_only=True):
    """A user who is in a room."""

    user: str
    joined_at: datetime
    """When the first of the connections entered the room."""
    connection_count: int
    connections: list[ConnectionItem]
    """By socket id; at most 1,000 are named."""


class RoomOfUser(Struct, kw_only=True):
    """A room that a user, or a connection, is in."""

    namespace: str
    room: str
    joined_at: datetime


class UserDetail(Struct, kw_only=True):
    """Where a user is; one who is nowhere is offline, not unknown."""

    user: str
    online: bool
    connection_count: int
    connections: list[ConnectionItem]
    """By namespace and socket id; at most 1,000 are named."""
    room_count: int
    rooms: list[RoomOfUser]
    """By namespace and name; at most 10,000 are named."""
    version: str
    complete: bool
    stale_nodes: list[str] = []


class ConnectionDetail(Struct, kw_only=True):
    """One connection and its rooms."""

    connection: ConnectionItem
    room_count: int
    rooms: list[RoomOfUser]
    """By name; at most 10,000 are named."""
    version: str
    complete: bool
    stale_nodes: list[str] = []


class WorkerItem(Struct, kw_only=True):
    """One worker of this host."""

    id: str
    """The random id of this life, in hexadecimal."""
    name: str
    node: str
    slot: int
    incarnation: int
    pid: int
    state: Literal["starting", "ready", "draining", "gone"]
    connected: bool
    """It has its control connection; one that lives without is waited for."""
    started_at: datetime
    connections: int
    """Sockets shown in presence."""
    sessions: dict[str, int]
    """Engine.IO sessions by transport."""
    session_count: int
    loop_lag_seconds: float
    rss_bytes: int
    counters: dict[str, int]
    figures_age_seconds: float | None
    """How old sessions, lag, memory and counters are; None before the first."""


class DrainDetail(Struct, kw_only=True):
    """A worker that was told to drain, or not to any more."""

    worker: WorkerItem
    sessions_left: int
    """As the worker counted them when it was told; the document of the worker is a second old."""
    seconds_left: float
    """Until the last of them is closed."""


class NodeItem(Struct, kw_only=True):
    """One host."""

    node: str
    number: int
    state: Literal["up"]
    epoch: str
    """Drawn anew at each start of its hub."""
    started_at: datetime
    """When its hub started."""
    workers: dict[str, int]
    """How many are in each state."""


class ClusterDetail(Struct, kw_only=True):
    """The cluster in figures."""

    version: str
    """Of limpet."""
    nodes: list[NodeItem]
    occupancy: Counts
    """Over all namespaces; a user of two namespaces counts in each."""
    sessions: dict[str, int]
    counters: dict[str, int]
    """Of the hub of this host."""
    bus: dict[str, int]
    """Figures of the bus of this host: messages, bytes, what is kept for repairs."""
    complete: bool
    stale_nodes: list[str] = []


class Health(Struct, kw_only=True):
    """Answer of the probes."""

    status: Literal["ok"] = "ok"
    checks: dict[str, bool] | UnsetType = UNSET
