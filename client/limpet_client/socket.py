"""One namespace as an application uses it: emitting, listening, connecting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from limpet_client.dispatch import Dispatcher
from limpet_client.errors import ConnectError, Disconnected, TransportError
from limpet_client.inbox import Inbox
from limpet_client.namespace import NamespaceCore
from limpet_worker.socketio.broadcast import EMITTED, Emitted, check_event
from limpet_worker.socketio.handlers import ANY, Handler, settle
from limpet_worker.socketio.listeners import without

if TYPE_CHECKING:
    from limpet_client.manager import Manager
    from limpet_client.namespace import Arguments
    from limpet_client.options import Auth

logger = logging.getLogger("limpet.client")

F = TypeVar("F", bound=Callable[..., Any])


class Emitting:
    """What can be emitted with: a socket, or a socket and conditions."""

    __slots__ = ()

    def emit(self, event: str, *args: object, ack: Callable[..., Any] | None = None) -> Emitted:
        """Send an event to the server. Nothing to await.

        Without a connection it waits, and is sent with the others, in order, once there is one.
        ``bytes`` travel as binary attachments, dates as ISO strings, NaN as null.

        Args:
            event: its name.
            args: what it carries.
            ack: called exactly once, plain or async: ``ack(None, *values)`` with what the server
                acknowledged, or ``ack(error)`` with ``AckTimeout``, ``Disconnected`` or
                ``NotSent``.

        Raises:
            SendBufferFull: too much waits already.
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        check_event(event)
        self._send((event, *args), ack)
        return EMITTED

    def send(self, *args: object, ack: Callable[..., Any] | None = None) -> Emitted:
        """Send the event ``message``."""
        return self.emit("message", *args, ack=ack)

    async def emit_with_ack(self, event: str, *args: object) -> Any:
        """Send an event and return what the server acknowledges it with.

        One value is returned as it is, several as a tuple, none as None. Waits for as long as
        the connection lasts, unless ``timeout(seconds)`` or the option ``ack_timeout`` comes
        first; without a connection, until there is one.

        Raises:
            AckTimeout: the server did not answer in time.
            Disconnected: the connection was lost before it answered.
            NotSent: a volatile event could not be sent.
            SendBufferFull: too much waits already.
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        check_event(event)
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def answer(error: Exception | None, values: list[Any]) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(values)

        values = await self._ask((event, *args), answer, future)
        if len(values) == 1:
            return values[0]
        return tuple(values) if values else None

    def _send(self, arguments: Arguments, ack: Callable[..., Any] | None) -> None:
        raise NotImplementedError

    async def _ask(
        self, arguments: Arguments, answer: Callable[..., None], future: asyncio.Future[list[Any]]
    ) -> list[Any]:
        raise NotImplementedError


class Socket(Emitting):
    """A client in one namespace. Not to be used from other threads than that of its event loop.

    Handlers are called with the event's arguments. ``connect`` is called without any,
    ``disconnect`` with the reason and, if there is one, the error; ``connect_error`` with a
    ``ConnectError``. Handlers may take fewer arguments than that.
    """

    __slots__ = ("_waiters", "auth", "core", "dispatcher", "failure", "manager")

    def __init__(
        self,
        manager: Manager,
        nsp: str,
        *,
        auth: Auth = None,
        retries: int | None = None,
        ack_timeout: float | None = None,
    ) -> None:
        options = manager.options
        self.manager = manager
        """The connection below, which the namespaces of a client share."""
        self.auth = auth
        """What the server is told at each connection: a mapping, or a function for it."""
        self.core = NamespaceCore(
            nsp,
            manager,
            self,
            retries=options.retries if retries is None else retries,
            ack_timeout=options.ack_timeout if ack_timeout is None else ack_timeout,
            limit=options.max_buffered_packets,
        )
        """The protocol's part."""
        self.dispatcher = Dispatcher(self.core, options.max_pending_events, manager.overrun)
        """The handlers' part."""
        self.failure: ConnectError | None = None
        """Why the last attempt to connect failed; None while none has."""
        self._waiters: list[asyncio.Future[ConnectError | None]] | None = None
        """Who waits for the outcome of an attempt to connect; None while nobody does."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id or 'not connected'} of {self.nsp}>"

    # --- who it is --------------------------------------------------------

    @property
    def nsp(self) -> str:
        """The name of the namespace."""
        return self.core.name

    @property
    def id(self) -> str | None:
        """The socket's id at the server; None while not connected, another each time."""
        return self.core.sid

    @property
    def connected(self) -> bool:
        """Whether it is connected to the namespace."""
        return self.core.connected

    @property
    def active(self) -> bool:
        """Whether it is connected or will be, without being told to."""
        return self.core.active

    @property
    def recovered(self) -> bool:
        """Whether this connection took up the one before it: same id, same rooms, nothing missed.

        Where the server offers that (connection state recovery).
        """
        return self.core.recovered

    # --- connecting -------------------------------------------------------

    def connect(self, *, retry: bool = False) -> Connecting:
        """Connect; it begins at once. Awaiting what it returns waits for the outcome.

        Not awaited, the client goes on for as long as its options say, and handlers of
        ``connect`` and ``connect_error`` are told. Awaited, the first failure is raised and ends
        the attempt, unless ``retry`` is true: then only a refusal of the server, and the last
        failure when the attempts are used up.

        Raises:
            ConnectError: (when awaited) there is no connection.
            Disconnected: (when awaited) somebody called ``disconnect`` meanwhile.
        """
        if not (self.core.active and self.manager.trying):
            self.core.active = True
            self.failure = None
            if self.dispatcher.inbox is not None:
                self.dispatcher.inbox.end(ended=False)
            self.manager.join(self)
        return Connecting(self, retry)

    def disconnect(self) -> Closing:
        """Leave the namespace; the last one ends the connection. It acts at once.

        Awaiting what it returns waits until nothing is left of a connection that ends.
        """
        self.core.disconnect()
        self._settle(None)
        return Closing(self.manager)

    def on_open(self) -> None:
        """Connect to the namespace: there is a connection."""
        if not self.core.active:
            return
        if callable(self.auth):
            self.manager.start(self._authenticate(self.auth))
        else:
            self._connect(self.auth)

    async def _authenticate(self, auth: Callable[[], Any]) -> None:
        connection = self.manager.connection
        try:
            data = await settle(auth())
        except Exception as error:  # noqa: BLE001 - the application's
            self._cannot_authenticate(error)
        else:
            if self.core.active and self.manager.connection is connection:
                self._connect(data)

    def _connect(self, auth: Any) -> None:
        try:
            self.core.ask(auth)
        except TypeError as error:
            self._cannot_authenticate(error)

    def _cannot_authenticate(self, error: Exception) -> None:
        refusal = ConnectError(f"auth: {error}")
        refusal.__cause__ = error
        self.core.disconnect()
        self.on_connect_error(refusal)

    # --- emitting ---------------------------------------------------------

    @property
    def volatile(self) -> SocketOperator:
        """Drop what is emitted next when it cannot leave at this instant."""
        return SocketOperator(self, volatile=True)

    def timeout(self, seconds: float) -> SocketOperator:
        """Limit how long an acknowledgement is waited for."""
        return SocketOperator(self, seconds=seconds)

    def compress(self, compress: bool) -> SocketOperator:
        """Say whether what is emitted next may be compressed, where the server agreed to it."""
        return SocketOperator(self, compress=compress)

    def _send(self, arguments: Arguments, ack: Callable[..., Any] | None) -> None:
        self.send_event(arguments, ack)

    async def _ask(
        self, arguments: Arguments, answer: Callable[..., None], future: asyncio.Future[list[Any]]
    ) -> list[Any]:
        return await self.ask(arguments, answer, future)

    def send_event(
        self, arguments: Arguments, ack: Callable[..., Any] | None, **conditions: Any
    ) -> None:
        """Send an event whose name was checked, under the conditions of ``SocketOperator``."""
        answer: Callable[[Exception | None, list[Any]], None] | None = None
        if ack is not None:
            call = ack

            def answer(error: Exception | None, values: list[Any]) -> None:
                self.dispatcher.answer(arguments[0], call, error, values)

        elif self.core.retries:

            def answer(error: Exception | None, values: list[Any]) -> None:
                if error is not None:
                    logger.warning("%r was given up: %s", arguments[0], error)

        self.core.emit(arguments, answer, **conditions)

    async def ask(
        self,
        arguments: Arguments,
        answer: Callable[..., None],
        future: asyncio.Future[list[Any]],
        **conditions: Any,
    ) -> list[Any]:
        """Send an event and return what it is answered with."""
        id_ = self.core.emit(arguments, answer, **conditions)
        try:
            return await future
        finally:
            if id_ is not None and future.cancelled():
                self.core.withdraw(id_)

    # --- listening --------------------------------------------------------

    @overload
    def on(self, event: str, handler: F, *, ordered: bool | None = None) -> F: ...
    @overload
    def on(
        self, event: str, handler: None = None, *, ordered: bool | None = None
    ) -> Callable[[F], F]: ...
    def on(
        self,
        event: str,
        handler: Callable[..., Any] | None = None,
        *,
        ordered: bool | None = None,
    ) -> Any:
        """Register a handler of an event, plain or async, as a decorator or directly.

        What the first handler of an event returns is the acknowledgement, if the server asked
        for one: a tuple is several values, None none at all. When it raises, it is logged and
        nothing is acknowledged. An event that comes with more or fewer arguments than a handler
        takes does not reach it; it is logged and counted.

        Handlers start in the order in which events came; with ``ordered=True`` each waits until
        the ordered ones before it have returned.
        """
        return self._listen(event, handler, once=False, ordered=ordered)

    @overload
    def once(self, event: str, handler: F) -> F: ...
    @overload
    def once(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def once(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Register a handler for one call."""
        return self._listen(event, handler, once=True, ordered=None)

    def off(self, event: str | None = None, handler: Callable[..., Any] | None = None) -> None:
        """Remove one handler, or all of an event, or all."""
        self.dispatcher.handlers.remove(event, handler)

    def listeners(self, event: str) -> list[Callable[..., Any]]:
        """Return the handlers of an event."""
        return [one.call for one in self.dispatcher.handlers.by_event.get(event, ())]

    def on_any(self, handler: F) -> F:
        """Listen to every event that comes, before its handlers: ``handler(event, *args)``."""
        self.dispatcher.incoming = [*self.dispatcher.incoming, Handler(ANY, handler)]
        return handler

    def prepend_any(self, handler: F) -> F:
        """Listen to every event that comes, before all who do already."""
        self.dispatcher.incoming = [Handler(ANY, handler), *self.dispatcher.incoming]
        return handler

    def off_any(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener, or all."""
        self.dispatcher.incoming = without(self.dispatcher.incoming, handler)

    def listeners_any(self) -> list[Callable[..., Any]]:
        """Return the catch-all listeners."""
        return [one.call for one in self.dispatcher.incoming]

    def on_any_outgoing(self, handler: F) -> F:
        """Listen to every event that is sent: ``handler(event, *args)``; acks are none."""
        self.dispatcher.outgoing = [*self.dispatcher.outgoing, Handler(ANY, handler)]
        return handler

    def prepend_any_outgoing(self, handler: F) -> F:
        """Listen to every event that is sent, before all who do already."""
        self.dispatcher.outgoing = [Handler(ANY, handler), *self.dispatcher.outgoing]
        return handler

    def off_any_outgoing(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener of sent events, or all."""
        self.dispatcher.outgoing = without(self.dispatcher.outgoing, handler)

    def listeners_any_outgoing(self) -> list[Callable[..., Any]]:
        """Return the catch-all listeners of sent events."""
        return [one.call for one in self.dispatcher.outgoing]

    def use(self, middleware: F) -> F:
        """Call ``middleware(packet)`` before an event's handlers; raise in it to drop the event.

        ``packet`` is the list ``[event, *args]`` and may be changed. It may be async; events
        keep their order. A dropped event is counted and not acknowledged.
        """
        self.dispatcher.middlewares.append(Handler("middleware", middleware))
        return middleware

    def __aiter__(self) -> AsyncIterator[tuple[str, tuple[Any, ...]]]:
        """Iterate over the events that no handler is registered for: ``(event, args)``.

        From the moment on that iteration begins; within ``async with`` from its beginning. It
        goes on over reconnections and ends when the client has disconnected for good. Events
        that the server wants acknowledged need a handler.
        """
        inbox = self.listen()
        if inbox.overflown and not inbox.started:
            logger.warning("events came before anybody iterated, and were not kept")
        inbox.started = True
        return inbox

    def listen(self) -> Inbox:
        """Keep events for iteration from now on."""
        if self.dispatcher.inbox is None:
            self.dispatcher.inbox = Inbox()
            self.dispatcher.inbox.ended = not self.active
        return self.dispatcher.inbox

    def _listen(
        self, event: str, handler: Callable[..., Any] | None, *, once: bool, ordered: bool | None
    ) -> Any:
        if not isinstance(event, str):
            raise TypeError(f"the event must be a string, not {event!r}")
        if ordered is None:
            ordered = self.manager.options.ordered

        def register(function: F) -> F:
            self.dispatcher.handlers.add(Handler(event, function, once=once, ordered=ordered))
            return function

        return register if handler is None else register(handler)

    # --- what the core tells ----------------------------------------------

    def on_event(self, arguments: list[Any], id_: int | None) -> None:
        """Take an event of the server's."""
        self.dispatcher.on_event(arguments, id_)

    def on_outgoing(self, arguments: Arguments) -> None:
        """Show what is being sent."""
        if self.dispatcher.outgoing:
            self.dispatcher.show_outgoing(arguments)

    def on_connect(self) -> None:
        """Tell that it is connected."""
        self.failure = None  # with its traceback it would keep the earlier connection alive
        self._settle(None)
        self.dispatcher.tell("connect")

    def on_connect_error(self, error: ConnectError) -> None:
        """Tell that it could not be."""
        self.failure = error
        self._settle(error)
        self.dispatcher.tell("connect_error", error)
        self._end_inbox()

    def on_disconnect(self, reason: str, error: TransportError | None) -> None:
        """Tell that it is no more."""
        self.dispatcher.tell("disconnect", reason, error)
        self._end_inbox()

    def on_idle(self) -> None:
        """Do without the connection."""
        self.manager.leave()
        self._end_inbox()

    def start_timer(self, seconds: float, id_: int) -> object:
        """Limit an acknowledgement."""
        return asyncio.get_running_loop().call_later(seconds, self.core.expire, id_)

    # --- inside -----------------------------------------------------------

    async def outcome(self) -> ConnectError | None:
        """Return the error of the next attempt to connect; None: connected, or given up."""
        waiter: asyncio.Future[ConnectError | None] = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        return await waiter

    def _settle(self, error: ConnectError | None) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(error)

    def _end_inbox(self) -> None:
        if self.dispatcher.inbox is not None and not self.core.active:
            self.dispatcher.inbox.end()


class SocketOperator(Emitting):
    """Emits with conditions; immutable, each condition gives a new one."""

    __slots__ = ("_compress", "_seconds", "_socket", "_volatile")

    def __init__(
        self,
        socket: Socket,
        *,
        volatile: bool = False,
        seconds: float | None = None,
        compress: bool = True,
    ) -> None:
        self._socket = socket
        self._volatile = volatile
        self._seconds = seconds
        self._compress = compress

    @property
    def volatile(self) -> Self:
        """Drop what is emitted when it cannot leave at this instant."""
        return self._but(volatile=True)

    def timeout(self, seconds: float) -> Self:
        """Limit how long an acknowledgement is waited for."""
        return self._but(seconds=seconds)

    def compress(self, compress: bool) -> Self:
        """Say whether what is emitted may be compressed."""
        return self._but(compress=compress)

    def _but(self, **changed: Any) -> Self:
        return type(self)(self._socket, **{**self._conditions(), **changed})

    def _conditions(self) -> dict[str, Any]:
        return {"volatile": self._volatile, "seconds": self._seconds, "compress": self._compress}

    def _send(self, arguments: Arguments, ack: Callable[..., Any] | None) -> None:
        self._socket.send_event(arguments, ack, **self._conditions())

    async def _ask(
        self, arguments: Arguments, answer: Callable[..., None], future: asyncio.Future[list[Any]]
    ) -> list[Any]:
        return await self._socket.ask(arguments, answer, future, **self._conditions())


class Connecting(Awaitable[None]):
    """What ``connect`` returns: it has begun; await it for the outcome."""

    __slots__ = ("_retry", "_socket")

    def __init__(self, socket: Socket, retry: bool) -> None:
        self._socket = socket
        self._retry = retry

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until it is connected."""
        return self._wait().__await__()

    async def _wait(self) -> None:
        socket = self._socket
        try:
            while not socket.connected:
                await self._step(socket)
        except BaseException:
            socket.disconnect()  # nothing goes on behind the back of who is told that it failed
            raise

    async def _step(self, socket: Socket) -> None:
        """Wait for the next outcome; return if there may be another one."""
        if not socket.active:
            raise socket.failure or Disconnected("disconnected before there was a connection")
        error = await socket.outcome()
        if error is not None and not (self._retry and self._goes_on(socket)):
            raise error

    @staticmethod
    def _goes_on(socket: Socket) -> bool:
        return socket.active and socket.manager.trying


class Closing(Awaitable[None]):
    """What ``disconnect`` returns: it has acted; await it until nothing is left."""

    __slots__ = ("_manager",)

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until connections that end have ended."""
        return self._manager.wait_closed().__await__()
