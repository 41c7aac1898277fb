"""A worker's end of presence: reports its sockets to the hub, asks the hub who is where.

Reporting costs a record per socket and an operation per change; operations leave in batches some
milliseconds apart, and no timer runs while nothing changes. After each (re)connection of the
control connection the whole state is sent anew in parts, while changes go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Final, Protocol, TypeVar

import msgspec

from limpet_adapters.control import ControlClient, ControlConnection, ControlError
from limpet_adapters.counters import count
from limpet_adapters.presence import Home, PresenceIndex, seen
from limpet_adapters.presence_ops import (
    BATCH_BYTES,
    BEGIN,
    DELTA,
    END,
    Batch,
    Changed,
    Connected,
    CountAnswer,
    CountQuery,
    Disconnected,
    Joined,
    Left,
    ListPage,
    ListQuery,
    Op,
    Seen,
    UserAnswer,
    UserQuery,
    encode,
    reportable,
    weight,
)

logger = logging.getLogger("limpet.presence")

INTERVAL: Final = 0.015
"""Seconds that operations wait for others to leave with."""
_BATCH_OPS: Final = 500
"""Operations in one batch at most, and of which more do not wait."""
_ROOMS: Final = 200
"""Rooms told of with a socket at most; of further ones it is told by an operation each."""

_LONG: Final = 3600.0
"""Seconds; the caller's deadline ends every wait long before."""

T = TypeVar("T")


class PresenceUnavailable(ConnectionError):  # noqa: N818  (as users would say it)
    """The hub did not answer in time, or there is none: nobody knows who is there."""


class PresentUser(msgspec.Struct, frozen=True):
    """A user and its connections in the room asked for; two tabs are one user."""

    user: str
    """``socket.user``, or the socket id where the application sets none."""
    connections: tuple[Seen, ...]


class PresentUsers(list[PresentUser]):
    """The users of a room, in order of their names."""

    __slots__ = ("complete",)

    def __init__(self, users: Iterable[PresentUser] = (), *, complete: bool = True) -> None:
        super().__init__(users)
        self.complete = complete
        """False while workers have yet to tell a restarted hub what they hold."""


class _Record:
    """What must be told again of one socket when the hub has restarted."""

    __slots__ = ("at", "namespace", "rooms", "transport", "user")

    def __init__(self, namespace: str, user: str, transport: str, at: float) -> None:
        self.namespace = namespace
        self.user = user
        self.transport = transport
        self.at = at
        self.rooms: dict[str, float] | None = None
        """Since when it is in which room; None before the first."""


class _Reports:
    """The `PresenceSink` of the Socket.IO server: keeps a record of each socket, makes operations.

    Rooms, users and namespaces that presence cannot show are counted and left out.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._table: dict[str, _Record] = {}
        self._warned = False

    def __len__(self) -> int:
        return len(self._table)

    def _report(self, op: Op) -> None:
        raise NotImplementedError

    def connected(
        self, namespace: str, socket_id: str, user: object, transport: str, at: float | None = None
    ) -> None:
        """A socket connected to a namespace; ``at`` is wall time, now when None."""
        if not reportable(namespace):
            count("limpet_presence_refused_total", reason="namespace")
            return
        record = _Record(
            namespace, self._user(user, socket_id), transport, self._clock() if at is None else at
        )
        self._table[socket_id] = record
        self._report(Connected(socket_id, namespace, record.user, transport, record.at))

    def disconnected(self, namespace: str, socket_id: str) -> None:
        """A socket is gone, with all its rooms."""
        if self._table.pop(socket_id, None) is not None:
            self._report(Disconnected(socket_id))

    def joined(self, namespace: str, socket_id: str, room: str) -> None:
        """A socket entered a room."""
        record = self._table.get(socket_id)
        if record is None:
            return
        if not reportable(room):
            count("limpet_presence_refused_total", reason="room")
            return
        if record.rooms is None:
            record.rooms = {}
        if room not in record.rooms:
            at = record.rooms[room] = self._clock()
            self._report(Joined(socket_id, room, at))

    def left(self, namespace: str, socket_id: str, room: str) -> None:
        """A socket left a room."""
        record = self._table.get(socket_id)
        if record is not None and record.rooms and record.rooms.pop(room, None) is not None:
            self._report(Left(socket_id, room))

    def changed(
        self, namespace: str, socket_id: str, *, user: object = None, transport: str | None = None
    ) -> None:
        """A socket has another user or another transport; None means unchanged."""
        record = self._table.get(socket_id)
        if record is None:
            return
        name = None if user is None else self._user(user, socket_id)
        if name is not None:
            record.user = name
        if transport is not None:
            record.transport = transport
        if name is not None or transport is not None:
            self._report(Changed(socket_id, name, transport))

    def _user(self, user: object, socket_id: str) -> str:
        if user is None:
            return socket_id
        name = user_name(user)
        if name is not None and reportable(name):
            return name
        count("limpet_presence_refused_total", reason="user")
        if not self._warned:
            self._warned = True
            logger.warning(
                "socket.user is a %s that presence cannot show: expected a text of 1 to 4,096 "
                "characters or a whole number; such sockets appear under their id",
                type(user).__name__,
            )
        return socket_id


class WorkerPresence(_Reports):
    """Reports to the hub and asks it.

    Args:
        control: the control connection it attaches to.
        interval: seconds that operations wait for others to leave with.
        clock: wall time, for display.
    """

    def __init__(
        self,
        control: ControlClient,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock)
        self._loop = asyncio.get_running_loop()
        self._interval = interval
        self._connection: ControlConnection | None = None
        """None while the hub is away: only the records are kept up then."""
        self._generation = 0
        self._pending: list[Op] = []
        self._timer: asyncio.TimerHandle | None = None
        """Runs only while operations wait."""
        self._untold: deque[str] | None = None
        """Socket ids that a new hub has yet to be told of; None when it was told of all."""
        self._told = asyncio.Event()
        """The hub was told everything, so that its answers include us."""
        control.attach(self._connected, self._lost)

    # --- sending -----------------------------------------------------------

    def flush(self) -> None:
        """Send what waits, at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ops, self._pending = self._pending, []
        if ops:
            self._send(DELTA, ops)

    def _report(self, op: Op) -> None:
        if self._connection is None:
            return
        self._pending.append(op)
        if len(self._pending) >= _BATCH_OPS:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._interval, self.flush)

    def _send(self, flags: int, ops: Iterable[Op]) -> None:
        """Send operations in as many batches as they need, the flags with the last."""
        connection = self._connection
        if connection is None:
            return
        part: list[Op] = []
        size = 0
        for op in ops:
            more = weight(op)
            if part and (size + more > BATCH_BYTES or len(part) >= _BATCH_OPS):
                connection.send("presence", encode(Batch(self._generation, DELTA, part)))
                part, size = [], 0
            part.append(op)
            size += more
        connection.send("presence", encode(Batch(self._generation, flags, part)))

    def _connected(self, connection: ControlConnection, _welcome: dict[str, object]) -> None:
        self._connection = connection
        self._generation += 1
        self._untold = deque(self._table)
        self._send(BEGIN, ())
        self._tell(self._generation)

    def _lost(self) -> None:
        self._connection = None
        self._untold = None
        self._told.clear()
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, generation: int) -> None:
        """Send some of the whole state; comes again, once the hub has read that, until all is."""
        untold, connection = self._untold, self._connection
        if untold is None or connection is None or generation != self._generation:
            return
        self.flush()  # else what is older would come after what is told now
        ops: list[Op] = []
        size = 0
        while untold and size < BATCH_BYTES and len(ops) < _BATCH_OPS:
            socket_id = untold.popleft()
            record = self._table.get(socket_id)
            if record is not None:
                for op in _whole(socket_id, record):
                    ops.append(op)
                    size += weight(op)
        if not untold:
            self._send(END, ops)
            self._untold = None
            self._told.set()
            return
        self._send(DELTA, ops)

        def read(_answer: object, error: Exception | None) -> None:
            if error is None:
                self._loop.call_soon(self._tell, generation)
            elif not isinstance(error, ConnectionError):
                logger.error("the hub takes no presence: %s", error)

        connection.call("presence", encode(Batch(generation, DELTA, [])), read)

    # --- questions ---------------------------------------------------------

    async def list(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> PresentUsers:
        """See `Presence.list`."""
        return await self._answered("presence.list", timeout, lambda: self._list(room, namespace))

    async def count(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> CountAnswer:
        """See `Presence.count`."""
        query = CountQuery(room=room, namespace=namespace)
        return await self._answered(
            "presence.count", timeout, lambda: self._ask("presence.count", query, CountAnswer)
        )

    async def user(self, user: str | int, *, timeout: float = 5.0) -> UserAnswer:
        """See `Presence.user`."""
        query = UserQuery(user=str(user))
        return await self._answered(
            "presence.user", timeout, lambda: self._ask("presence.user", query, UserAnswer)
        )

    async def _list(self, room: str, namespace: str) -> PresentUsers:
        connections: list[Seen] = []
        query = ListQuery(room=room, namespace=namespace)
        complete = True
        while True:
            page = await self._ask("presence.list", query, ListPage)
            connections += page.connections
            complete &= page.complete
            if page.next is None:
                return _by_user(connections, complete=complete)
            query = ListQuery(room=room, namespace=namespace, after=page.next)

    async def _ask(self, kind: str, query: object, answer: type[T]) -> T:
        connection = self._connection
        if connection is None:
            raise ConnectionError("no hub")
        return msgspec.convert(await connection.request(kind, query, _LONG), answer)

    async def _answered(self, kind: str, timeout: float, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask a hub that was told everything; ask again when it restarts before it answers."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._told.wait()
                    self.flush()
                    try:
                        return await ask()
                    except ConnectionError:
                        await asyncio.sleep(0.01)
        except TimeoutError:
            count("limpet_presence_unavailable_total")
            where = "did not answer" if self._connection is not None else "is not reachable"
            raise PresenceUnavailable(f"{kind}: the hub {where} ({timeout:g} s)") from None
        except (ControlError, msgspec.ValidationError) as error:
            raise PresenceUnavailable(f"{kind}: the hub refused: {error}") from None


class LocalPresence(_Reports):
    """Presence of a process that has no hub: reports to an index of its own, and asks that."""

    def __init__(
        self, *, node: str = "local", worker: str = "w0", clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(clock)
        self.index = PresenceIndex()
        self.index.register(1, Home(node, worker, 0))
        self.index.receive(1, Batch(1, BEGIN | END, []))

    def _report(self, op: Op) -> None:
        self.index.receive(1, Batch(1, DELTA, [op]))

    async def list(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> PresentUsers:
        """See `Presence.list`; never waits."""
        found = self.index.member_connections(
            self.index.room(namespace, room), time.monotonic(), after=None
        )
        return _by_user(seen(one, one.rooms[room]) for one in found)

    async def count(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> CountAnswer:
        """See `Presence.count`; never waits."""
        users, connections = self.index.occupancy(self.index.room(namespace, room))
        return CountAnswer(users=users, connections=connections)

    async def user(self, user: str | int, *, timeout: float = 5.0) -> UserAnswer:
        """See `Presence.user`; never waits."""
        found = self.index.where(str(user))
        rooms = {(one.namespace.name, room) for one in found for room in one.rooms}
        return UserAnswer(
            connections=[seen(one, one.connected_at) for one in found], rooms=sorted(rooms)
        )


class PresenceSource(Protocol):
    """Who answers the questions of `Presence`."""

    async def list(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> PresentUsers:
        """Return the users of a room."""

    async def count(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> CountAnswer:
        """Return how many are in a room."""

    async def user(self, user: str | int, *, timeout: float = 5.0) -> UserAnswer:
        """Return where a user is."""


class Presence:
    """Who is where in the whole cluster, as handlers ask it: ``await io.presence.list("lobby")``.

    An answer includes whatever this worker reported before. ``complete`` is false for the moment
    in which a hub that has just restarted does not know all workers again.
    """

    __slots__ = ("source",)

    def __init__(self, source: PresenceSource | None = None) -> None:
        self.source = source
        """Set by the worker when it starts; None before."""

    async def list(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> PresentUsers:
        """Return the users in a room, in order, each with its connections; ``timeout`` in seconds.

        Raises:
            PresenceUnavailable: the hub did not answer in time, or the server has not started.
        """
        return await self._source.list(room, namespace, timeout=timeout)

    async def count(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> CountAnswer:
        """Return how many users and connections are in a room; cheaper than to list them.

        Raises:
            PresenceUnavailable: the hub did not answer in time, or the server has not started.
        """
        return await self._source.count(room, namespace, timeout=timeout)

    async def user(self, user: str | int, *, timeout: float = 5.0) -> UserAnswer:
        """Return where a user is: its connections, and the rooms they are in.

        Raises:
            PresenceUnavailable: the hub did not answer in time, or the server has not started.
        """
        return await self._source.user(user, timeout=timeout)

    @property
    def _source(self) -> PresenceSource:
        if self.source is None:
            raise PresenceUnavailable("presence is there once the server has started")
        return self.source


def user_name(user: object) -> str | None:
    """Return how presence names a user: a text as it is, a whole number in digits; else None."""
    if isinstance(user, str):
        return str(user) or None
    if isinstance(user, int) and not isinstance(user, bool):
        return str(user)
    return None


def _whole(socket_id: str, record: _Record) -> Iterator[Op]:
    """Return what tells all of a socket."""
    rooms = record.rooms or {}
    first = rooms if len(rooms) <= _ROOMS else dict(islice(rooms.items(), _ROOMS))
    if sum(map(len, first)) > BATCH_BYTES // 8:
        first = {}
    yield Connected(socket_id, record.namespace, record.user, record.transport, record.at, first)
    for room, at in islice(rooms.items(), len(first), None):
        yield Joined(socket_id, room, at)


def _by_user(connections: Iterable[Seen], *, complete: bool = True) -> PresentUsers:
    """Return users from connections that come in order of their users."""
    users = (
        PresentUser(user, tuple(those))
        for user, those in groupby(connections, lambda one: one.user)
    )
    return PresentUsers(users, complete=complete)
