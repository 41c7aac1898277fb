"""One client in one namespace: what an app sends to it and hears from it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Collection, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from limpet_adapters.contract import JOINED, BroadcastOptions, Joined
from limpet_adapters.counters import count
from limpet_worker import running
from limpet_worker.socketio.acks import answered, ask, give_up
from limpet_worker.socketio.broadcast import (
    EMITTED,
    BroadcastOperator,
    Emitted,
    Selecting,
    check_event,
    room_names,
)
from limpet_worker.socketio.errors import ConnectionRefused
from limpet_worker.socketio.handlers import (
    Handler,
    is_coroutine,
    settle,
    was_cancelled,
)
from limpet_worker.socketio.handshake import Handshake
from limpet_worker.socketio.listeners import Listening
from limpet_worker.socketio.meter import QUICK
from limpet_worker.socketio.packet import encode_ack, encode_disconnect, encode_event
from limpet_worker.socketio.unicast import SocketOperator

if TYPE_CHECKING:
    from limpet_worker.engineio.session import Session
    from limpet_worker.socketio.client import Client
    from limpet_worker.socketio.namespace import Namespace

logger = logging.getLogger("limpet.socketio")

_CONNECTING: Final = 0  # in the namespace's middlewares
_CONNECTED: Final = 1
_ENDING: Final = 2  # in its rooms still, while handlers of disconnecting are called
_GONE: Final = 3

_NO_ROOMS: Final[frozenset[str]] = frozenset()

_running = running.SOCKET.get
_run = running.SOCKET.set

Work = tuple[Handler, list[Any], "int | None"]


class Socket(Listening, Selecting):
    """A client's connection to one namespace; handlers get it as their first argument.

    ``to``, ``in_``, ``except_``, ``local`` and ``broadcast`` begin a broadcast to the *others* of
    the namespace; ``emit``, ``volatile`` and ``timeout`` are for this client alone.
    Not to be used from other threads than that of the event loop.
    """

    __slots__ = (
        "_auth",
        "_data",
        "_queue",
        "_rooms_left",
        "_state",
        "_unfinished",
        "_user",
        "acks",
        "client",
        "id",
        "joined",
        "nsp",
        "session",
    )

    def __init__(
        self, client: Client, nsp: Namespace, id_: str, auth: dict[str, Any] | None
    ) -> None:
        self.id = id_
        """Public id, also the name of its own room. A new one for each connection."""
        self.nsp = nsp
        """The namespace."""
        self.client = client
        """The connection below, which the sockets of several namespaces share."""
        self.session: Session = client.session
        """The Engine.IO session. Its ``sid`` is a secret of the client's."""
        self.joined: Collection[str] = ()  # the adapter's; before the connection: what is asked for
        self.acks: dict[int, asyncio.Future[list[Any]]] | None = None
        """Acknowledgements that are waited for; None until the first is."""
        self._state = _CONNECTING
        self._auth = auth
        """None when the client gave none."""
        self._data: dict[str, Any] | None = None
        self._user: object = None
        self._extras = None
        self._queue: deque[Work] | None = None
        """Events of ordered handlers that wait for their turn; None while none runs."""
        self._unfinished = 0
        """Events whose handlers wait or run."""
        self._rooms_left = _NO_ROOMS
        """The rooms it was in when it disconnected."""

    def __repr__(self) -> str:
        return f"<Socket {self.id} of {self.nsp.name}>"

    # --- who it is --------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether it is in its namespace: not yet in middlewares, no more after a disconnect."""
        return self._state in (_CONNECTED, _ENDING)

    @property
    def gone(self) -> bool:
        """Whether it has disconnected."""
        return self._state == _GONE

    @property
    def busy(self) -> bool:
        """Whether handlers of its events run, or wait for their turn."""
        return self._unfinished > 0

    @property
    def handshake(self) -> Handshake:
        """What the client said when it connected: headers, query, address, ``auth``, …"""
        if self._auth is None:
            self._auth = {}
        return Handshake(self.session.request, self._auth)

    @property
    def data(self) -> dict[str, Any]:
        """For the app to keep what it likes."""
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def user(self) -> Any:
        """Who the client is, set by the app, mostly in a middleware: a text or a whole number.

        None: presence shows the socket's id.
        """
        return self._user

    @user.setter
    def user(self, user: object) -> None:
        self._user = user
        presence = self.nsp.server.presence_sink
        if presence is not None and self._state == _CONNECTED:
            presence.changed(self.nsp.name, self.id, user=self.id if user is None else user)

    @property
    def transport_name(self) -> str:
        """How the client is connected now: ``polling`` or ``websocket``."""
        return self.session.transport_name

    @property
    def rooms(self) -> Collection[str]:
        """The rooms it is in, its own included; after a disconnect those it was in last."""
        if self._state == _GONE:
            return self._rooms_left
        return frozenset((self.id, *self.joined))

    # --- to the client ----------------------------------------------------

    def emit(self, event: str, *args: object) -> Emitted:
        """Send an event to this client. It goes into the outbox at once: nothing to await.

        ``bytes`` travel as binary attachments, dates as ISO strings, NaN as null. Nothing is sent
        to a client that has gone.

        Raises:
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        check_event(event)
        self.send_event((event, *args), None)
        return EMITTED

    def send(self, *args: object) -> Emitted:
        """Send the event ``message``."""
        return self.emit("message", *args)

    async def emit_with_ack(self, event: str, *args: object) -> Any:
        """Send an event and return what the client acknowledges it with.

        One value is returned as it is, several as a tuple, none as None. Waits for as long as
        the client is there, unless ``socket.timeout(seconds)`` comes first.

        Raises:
            Disconnected: the client went before it answered.
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        check_event(event)
        return await ask(self, (event, *args), None)

    @property
    def volatile(self) -> SocketOperator:
        """Drop what is emitted next when the client cannot take it at this instant."""
        return SocketOperator(self, volatile=True)

    def timeout(self, seconds: float) -> SocketOperator:
        """Limit how long ``emit_with_ack`` waits: ``socket.timeout(2).emit_with_ack(...)``."""
        return SocketOperator(self, seconds=seconds)

    def send_event(
        self, arguments: tuple[object, ...], id_: int | None, *, volatile: bool = False
    ) -> None:
        """Send an event whose name was checked; ``id_`` is that of the wanted acknowledgement."""
        nsp = self.nsp
        packet = encode_event(nsp.prefix, arguments, id_)
        if self._state == _GONE:
            return
        if volatile and not self.session.writable:
            count("limpet_packets_dropped_total", reason="volatile")
            return
        if self._extras is not None or nsp.outgoing:
            self.watch_outgoing(arguments)
        nsp.meter.events_out += 1
        if type(packet) is bytes:
            self.session.send_text(packet)
        else:
            self.session.send_packet(packet)  # type: ignore[arg-type]

    # --- to the others ----------------------------------------------------

    @property
    def broadcast(self) -> BroadcastOperator:
        """Select everybody in the namespace but this socket."""
        return self._everybody()

    def _everybody(self) -> BroadcastOperator:
        return BroadcastOperator(self.nsp, BroadcastOptions(_NO_ROOMS, frozenset((self.id,))))

    # --- rooms ------------------------------------------------------------

    def join(self, room: str | Iterable[str]) -> Joined:
        """Enter a room, or several. It acts at once on this worker.

        Awaiting what it returns waits until the whole cluster knows, so that a broadcast that
        starts afterwards on any live worker arrives. In a middleware the rooms are entered when
        the connection is accepted.

        Raises:
            TypeError: a room that is no string.
        """
        names = room_names((room,))
        if self._state == _CONNECTED:
            return self.nsp.join(self, names)
        if self._state == _CONNECTING:
            self.joined = tuple(dict.fromkeys((*self.joined, *names)))
        return JOINED

    def leave(self, room: str | Iterable[str]) -> Joined:
        """Leave a room, or several; its own room cannot be left. Awaiting it is allowed.

        Raises:
            TypeError: a room that is no string.
        """
        names = room_names((room,))
        if self._state == _CONNECTED:
            for name in names:
                self.nsp.leave(self, name)
        elif self._state == _CONNECTING:
            self.joined = tuple(name for name in self.joined if name not in names)
        return JOINED

    # --- the end ----------------------------------------------------------

    def disconnect(self, close: bool = False) -> Emitted:
        """Disconnect the client from this namespace; stock clients do not come back by themselves.

        Args:
            close: leave the other namespaces too and end the connection below.
        """
        if close:
            self.client.disconnect()
        elif self._state < _ENDING:
            if self._state == _CONNECTED:  # else the client is told that it was refused
                self.session.send_text(encode_disconnect(self.nsp.prefix))
            self.end("server namespace disconnect")
        return EMITTED

    def connect(self) -> None:
        """Count as connected, with the rooms that middlewares asked for."""
        self._state = _CONNECTED
        rooms, self.joined = self.joined, ()
        nsp = self.nsp
        nsp.enter(self)
        self.session.send_text(nsp.welcome(self.id))
        nsp.announce(self)
        if rooms:
            nsp.join(self, list(rooms))
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("connected by %s", self.transport_name, extra=running.describe(self))

    def end(self, reason: str) -> None:
        """Leave the namespace, whoever wanted it; handlers hear ``disconnecting`` while it is
        still in its rooms, then ``disconnect``.
        """
        state = self._state
        if state >= _ENDING:
            return
        if state == _CONNECTED:
            self._state = _ENDING
            self._lifecycle("disconnecting", reason)
        self._rooms_left = frozenset((self.id, *self.joined))
        self._state = _GONE
        self.client.forget(self)
        if state == _CONNECTED:
            self.nsp.exit(self)
        give_up(self.acks)
        if state == _CONNECTED:
            count("limpet_sockets_closed_total", reason=reason)
            if logger.isEnabledFor(logging.DEBUG):
                ms = round(1000 * (time.time() - self.session.request.time))
                about = {**running.describe(self), "duration_ms": ms}
                logger.debug("disconnected: %s", reason, extra=about)
            self._lifecycle("disconnect", reason)

    def _lifecycle(self, event: str, reason: str) -> None:
        """Call the namespace's handlers with (socket, reason), then this socket's with (reason)."""
        for handler in self.nsp.lifecycle.by_event.get(event, ()):
            self.call_lifecycle(handler, self, reason)
        if self._extras is not None:
            for handler in self._extras.handlers.by_event.get(event, ()):
                self.call_lifecycle(handler, reason)

    def call_lifecycle(self, handler: Handler, *arguments: Any) -> None:
        """Call a handler of connect, disconnecting or disconnect; it may take fewer arguments."""
        if handler.once:
            self._discard(handler)
        before = _run(self)  # set back after it: timers and other clients' handlers end clients
        try:
            result = handler.fit(*arguments)
            if is_coroutine(result):
                self.nsp.server.tasks.start(self._finish_lifecycle(handler, result))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the app's
            self._lifecycle_failed(handler, error)
        finally:
            running.SOCKET.reset(before)

    async def _finish_lifecycle(self, handler: Handler, coroutine: Any) -> None:
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001 - the app's
            self._lifecycle_failed(handler, error)

    def _lifecycle_failed(self, handler: Handler, error: BaseException) -> None:
        handler.failed("lifecycle", error)
        if isinstance(error, ConnectionRefused) and self.connected:
            # Too late to refuse, but who wrote this wanted the client out.
            logger.error(
                "ConnectionRefused belongs into a middleware (use): %r is disconnected", self
            )
            self.disconnect()

    # --- what is sent, shown to catch-all listeners -------------------------

    @property
    def watches_outgoing(self) -> bool:
        """Whether it has catch-all listeners of what is sent."""
        return self._extras is not None and bool(self._extras.outgoing)

    def watch_outgoing(self, arguments: Collection[object]) -> None:
        """Show an event that is being sent to the catch-all listeners."""
        for handler in self.nsp.outgoing:
            self._show(handler, self, *arguments)
        if self._extras is not None:
            for handler in self._extras.outgoing:
                self._show(handler, *arguments)

    def _show(self, handler: Handler, *arguments: Any) -> None:
        """Call a listener to what is sent, which is no event of the client's: no limit, no ack."""
        if not handler.accepts(len(arguments)):
            return
        before = _run(self)  # often another socket's handler is what sends
        try:
            result = handler.call(*arguments)
            if is_coroutine(result):
                self._unfinished += 1
                self.nsp.server.tasks.start(self._finish(handler, result, None))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the app's
            handler.failed("outgoing", error)
        finally:
            running.SOCKET.reset(before)

    # --- from the client --------------------------------------------------

    def on_event(self, data: list[Any], ack: int | None) -> None:
        """Call the handlers of an event: its name, then its arguments; ``ack`` is the wanted id.

        What the first of its handlers returns is the acknowledgement. ``data`` is used up.
        """
        nsp = self.nsp
        nsp.meter.events_in += 1
        if self._extras is not None or nsp.incoming:
            self._on_event_watched(data, ack)
            return
        handlers = nsp.handlers.by_event.get(data[0])
        if handlers is None:
            count("limpet_events_unhandled_total")
            return
        data[0] = self
        for handler in handlers:
            self._start(handler, data, ack)
            ack = None

    def on_ack(self, id_: int, values: list[Any]) -> None:
        """Take an acknowledgement; one that nobody waits for is ignored."""
        if not answered(self.acks, id_, values):
            count("limpet_acks_ignored_total")

    def _on_event_watched(self, data: list[Any], ack: int | None) -> None:
        """Dispatch with everything there may be: catch-all listeners, middlewares, own ones."""
        for handler in self.nsp.incoming:
            self._start(handler, [self, *data], None)
        extras = self._extras
        if extras is not None:
            for handler in extras.incoming:
                self._start(handler, [*data], None)
            if extras.middlewares:
                if not self._admits_another():
                    return
                self.nsp.server.tasks.start(self._through(extras.middlewares, data, ack))
                return
        if self._state == _CONNECTED:  # else a catch-all listener has thrown the client out
            self._dispatch(data, ack)

    async def _through(self, middlewares: list[Handler], data: list[Any], ack: int | None) -> None:
        _run(self)
        try:
            for middleware in list(middlewares):
                await settle(middleware.call(data))
        except Exception:  # to raise is how a middleware says no
            count("limpet_events_refused_total", reason="middleware")
            logger.debug("a middleware of %r dropped an event", self, exc_info=True)
        else:
            if self._state == _CONNECTED:
                self._dispatch(data, ack)
        finally:
            self._unfinished -= 1

    def _dispatch(self, data: list[Any], ack: int | None) -> None:
        event = data[0]
        everyones = self.nsp.handlers.by_event.get(event, ())
        own = self._extras.handlers.by_event.get(event, ()) if self._extras is not None else ()
        if not everyones and not own:
            count("limpet_events_unhandled_total")
        arguments = data[1:]
        for handler in everyones:
            self._start(handler, [self, *arguments], ack)
            ack = None
        for handler in own:
            self._start(handler, arguments, ack)
            ack = None

    def _start(self, handler: Handler, arguments: list[Any], ack: int | None) -> None:
        """Call a handler: its plain part here and now, the rest as a task; an ordered one when
        those before it have ended.
        """
        if _running() is not self:
            _run(self)
        if not handler.least <= len(arguments) <= handler.most and not handler.accepts(
            len(arguments)
        ):
            return
        if handler.once:
            self._discard(handler)
        if handler.ordered:
            if self._admits_another():
                self._enqueue((handler, arguments, ack))
            return
        started = perf_counter()
        try:
            result = handler.call(*arguments)
            if is_coroutine(result):
                if self._admits_another():
                    self.nsp.server.tasks.start(self._finish(handler, result, ack))
                else:
                    result.close()
                return
            if ack is not None:
                self._acknowledge(ack, result)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the app's
            handler.failed("event", error)
        seconds = perf_counter() - started
        durations = self.nsp.meter.seconds
        if seconds < QUICK:  # nearly always: saves the search for the bucket
            durations.counts[0] += 1
            durations.total += seconds
        else:
            durations.observe(seconds)

    async def _finish(self, handler: Handler, coroutine: Awaitable[Any], ack: int | None) -> None:
        started = perf_counter()
        try:
            result = await coroutine
            if ack is not None:
                self._acknowledge(ack, result)
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            handler.failed("event", error)
        finally:
            self._unfinished -= 1
            self.nsp.meter.seconds.observe(perf_counter() - started)

    def _enqueue(self, work: Work) -> None:
        if self._queue is None:
            self._queue = deque((work,))
            self.nsp.server.tasks.start(self._run_queue(self._queue))
        else:
            self._queue.append(work)

    async def _run_queue(self, queue: deque[Work]) -> None:
        try:
            while queue:
                handler, arguments, ack = queue.popleft()
                await self._finish(handler, _call(handler, arguments), ack)
        finally:
            self._queue = None

    def _acknowledge(self, id_: int, result: Any) -> None:
        """Send what a handler returned: a tuple as several values, None as none."""
        if self._state == _GONE:
            return
        if type(result) is not tuple:
            result = () if result is None else (result,)
        packet = encode_ack(self.nsp.prefix, id_, result)
        if type(packet) is bytes:
            self.session.send_text(packet)
        else:
            self.session.send_packet(packet)  # type: ignore[arg-type]

    def _admits_another(self) -> bool:
        """Count an event whose handler waits or runs; too many of them end the connection."""
        if self._unfinished >= self.nsp.server.max_pending_events:
            self.client.refuse("too many pending events")
            return False
        self._unfinished += 1
        return True

    def _discard(self, handler: Handler) -> None:
        """Forget a handler that was for one call, wherever it was registered."""
        for handlers in (self.nsp.handlers, self.nsp.lifecycle):
            handlers.discard(handler)
        if self._extras is not None:
            self._extras.handlers.discard(handler)


async def _call(handler: Handler, arguments: list[Any]) -> Any:
    return await settle(handler.call(*arguments))
