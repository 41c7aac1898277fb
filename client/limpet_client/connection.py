"""One Engine.IO session over the network: its transports, its timers, and its clean end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from limpet_client.engine import EngineSession, Sink
from limpet_client.errors import TransportError
from limpet_client.http import Http
from limpet_client.polling import PollingTransport
from limpet_client.tasks import Running
from limpet_client.websocket import WebSocketTransport, transport_class

if TYPE_CHECKING:
    import aiohttp

    from limpet_adapters.packet import EncodedPacket
    from limpet_client.address import Address
    from limpet_client.options import Options

_UPGRADE_TIMEOUT: Final = 10.0
_CLOSE_TIMEOUT: Final = 3.0
"""Seconds for the last packets and the goodbye."""


class _Deaf:
    """A sink of which nobody wants to hear any more."""

    __slots__ = ()

    def on_open(self) -> None: ...
    def on_text(self, data: bytes) -> None: ...
    def on_binary(self, data: bytes) -> None: ...
    def on_ping(self) -> None: ...
    def on_upgrade(self) -> None: ...
    def on_close(self, reason: str, error: TransportError | None) -> None: ...


_DEAF: Final = _Deaf()


class Connection:
    """A session that opens by itself and tells its sink of everything; made anew for the next."""

    __slots__ = (
        "_address",
        "_done",
        "_end",
        "_flushing",
        "_gone",
        "_http",
        "_loop",
        "_names",
        "_on_closed",
        "_opening",
        "_options",
        "_patience",
        "_sink",
        "_sockets",
        "_tasks",
        "_timer",
        "closed",
        "session",
    )

    def __init__(
        self,
        address: Address,
        options: Options,
        sink: Sink,
        *,
        names: list[str],
        on_closed: Callable[[Connection], None],
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._address = address
        self._options = options
        self._sink = sink
        self._names = names
        """Transports that have not been tried yet."""
        self._http: Http | None = None
        """None once only a WebSocket is left, and at the end."""
        self._tasks = Running(loop)
        self._sockets: list[WebSocketTransport] = []
        """WebSockets that have not ended: the session's, a candidate, one that closes."""
        self._opening: asyncio.Task[None] | None = None
        """Opens a WebSocket; None while none is being opened."""
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        """For the silence of the server, or for an end that takes too long."""
        self._patience: asyncio.TimerHandle | None = None
        """For an upgrade that takes too long; None while none is under way."""
        self._end: asyncio.Task[None] | None = None
        """Cleans up; None before the end of the session."""
        self._gone: asyncio.Future[None] | None = None
        """Waits for the last WebSocket's end."""
        self._on_closed = on_closed
        self._done: asyncio.Future[None] | None = None
        """For those who wait for the end; None while nobody does."""
        self.closed = False
        """Whether nothing of it is left."""
        self.session = EngineSession(
            self,
            self,
            loop.time,
            transports=options.transports,
            upgrade=options.upgrade,
            max_buffered_bytes=options.max_buffered_bytes,
        )

    # --- its user's side --------------------------------------------------

    @property
    def transport_name(self) -> str:
        """``polling`` or ``websocket``; empty at the end."""
        transport = self.session.transport
        return transport.name if transport is not None else ""

    def open(self, cookies: aiohttp.abc.AbstractCookieJar) -> None:
        """Begin. ``on_open`` or ``on_close`` of the sink follows."""
        self._http = Http(self._address, self._options, cookies)
        self._try_next()

    def send(self, packet: bytes | EncodedPacket, *, compress: bool = True) -> None:
        """Send a Socket.IO packet at the end of this turn of the loop."""
        if isinstance(packet, bytes):
            self.session.send_text(packet, compress=compress)
        else:
            self.session.send_packet(packet, compress=compress)

    def detach(self) -> None:
        """Tell the sink nothing more."""
        self._sink = _DEAF

    def close(self, reason: str = "forced close") -> None:
        """Send what waits, then end; ``on_close`` of the sink follows."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_CLOSE_TIMEOUT, self.abort, reason)
        self.session.close(reason)

    def abort(self, reason: str) -> None:
        """End at once."""
        self.session.end(reason, None)

    async def wait_closed(self) -> None:
        """Wait until nothing of it is left."""
        if not self.closed:
            if self._done is None:
                self._done = self._loop.create_future()
            await asyncio.shield(self._done)

    # --- what the session asks for ----------------------------------------

    def want_flush(self) -> None:
        """Write at the end of this turn, once."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def want_watch(self) -> None:
        """Look at the deadline when it comes; a ping moves it and costs no timer."""
        self._timer = self._loop.call_at(self.session.deadline, self._watch)

    def want_candidate(self) -> None:
        """Open a WebSocket beside the polls."""
        self._opening = self._tasks.start(self._upgrade())

    # --- what the session tells -------------------------------------------

    def on_open(self) -> None:
        """Pass it on."""
        self._sink.on_open()
        if self.transport_name == "websocket":
            self._drop_http()

    def on_text(self, data: bytes) -> None:
        """Pass it on."""
        self._sink.on_text(data)

    def on_binary(self, data: bytes) -> None:
        """Pass it on."""
        self._sink.on_binary(data)

    def on_ping(self) -> None:
        """Pass it on."""
        self._sink.on_ping()

    def on_upgrade(self) -> None:
        """Do without HTTP from now on."""
        self._end_patience()
        self._drop_http()
        self._sink.on_upgrade()

    def on_close(self, reason: str, error: TransportError | None) -> None:
        """Clean up, and pass it on."""
        if self._opening is not None and self._opening is not asyncio.current_task():
            self._opening.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end_patience()
        if self._end is None:
            self._end = self._loop.create_task(self._clean_up())
        self._sink.on_close(reason, error)

    # --- inside -----------------------------------------------------------

    def another_transport(self) -> bool:
        """Begin again with the next transport; False when there is none."""
        if not self._names or not self._options.try_all_transports:
            return False
        self._try_next()
        return True

    def _try_next(self) -> None:
        name = self._names.pop(0)
        if name == "polling" and self._http is not None:
            transport = PollingTransport(self.session, self._http, self._tasks)
            self.session.start(transport)
            transport.open()
        else:
            self._opening = self._tasks.start(self._begin_with_websocket())

    async def _begin_with_websocket(self) -> None:
        session = self.session
        try:
            # The session has it before its first packet can come.
            await self._open_websocket(session.start)
        except TransportError as error:
            session.not_opened(error)
        finally:
            self._opening = None

    async def _upgrade(self) -> None:
        session = self.session
        try:
            async with asyncio.timeout(_UPGRADE_TIMEOUT):
                candidate = await self._open_websocket(None)
        except (TransportError, TimeoutError):
            return  # the session goes on by polling
        finally:
            self._opening = None
        self._patience = self._loop.call_later(_UPGRADE_TIMEOUT, session.drop_candidate)
        session.probe(candidate)

    async def _open_websocket(
        self, use: Callable[[WebSocketTransport], None] | None
    ) -> WebSocketTransport:
        options = self._options
        made: list[WebSocketTransport] = []

        def receiver(extensions: str) -> WebSocketTransport:
            transport = transport_class(self._loop)(
                self.session,
                extensions,
                options.max_message_size,
                options.compression_threshold,
                self._on_websocket_end,
            )
            made.append(transport)
            self._sockets.append(transport)
            if use is not None:
                use(transport)
            return transport

        if self._http is None:
            raise TransportError("websocket: the connection is being closed")
        try:
            await self._http.open(self.session.sid, receiver)
        except BaseException:
            for transport in made:
                self._on_websocket_end(transport)
            raise
        return made[0]

    def _on_websocket_end(self, transport: WebSocketTransport) -> None:
        if transport in self._sockets:
            self._sockets.remove(transport)
        if not self._sockets and self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def _drop_http(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            self._tasks.start(http.close())

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _flush(self) -> None:
        self._flushing = False
        self.session.flush()

    def _watch(self) -> None:
        self._timer = None
        deadline = self.session.check()
        if self.session.transport is not None:
            self._timer = self._loop.call_at(deadline, self._watch)

    async def _clean_up(self) -> None:
        await self._tasks.finish(_CLOSE_TIMEOUT)
        if self._sockets:  # each limits by itself how long it closes
            self._gone = self._loop.create_future()
            await self._gone
        http, self._http = self._http, None
        if http is not None:
            await http.close()
        self.closed = True
        if self._done is not None:
            self._done.set_result(None)
        self._on_closed(self)
