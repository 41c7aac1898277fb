"""What all connections of a worker share, and how they come in: handed over, or accepted here."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from limpet_adapters.counters import count
from limpet_worker.http.cookie import cookie_line
from limpet_worker.http.cors import Cors
from limpet_worker.http.moving import Migrator
from limpet_worker.http.polling import FrontDoor
from limpet_worker.http.request import HeadParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from limpet_worker.engineio.server import EngineServer
    from limpet_worker.http.connection import Connection
    from limpet_worker.http.files import File
    from limpet_worker.http.routes import Site

__all__ = ["Doorway", "FrontDoor", "Migrator"]

logger = logging.getLogger("limpet.http")

_BACKLOG: Final = 4096


class Doorway:
    """The front doors of one worker.

    Args:
        engine: whose sessions are served.
        site: the app's HTTP routes; None: every path that is not Engine.IO's gets a 404.
        migrator: the way back to the balancer; None: requests are never moved.
        files: what is served below the Engine.IO path, by name.
        head_timeout: seconds for a request head, from its first byte (and for that byte, on a
            new connection).
        body_timeout: seconds for the body of a POST to a session.
        idle_timeout: seconds between two requests of a connection.
        write_timeout: seconds that a client may leave written bytes unread.

    Raises:
        OptionError: the engine's ``cookie`` option has a wrong value.
    """

    def __init__(
        self,
        engine: EngineServer,
        site: Site | None = None,
        migrator: Migrator | None = None,
        *,
        files: Mapping[str, File] | None = None,
        head_timeout: float = 10.0,
        body_timeout: float = 120.0,
        idle_timeout: float = 300.0,
        write_timeout: float = 60.0,
    ) -> None:
        options = engine.options
        self.engine = engine
        self.site = site
        self.migrator = migrator
        self.head_timeout = head_timeout
        self.body_timeout = body_timeout
        self.idle_timeout = idle_timeout
        self.write_timeout = write_timeout
        self.skip_timeout = head_timeout
        """For the rest of a body whose request is answered already."""

        # What connections read for each request, worked out once.
        self.prefix = options.path.rstrip("/") + "/"
        """Targets that begin with this are Engine.IO's, as stock servers match them."""
        self.files = {self.prefix + name: file for name, file in (files or {}).items()}
        """By path."""
        self.transports = frozenset(options.transports)
        self.max_body = options.max_http_buffer_size
        self.compress_from = (
            options.http_compression_threshold if options.http_compression else None
        )
        self.cors = Cors(options.cors)
        self.cors_enabled = options.cors is not None
        self.cookie = cookie_line(options.cookie)
        self.parse = HeadParser().parse
        self.date = b""
        """The ``Date`` line of answers, at most a second old."""

        self.draining = False
        """Requests that would open a session go back to the balancer: others take them."""

        self.requests = 0
        """Requests whose head was read, whoever answered."""
        self.moved = 0
        """Connections that went back to the balancer."""
        self.adopted = 0
        """Connections that were handed over."""
        self._doors: set[Connection] = set()
        """Connections that have no other owner; WebSockets are gone from here."""
        self._adopting: set[asyncio.Task[object]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tick_every = min(
            1.0, min(head_timeout, body_timeout, idle_timeout, write_timeout) / 4
        )
        self._now = 0.0
        self._closed = False

    # --- ways in ----------------------------------------------------------------------------

    def adopt(
        self,
        sock: socket.socket,
        data: bytes,
        address: tuple[str, int] | str,
        hops: int = 0,
        final: bool = False,
    ) -> None:
        """Serve a connection that was handed over, with the bytes read from it so far.

        Args:
            sock: the connection; it belongs to the doorway from here on.
            data: what was read of it.
            address: the client's.
            hops: how often its first request was given back by workers before.
            final: its first request is answered here, whoever its session belongs to.
        """
        if self._closed:
            sock.close()
            return
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self.adopted += 1
        task: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(lambda: FrontDoor(self, data, address, hops, final), sock)
        )
        self._adopting.add(task)
        task.add_done_callback(self._adopted)

    def _adopted(self, task: asyncio.Task[object]) -> None:
        self._adopting.discard(task)
        if not task.cancelled() and task.exception() is not None:
            count("limpet_connections_aborted_total", reason="adoption")
            logger.debug("a connection could not be adopted: %r", task.exception())

    async def listen(self, host: str | None, port: int) -> asyncio.Server:
        """Accept connections here, without a balancer; port 0 means any free one.

        Raises:
            OSError: the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._door, host, port, backlog=_BACKLOG)
        self._servers.append(server)
        return server

    async def listen_unix(self, path: str) -> asyncio.Server:
        """Accept connections on a unix socket.

        Raises:
            OSError: the path cannot be had.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(self._door, path, backlog=_BACKLOG)
        self._servers.append(server)
        return server

    async def listen_socket(self, sock: socket.socket) -> asyncio.Server:
        """Accept connections on a socket that is bound already."""
        loop = asyncio.get_running_loop()
        factory: Callable[[], asyncio.Protocol] = self._door
        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(factory, sock=sock, backlog=_BACKLOG)
        else:
            server = await loop.create_server(factory, sock=sock, backlog=_BACKLOG)
        self._servers.append(server)
        return server

    def _door(self) -> FrontDoor:
        return FrontDoor(self)

    # --- ways out ---------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Accept no more connections; those that are here go on."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()

    def give_back(self, most: int) -> int:
        """Give idle connections back to the balancer, so many at a time; return how many are here.

        For the end of a worker: the next request on them may be on its way.
        """
        given = 0
        for door in list(self._doors):
            given += door.give_back()
            if given >= most:
                break
        return len(self._doors) + len(self._adopting)

    async def close(self) -> None:
        """Accept no more connections and close those that belong to nobody else.

        Sessions are the engine's to close, before; the site is its owner's.
        """
        self._closed = True
        self.stop_listening()
        for task in list(self._adopting):
            task.cancel()
        for door in list(self._doors):
            door.close()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
            self._tick_handle = None
        # One turn for the transports to say goodbye.
        await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        """Connections that are here: idle, polling, or with the site; no WebSockets."""
        return len(self._doors)

    @property
    def arriving(self) -> int:
        """Connections handed over whose first request has not been looked at."""
        return len(self._adopting)

    def descriptors(self) -> list[int]:
        """Return the descriptors of all clients' connections, for `close_in_forks`.

        A fork that kept them would hide from clients that we closed.
        """
        transports: list[object] = [door.transport for door in self._doors]
        for session in self.engine.sessions.values():
            transports.append(session.wire)
            if session.candidate is not None:
                transports.append(session.candidate.wire)
        found = (_descriptor(each) for each in transports)
        return [fd for fd in found if fd >= 0]

    # --- for the connections ----------------------------------------------------------------

    @property
    def has_site(self) -> bool:
        """Whether other paths than Engine.IO's are anybody's."""
        return self.site is not None

    def connect_site(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """Return aiohttp's handler for a connection; None when the site does not run (yet)."""
        if self.site is None or not self.site.running:
            return None
        return self.site.connect(transport)

    def entered(self, door: Connection) -> None:
        """Know of a connection and watch its deadline."""
        self._doors.add(door)
        if self._tick_handle is None:
            self._tick()

    def left(self, door: Connection) -> None:
        """Forget a connection: it is closed, or somebody else's."""
        self._doors.discard(door)

    def after(self, seconds: float) -> float:
        """Return a deadline: it passes after so many seconds, up to two ticks later."""
        return self._now + seconds + self._tick_every

    def _tick(self) -> None:
        """Look at all deadlines: one timer for all connections, none per request."""
        loop = asyncio.get_running_loop()
        now = self._now = loop.time()
        self.date = f"Date: {formatdate(time.time(), usegmt=True)}\r\n".encode("ascii")
        late = [door for door in self._doors if 0.0 < door.deadline < now]
        for door in late:
            try:
                door.expire()
            except Exception:  # what one connection does must not stop the others' time
                logger.exception("ending a late connection failed")
                door.abort()
        if self._doors and not self._closed:
            self._tick_handle = loop.call_later(self._tick_every, self._tick)
        else:
            self._tick_handle = None


def _descriptor(transport: object) -> int:
    """Return the descriptor of a transport; -1 when it is closed, or none of asyncio's."""
    ask = getattr(transport, "get_extra_info", None)
    sock = None if ask is None else ask("socket")
    return -1 if sock is None else int(sock.fileno())
