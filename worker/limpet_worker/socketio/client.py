"""One connection: takes the packets of an Engine.IO session to the sockets of its namespaces."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from orjson import JSONDecodeError

from limpet_adapters.counters import count
from limpet_adapters.identity import redact
from limpet_worker import running
from limpet_worker.socketio.errors import ConnectionRefused, PacketError
from limpet_worker.socketio.handlers import settle, was_cancelled
from limpet_worker.socketio.packet import (
    ACK,
    CONNECT,
    DISCONNECT,
    EVENT,
    RESERVED,
    Packet,
    decode,
    encode_connect_error,
    event_name,
    loads,
    prefix,
)
from limpet_worker.socketio.socket import Socket

if TYPE_CHECKING:
    from limpet_worker.engineio.session import Session
    from limpet_worker.socketio.namespace import Namespace
    from limpet_worker.socketio.server import Server

logger = logging.getLogger("limpet.socketio")

_SHORT: Final = 17
"""Before this the payload of a common event begins: its id has 15 digits at most, all valid."""
_LONGEST_NAME: Final = 1024
"""Characters of a namespace that a client can have made: names are kept, and cross the bus."""
_MOST_LEFT: Final = 1000
"""Namespaces a client may leave before packets that come late for them end the session."""


class Client:
    """What sits on an Engine.IO session: the state of one connection above it."""

    __slots__ = (
        "_connecting",
        "_ended",
        "_left",
        "_others",
        "_partial",
        "root",
        "server",
        "session",
    )

    def __init__(self, server: Server, session: Session) -> None:
        self.server = server
        self.session = session
        self.root: Socket | None = None
        """The socket of the namespace ``/``, None while the client is not in it."""
        self._others: dict[str, Socket] | None = None
        """The sockets of other namespaces; None until there is one."""
        self._connecting: set[str] | None = None
        """Namespaces whose middlewares run for this client; None when none does."""
        self._left: set[str] | None = None
        """Namespaces it was in: packets on their way meanwhile are dropped, not punished."""
        self._partial: Packet | None = None
        """A packet that waits for attachments."""
        self._ended = False

    @property
    def sockets(self) -> list[Socket]:
        """Its sockets, one per namespace."""
        others = list(self._others.values()) if self._others else []
        return others if self.root is None else [self.root, *others]

    @property
    def busy(self) -> bool:
        """Whether to end it now would cut something off: a handler, a connection in the making."""
        if self._connecting or self._partial is not None:
            return True
        root = self.root
        others = self._others
        if root is not None and root.busy:
            return True
        if not others:
            return root is None  # it has connected to no namespace yet
        return any(socket.busy for socket in others.values())

    @property
    def asked(self) -> bool:
        """Whether the app waits for an acknowledgement of its."""
        return any(socket.acks for socket in self.sockets)

    # --- the Engine.IO session calls --------------------------------------

    def on_text(self, data: bytes) -> None:
        """Take the text of a packet."""
        root = self.root
        if data[:1] == b"2" and root is not None and self._partial is None:
            # The common packets: events of the main namespace. What is unusual about one is left
            # to the strict way below, which finds the reason.
            start = data.find(b"[", 1, _SHORT)
            if start == 1 or (start > 1 and data[1:start].isdigit()):
                try:
                    arguments = loads(data[start:])
                except JSONDecodeError:
                    pass
                else:
                    if arguments and type(name := arguments[0]) is str and name not in RESERVED:
                        root.on_event(arguments, int(data[1:start]) if start > 1 else None)
                        return
        if self._ended:
            return
        if self._partial is not None:
            self.refuse("text while attachments are outstanding")
            return
        try:
            packet = decode(data, self.server.max_attachments)
        except PacketError as error:
            self.refuse(error.reason)
            return
        if packet.missing:
            self._partial = packet
        else:
            self._on_packet(packet)

    def on_binary(self, data: bytes) -> None:
        """Take an attachment."""
        packet = self._partial
        if packet is None:
            if not self._ended:
                self.refuse("unexpected binary")
            return
        try:
            complete = packet.attach(data, self.server.max_attached_bytes)
        except PacketError as error:
            self.refuse(error.reason)
            return
        if complete:
            self._partial = None
            self._on_packet(packet)

    def on_upgrade(self) -> None:
        """Tell presence that the transport is another one now."""
        presence = self.server.presence_sink
        if presence is not None:
            for socket in self.sockets:
                presence.changed(socket.nsp.name, socket.id, transport=self.session.transport_name)

    def on_close(self, reason: str) -> None:
        """End all sockets: the session has ended."""
        self._end(reason)
        running.forget()

    # --- packets ----------------------------------------------------------

    def _on_packet(self, packet: Packet) -> None:
        kind = packet.type
        if kind == CONNECT:
            self._on_connect(packet.namespace, packet.data)
            return
        name = packet.namespace
        socket = self.root if name == "/" else self._others.get(name) if self._others else None
        if socket is None:
            if self._left is None or name not in self._left or kind > ACK:
                self.refuse("not connected to the namespace")
            return
        if kind == EVENT:
            data = packet.data
            if data is not None:  # without any payload it is valid and means nothing
                data[0] = event_name(data)
                socket.on_event(data, packet.id)
        elif kind == ACK:
            if packet.id is not None and packet.data is not None:
                socket.on_ack(packet.id, packet.data)
        elif kind == DISCONNECT:
            socket.end("client namespace disconnect")
        else:
            self.refuse("connect error from a client")

    def refuse(self, reason: str) -> None:
        """End the session: the client sent what it must not."""
        count("limpet_packets_refused_total", reason=reason)
        logger.debug("session %s ends: %s", redact(self.session.sid), reason)
        self.server.tell("client_error", {"reason": reason, "sockets": self.sockets})
        self._close("forced close")

    # --- connecting -------------------------------------------------------

    def _on_connect(self, name: str, auth: dict[str, Any] | None) -> None:
        connecting = self._connecting
        taken = self.root is not None if name == "/" else self._others and name in self._others
        if taken or (connecting and name in connecting):
            self.refuse("connected to the namespace already")
            return
        if len(name) > _LONGEST_NAME and name not in self.server.namespaces:
            count("limpet_connections_refused_total", reason="long namespace")
            self._say_no(name, "Invalid namespace")
            return
        if len(self._others or ()) + len(connecting or ()) >= self.server.max_namespaces:
            count("limpet_connections_refused_total", reason="too many namespaces")
            self._say_no(name, "Too many namespaces")
            return
        namespace = self.server.namespaces.get(name)
        if namespace is not None and namespace.is_ready and not namespace.middlewares:
            self._welcome(self._socket(namespace, auth))
        elif namespace is None and not self.server.parents:
            count("limpet_connections_refused_total", reason="unknown namespace")
            self._say_no(name, "Invalid namespace")
        else:
            if connecting is None:
                connecting = self._connecting = set()
            connecting.add(name)
            self.server.tasks.start(self._admit(name, auth))

    async def _admit(self, name: str, auth: dict[str, Any] | None) -> None:
        """Find or make the namespace, ask its middlewares, then welcome the client or not."""
        namespace = None
        running.SOCKET.set(None)  # of this connection another socket may be in the context
        try:
            namespace = await self.server.find_namespace(name, auth or {})
            if namespace is None:
                count("limpet_connections_refused_total", reason="unknown namespace")
                self._say_no(name, "Invalid namespace")
                return
            socket = self._socket(namespace, auth)
            running.SOCKET.set(socket)
            for handler in list(namespace.middlewares):
                await settle(handler.call(socket))
                if self._ended:
                    return
                if socket.gone:  # it was disconnected: another way to refuse it
                    count("limpet_connections_refused_total", reason="middleware")
                    self._say_no(name, "Connection refused")
                    return
        except ConnectionRefused as refusal:
            count("limpet_connections_refused_total", reason="middleware")
            self._say_no(name, refusal.message, refusal.data)
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            count("limpet_connections_refused_total", reason="error")
            logger.exception("a middleware of %s failed; the connection is refused", namespace)
            self._say_no(name, "Internal server error")
        else:
            self._not_connecting(name)
            self._welcome(socket)
        finally:
            self._not_connecting(name)
            if namespace is not None:
                namespace.entering -= 1
                namespace.tidy()

    def _socket(self, namespace: Namespace, auth: dict[str, Any] | None) -> Socket:
        return Socket(self, namespace, self.server.new_id(), auth)

    def _welcome(self, socket: Socket) -> None:
        if self._ended:
            return
        self.server.no_longer_waiting(self)
        socket.connect()
        for handler in socket.nsp.lifecycle.by_event.get("connect", ()):
            socket.call_lifecycle(handler, socket, socket.handshake.auth)

    def _say_no(self, name: str, message: str, data: object = None) -> None:
        if self._ended:
            return
        try:
            packet = encode_connect_error(prefix(name), message, data)
        except TypeError:
            logger.exception("the data of a refusal cannot be sent")
            packet = encode_connect_error(prefix(name), message)
        self.session.send_text(packet)

    def _not_connecting(self, name: str) -> None:
        if self._connecting is not None:
            self._connecting.discard(name)
            if not self._connecting:
                self._connecting = None

    # --- its sockets ------------------------------------------------------

    def remember(self, socket: Socket) -> None:
        """Know a socket that has just connected."""
        name = socket.nsp.name
        if name == "/":
            self.root = socket
            return
        if self._others is None:
            self._others = {}
        self._others[name] = socket

    def forget(self, socket: Socket) -> None:
        """Forget a socket that disconnected; without any the client has a while to connect anew."""
        name = socket.nsp.name
        if name == "/" and self.root is socket:
            self.root = None
        elif self._others is not None and self._others.get(name) is socket:
            del self._others[name]
        else:
            return
        if self._ended:
            return
        if self._left is None:
            self._left = set()
        if len(self._left) < _MOST_LEFT:
            self._left.add(name)
        if self.root is None and not self._others:
            self.server.waits(self)

    def disconnect(self) -> None:
        """Disconnect it from all namespaces, then end the connection."""
        for socket in self.sockets:
            socket.disconnect()
        self._close("forced server close")

    def time_out(self) -> None:
        """End the connection of a client that is in no namespace for too long."""
        count("limpet_connections_refused_total", reason="connect timeout")
        self._close("forced close")

    def _close(self, reason: str) -> None:
        self._partial = None
        self.session.close(reason)
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._partial = None
        self.server.no_longer_waiting(self)
        for socket in self.sockets:
            socket.end(reason)
