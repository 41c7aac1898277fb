"""Namespaces: their handlers, middlewares, sockets and rooms; fixed ones and dynamic ones."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, overload

from limpet_adapters.contract import JOINED, Adapter, BroadcastOptions, Joined
from limpet_adapters.packet import EncodedPacket
from limpet_worker.socketio.broadcast import Broadcasting, BroadcastOperator
from limpet_worker.socketio.errors import NotStarted
from limpet_worker.socketio.handlers import ANY, F, Handler, Handlers, settle
from limpet_worker.socketio.listeners import without
from limpet_worker.socketio.packet import decode, encode_connect, encode_event, prefix

if TYPE_CHECKING:
    from limpet_worker.socketio.server import Server
    from limpet_worker.socketio.socket import Socket

logger = logging.getLogger("limpet.socketio")

EVERYBODY: Final = BroadcastOptions()
Predicate = Callable[[str, dict[str, Any]], Any]

_LIFECYCLE: Final = {
    "connect": "connect",
    "connection": "connect",
    "disconnecting": "disconnecting",
    "disconnect": "disconnect",
}
# What a child has a copy of; kept apart because clients can name any event, "connection" too.


class Registry(Broadcasting):
    """What handlers and middlewares can be registered at: a namespace, or a pattern of them."""

    __slots__ = (
        "_base",
        "handlers",
        "incoming",
        "lifecycle",
        "middlewares",
        "name",
        "outgoing",
        "server",
    )

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        """Its name, which begins with a slash; of a dynamic one, what it is made from."""
        self.handlers = Handlers()
        self.lifecycle = Handlers()
        """Handlers of connect, disconnecting and disconnect: no event of a client reaches them."""
        self.middlewares: list[Handler] = []
        self.incoming: list[Handler] = []
        """Catch-all listeners."""
        self.outgoing: list[Handler] = []
        """Catch-all listeners of what is sent."""
        self._base = BroadcastOperator(self, EVERYBODY)

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
        """Register a handler of an event, as a decorator or directly.

        Events: ``handler(socket, *args)``, plain or async. What the first handler of an event
        returns is the acknowledgement, if the client asked for one: a tuple is several values,
        None none at all. When it raises, nothing is acknowledged. An event that comes with more
        or fewer arguments than a handler takes does not reach it; it is logged and counted.

        ``connect`` (or ``connection``): ``handler(socket)`` or ``handler(socket, auth)``.
        ``disconnecting``, while the socket is in its rooms, and ``disconnect``:
        ``handler(socket, reason)``.

        Events of one socket start in the order in which they came. With ``ordered=True`` each
        waits until the handlers of those before it (the ordered ones) have returned.

        A client may name an event ``error``: it is one like others, and the server itself calls
        no handler under that name.
        """
        return self._register(event, handler, once=False, ordered=ordered)

    @overload
    def once(self, event: str, handler: F) -> F: ...
    @overload
    def once(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def once(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Register a handler for one call."""
        return self._register(event, handler, once=True, ordered=None)

    def off(self, event: str | None = None, handler: Callable[..., Any] | None = None) -> None:
        """Remove one handler, or all of an event, or all."""
        if event is None:
            self.handlers.remove(None, None)
            self.lifecycle.remove(None, None)
        elif event in _LIFECYCLE:
            self.lifecycle.remove(_LIFECYCLE[event], handler)
        else:
            self.handlers.remove(event, handler)

    def use(self, middleware: F) -> F:
        """Call ``middleware(socket)``, plain or async, before a connection is accepted.

        Middlewares are called in the order in which they were registered, before the client
        hears that it is connected. Raise ``ConnectionRefused(message, data)`` to refuse; any
        other exception refuses too, is logged, and the client learns nothing of it.
        """
        self.middlewares.append(Handler("middleware", middleware))
        return middleware

    def on_any(self, handler: F) -> F:
        """Listen to every event of every socket: ``handler(socket, event, *args)``."""
        self.incoming.append(Handler(ANY, handler))
        return handler

    def off_any(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener, or all."""
        self.incoming = without(self.incoming, handler)

    def on_any_outgoing(self, handler: F) -> F:
        """Listen to every event sent to a socket: ``handler(socket, event, *args)``.

        Broadcasts are shown once for each local socket that gets them; acks are not shown.
        """
        self.outgoing.append(Handler(ANY, handler))
        return handler

    def off_any_outgoing(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener of sent events, or all."""
        self.outgoing = without(self.outgoing, handler)

    def broadcast(self, arguments: tuple[object, ...], options: BroadcastOptions) -> None:
        """Send an event, its name first, to the chosen sockets."""
        raise NotImplementedError

    def _everybody(self) -> BroadcastOperator:
        return self._base

    def _register(
        self, event: str, handler: Callable[..., Any] | None, *, once: bool, ordered: bool | None
    ) -> Any:
        if not isinstance(event, str):
            raise TypeError(f"the event must be a string, not {event!r}")
        if ordered is None:
            ordered = self.server.ordered

        def register(function: F) -> F:
            table = self.handlers
            name = event
            if event in _LIFECYCLE:
                table, name = self.lifecycle, _LIFECYCLE[event]
            table.add(Handler(name, function, once=once, ordered=ordered))
            return function

        return register if handler is None else register(handler)


class Namespace(Registry):
    """One namespace: clients connect to it by name, and share one connection for several.

    ``emit``, ``to``, ``except_`` and so on reach its sockets on all workers.
    """

    __slots__ = (
        "_adapter",
        "_retired",
        "entering",
        "is_ready",
        "meter",
        "next_ack_id",
        "parent",
        "prefix",
        "ready",
        "watched_sockets",
    )

    def __init__(self, server: Server, name: str, parent: ParentNamespace | None = None) -> None:
        super().__init__(server, name)
        self.prefix = prefix(name)
        """What stands for the namespace in packets."""
        self.parent = parent
        """The dynamic namespace that made it, None for one that the app named."""
        self.meter = server.meter(name if parent is None else parent.label)
        """Counts what happens here."""
        self.next_ack_id = itertools.count().__next__
        self.watched_sockets = 0
        """Sockets with catch-all listeners of their own for what is sent."""
        self.entering = 0
        """Connections that are in its middlewares."""
        self.ready: Joined = JOINED
        """Await it before a socket enters; then broadcasts of other workers reach this one."""
        self.is_ready = False
        """Whether it has been awaited."""
        self._adapter: Adapter | None = None
        """None while the server does not run."""
        self._retired = False
        """Whether it was removed, nobody being in it; handlers may still send through it."""
        if parent is not None:
            self.handlers = parent.handlers.copy()
            self.lifecycle = parent.lifecycle.copy()
            self.middlewares = parent.middlewares.copy()
            self.incoming = parent.incoming.copy()
            self.outgoing = parent.outgoing.copy()

    def __repr__(self) -> str:
        return f"<Namespace {self.name}>"

    @property
    def adapter(self) -> Adapter:
        """Rooms and broadcast of this namespace.

        Raises:
            NotStarted: the server does not run.
        """
        if self._adapter is None:
            raise NotStarted(f"namespace {self.name}: the server does not run (yet)")
        return self._adapter

    @property
    def sockets(self) -> Mapping[str, Socket]:
        """The sockets of this worker, by id. Not to be changed.

        Raises:
            NotStarted: the server does not run.
        """
        return self.adapter.sockets

    @property
    def occupancy(self) -> tuple[int, int]:
        """How many sockets of this worker are here, and how many rooms they are in."""
        adapter = self._adapter
        return (0, 0) if adapter is None else (len(adapter.sockets), len(adapter.rooms))

    def open(self, adapter: Adapter) -> None:
        """Begin to work with an adapter."""
        self._adapter = adapter
        self.ready = adapter.ready()
        self.is_ready = self.ready is JOINED

    async def until_ready(self) -> None:
        """Wait until broadcasts of other workers to the whole namespace reach this one."""
        if not self.is_ready:
            await self.ready
            self.is_ready = True

    async def close(self) -> None:
        """Give the adapter back."""
        if self._adapter is not None:
            adapter, self._adapter = self._adapter, None
            await adapter.close()

    async def retire(self) -> None:
        """Give the adapter back, yet go on sending through it: handlers of the last socket run
        on, and what they send is for the members that other workers have.
        """
        if self._adapter is not None and not self._retired:
            self._retired = True
            await self._adapter.close()

    # --- what sockets and clients call ------------------------------------

    def enter(self, socket: Socket) -> None:
        """Take a socket in."""
        self.adapter.add(socket)
        socket.client.remember(socket)

    def welcome(self, socket_id: str) -> bytes:
        """Return the packet that tells a client that it is connected."""
        return encode_connect(self.prefix, socket_id)

    def announce(self, socket: Socket) -> None:
        """Tell presence of a new socket."""
        presence = self.server.presence_sink
        if presence is not None:
            presence.connected(
                self.name,
                socket.id,
                socket.id if socket.user is None else socket.user,
                socket.transport_name,
                time.time(),
            )

    def exit(self, socket: Socket) -> None:
        """Let a socket go, its rooms with it."""
        if self._adapter is not None:
            self._adapter.remove(socket)
        if socket.watches_outgoing:
            self.watched_sockets -= 1
        presence = self.server.presence_sink
        if presence is not None:
            presence.disconnected(self.name, socket.id)
        self.tidy()

    def join(self, socket: Socket, rooms: list[str]) -> Joined:
        """Put a connected socket into rooms."""
        presence = self.server.presence_sink
        if presence is not None:
            for room in dict.fromkeys(rooms):
                if room != socket.id and room not in socket.joined:
                    presence.joined(self.name, socket.id, room)
        return self.adapter.join(socket, rooms)

    def leave(self, socket: Socket, room: str) -> None:
        """Take a connected socket out of a room."""
        presence = self.server.presence_sink
        if presence is not None and room in socket.joined:
            presence.left(self.name, socket.id, room)
        self.adapter.leave(socket, room)

    def tidy(self) -> None:
        """Remove a dynamic namespace that nobody is in: clients choose the names of these."""
        if (
            self.parent is not None
            and not self.entering
            and self._adapter is not None
            and not self._retired
            and not self._adapter.sockets
            and self.server.cleanup_empty_child_namespaces
        ):
            self.server.remove_child(self)

    def broadcast(self, arguments: tuple[object, ...], options: BroadcastOptions) -> None:
        """Send an event, its name first, to the chosen sockets of all workers.

        Raises:
            NotStarted: the server does not run.
            TypeError: an argument that cannot be sent.
        """
        tracing = self.server.tracing
        if tracing is None:
            self.send_now(arguments, options)
        else:
            tracing.broadcast(self, arguments, options)

    def send_now(self, arguments: tuple[object, ...], options: BroadcastOptions) -> None:
        """Send an event as ``broadcast`` does, in no span."""
        packet = encode_event(self.prefix, arguments)
        if isinstance(packet, bytes):
            packet = EncodedPacket(packet)
        adapter = self.adapter
        if self._retired and (successor := self.server.namespaces.get(self.name)) is not None:
            adapter = successor.adapter
        adapter.broadcast(packet, options)

    def deliver(self, members: Collection[Socket], packet: EncodedPacket, volatile: bool) -> None:
        """Put a broadcast into the outbox of each local socket it is for; the adapter calls it."""
        if self.outgoing or self.watched_sockets:
            self._show(members, packet)
        sessions = [socket.session for socket in members]
        self.meter.events_out += len(sessions)
        self.server.fanout.observe(len(sessions))
        self.server.broadcast_to_sessions(sessions, packet, volatile)

    def _show(self, members: Collection[Socket], packet: EncodedPacket) -> None:
        """Show a broadcast to the catch-all listeners; from another worker it comes encoded."""
        decoded = decode(packet.text, len(packet.attachments) or 1)
        for attachment in packet.attachments:
            decoded.attach(attachment, packet.size())
        arguments = decoded.data
        for socket in list(members):
            if self.outgoing or socket.watches_outgoing:
                socket.watch_outgoing(arguments)


class ParentNamespace(Registry):
    """Namespaces that are made when the first client asks for them, from a pattern or a function.

    Each child begins with the handlers and middlewares registered here until then. ``emit`` and
    the operators reach the sockets of all children that this worker has.
    """

    __slots__ = ("_matches", "children", "label")

    def __init__(self, server: Server, rule: re.Pattern[str] | Predicate) -> None:
        super().__init__(server, rule.pattern if isinstance(rule, re.Pattern) else repr(rule))
        self._matches = rule
        self.children: dict[str, Namespace] = {}
        self.label = rule.pattern if isinstance(rule, re.Pattern) else _function_name(rule)
        """What stands for all children in the figures."""

    def __repr__(self) -> str:
        return f"<ParentNamespace {self.name}>"

    async def matches(self, name: str, auth: dict[str, Any]) -> bool:
        """Return whether a client may make a namespace of this name here.

        A pattern must match the whole name.
        """
        if isinstance(self._matches, re.Pattern):
            return self._matches.fullmatch(name) is not None
        try:
            return bool(await settle(self._matches(name, auth)))
        except Exception:
            logger.exception("the function of %r failed; the namespace is refused", self)
            return False

    def broadcast(self, arguments: tuple[object, ...], options: BroadcastOptions) -> None:
        """Send an event, its name first, to the chosen sockets of each child."""
        for child in list(self.children.values()):
            child.broadcast(arguments, options)


def _function_name(rule: Predicate) -> str:
    name: str = getattr(rule, "__qualname__", type(rule).__qualname__)
    return name


def namespace_name(name: str) -> str:
    """Return the name with its leading slash.

    Raises:
        ValueError: it cannot be written into a packet.
    """
    if "," in name:
        raise ValueError(f"namespace {name!r}: a comma cannot be part of the name")
    return name if name.startswith("/") else f"/{name}"
