"""The connection that the namespaces of a client share, and how it is made again when lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import aiohttp

from limpet_client.address import Address, parse
from limpet_client.backoff import Backoff
from limpet_client.connection import Connection
from limpet_client.errors import ConnectError, TransportError
from limpet_client.options import make
from limpet_client.socket import Socket
from limpet_worker.socketio.errors import PacketError
from limpet_worker.socketio.handlers import Handler, Handlers, Tasks, is_coroutine
from limpet_worker.socketio.packet import Packet, decode

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket
    from limpet_client.options import Auth

F = TypeVar("F", bound=Callable[..., Any])

EVENTS: Final = frozenset(
    (
        "open",
        "error",
        "ping",
        "packet",
        "close",
        "upgrade",
        "reconnect_attempt",
        "reconnect",
        "reconnect_error",
        "reconnect_failed",
    )
)
"""What a manager tells of."""

CLOSED: Final = "closed"
OPENING: Final = "opening"
OPEN: Final = "open"


class Manager:
    """One connection at a time to one server, for any number of namespaces.

    Its events: ``open``; ``error`` (a ``ConnectError``); ``ping``; ``packet``; ``upgrade``;
    ``close`` (reason, error or None); ``reconnect_attempt`` and ``reconnect`` (number of the
    attempt); ``reconnect_error`` (error); ``reconnect_failed``.

    Args:
        url: where the server is; its path is not used here.
        options: see ``Client``.

    Raises:
        OptionError: an option has a value that cannot be.
        TypeError: there is no option of that name.
    """

    __slots__ = (
        "_closing",
        "_cookies",
        "_handlers",
        "_loop",
        "_on_attempt",
        "_partial",
        "_reconnection",
        "_tasks",
        "_timer",
        "_upgraded",
        "address",
        "backoff",
        "connection",
        "options",
        "reconnecting",
        "reconnection_attempts",
        "sockets",
        "state",
        "stopped",
        "timeout",
    )

    def __init__(self, url: str, **options: Any) -> None:
        self.options = make(options)
        self.address: Address = parse(url, self.options.endpoint)
        self._reconnection = self.options.reconnection
        self.reconnection_attempts: float = self.options.reconnection_attempts
        """How often in a row. May be changed."""
        self.timeout: float | None = self.options.timeout
        """Seconds for a connection to be made; None: no limit. May be changed."""
        self.backoff = Backoff(
            self.options.reconnection_delay,
            self.options.reconnection_delay_max,
            self.options.randomization_factor,
        )
        self.state = CLOSED
        self.reconnecting = False
        """Whether an attempt to reconnect is waited for or under way."""
        self.stopped = False
        """Whether nothing is tried any more, because nobody wants a connection."""
        self.sockets: dict[str, Socket] = {}
        """Namespaces by name."""
        self.connection: Connection | None = None
        """The connection; None before the first and between two."""
        self._closing: list[Connection] = []
        """Connections of which something is left, the present one included."""
        self._partial: Packet | None = None
        """A packet that waits for attachments."""
        self._handlers: Handlers | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where it runs; None before the first connection."""
        self._tasks: Tasks | None = None
        """Coroutines of handlers; None before the first connection."""
        self._timer: asyncio.TimerHandle | None = None
        """For an attempt that takes too long, or for the next one."""
        self._on_attempt = False
        """Whether the connection being made is an attempt to reconnect."""
        self._cookies: aiohttp.abc.AbstractCookieJar | None = None
        """What the server set; None while there is none."""
        self._upgraded = False
        """Whether a WebSocket worked."""

    def __repr__(self) -> str:
        return f"<Manager of {self.address.origin}, {self.state}>"

    # --- its user's side --------------------------------------------------

    @overload
    def on(self, event: str, handler: F) -> F: ...
    @overload
    def on(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def on(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Register a handler of an event, plain or async, as a decorator or directly.

        It may take fewer arguments than there are.

        Raises:
            ValueError: there is no such event.
        """
        return self._listen(event, handler, once=False)

    @overload
    def once(self, event: str, handler: F) -> F: ...
    @overload
    def once(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def once(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Register a handler for one call."""
        return self._listen(event, handler, once=True)

    def off(self, event: str | None = None, handler: Callable[..., Any] | None = None) -> None:
        """Remove one handler, or all of an event, or all."""
        if self._handlers is not None:
            self._handlers.remove(event, handler)

    @property
    def reconnection(self) -> bool:
        """Whether a lost connection is made again. May be changed; False ends the attempts."""
        return self._reconnection

    @reconnection.setter
    def reconnection(self, reconnection: bool) -> None:
        self._reconnection = reconnection
        if not reconnection:
            self.stopped = True
            if self.state == CLOSED:
                self.reconnecting = False
                self._set_timer(None, None)

    def socket(
        self,
        nsp: str = "/",
        *,
        auth: Auth = None,
        retries: int | None = None,
        ack_timeout: float | None = None,
    ) -> Socket:
        """Return the socket of a namespace, always the same one; options count the first time.

        With ``auto_connect`` it connects at once if there is a connection, else with the next.
        """
        if not nsp.startswith("/"):
            nsp = f"/{nsp}"
        socket = self.sockets.get(nsp)
        if socket is None:
            socket = self.add(
                Socket(self, nsp, auth=auth, retries=retries, ack_timeout=ack_timeout)
            )
        if self.options.auto_connect and not socket.active:
            if self.connection is not None or self.reconnecting:
                socket.connect()
            else:
                socket.core.active = True
        return socket

    def add(self, socket: Socket) -> Socket:
        """Take a socket that was made for this manager."""
        self.sockets[socket.nsp] = socket
        socket.dispatcher.tasks = self._tasks
        return socket

    def disconnect(self) -> None:
        """End the connection, and the attempts to make one. Namespaces that were connected get
        ``forced close`` as their reason, and are connected by the next one.
        """
        self._close()

    async def wait_closed(self) -> None:
        """Wait until nothing is left of connections that end."""
        for connection in list(self._closing):
            if connection is not self.connection:
                await connection.wait_closed()

    async def finish(self, seconds: float) -> None:
        """Wait for coroutines of handlers, then cancel those that still run."""
        if self._tasks is not None:
            await self._tasks.finish(seconds)

    @property
    def transport_name(self) -> str:
        """``polling`` or ``websocket``; empty without a connection."""
        return self.connection.transport_name if self.connection is not None else ""

    @property
    def trying(self) -> bool:
        """Whether there is a connection, or one is being made, or will be."""
        return self.reconnecting or self.state != CLOSED

    # --- the sockets' side ------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether a packet would leave at this instant."""
        return self.connection is not None and self.connection.session.writable

    @property
    def alive(self) -> bool:
        """Whether the server has not been silent for too long.

        A process that slept finds out here, before its timer tells: what is emitted waits then.
        """
        connection = self.connection
        if connection is None:
            return False
        if connection.session.expired:
            if self._loop is not None:
                # Whatever comes before that: what is emitted now waits for another connection.
                self._loop.call_soon(connection.abort, "ping timeout")
            return False
        return True

    @property
    def full(self) -> bool:
        """Whether too much waits for the network already."""
        return self.connection is not None and self.connection.session.full

    def send(self, packet: bytes | EncodedPacket, *, compress: bool = True) -> None:
        """Send a packet."""
        if self.connection is not None:
            self.connection.send(packet, compress=compress)

    def join(self, socket: Socket) -> None:
        """Make a connection for a socket if there is none, else connect it."""
        self._bind()
        if self.state == OPEN:
            socket.on_open()
        elif not self.reconnecting:
            self._open(on_attempt=False)

    def leave(self) -> None:
        """End the connection if no namespace wants it any more."""
        if not any(socket.active for socket in self.sockets.values()):
            self._close()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that handles its own exceptions."""
        if self._tasks is None:
            coroutine.close()
            raise RuntimeError("there has been no connection yet")
        self._tasks.start(coroutine)

    def overrun(self) -> None:
        """Give up a connection whose events are not handled as fast as they come."""
        self._lose("slow consumer", TransportError("too many events wait for their handlers"))

    # --- making a connection ----------------------------------------------

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._tasks = Tasks(loop)
            for socket in self.sockets.values():
                socket.dispatcher.tasks = self._tasks

    def _open(self, *, on_attempt: bool) -> None:
        if self.state != CLOSED or self._loop is None:
            return
        options = self.options
        self.state = OPENING
        self.stopped = False
        self._on_attempt = on_attempt
        self._partial = None
        names = list(options.transports)
        if options.remember_upgrade and self._upgraded:
            names.sort(key=lambda name: name != "websocket")
        connection = self.connection = Connection(
            self.address, options, self, names=names, on_closed=self._on_closed
        )
        self._closing.append(connection)
        if self._cookies is None:
            self._cookies = aiohttp.CookieJar(unsafe=True)
            self._cookies.update_cookies(options.cookies)
        self._set_timer(self.timeout, self._too_slow)
        connection.open(self._cookies)

    def _too_slow(self) -> None:
        self._drop()
        self._not_opened(ConnectError("timeout"))

    def _not_opened(self, error: ConnectError) -> None:
        """Know that an attempt failed."""
        on_attempt = self._on_attempt
        self._set_timer(None, None)
        self.state = CLOSED
        self.connection = None
        self._tell("error", error)
        for socket in list(self.sockets.values()):
            socket.core.on_open_failed(error)
        if on_attempt:
            self.reconnecting = False
            self._reconnect()
            self._tell("reconnect_error", error)
        elif self._reconnection and not self.reconnecting and not self.backoff.attempts:
            self._reconnect()

    def _reconnect(self) -> None:
        """Try again after a while, unless that was the last time."""
        if self.reconnecting or self.stopped:
            return
        if self.backoff.attempts >= self.reconnection_attempts:
            self.backoff.reset()
            self._tell("reconnect_failed")
            return
        self.reconnecting = True
        self._set_timer(self.backoff.next(), self._try_again)

    def _try_again(self) -> None:
        self._tell("reconnect_attempt", self.backoff.attempts)
        if not self.stopped and self.reconnecting:  # a handler may have disconnected
            self._open(on_attempt=True)

    # --- the end of a connection ------------------------------------------

    def _close(self) -> None:
        """End all of it: nobody wants a connection."""
        self.stopped = True
        self.reconnecting = False
        self._lose("forced close", None)

    def _lose(self, reason: str, error: TransportError | None) -> None:
        """Let a connection go, in the way of the protocol, and tell of its end."""
        connection = self.connection
        if connection is not None:
            connection.detach()
            connection.close(reason)
        self._lost(reason, error)

    def _lost(self, reason: str, error: TransportError | None) -> None:
        was_open = self.state == OPEN
        self._set_timer(None, None)
        self.state = CLOSED
        self.connection = None
        self._partial = None
        self.backoff.reset()
        if was_open:
            self._tell("close", reason, error)
        for socket in list(self.sockets.values()):
            socket.core.on_lost(reason, error)
        if self._reconnection and not self.stopped:
            self._reconnect()

    def _drop(self) -> None:
        connection = self.connection
        if connection is not None:
            connection.detach()
            connection.abort("forced close")

    def _on_closed(self, connection: Connection) -> None:
        if connection in self._closing:
            self._closing.remove(connection)

    # --- what the connection tells ----------------------------------------

    def on_open(self) -> None:
        """Connect the namespaces."""
        self._set_timer(None, None)
        self.state = OPEN
        self._note_websocket()
        self._tell("open")
        for socket in list(self.sockets.values()):
            socket.on_open()
        if self._on_attempt:
            attempt = self.backoff.attempts
            self._on_attempt = False
            self.reconnecting = False
            self.backoff.reset()
            self._tell("reconnect", attempt)

    def on_text(self, data: bytes) -> None:
        """Read a packet."""
        if self._partial is not None:
            self._unreadable("text between attachments")
            return
        try:
            packet = decode(data, self.options.max_attachments)
        except PacketError as error:
            self._unreadable(error.reason)
            return
        if packet.missing:
            self._partial = packet
        else:
            self._take(packet)

    def on_binary(self, data: bytes) -> None:
        """Take an attachment."""
        packet = self._partial
        if packet is None:
            self._unreadable("an attachment of nothing")
            return
        try:
            complete = packet.attach(data, self.options.max_message_size)
        except PacketError as error:
            self._unreadable(error.reason)
            return
        if complete:
            self._partial = None
            self._take(packet)

    def on_ping(self) -> None:
        """Tell of it."""
        self._tell("ping")

    def on_upgrade(self) -> None:
        """Tell of it."""
        self._note_websocket()
        self._tell("upgrade")

    def on_close(self, reason: str, error: TransportError | None) -> None:
        """Know that the connection has ended, or could not be made."""
        if self.state == OPENING:
            self._not_opened(error or ConnectError(reason))
            return
        if error is not None and reason == "transport error":
            self._tell("error", error)
        self._lost(reason, error)

    # --- inside -----------------------------------------------------------

    def _take(self, packet: Packet) -> None:
        if self._handlers is not None:
            self._tell("packet", packet)
        socket = self.sockets.get(packet.namespace)
        if socket is not None:
            socket.core.on_packet(packet)

    def _unreadable(self, reason: str) -> None:
        self._lose("parse error", TransportError(reason))

    def _note_websocket(self) -> None:
        if self.transport_name == "websocket":
            self._upgraded = True
            jar = self._cookies
            if isinstance(jar, aiohttp.CookieJar) and not len(jar):
                self._cookies = None  # 5,000 idle clients have 5,000 of them

    def _set_timer(self, seconds: float | None, call: Callable[[], None] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and call is not None and self._loop is not None:
            self._timer = self._loop.call_later(seconds, call)

    def _listen(self, event: str, handler: Callable[..., Any] | None, *, once: bool) -> Any:
        if event not in EVENTS:
            raise ValueError(f"there is no event {event!r}: one of {', '.join(sorted(EVENTS))}")

        def listen(function: F) -> F:
            if self._handlers is None:
                self._handlers = Handlers()
            self._handlers.add(Handler(event, function, once=once))
            return function

        return listen if handler is None else listen(handler)

    def _tell(self, event: str, *arguments: Any) -> None:
        if self._handlers is None:
            return
        for handler in self._handlers.by_event.get(event, ()):
            if handler.once:
                self._handlers.discard(handler)
            try:
                result = handler.fit(*arguments)
                if is_coroutine(result):
                    self.start(_guard(handler, result))
            except Exception as error:  # noqa: BLE001 - the application's
                handler.failed("manager", error)


async def _guard(handler: Handler, coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        await coroutine
    except Exception as error:  # noqa: BLE001 - the application's
        handler.failed("manager", error)
