"""The HTTP API of the hub: namespaces, rooms, members, users, workers, health.

It listens on ``<run>/api.sock`` (mode 0600), and on TCP when asked; there every request but the
probes needs a bearer token. The documents are in `models`, the errors in `problems`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec
from aiohttp import web

from limpet_adapters.counters import counters
from limpet_adapters.presence import Connection, Namespace, Room
from limpet_adapters.rundir import RunDirectory
from limpet_cluster.hub import models
from limpet_cluster.hub.access import authentication
from limpet_cluster.hub.actions import Actions
from limpet_cluster.hub.members import Member, Members
from limpet_cluster.hub.metrics import Metrics, count_request, measured
from limpet_cluster.hub.presence import ROOMS_NAMED, HubPresence
from limpet_cluster.hub.problems import Problem, problems
from limpet_cluster.hub.queries import (
    Query,
    etag_of,
    etag_of_body,
    make_cursor,
    matches,
    path_name,
)

CONNECTIONS_NAMED: Final = 1000
"""Connections of one user that an answer names at most."""
_SCANNED: Final = 20_000
"""Rooms that are looked at for one page at most; the page may then be short, with a cursor."""
_PAGE_CONNECTIONS: Final = 10_000
"""Connections that one page of users names at most; the page may then be short, with a cursor."""
_SLICE: Final = 2000
"""Rooms that are sorted between two turns of the loop."""
_SORTS: Final = ("name", "users", "-users", "connections", "-connections")


@dataclass(slots=True, kw_only=True)
class ApiContext:
    """What the API shows."""

    presence: HubPresence
    members: Members
    node: str
    number: int
    epoch: str
    """Names this life of the hub."""
    version: str
    """Of limpet."""
    checks: Callable[[], Mapping[str, bool]]
    """What has to be true before the hub is ready, by name."""
    bus: Callable[[], dict[str, int]]
    """Figures of the bus."""
    started_at: float
    run: RunDirectory | None = None
    """Where balancer and supervisor are found; None: their figures are not asked for."""


class _Rooms(NamedTuple):
    """Which rooms are wanted, and in which order."""

    namespace: str
    prefix: str
    min_users: int
    sort: str


class Api:
    """The handlers of all resources."""

    def __init__(self, context: ApiContext) -> None:
        self.context = context
        self.presence = context.presence
        self.index = context.presence.index
        self._loop = asyncio.get_running_loop()
        self._started = False
        """Whether everything has been ready once."""

    def application(self, tokens: tuple[bytes, ...] = ()) -> web.Application:
        """Return the aiohttp application; ``tokens`` are those that TCP clients may bear."""
        app = web.Application(
            middlewares=[measured, problems, authentication(tokens)], client_max_size=65536
        )
        metrics = Metrics(self.context, self.context.run)
        app.cleanup_ctx.append(metrics.running)
        app.on_response_prepare.append(self._sign)
        app.router.add_get("/livez", self.livez)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/startupz", self.startupz)
        app.router.add_get("/metrics", metrics.get)
        app.router.add_get("/v1/namespaces", self.namespaces)
        app.router.add_get("/v1/rooms", self.rooms)
        # Without a pattern of its own a part takes no braces, and names may have them.
        app.router.add_get("/v1/rooms/{room:[^/]+}", self.room)
        app.router.add_get("/v1/rooms/{room:[^/]+}/members", self.members)
        app.router.add_get("/v1/users/{user:[^/]+}", self.user)
        app.router.add_get("/v1/connections/{socket_id:[^/]+}", self.connection)
        app.router.add_get("/v1/workers", self.workers)
        app.router.add_get("/v1/cluster", self.cluster)
        Actions(self.context.members, self.context.number, self._worker).add_to(app.router)
        return app

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say who answered, on everything; and keep whoever caches from doing so."""
        response.headers["Server"] = "limpet"
        response.headers["Limpet-Node"] = quote(self.context.node)
        response.headers.setdefault("Cache-Control", "no-store")
        count_request(request, response.status)

    # --- health ------------------------------------------------------------

    async def livez(self, request: web.Request) -> web.Response:
        """The process runs and its loop turns."""
        Query(request, ())
        return _json(models.Health())

    async def readyz(self, request: web.Request) -> web.Response:
        """The bus is open, presence complete, and some worker takes new sessions; else 503."""
        return self._probe(request, self._checks())

    async def startupz(self, request: web.Request) -> web.Response:
        """Everything has been ready at some time; 503 before that, never after it."""
        checks = self._checks()
        return self._probe(request, dict.fromkeys(checks, True) if self._started else checks)

    def _checks(self) -> dict[str, bool]:
        members = self.context.members.living.values()
        checks = {
            "presence": self.presence.complete,
            **self.context.checks(),
            "workers": any(member.state == "ready" for member in members),
        }
        self._started = self._started or all(checks.values())
        return checks

    @staticmethod
    def _probe(request: web.Request, checks: dict[str, bool]) -> web.Response:
        query = Query(request, ("verbose",))
        query.choice("verbose", ("", "true", "1"))
        missing = ", ".join(name for name, fine in checks.items() if not fine)
        if missing:
            raise Problem("starting", f"not ready: {missing}", (), {"Retry-After": "1"})
        verbose = "verbose" in query.representation()
        return _json(models.Health(checks=checks) if verbose else models.Health())

    # --- namespaces and rooms ----------------------------------------------

    async def namespaces(self, request: web.Request) -> web.Response:
        """All namespaces somebody is connected to, by name."""
        query = Query(request, ("limit", "cursor"))
        scope = ("namespaces",)
        after = query.cursor(str, scope)
        limit = query.limit
        await self.presence.settled()
        page: list[models.NamespaceItem] = []
        names = sorted(self.index.namespaces)
        cursor = None
        for name in names:
            if after is not None and name <= after:
                continue
            if len(page) == limit:
                cursor = make_cursor(page[-1].namespace, scope)
                break
            space = self.index.namespaces[name]
            counts = self._counts(space)
            if counts.connections:
                page.append(
                    models.NamespaceItem(
                        namespace=name, rooms=self.index.occupied(space), occupancy=counts
                    )
                )
        total = len(names) if self.index.settled else None
        return self._page(request, query, page, cursor=cursor, total=total)

    async def rooms(self, request: web.Request) -> web.Response:
        """Occupied rooms of a namespace, by name or by how many are in them."""
        allowed = ("namespace", "prefix", "min_users", "sort", "limit", "cursor")
        query = Query(request, allowed)
        wanted = _Rooms(
            query.text("namespace", "/"),
            query.text("prefix", ""),
            query.number("min_users", 1, 0, 2**31),
            query.choice("sort", _SORTS),
        )
        scope = ("rooms", *wanted)
        limit = query.limit
        await self.presence.settled()
        page: list[models.RoomItem] = []
        if wanted.sort == "name":
            after = query.cursor(str, scope)
            cursor = self._rooms_by_name(wanted, limit, after, page)
            cursor = None if cursor is None else make_cursor(cursor, scope)
        else:
            place = query.cursor(tuple[int, str], scope)
            position = await self._rooms_by_count(wanted, limit, place, page)
            cursor = None if position is None else make_cursor(position, scope)
        space = self.index.namespaces.get(wanted.namespace)
        total = None
        if not wanted.prefix and wanted.min_users <= 1 and self.index.settled:
            total = 0 if space is None else len(space.rooms)
        version = self._version(space, query)
        return self._page(request, query, page, cursor=cursor, total=total, version=version)

    def _rooms_by_name(
        self,
        wanted: _Rooms,
        limit: int,
        after: str | None,
        page: list[models.RoomItem],
    ) -> str | None:
        """Fill a page; return the last name that was looked at when there may be more."""
        space = self.index.namespaces.get(wanted.namespace)
        found = self.index.rooms(space, self._loop.time(), after=after, prefix=wanted.prefix)
        last = None
        for scanned, room in enumerate(found):
            if len(page) == limit or scanned == _SCANNED:
                return last
            counts = self._counts(room)
            if counts.users >= wanted.min_users:
                page.append(
                    models.RoomItem(room=room.name, namespace=wanted.namespace, occupancy=counts)
                )
            last = room.name
        return None

    async def _rooms_by_count(
        self,
        wanted: _Rooms,
        limit: int,
        after: tuple[int, str] | None,
        page: list[models.RoomItem],
    ) -> tuple[int, str] | None:
        """Fill a page; return the position of its last item when there are more."""
        of_users = wanted.sort.endswith("users")
        sign = -1 if wanted.sort.startswith("-") else 1
        best: list[tuple[int, str, models.Counts]] = []
        async for rooms in _sliced(self.index.namespaces.get(wanted.namespace)):
            for room in rooms:
                if not room.name.startswith(wanted.prefix):
                    continue
                counts = self._counts(room)
                if not counts.connections or counts.users < wanted.min_users:
                    continue
                key = sign * (counts.users if of_users else counts.connections)
                if after is None or (key, room.name) > after:
                    best.append((key, room.name, counts))
            best = heapq.nsmallest(limit + 1, best, key=lambda one: one[:2])
        for _, name, counts in best[:limit]:
            page.append(models.RoomItem(room=name, namespace=wanted.namespace, occupancy=counts))
        return best[limit - 1][:2] if len(best) > limit else None

    async def room(self, request: web.Request) -> web.Response:
        """One room: how many are in it."""
        query = Query(request, ("namespace",))
        name = path_name(request, "room")
        namespace = query.text("namespace", "/")
        room = self.index.room(namespace, name)
        version = self._version(room, query)
        if matches(request, version):
            return _unchanged(version)
        document = models.RoomDetail(
            room=name,
            namespace=namespace,
            occupancy=self._counts(room),
            version=version,
            complete=self.presence.complete,
        )
        return _json(document, {"ETag": version})

    async def members(self, request: web.Request) -> web.Response:
        """Who is in a room: its users with their connections, or its connections."""
        query = Query(request, ("view", "namespace", "prefix", "limit", "cursor"))
        name = path_name(request, "room")
        namespace = query.text("namespace", "/")
        prefix = query.text("prefix", "")
        view = query.choice("view", ("users", "connections"))
        limit = query.limit
        scope = ("members", view, namespace, name, prefix)
        room = self.index.room(namespace, name)
        total = None
        if not prefix:
            counts = self._counts(room)
            total = counts.users if view == "users" else counts.connections
        version = self._version(room, query, name)
        if view == "connections":
            place = query.cursor(tuple[str, str], scope)
            if matches(request, version):
                return _unchanged(version)
            found = self.index.member_connections(
                room, self._loop.time(), after=place, prefix=prefix
            )
            listed = list(itertools.islice(found, limit + 1))
            cursor = None
            if len(listed) > limit:
                last = listed[limit - 1]
                cursor = make_cursor((last.user, last.id), scope)
            items = [_connection(one, name) for one in listed[:limit]]
            return self._page(request, query, items, cursor=cursor, total=total, version=version)
        after = query.cursor(str, scope)
        if matches(request, version):
            return _unchanged(version)
        users = self.index.members(room, self._loop.time(), after=after, prefix=prefix)
        page, more = _users(users, name, limit)
        cursor = make_cursor(page[-1].user, scope) if more else None
        return self._page(request, query, page, cursor=cursor, total=total, version=version)

    # --- users and connections ---------------------------------------------

    async def user(self, request: web.Request) -> web.Response:
        """Where a user is, in every namespace or in one."""
        query = Query(request, ("namespace",))
        user = path_name(request, "user")
        namespace = query.text("namespace", "")
        found = [
            one
            for one in self.index.where(user)
            if not namespace or one.namespace.name == namespace
        ]
        rooms = _rooms_of(found)
        document = models.UserDetail(
            user=user,
            online=bool(found),
            connection_count=len(found),
            connections=[_connection(one) for one in found[:CONNECTIONS_NAMED]],
            room_count=len(rooms),
            rooms=rooms[:ROOMS_NAMED],
            version="",
            complete=self.presence.complete,
        )
        return _versioned(request, document)

    async def connection(self, request: web.Request) -> web.Response:
        """One connection, by its socket id, and its rooms."""
        Query(request, ())
        socket_id = path_name(request, "socket_id")
        found = self.index.connection(socket_id)
        if found is None:
            raise Problem("not-found", "no connection has this socket id")
        rooms = _rooms_of([found])
        document = models.ConnectionDetail(
            connection=_connection(found),
            room_count=len(rooms),
            rooms=rooms[:ROOMS_NAMED],
            version="",
            complete=self.presence.complete,
        )
        return _versioned(request, document)

    # --- the cluster -------------------------------------------------------

    async def workers(self, request: web.Request) -> web.Response:
        """The workers of this host by slot, those included that died without a successor."""
        Query(request, ())
        page = [self._worker(one) for one in self.context.members.everyone()]
        document = models.Page[models.WorkerItem](
            data=page, total=len(page), complete=self.presence.complete
        )
        return _json(document)

    async def cluster(self, request: web.Request) -> web.Response:
        """The cluster in figures."""
        Query(request, ())
        context = self.context
        await self.presence.settled()
        sessions: Counter[str] = Counter()
        states: Counter[str] = Counter()
        for member in context.members.everyone():
            states[member.state] += 1
            if member.state != "gone":
                sessions.update(member.figures.sessions)
        users = connections = 0
        for space in self.index.namespaces.values():
            counts = self._counts(space)
            users += counts.users
            connections += counts.connections
        node = models.NodeItem(
            node=context.node,
            number=context.number,
            state="up",
            epoch=context.epoch,
            started_at=models.moment(context.started_at),
            workers=dict(states),
        )
        document = models.ClusterDetail(
            version=context.version,
            nodes=[node],
            occupancy=models.Counts(users=users, connections=connections),
            sessions=dict(sessions),
            counters=dict(counters),
            bus=context.bus(),
            complete=self.presence.complete,
        )
        return _json(document)

    def _worker(self, member: Member) -> models.WorkerItem:
        figures = member.figures
        age = None if member.figures_at is None else time.monotonic() - member.figures_at
        return models.WorkerItem(
            id=f"{member.worker_id:016x}",
            name=member.name,
            node=self.context.node,
            slot=member.hello.slot,
            incarnation=member.hello.incarnation,
            pid=member.pid,
            state=member.state,
            connected=member.connection is not None,
            started_at=models.moment(member.started_at),
            connections=self.index.held_by(member.worker_id),
            sessions=figures.sessions,
            session_count=sum(figures.sessions.values()),
            loop_lag_seconds=round(figures.loop_lag, 6),
            rss_bytes=figures.rss,
            counters=figures.counters,
            figures_age_seconds=None if age is None else round(age, 3),
        )

    # --- parts of answers --------------------------------------------------

    def _counts(self, of: Room | Namespace | None) -> models.Counts:
        users, connections = self.index.occupancy(of)
        return models.Counts(users=users, connections=connections)

    def _version(self, of: Room | Namespace | None, query: Query, *more: object) -> str:
        return etag_of(
            self.index.digest(of), query.path, query.representation(), self.presence.complete, *more
        )

    def _page(
        self,
        request: web.Request,
        query: Query,
        data: list[models.T],
        *,
        cursor: str | None,
        total: int | None,
        version: str | None = None,
    ) -> web.Response:
        document = models.Page[models.T](
            data=data,
            next_cursor=cursor,
            total=total,
            complete=self.presence.complete,
            version=version,
        )
        if version is None:
            return _versioned(request, document, query.link(cursor))
        if matches(request, version):
            return _unchanged(version)
        return _json(document, {"ETag": version, **query.link(cursor)})


async def _sliced(space: Namespace | None) -> AsyncIterator[list[Room]]:
    """Return all rooms in portions, with a turn of the loop in between."""
    rooms = [] if space is None else list(space.rooms.values())
    for at in range(0, len(rooms), _SLICE):
        if at:
            await asyncio.sleep(0)
        yield rooms[at : at + _SLICE]


def _users(
    found: Iterator[tuple[str, list[Connection]]], room: str, limit: int
) -> tuple[list[models.MemberItem], bool]:
    """Return one page of users, and whether there are more."""
    page: list[models.MemberItem] = []
    named = 0
    for user, connections in found:
        if len(page) == limit or named >= _PAGE_CONNECTIONS:
            return page, True
        shown = connections[:CONNECTIONS_NAMED]
        named += len(shown)
        page.append(
            models.MemberItem(
                user=user,
                joined_at=models.moment(min(one.rooms[room] for one in connections)),
                connection_count=len(connections),
                connections=[_connection(one, room) for one in shown],
            )
        )
    return page, False


def _connection(connection: Connection, room: str | None = None) -> models.ConnectionItem:
    node, worker, slot = connection.share.home
    item = models.ConnectionItem(
        socket_id=connection.id,
        user=connection.user,
        namespace=connection.namespace.name,
        node=node,
        worker=worker,
        slot=slot,
        transport=connection.transport,
        connected_at=models.moment(connection.connected_at),
    )
    if room is not None:
        item.joined_at = models.moment(connection.rooms[room])
    return item


def _rooms_of(connections: Iterable[Connection]) -> list[models.RoomOfUser]:
    """Return the rooms of some connections, each once, since the first of them entered it."""
    since: dict[tuple[str, str], float] = {}
    for connection in connections:
        for room, at in connection.rooms.items():
            key = (connection.namespace.name, room)
            since[key] = min(at, since.get(key, at))
    return [
        models.RoomOfUser(namespace=namespace, room=room, joined_at=models.moment(at))
        for (namespace, room), at in sorted(since.items())
    ]


def _json(document: msgspec.Struct, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(document), content_type="application/json", headers=headers
    )


def _versioned(
    request: web.Request,
    document: models.UserDetail | models.ConnectionDetail | models.Page[models.T],
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Answer with an ETag made of the document itself."""
    version = document.version = etag_of_body(msgspec.json.encode(document))
    if matches(request, version):
        return _unchanged(version)
    return _json(document, {"ETag": version, **(headers or {})})


def _unchanged(version: str) -> web.Response:
    return web.Response(status=304, headers={"ETag": version})
