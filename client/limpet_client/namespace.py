"""One namespace of a client without any I/O: connecting, buffers, acknowledgements, retries.

Its states: *idle* (not ``active``), *waiting* for a connection or for the server's answer to our
CONNECT (``active``), and *connected*. The loss of the connection leads from connected back to
waiting; the server's DISCONNECT or CONNECT_ERROR, and our own ``disconnect``, to idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from limpet_client.errors import (
    AckTimeout,
    ConnectError,
    Disconnected,
    NotSent,
    SendBufferFull,
    TransportError,
)
from limpet_worker.socketio.packet import (
    ACK,
    CONNECT,
    DISCONNECT,
    EVENT,
    Packet,
    dumps,
    encode_ack,
    encode_disconnect,
    encode_event,
    event_name,
    prefix,
)

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket

IO_CLIENT: Final = "io client disconnect"
IO_SERVER: Final = "io server disconnect"

_GONE: Final = "socket has been disconnected"
_OLD_SERVER: Final = (
    "the server confirmed the connection without an id: it speaks an older revision of the "
    "protocol (Socket.IO 2)"
)

Arguments: TypeAlias = tuple[object, ...]
"""An event's name and what it carries."""
Answer: TypeAlias = Callable[[Exception | None, list[Any]], None]
"""Gets what an event was acknowledged with, or why it will not be. Called exactly once."""


class Link(Protocol):
    """The connection as a namespace sees it."""

    @property
    def writable(self) -> bool:
        """Whether a packet would leave at this instant."""

    @property
    def alive(self) -> bool:
        """Whether the server has not been silent for too long."""

    @property
    def full(self) -> bool:
        """Whether too much waits for the network already."""

    def send(self, packet: bytes | EncodedPacket, *, compress: bool = True) -> None:
        """Send a packet."""


class Listener(Protocol):
    """Who hears of a namespace."""

    def on_event(self, arguments: list[Any], id_: int | None) -> None:
        """Take an event: its name, then its arguments; and the id of a wanted acknowledgement."""

    def on_outgoing(self, arguments: Arguments) -> None:
        """Know that an event is being sent."""

    def on_connect(self) -> None:
        """Know that the namespace is connected."""

    def on_connect_error(self, error: ConnectError) -> None:
        """Know that it could not be."""

    def on_disconnect(self, reason: str, error: TransportError | None) -> None:
        """Know that it is no more."""

    def on_idle(self) -> None:
        """Know that it does not want the connection any more."""

    def start_timer(self, seconds: float, id_: int) -> object:
        """Call ``expire(id_)`` later; return what ``cancel`` can be called on."""


class _Waiting:
    """An event that waits for the connection."""

    __slots__ = ("arguments", "compress", "id", "packet")

    def __init__(
        self,
        arguments: Arguments,
        packet: bytes | EncodedPacket,
        id_: int | None,
        *,
        compress: bool,
    ) -> None:
        self.arguments = arguments
        self.packet = packet
        self.id = id_
        self.compress = compress


class _Ack:
    """Who waits for an acknowledgement."""

    __slots__ = ("answer", "timer")

    def __init__(self, answer: Answer, timer: Any) -> None:
        self.answer = answer
        self.timer = timer
        """None: waits for as long as the connection lasts."""


class _Retry:
    """An event that is sent until it is acknowledged."""

    __slots__ = ("answer", "arguments", "compress", "pending", "seconds", "tries")

    def __init__(
        self, arguments: Arguments, answer: Answer | None, seconds: float | None, *, compress: bool
    ) -> None:
        self.arguments = arguments
        self.answer = answer
        self.seconds = seconds
        self.compress = compress
        self.tries = 0
        self.pending = False
        """Whether its acknowledgement is waited for."""


class NamespaceCore:
    """What a client knows of one namespace."""

    __slots__ = (
        "_ack_timeout",
        "_asked",
        "_limit",
        "_link",
        "_listener",
        "_next_id",
        "_queue",
        "acks",
        "active",
        "connected",
        "name",
        "offset",
        "pid",
        "prefix",
        "receive_buffer",
        "recovered",
        "retries",
        "send_buffer",
        "sid",
    )

    def __init__(
        self,
        name: str,
        link: Link,
        listener: Listener,
        *,
        retries: int = 0,
        ack_timeout: float | None = None,
        limit: int = 10_000,
    ) -> None:
        self.name = name
        self.prefix = prefix(name)
        self._link = link
        self._listener = listener
        self.retries = retries
        """How often an event is sent again that was not acknowledged."""
        self._ack_timeout = ack_timeout
        self._limit = limit
        """Events that may wait."""
        self._asked = False
        """Whether a CONNECT was sent that has not been answered."""
        self._next_id = 0
        self._queue: deque[_Retry] | None = None
        """Events to be acknowledged, the first of them in flight; None until there is one."""
        self.acks: dict[int, _Ack] = {}
        """Who waits for which acknowledgement."""
        self.active = False
        """Whether it wants to be connected."""
        self.connected = False
        self.sid: str | None = None
        """The socket's id at the server; None while not connected."""
        self.pid: str | None = None
        """The private id of recovery; None when the server does not offer it."""
        self.offset: str | None = None
        """What the server called the last event that came; None before one."""
        self.recovered = False
        """Whether the last connection took up the one before it."""
        self.send_buffer: deque[_Waiting] | None = None
        """Events that wait for the connection; None while none does."""
        self.receive_buffer: list[tuple[list[Any], int | None]] | None = None
        """Events that came before the server's CONNECT; None while there is none."""

    # --- its user's side --------------------------------------------------

    @property
    def queued(self) -> int:
        """Events that are sent until they are acknowledged."""
        return len(self._queue) if self._queue is not None else 0

    def emit(
        self,
        arguments: Arguments,
        answer: Answer | None = None,
        *,
        volatile: bool = False,
        seconds: float | None = None,
        compress: bool = True,
    ) -> int | None:
        """Send an event, its name first, when it can be; a volatile one now or never.

        Returns the id of the acknowledgement, for ``withdraw``; None when there is none, or when
        the event is one that is retried.

        Raises:
            SendBufferFull: too much waits already.
            TypeError: an argument that cannot be sent.
        """
        if not self.retries or volatile:
            return self._emit(
                arguments, answer, volatile=volatile, seconds=seconds, compress=compress
            )
        self._check_room(self.queued)
        encode_event(self.prefix, arguments)  # to refuse now what would fail later
        if self._queue is None:
            self._queue = deque()
        self._queue.append(_Retry(arguments, answer, seconds, compress=compress))
        self._drain(again=False)
        return None

    def withdraw(self, id_: int) -> None:
        """Wait for an acknowledgement no longer; the event is sent all the same."""
        self._forget(id_)

    def acknowledge(self, id_: int, values: tuple[object, ...]) -> None:
        """Acknowledge an event of the server; nothing happens without a connection.

        Raises:
            TypeError: a value that cannot be sent.
        """
        packet = encode_ack(self.prefix, id_, values)
        if self.connected:
            self._link.send(packet)

    def expire(self, id_: int) -> None:
        """Give up an acknowledgement: it took too long."""
        ack = self.acks.pop(id_, None)
        if ack is None:
            return
        if self.send_buffer is not None:
            for waiting in self.send_buffer:
                if waiting.id == id_:
                    self.send_buffer.remove(waiting)
                    break
        ack.answer(AckTimeout("no acknowledgement in time"), [])

    def disconnect(self) -> None:
        """Leave the namespace."""
        if self.connected:
            self._link.send(encode_disconnect(self.prefix))
        self.active = False
        self._listener.on_idle()
        if self.connected:
            self._leave(IO_CLIENT, None)

    def give_up(self) -> None:
        """Answer all that wait, with an error: there will be no connection any more."""
        self.send_buffer = None
        queue, self._queue = self._queue, None
        self._fail_acks()
        for retry in queue or ():
            if retry.answer is not None:
                retry.answer(Disconnected(_GONE), [])

    def ask(self, auth: Any) -> None:
        """Send our CONNECT: what the server is told, and what it needs to recover.

        Nothing is sent while an answer to an earlier one is waited for: a second one would end
        the connection.

        Raises:
            TypeError: something in ``auth`` that JSON cannot carry.
        """
        if self._asked or self.connected:
            return
        data: dict[str, Any] = {}
        if self.pid is not None:
            data = {"pid": self.pid}
            if self.offset is not None:
                data["offset"] = self.offset
        if auth is not None:
            data |= auth
        self._link.send(b"0" + self.prefix + (dumps(data) if data or auth is not None else b""))
        self._asked = True

    # --- the connection's side --------------------------------------------

    def on_packet(self, packet: Packet) -> None:
        """Take a packet for this namespace."""
        kind = packet.type
        if kind == EVENT:
            if packet.data:
                self._on_event(packet.data, packet.id)
        elif kind == ACK:
            if packet.id is not None:
                self._on_ack(packet.id, packet.data or [])
        elif kind == CONNECT:
            self._on_connect(packet.data or {})
        elif kind == DISCONNECT:
            self._on_disconnect()
        else:
            self._on_connect_error(packet.data)

    def on_open_failed(self, error: ConnectError) -> None:
        """Know that there is no connection, for now."""
        if self.active and not self.connected:
            self._listener.on_connect_error(error)

    def on_lost(self, reason: str, error: TransportError | None) -> None:
        """Know that the connection has ended."""
        self._asked = False
        if not self.active:
            return
        if self.connected:
            self._leave(reason, error)
        else:
            self.receive_buffer = None
            self._fail_acks()
            self._listener.on_connect_error(error or TransportError(reason))

    # --- inside -----------------------------------------------------------

    def _emit(
        self,
        arguments: Arguments,
        answer: Answer | None,
        *,
        volatile: bool,
        seconds: float | None,
        compress: bool,
    ) -> int | None:
        id_ = None
        if answer is not None:
            id_ = self._next_id
            self._next_id += 1
        packet = encode_event(self.prefix, arguments, id_)
        link = self._link
        if volatile and not (self.connected and link.writable):
            if answer is not None:
                answer(NotSent("a volatile event could not be sent at this instant"), [])
            return None
        alive = self.connected and link.alive
        if not alive:
            self._check_room(len(self.send_buffer) if self.send_buffer is not None else 0)
        elif link.full:
            raise SendBufferFull("too many bytes wait for the network already")
        if answer is not None and id_ is not None:
            if seconds is None:
                seconds = self._ack_timeout
            timer = None if seconds is None else self._listener.start_timer(seconds, id_)
            self.acks[id_] = _Ack(answer, timer)
        if alive:
            self._listener.on_outgoing(arguments)
            link.send(packet, compress=compress)
        else:
            if self.send_buffer is None:
                self.send_buffer = deque()
            self.send_buffer.append(_Waiting(arguments, packet, id_, compress=compress))
        return id_

    def _check_room(self, waiting: int) -> None:
        if waiting >= self._limit:
            raise SendBufferFull(f"{waiting} events wait for a connection already")

    def _on_event(self, data: list[Any], id_: int | None) -> None:
        data[0] = event_name(data)
        if self.connected:
            self._hand_on(data, id_)
        elif self.active:
            if self.receive_buffer is None:
                self.receive_buffer = []
            self.receive_buffer.append((data, id_))

    def _hand_on(self, data: list[Any], id_: int | None) -> None:
        last = data[-1]  # before handlers may change the list
        length = len(data)
        self._listener.on_event(data, id_)
        # The server adds it to each event but those it wants acknowledged.
        if self.pid is not None and id_ is None and type(last) is str and length > 1:
            self.offset = last

    def _on_ack(self, id_: int, values: list[Any]) -> None:
        ack = self._forget(id_)
        if ack is not None:
            ack.answer(None, values)

    def _forget(self, id_: int) -> _Ack | None:
        ack = self.acks.pop(id_, None)
        if ack is not None and ack.timer is not None:
            ack.timer.cancel()
        return ack

    def _on_connect(self, data: dict[str, Any]) -> None:
        sid, pid = data.get("sid"), data.get("pid")
        self._asked = False
        if self.connected:
            return
        if not isinstance(sid, str) or not sid:
            self._listener.on_connect_error(ConnectError(_OLD_SERVER))
            return
        if not self.active:  # disconnected meanwhile
            self._link.send(encode_disconnect(self.prefix))
            return
        self.sid = sid
        self.recovered = isinstance(pid, str) and pid == self.pid
        self.pid = pid if isinstance(pid, str) else None
        self.connected = True
        received, self.receive_buffer = self.receive_buffer, None
        for arguments, id_ in received or ():
            self._hand_on(arguments, id_)
        buffered, self.send_buffer = self.send_buffer, None
        for waiting in buffered or ():
            self._listener.on_outgoing(waiting.arguments)
            self._link.send(waiting.packet, compress=waiting.compress)
        self._drain(again=True)
        if self.connected:
            self._listener.on_connect()

    def _on_disconnect(self) -> None:
        if not self.active:
            return
        self.active = False
        self._listener.on_idle()
        if self.connected:
            self._leave(IO_SERVER, None)
        else:
            self._listener.on_connect_error(ConnectError(IO_SERVER, refused=True))

    def _on_connect_error(self, data: Any) -> None:
        message, more = data, None
        if isinstance(data, dict):
            message, more = data.get("message", ""), data.get("data")
        self._asked = False
        if not self.active:
            return
        self.active = False
        self._fail_acks()
        self._listener.on_idle()
        self._listener.on_connect_error(ConnectError(str(message or ""), more, refused=True))

    def _leave(self, reason: str, error: TransportError | None) -> None:
        self.connected = False
        self.sid = None
        self.receive_buffer = None
        self._listener.on_disconnect(reason, error)
        self._fail_acks()

    def _fail_acks(self) -> None:
        """Tell who waits for an acknowledgement, unless the event has not been sent yet."""
        unsent = {waiting.id for waiting in self.send_buffer or ()}
        for id_ in [id_ for id_ in self.acks if id_ not in unsent]:
            ack = self._forget(id_)
            if ack is not None:
                ack.answer(Disconnected(_GONE), [])

    # --- retries ----------------------------------------------------------

    def _drain(self, *, again: bool) -> None:
        """Send the first event of the queue; one that is in flight only when ``again``."""
        if not self.connected or not self._queue:
            return
        first = self._queue[0]
        if first.pending and not again:
            return
        first.pending = True
        first.tries += 1

        def answered(error: Exception | None, values: list[Any]) -> None:
            self._on_try(first, error, values)

        try:
            self._emit(
                first.arguments,
                answered,
                volatile=False,
                seconds=first.seconds,
                compress=first.compress,
            )
        except SendBufferFull as error:
            self._on_try(first, error, [])

    def _on_try(self, retry: _Retry, error: Exception | None, values: list[Any]) -> None:
        retry.pending = False
        queue = self._queue
        if not queue or queue[0] is not retry:
            return  # acknowledged meanwhile: an answer to an earlier try
        if error is None or retry.tries > self.retries:
            queue.popleft()
            if retry.answer is not None:
                retry.answer(error, values)
        self._drain(again=False)
