"""The presence index: who is in which namespace and room, as the hub holds it; no I/O, no clock.

What a worker holds is its *share*, of one generation. Everything of all shares lies in common
indexes, so that a room answers at once. Taking a share out is long work for a big one: it is
*hidden* first (one assignment), from which instant no query shows it, and swept out in slices
later. While something hidden is left, queries look at each entry they count; otherwise counts and
digests are kept ready.

Complexity: occupancy O(1), a room's list O(members), where-now O(namespaces + rooms of the user),
pages O(log members + page) after the first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Collection, Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from limpet_adapters.presence_ops import (
    BEGIN,
    END,
    Batch,
    Changed,
    Connected,
    Disconnected,
    Joined,
    Left,
    Op,
    Seen,
)

TOMBSTONES: Final = 4096
"""Ids of dead workers that are remembered; the oldest are forgotten first."""
ORDER_KEPT: Final = 60.0
"""Seconds that a sorted index is kept after the last page was read from it."""

_pack = msgspec.msgpack.Encoder().encode


class Home(NamedTuple):
    """Which worker holds a connection, as it is shown."""

    node: str
    worker: str
    slot: int


class Occupancy(NamedTuple):
    """How many are in a room or namespace; two tabs of one user are one user."""

    users: int
    connections: int


class Share:
    """What one worker holds, of one generation."""

    __slots__ = ("connections", "generation", "hidden", "home", "worker_id")

    def __init__(self, worker_id: int, home: Home, generation: int, *, hidden: bool) -> None:
        self.worker_id = worker_id
        self.home = home
        self.generation = generation
        self.hidden = hidden
        """No query shows it: it is not complete yet, or on its way out."""
        self.connections: dict[str, Connection] = {}
        """By socket id."""


class Connection:
    """One socket of one namespace."""

    __slots__ = ("connected_at", "id", "namespace", "rooms", "share", "transport", "user")

    def __init__(
        self,
        share: Share,
        socket_id: str,
        namespace: Namespace,
        user: str,
        *,
        transport: str,
        connected_at: float,
    ) -> None:
        self.share = share
        self.id = socket_id
        self.namespace = namespace
        self.user = user
        self.transport = transport
        self.connected_at = connected_at
        """Wall time, for display."""
        self.rooms: dict[str, float] = {}
        """Its rooms, and since when by the wall clock."""


Held = Connection | dict[Connection, None]
"""The connections of one user: nearly always one, which then needs no container."""


class Order:
    """Names in order, kept up to date while pages are read from it."""

    __slots__ = ("names", "used")

    def __init__(self, names: Collection[str], now: float) -> None:
        self.names = sorted(names)
        self.used = now
        """When a page was last read from it, monotonic."""

    def add(self, name: str) -> None:
        """Put a name in that is not there."""
        insort(self.names, name)

    def remove(self, name: str) -> None:
        """Take a name out that is there."""
        del self.names[bisect_left(self.names, name)]

    def since(self, prefix: str, after: str | None, *, itself: bool = False) -> Iterator[str]:
        """Return the names with a prefix that follow ``after``, in order; with ``itself`` too."""
        names = self.names
        at = bisect_left(names, prefix)
        if after is not None:
            at = max(at, (bisect_left if itself else bisect_right)(names, after))
        while at < len(names) and names[at].startswith(prefix):
            yield names[at]
            at += 1


class Room:
    """The entries of one room of one namespace."""

    __slots__ = ("connections", "digest", "name", "namespace", "order", "users")

    def __init__(self, namespace: Namespace, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.users: dict[str, Held] = {}
        self.connections = 0
        self.digest = 0
        """XOR over the hashes of its entries."""
        self.order: Order | None = None
        """Its users in order; None unless pages were read lately."""


class Namespace:
    """The connections and rooms of one namespace."""

    __slots__ = ("connections", "digest", "name", "order", "rooms", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self.users: dict[str, Held] = {}
        self.connections = 0
        self.rooms: dict[str, Room] = {}
        self.digest = 0
        """XOR over the hashes of its connections and of the entries of all its rooms."""
        self.order: Order | None = None
        """Its rooms in order; None unless pages were read lately."""


class PresenceIndex:
    """All that the hub knows of presence."""

    __slots__ = (
        "_current",
        "_dying",
        "_homes",
        "_ordered",
        "_staging",
        "_tombstones",
        "entries",
        "namespaces",
    )

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        """Those with a connection, hidden ones included."""
        self.entries = 0
        """Memberships held, one per connection and room, hidden ones included."""
        self._homes: dict[int, Home] = {}
        self._current: dict[int, Share] = {}
        """The share of each worker that queries show."""
        self._staging: dict[int, Share] = {}
        """The next generation of a worker, while it arrives."""
        self._dying: deque[Share] = deque()
        """Hidden shares that wait for `sweep`."""
        self._tombstones: dict[int, None] = {}
        self._ordered: set[Room | Namespace] = set()

    # --- workers -----------------------------------------------------------

    def register(self, worker_id: int, home: Home) -> bool:
        """Say who a worker is, before its first batch; False when it is known to be dead."""
        if worker_id in self._tombstones:
            return False
        self._homes[worker_id] = home
        return True

    def receive(self, worker_id: int, batch: Batch) -> bool:
        """Apply a batch of a worker; True when it completed a generation, which is shown from here.

        What comes from an unknown or dead worker, or belongs to an earlier generation, is ignored.
        """
        home = self._homes.get(worker_id)
        if home is None:
            return False
        share = self._staging.get(worker_id)
        current = self._current.get(worker_id)
        generation = batch.generation
        if batch.flags & BEGIN:
            newest = share or current
            if newest is not None and newest.generation >= generation:
                return False
            if share is not None:
                self._dying.append(share)
            share = self._staging[worker_id] = Share(worker_id, home, generation, hidden=True)
        if share is None:
            share = current
        if share is None or share.generation != generation:
            return False
        for op in batch.ops:
            self._apply(share, op)
        if not (batch.flags & END) or share is current:
            return False
        del self._staging[worker_id]
        if current is not None:
            self._hide(current)
        share.hidden = False
        self._current[worker_id] = share
        return True

    def drop_worker(self, worker_id: int, *, dead: bool = True) -> int:
        """Hide all that a worker holds, at once; return how many connections that were.

        With ``dead`` its id is tombstoned: whatever still comes from it is ignored. A successor
        has an id of its own and is not concerned.
        """
        self._homes.pop(worker_id, None)
        if dead:
            self._tombstones[worker_id] = None
            while len(self._tombstones) > TOMBSTONES:
                del self._tombstones[next(iter(self._tombstones))]
        staging = self._staging.pop(worker_id, None)
        if staging is not None:
            self._hide(staging)
        current = self._current.pop(worker_id, None)
        if current is None:
            return 0
        self._hide(current)
        return len(current.connections)

    def held_by(self, worker_id: int) -> int:
        """Return how many connections of a worker are shown."""
        share = self._current.get(worker_id)
        return 0 if share is None else len(share.connections)

    def sweep(self, limit: int) -> bool:
        """Take up to ``limit`` hidden entries out for good; True when more are left."""
        while self._dying:
            share = self._dying[0]
            connections = share.connections
            while connections:
                connection = next(iter(connections.values()))
                while connection.rooms:
                    if limit <= 0:
                        return True
                    self._leave(connection, next(iter(connection.rooms)))
                    limit -= 1
                self._disconnect(share, connection)
                limit -= 1
            self._dying.popleft()
        return False

    @property
    def settled(self) -> bool:
        """Nothing hidden is left: every count is ready."""
        return not self._dying and not self._staging

    # --- queries -----------------------------------------------------------

    def room(self, namespace: str, name: str) -> Room | None:
        """Return a room, which may hold hidden entries only; None when nobody is in it."""
        space = self.namespaces.get(namespace)
        return None if space is None else space.rooms.get(name)

    def occupancy(self, of: Room | Namespace | None) -> Occupancy:
        """Count the users and connections of a room or namespace."""
        if of is None:
            return Occupancy(0, 0)
        if self.settled:
            return Occupancy(len(of.users), of.connections)
        users = connections = 0
        for held in of.users.values():
            shown = len(_shown(held))
            connections += shown
            users += shown > 0
        return Occupancy(users, connections)

    def digest(self, of: Room | Namespace | None) -> int:
        """Return the XOR over the hashes of what a room or namespace shows; 0 when nothing."""
        if of is None:
            return 0
        if self.settled:
            return of.digest
        digest = 0
        for held in of.users.values():
            for connection in _shown(held):
                if isinstance(of, Room):
                    digest ^= entry_hash(connection, of.name)
                    continue
                digest ^= connection_hash(connection)
                for room in connection.rooms:
                    digest ^= entry_hash(connection, room)
        return digest

    def occupied(self, space: Namespace) -> int:
        """Count the rooms of a namespace that somebody is in."""
        if self.settled:
            return len(space.rooms)
        return sum(1 for room in space.rooms.values() if self._occupied(room))

    def members(
        self, room: Room | None, now: float, *, after: str | None = None, prefix: str = ""
    ) -> Iterator[tuple[str, list[Connection]]]:
        """Return users of a room in order, from the one behind ``after``, and their connections.

        Whoever is there throughout is met exactly once when pages are read with the last user of
        one as the ``after`` of the next. The index must not change while this is read.
        """
        if room is not None:
            order = self._order(room, room.users, now)
            for user in order.since(prefix, after):
                connections = _shown(room.users[user])
                if connections:
                    yield user, connections

    def member_connections(
        self, room: Room | None, now: float, *, after: tuple[str, str] | None, prefix: str = ""
    ) -> Iterator[Connection]:
        """Return the connections of a room by user and socket id, from behind ``after``."""
        if room is None:
            return
        user, socket_id = after or (None, "")
        for name in self._order(room, room.users, now).since(prefix, user, itself=True):
            for connection in _shown(room.users[name]):
                if name != user or connection.id > socket_id:
                    yield connection

    def rooms(
        self, space: Namespace | None, now: float, *, after: str | None = None, prefix: str = ""
    ) -> Iterator[Room]:
        """Return the occupied rooms of a namespace by name, from the one behind ``after``."""
        if space is None:
            return
        order = self._order(space, space.rooms, now)
        for name in order.since(prefix, after):
            room = space.rooms[name]
            if self.settled or self._occupied(room):
                yield room

    def where(self, user: str) -> list[Connection]:
        """Return the connections of a user in every namespace, by namespace and socket id."""
        found = []
        for name in sorted(self.namespaces):
            held = self.namespaces[name].users.get(user)
            if held is not None:
                found += _shown(held)
        return found

    def connection(self, socket_id: str) -> Connection | None:
        """Return a connection by its socket id."""
        for share in self._current.values():
            found = share.connections.get(socket_id)
            if found is not None:
                return found
        return None

    def expire(self, now: float) -> None:
        """Drop the sorted indexes that nobody has read from for `ORDER_KEPT` seconds."""
        for holder in list(self._ordered):
            if holder.order is None or now - holder.order.used > ORDER_KEPT:
                holder.order = None
                self._ordered.discard(holder)

    # --- inside ------------------------------------------------------------

    def _order(self, holder: Room | Namespace, names: Collection[str], now: float) -> Order:
        order = holder.order
        if order is None:
            order = holder.order = Order(names, now)
            self._ordered.add(holder)
        order.used = now
        return order

    def _occupied(self, room: Room) -> bool:
        return any(_shown(held) for held in room.users.values())

    def _hide(self, share: Share) -> None:
        share.hidden = True
        self._dying.append(share)

    def _apply(self, share: Share, op: Op) -> None:
        if type(op) is Connected:
            self._connect(share, op)
            return
        connection = share.connections.get(op.socket_id)
        if connection is None:
            return  # not told of yet: the part of the generation that tells of it is still to come
        if type(op) is Joined:
            self._join(connection, op.room, op.at)
        elif type(op) is Left:
            self._leave(connection, op.room)
        elif type(op) is Disconnected:
            while connection.rooms:
                self._leave(connection, next(iter(connection.rooms)))
            self._disconnect(share, connection)
        elif type(op) is Changed:
            self._change(share, connection, op)

    def _connect(self, share: Share, op: Connected) -> None:
        earlier = share.connections.get(op.socket_id)
        if earlier is not None:
            self._apply(share, Disconnected(op.socket_id))
        space = self.namespaces.get(op.namespace)
        if space is None:
            space = self.namespaces[op.namespace] = Namespace(op.namespace)
        connection = Connection(
            share,
            op.socket_id,
            space,
            op.user,
            transport=_transport(op.transport),
            connected_at=op.at,
        )
        share.connections[connection.id] = connection
        space.connections += 1
        _hold(space.users, connection)
        space.digest ^= connection_hash(connection)
        for room, at in op.rooms.items():
            self._join(connection, room, at)

    def _disconnect(self, share: Share, connection: Connection) -> None:
        del share.connections[connection.id]
        space = connection.namespace
        space.connections -= 1
        _release(space.users, connection)
        space.digest ^= connection_hash(connection)
        if not space.connections:
            del self.namespaces[space.name]
            self._ordered.discard(space)

    def _join(self, connection: Connection, name: str, at: float) -> None:
        if name in connection.rooms:
            return
        space = connection.namespace
        room = space.rooms.get(name)
        if room is None:
            room = space.rooms[name] = Room(space, name)
            if space.order is not None:
                space.order.add(name)
        connection.rooms[room.name] = at
        room.connections += 1
        self.entries += 1
        if _hold(room.users, connection) and room.order is not None:
            room.order.add(connection.user)
        digest = entry_hash(connection, name)
        room.digest ^= digest
        space.digest ^= digest

    def _leave(self, connection: Connection, name: str) -> None:
        if name not in connection.rooms:
            return
        space = connection.namespace
        room = space.rooms[name]
        digest = entry_hash(connection, name)
        room.digest ^= digest
        space.digest ^= digest
        del connection.rooms[name]
        room.connections -= 1
        self.entries -= 1
        if _release(room.users, connection) and room.order is not None:
            room.order.remove(connection.user)
        if not room.connections:
            del space.rooms[name]
            self._ordered.discard(room)
            if space.order is not None:
                space.order.remove(name)

    def _change(self, share: Share, connection: Connection, op: Changed) -> None:
        user = connection.user if op.user is None else op.user
        transport = connection.transport if op.transport is None else op.transport
        self._connect(
            share,
            Connected(
                connection.id,
                connection.namespace.name,
                user,
                transport,
                connection.connected_at,
                dict(connection.rooms),
            ),
        )


def connection_hash(connection: Connection) -> int:
    """Return the 64-bit hash of what is shown of a connection; equal on every host."""
    return _hash(connection, None)


def entry_hash(connection: Connection, room: str) -> int:
    """Return the 64-bit hash of a connection's membership in a room; equal on every host."""
    return _hash(connection, (room, connection.rooms[room]))


def seen(connection: Connection, joined_at: float) -> Seen:
    """Return a connection as answers to workers show it."""
    node, worker, slot = connection.share.home
    return Seen(
        user=connection.user,
        socket_id=connection.id,
        namespace=connection.namespace.name,
        node=node,
        worker=worker,
        slot=slot,
        transport=connection.transport,
        connected_at=connection.connected_at,
        joined_at=joined_at,
    )


def _hash(connection: Connection, membership: tuple[str, float] | None) -> int:
    content = _pack(
        (
            connection.namespace.name,
            connection.id,
            connection.user,
            connection.transport,
            connection.connected_at,
            connection.share.home,
            membership,
        )
    )
    return int.from_bytes(blake2b(content, digest_size=8, person=b"limpet.entry").digest(), "big")


def _shown(held: Held) -> list[Connection]:
    """Return those connections of a user that queries show, by socket id."""
    if isinstance(held, Connection):
        return [] if held.share.hidden else [held]
    return sorted((one for one in held if not one.share.hidden), key=lambda one: one.id)


def _hold(users: dict[str, Held], connection: Connection) -> bool:
    """Add a connection to its user; True when it is the first of that user."""
    user = connection.user
    held = users.get(user)
    if held is None:
        users[user] = connection
        return True
    if isinstance(held, Connection):
        users[user] = {held: None, connection: None}
    else:
        held[connection] = None
    return False


def _release(users: dict[str, Held], connection: Connection) -> bool:
    """Take a connection from its user; True when that was the last of that user."""
    user = connection.user
    held = users[user]
    if isinstance(held, Connection):
        del users[user]
        return True
    del held[connection]
    if len(held) == 1:
        (users[user],) = held
    return False


_TRANSPORTS: Final = {name: name for name in ("polling", "websocket", "webtransport")}


def _transport(name: str) -> str:
    """Return one shared string for each transport; a decoder makes a new one each time."""
    return _TRANSPORTS.get(name, name)
