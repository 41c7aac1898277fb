"""The client for programs without an event loop: scripts and threads. It blocks where it waits.

The same verbs as ``limpet_client.client``, from any thread. The connection lives in an event loop
that one background thread runs for the whole process; handlers run in a thread of their client's,
one after the other, so they may block and may call the client.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from limpet_client import client as asynchronous
from limpet_client import socket as asynchronous_socket
from limpet_client.background import Background, HandlerThread, background
from limpet_client.errors import Disconnected
from limpet_worker.socketio.broadcast import EMITTED, Emitted

if TYPE_CHECKING:
    from limpet_client.inbox import Inbox
    from limpet_client.manager import Manager as AsynchronousManager
    from limpet_client.options import Auth

F = TypeVar("F", bound=Callable[..., Any])

_GRACE: Final = 1.0


class _InThread:
    """A function of the application that is called in the thread of its client's handlers.

    Equal to another of the same function, so that ``off`` finds it.
    """

    def __init__(self, thread: HandlerThread, function: Callable[..., Any]) -> None:
        self._thread = thread
        self.__wrapped__ = function  # what inspect.signature looks at

    def __call__(self, *arguments: Any) -> Any:
        """Have it called; return a coroutine of its result."""
        work = functools.partial(self.__wrapped__, *arguments)
        return _result(self._thread.submit(work))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _InThread) and other.__wrapped__ == self.__wrapped__

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


async def _result(future: asyncio.Future[Any]) -> Any:
    return await future


class _Emitting:
    """What can be emitted with: a socket, or a socket and conditions."""

    def __init__(
        self, inner: asynchronous_socket.Emitting, loop: Background, thread: HandlerThread
    ) -> None:
        self._emitter = inner
        self._loop = loop
        self._thread = thread

    def emit(self, event: str, *args: object, ack: Callable[..., Any] | None = None) -> Emitted:
        """Send an event to the server; see ``limpet.Client``. ``ack`` runs as handlers do.

        Raises:
            SendBufferFull: too much waits already.
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        if ack is not None:
            ack = _InThread(self._thread, ack)
        self._loop.call(self._emitter.emit, event, *args, ack=ack)
        return EMITTED

    def send(self, *args: object, ack: Callable[..., Any] | None = None) -> Emitted:
        """Send the event ``message``."""
        return self.emit("message", *args, ack=ack)

    def emit_with_ack(self, event: str, *args: object) -> Any:
        """Send an event, wait for what the server acknowledges it with, and return that.

        One value is returned as it is, several as a tuple, none as None.

        Raises:
            AckTimeout: the server did not answer in time: see ``timeout``.
            Disconnected: the connection was lost before it answered.
            NotSent: a volatile event could not be sent.
            SendBufferFull: too much waits already.
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        return self._loop.run(self._emitter.emit_with_ack(event, *args))


class Operator(_Emitting):
    """Emits with conditions; immutable, each condition gives a new one."""

    _emitter: asynchronous_socket.SocketOperator

    @property
    def volatile(self) -> Operator:
        """Drop what is emitted when it cannot leave at this instant."""
        return Operator(self._emitter.volatile, self._loop, self._thread)

    def timeout(self, seconds: float) -> Operator:
        """Limit how long an acknowledgement is waited for."""
        return Operator(self._emitter.timeout(seconds), self._loop, self._thread)

    def compress(self, compress: bool) -> Operator:
        """Say whether what is emitted may be compressed."""
        return Operator(self._emitter.compress(compress), self._loop, self._thread)


class Manager:
    """The connection below, as far as an application has to do with it: its events.

    See ``limpet_client.manager.Manager`` for their names.
    """

    def __init__(self, inner: AsynchronousManager, loop: Background, thread: HandlerThread) -> None:
        self._inner = inner
        self._loop = loop
        self._thread = thread

    def on(self, event: str, handler: F) -> F:
        """Register a handler of an event; it may take fewer arguments.

        Raises:
            ValueError: there is no such event.
        """
        self._loop.call(self._inner.on, event, _InThread(self._thread, handler))
        return handler

    def once(self, event: str, handler: F) -> F:
        """Register a handler for one call."""
        self._loop.call(self._inner.once, event, _InThread(self._thread, handler))
        return handler

    def off(self, event: str | None = None, handler: Callable[..., Any] | None = None) -> None:
        """Remove one handler, or all of an event, or all."""
        wrapped = None if handler is None else _InThread(self._thread, handler)
        self._loop.call(self._inner.off, event, wrapped)


class Socket(_Emitting):
    """A client in one namespace; see ``limpet.Client`` for what the events are."""

    _emitter: asynchronous_socket.Socket

    def __repr__(self) -> str:
        return repr(self._emitter)

    # --- who it is --------------------------------------------------------

    @property
    def nsp(self) -> str:
        """The name of the namespace."""
        return self._emitter.nsp

    @property
    def id(self) -> str | None:
        """The socket's id at the server; None while not connected, another each time."""
        return self._emitter.id

    @property
    def connected(self) -> bool:
        """Whether it is connected to the namespace."""
        return self._emitter.connected

    @property
    def active(self) -> bool:
        """Whether it is connected or will be, without being told to."""
        return self._emitter.active

    @property
    def recovered(self) -> bool:
        """Whether this connection took up the one before it."""
        return self._emitter.recovered

    # --- connecting -------------------------------------------------------

    def connect(self, *, retry: bool = False, timeout: float | None = None) -> None:
        """Connect, and wait for it.

        The first failure is raised and ends the attempt, unless ``retry`` is true: then only a
        refusal of the server, and the last failure when the attempts are used up.

        Raises:
            ConnectError: there is no connection.
            TimeoutError: it took longer than ``timeout`` seconds.
        """

        async def connect() -> None:
            self._opened()
            async with asyncio.timeout(timeout):
                await self._emitter.connect(retry=retry)

        self._loop.run(connect())

    def disconnect(self) -> None:
        """Leave the namespace; the last one ends the connection. Waits until it has ended."""

        async def disconnect() -> None:
            await self._emitter.disconnect()

        self._loop.run(disconnect())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has disconnected for good; return whether it has, within ``timeout``.

        What a script does whose handlers do the work.
        """

        async def wait() -> bool:
            inbox = self._emitter.listen()
            try:
                async with asyncio.timeout(timeout):
                    await inbox.wait_end()
            except TimeoutError:
                return False
            return True

        return self._loop.run(wait())

    # --- emitting ---------------------------------------------------------

    @property
    def volatile(self) -> Operator:
        """Drop what is emitted next when it cannot leave at this instant."""
        return Operator(self._emitter.volatile, self._loop, self._thread)

    def timeout(self, seconds: float) -> Operator:
        """Limit how long an acknowledgement is waited for."""
        return Operator(self._emitter.timeout(seconds), self._loop, self._thread)

    def compress(self, compress: bool) -> Operator:
        """Say whether what is emitted next may be compressed, where the server agreed to it."""
        return Operator(self._emitter.compress(compress), self._loop, self._thread)

    # --- listening --------------------------------------------------------

    @overload
    def on(self, event: str, handler: F) -> F: ...
    @overload
    def on(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def on(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Register a handler of an event, as a decorator or directly.

        It runs in the thread of the client's handlers, after those of earlier events. What it
        returns is the acknowledgement, if the server asked for one.
        """
        return self._listen("on", event, handler)

    @overload
    def once(self, event: str, handler: F) -> F: ...
    @overload
    def once(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def once(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Register a handler for one call."""
        return self._listen("once", event, handler)

    def off(self, event: str | None = None, handler: Callable[..., Any] | None = None) -> None:
        """Remove one handler, or all of an event, or all."""
        wrapped = None if handler is None else _InThread(self._thread, handler)
        self._loop.call(self._emitter.off, event, wrapped)

    def on_any(self, handler: F) -> F:
        """Listen to every event that comes: ``handler(event, *args)``."""
        return self._listen_any(self._emitter.on_any, handler)

    def off_any(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener, or all."""
        wrapped = None if handler is None else _InThread(self._thread, handler)
        self._loop.call(self._emitter.off_any, wrapped)

    def on_any_outgoing(self, handler: F) -> F:
        """Listen to every event that is sent: ``handler(event, *args)``."""
        return self._listen_any(self._emitter.on_any_outgoing, handler)

    def off_any_outgoing(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener of sent events, or all."""
        wrapped = None if handler is None else _InThread(self._thread, handler)
        self._loop.call(self._emitter.off_any_outgoing, wrapped)

    def use(self, middleware: F) -> F:
        """Call ``middleware([event, *args])`` before an event's handlers; raise to drop it."""
        return self._listen_any(self._emitter.use, middleware)

    def receive(self, timeout: float | None = None) -> tuple[str, tuple[Any, ...]]:
        """Wait for the next event that no handler is registered for: ``(event, args)``.

        Raises:
            Disconnected: none will come any more.
            TimeoutError: none came within ``timeout`` seconds.
        """

        async def receive() -> tuple[str, tuple[Any, ...]]:
            inbox = self._begin()
            async with asyncio.timeout(timeout):
                try:
                    return await anext(inbox)
                except StopAsyncIteration:
                    raise Disconnected("disconnected: no event will come any more") from None

        return self._loop.run(receive())

    def __iter__(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Iterate over the events that no handler is registered for, until disconnected."""
        while True:
            try:
                yield self.receive()
            except Disconnected:
                return

    # --- inside -----------------------------------------------------------

    def _opened(self) -> None:
        """Know, in the loop's thread, that a connection is being made."""

    def _begin(self) -> Inbox:
        inbox = self._emitter.listen()
        inbox.started = True
        return inbox

    def _listen(self, kind: str, event: str, handler: Callable[..., Any] | None) -> Any:
        register = getattr(self._emitter, kind)

        def listen(function: F) -> F:
            self._loop.call(register, event, _InThread(self._thread, function))
            return function

        return listen if handler is None else listen(handler)

    def _listen_any(self, register: Callable[..., Any], handler: F) -> F:
        self._loop.call(register, _InThread(self._thread, handler))
        return handler


class Client(Socket):
    """A Socket.IO client that blocks, with the arguments of ``limpet.Client``.

    ::

        with Client("https://example.org") as client:
            client.on("said", print)
            print(client.timeout(5).emit_with_ack("enter", "harbour"))
            client.wait()

    Safe to use from several threads. ``auth`` may be a function that blocks. Connections that are
    open when the interpreter ends are closed.

    Raises:
        OptionError: an option has a value that cannot be; the message says what can.
        TypeError: there is no option of that name.
    """

    _emitter: asynchronous.Client

    def __init__(self, url: str, auth: Auth = None, **options: Any) -> None:
        loop = background()
        client = asynchronous.Client(url, auth=_authenticator(auth), **options)
        super().__init__(client, loop, HandlerThread(loop.loop))
        self.manager = Manager(client.manager, loop, self._thread)
        """The connection below and its events."""

    @property
    def transport_name(self) -> str:
        """``polling`` or ``websocket``; empty without a connection."""
        return self._emitter.transport_name

    def of(
        self,
        nsp: str,
        *,
        auth: Auth = None,
        retries: int | None = None,
        ack_timeout: float | None = None,
    ) -> Socket:
        """Return the socket of another namespace over the same connection."""
        inner = self._loop.call(
            self._emitter.of,
            nsp,
            auth=_authenticator(auth),
            retries=retries,
            ack_timeout=ack_timeout,
        )
        return Socket(inner, self._loop, self._thread)

    def close(self) -> None:
        """Leave all namespaces, end the connection, and wait until nothing is left of it."""
        self._loop.run(self.aclose())

    async def aclose(self) -> None:
        """Do so in the loop's thread."""
        self._loop.open.discard(self)
        await self._emitter.close()
        await self._emitter.manager.finish(_GRACE)
        self._thread.stop()

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            ConnectError: there is no connection; nothing is tried any more.
        """
        self._loop.call(self._emitter.listen)
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect, and wait until nothing is left."""
        self.close()

    def _opened(self) -> None:
        self._loop.open.add(self)


def _authenticator(auth: Auth) -> Auth:
    """Return ``auth`` so that a function does not block the loop."""
    if not callable(auth):
        return auth
    function = auth

    async def authenticate() -> Any:
        return await asyncio.to_thread(function)

    return authenticate
