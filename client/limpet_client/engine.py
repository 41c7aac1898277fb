"""The client's end of an Engine.IO session without any I/O: states, outbox, heartbeat, upgrade.

========== ===================================== ================================================
state      means                                 left by
========== ===================================== ================================================
OPENING    a transport connects; the handshake   OPEN: the server's packet ``0`` came; CLOSED
           is waited for
OPEN       messages flow                         UPGRADING, CLOSING, CLOSED
UPGRADING  the candidate's probe was answered;   OPEN: the old transport is at rest and ``5`` was
           what is sent waits                    sent, or the candidate failed; CLOSING, CLOSED
CLOSING    closed by us; the outbox is sent      CLOSED: it is empty
CLOSED     nothing is left but the object
========== ===================================== ================================================

A WebSocket that connects beside a polling session is the *candidate*: it fails alone, and the
session goes on by polling, with everything that waited meanwhile.

The reasons of the end: ``transport close`` (the server left), ``transport error`` (the network
or HTTP failed), ``parse error`` (no Engine.IO), ``ping timeout``, and those that ``close`` gets,
``forced close`` mostly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import orjson

from limpet_client.errors import TransportError
from limpet_worker.engineio.payload import (
    BINARY_MESSAGE,
    CLOSE,
    MESSAGE,
    NOOP,
    OPEN,
    PING,
    PONG,
    PROBE,
    PROBE_ANSWER,
    UPGRADE,
    PayloadError,
    binary_of,
)

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket

STATE_OPENING: Final = 0
STATE_OPEN: Final = 1
STATE_UPGRADING: Final = 2
STATE_CLOSING: Final = 3
STATE_CLOSED: Final = 4


class Message:
    """What is no plain text in the outbox; text packets are there as ``bytes``, digit first."""

    __slots__ = ("binary", "compress", "data")

    def __init__(self, data: bytes, *, binary: bool, compress: bool = True) -> None:
        self.data = data
        self.binary = binary
        """False: a text packet, its digit first."""
        self.compress = compress
        """Whether it may be compressed where the transport can."""


Outgoing: TypeAlias = bytes | Message


class Transport(Protocol):
    """What carries packets; it tells the session of everything with itself as first argument."""

    @property
    def name(self) -> str:
        """``polling`` or ``websocket``."""

    @property
    def writable(self) -> bool:
        """Whether it takes packets now; when that becomes true it calls ``on_drain``."""

    def write(self, packets: list[Outgoing]) -> None:
        """Send packets, in this order and before those of later calls."""

    def pause(self) -> None:
        """Come to rest: ask for nothing more, finish what was asked, then call ``on_paused``."""

    def resume(self) -> None:
        """Go on after ``pause``, whether it had come to rest or not."""

    def close(self) -> None:
        """End in the way of the protocol; nothing is to be told any more."""

    def abort(self) -> None:
        """End at once; nothing is to be told any more."""


class Sink(Protocol):
    """What sits on a session."""

    def on_open(self) -> None:
        """Know that the handshake is done."""

    def on_text(self, data: bytes) -> None:
        """Take a text message, without the packet type."""

    def on_binary(self, data: bytes) -> None:
        """Take a binary message."""

    def on_ping(self) -> None:
        """Know that the server is alive."""

    def on_upgrade(self) -> None:
        """Know that the session runs over another transport now."""

    def on_close(self, reason: str, error: TransportError | None) -> None:
        """Know that the session has ended. Called once, and nothing follows it."""


class Shell(Protocol):
    """What drives a session: it has the sockets and the timers."""

    def want_flush(self) -> None:
        """Call ``flush`` soon, once."""

    def want_watch(self) -> None:
        """Call ``check`` when the deadline has come."""

    def want_candidate(self) -> None:
        """Connect a WebSocket to the session and give it to ``probe``."""

    def another_transport(self) -> bool:
        """Begin again with another transport; False when there is none."""


class EngineSession:
    """One session. What is sent is one ordered stream, and so is what comes."""

    __slots__ = (
        "_buffered",
        "_clock",
        "_limit",
        "_reason",
        "_shell",
        "_sink",
        "_transports",
        "_upgrade",
        "candidate",
        "deadline",
        "max_payload",
        "outbox",
        "patience",
        "sid",
        "state",
        "transport",
    )

    def __init__(
        self,
        sink: Sink,
        shell: Shell,
        clock: Callable[[], float],
        *,
        transports: Sequence[str] = ("polling", "websocket"),
        upgrade: bool = True,
        max_buffered_bytes: int = 64_000_000,
    ) -> None:
        self._sink = sink
        self._shell = shell
        self._clock = clock
        self._transports = transports
        self._upgrade = upgrade
        self._limit = max_buffered_bytes
        self._buffered = 0
        """Bytes in the outbox."""
        self._reason = ""
        """Why it is being closed; set with CLOSING."""
        self.state = STATE_OPENING
        self.transport: Transport | None = None
        """What carries the session; None before the start and after the end."""
        self.candidate: Transport | None = None
        """A WebSocket that may take over; None when there is none."""
        self.outbox: list[Outgoing] = []
        """What the transport has not taken yet."""
        self.sid = ""
        """The session id, empty before the handshake: a secret, not to be logged or shown."""
        self.patience = 0.0
        """Seconds that the server may be silent; 0 before the handshake."""
        self.deadline = math.inf
        """When the server will have been silent for too long; inf before the handshake."""
        self.max_payload = 0
        """Bytes that the server takes in one POST; 0: it did not say."""

    # --- what its user does -----------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether a packet would leave at this instant: what is volatile is dropped otherwise."""
        transport = self.transport
        return (
            self.state == STATE_OPEN
            and not self.outbox
            and transport is not None
            and transport.writable
        )

    @property
    def expired(self) -> bool:
        """Whether the server has been silent for too long, though no timer has told yet."""
        return self._clock() > self.deadline

    @property
    def full(self) -> bool:
        """Whether so many bytes wait that nothing more should be sent."""
        return self._buffered > self._limit

    def send_text(self, data: bytes, *, compress: bool = True) -> None:
        """Send a text message."""
        text = MESSAGE + data
        self._enqueue(text if compress else Message(text, binary=False, compress=False))

    def send_packet(self, packet: EncodedPacket, *, compress: bool = True) -> None:
        """Send a Socket.IO packet and its attachments, with nothing in between."""
        self.send_text(packet.text, compress=compress)
        for data in packet.attachments:
            self._enqueue(Message(data, binary=True, compress=compress))

    def close(self, reason: str = "forced close") -> None:
        """Send what waits, then end. Nothing is taken any more."""
        if self.state == STATE_OPENING:
            self.end(reason, None)
        elif self.state in (STATE_OPEN, STATE_UPGRADING):
            upgrading = self.state == STATE_UPGRADING
            self.state = STATE_CLOSING
            self._reason = reason
            self._drop_candidate()
            if upgrading and self.transport is not None:
                # The server changes over with our 5, which it has not got: polling still counts.
                self.transport.resume()
            self.flush()

    def flush(self) -> None:
        """Give the transport what it takes."""
        transport = self.transport
        if transport is None or self.state not in (STATE_OPEN, STATE_CLOSING):
            return
        while self.outbox and transport.writable:
            transport.write(self._take(transport))
        if self.state == STATE_CLOSING and not self.outbox and transport.writable:
            self._finish(graceful=True)

    def end(self, reason: str, error: TransportError | None) -> None:
        """End at once, without a word to the server."""
        if self.state != STATE_CLOSED:
            self._reason = self._reason or reason
            self._finish(graceful=False, error=error)

    def check(self) -> float:
        """End the session if the server has been silent for too long; return the deadline."""
        if self.state != STATE_CLOSED and self.expired:
            self.end("ping timeout", None)
        return self.deadline

    # --- what a transport tells -------------------------------------------

    def start(self, transport: Transport) -> None:
        """Begin, or begin anew while OPENING, with a transport that connects."""
        self.transport = transport

    def not_opened(self, error: TransportError) -> None:
        """Know that a transport could not connect."""
        if self.state == STATE_OPENING and not self._shell.another_transport():
            self.end("transport error", error)

    def probe(self, candidate: Transport) -> None:
        """Ask a connected WebSocket whether the server hears us there."""
        if self.state != STATE_OPEN or self.candidate is not None:
            candidate.abort()
            return
        self.candidate = candidate
        candidate.write([PROBE])

    def on_text(self, transport: Transport, packet: bytes) -> None:
        """Take a text packet, its digit first."""
        if transport is not self.transport:
            if transport is self.candidate:
                self._on_candidate_packet(transport, packet)
            return
        if self.state == STATE_CLOSED:
            return
        kind = packet[:1]
        if kind == MESSAGE:
            self._sink.on_text(packet[1:])
        elif kind == PING:
            self.deadline = self._clock() + self.patience
            if self.state != STATE_CLOSING:
                self.outbox.append(PONG)
                self._shell.want_flush()
            self._sink.on_ping()
        elif kind == OPEN:
            self._on_handshake(packet[1:])
        elif kind == CLOSE:
            self.end("transport close", TransportError("the server closed the session"))
        elif kind == BINARY_MESSAGE:
            try:
                data = binary_of(packet)
            except PayloadError as error:
                self.end("parse error", TransportError(str(error)))
            else:
                self._sink.on_binary(data)
        elif kind not in (NOOP, PONG):
            self.end("parse error", TransportError("not an Engine.IO packet"))

    def on_binary(self, transport: Transport, data: bytes) -> None:
        """Take a binary message."""
        if transport is self.transport and self.state != STATE_CLOSED:
            self._sink.on_binary(data)

    def on_drain(self, transport: Transport) -> None:
        """Know that a transport takes packets again."""
        if transport is self.transport:
            self.flush()

    def on_paused(self, transport: Transport) -> None:
        """Know that the old transport is at rest: the candidate takes over."""
        candidate = self.candidate
        if self.state != STATE_UPGRADING or transport is not self.transport or candidate is None:
            return
        self.transport, self.candidate = candidate, None
        self.state = STATE_OPEN
        candidate.write([UPGRADE])
        transport.abort()
        self._sink.on_upgrade()
        self.flush()

    def on_error(self, transport: Transport, error: TransportError) -> None:
        """Know that a transport failed."""
        self._lost(transport, "transport error", error)

    def on_closed(self, transport: Transport, error: TransportError | None) -> None:
        """Know that the server ended a transport."""
        self._lost(transport, "transport close", error)

    def drop_candidate(self) -> None:
        """Stay with the transport there is: the upgrade takes too long."""
        upgrading = self.state == STATE_UPGRADING
        self._drop_candidate()
        if upgrading and self.transport is not None:
            self.state = STATE_OPEN
            self.transport.resume()
            self.flush()

    # --- inside -----------------------------------------------------------

    def _enqueue(self, packet: Outgoing) -> None:
        if self.state >= STATE_CLOSING:
            return
        if not self.outbox:
            self._shell.want_flush()
        self._buffered += _weight(packet)
        self.outbox.append(packet)

    def _take(self, transport: Transport) -> list[Outgoing]:
        """Return what may go next: over polling not more than the server takes at once."""
        outbox = self.outbox
        if transport.name == "polling" and self.max_payload and len(outbox) > 1:
            size = 0
            for at, packet in enumerate(outbox):
                size += packet_size(packet) + 1  # with its separator
                if size > self.max_payload and at:
                    self.outbox = outbox[at:]
                    self._buffered = sum(map(_weight, self.outbox))
                    return outbox[:at]
        self.outbox = []
        self._buffered = 0
        return outbox

    def _on_handshake(self, payload: bytes) -> None:
        if self.state != STATE_OPENING:
            self.end("parse error", TransportError("a second handshake"))
            return
        try:
            hello: dict[str, Any] = orjson.loads(payload)
            self.sid = str(hello["sid"])
            self.patience = (hello["pingInterval"] + hello["pingTimeout"]) / 1000
            self.max_payload = int(hello.get("maxPayload") or 0)
            upgrades = list(hello.get("upgrades") or ())
            self.deadline = self._clock() + self.patience
        except (ValueError, KeyError, TypeError, AttributeError):
            self.end("parse error", TransportError("the handshake cannot be read"))
            return
        self.state = STATE_OPEN
        self._shell.want_watch()
        self._sink.on_open()
        offered = "websocket" in upgrades and "websocket" in self._transports
        if offered and self._upgrade and self.state == STATE_OPEN:
            self._shell.want_candidate()

    def _on_candidate_packet(self, candidate: Transport, packet: bytes) -> None:
        if self.state != STATE_OPEN or self.transport is None:
            return
        if packet != PROBE_ANSWER:
            self._drop_candidate()
            return
        self.state = STATE_UPGRADING
        self.transport.pause()

    def _lost(self, transport: Transport, reason: str, error: TransportError | None) -> None:
        if transport is self.candidate:
            self.drop_candidate()
        elif transport is self.transport and self.state == STATE_OPENING and error is not None:
            transport.abort()
            self.not_opened(error)
        elif transport is self.transport and self.state != STATE_CLOSED:
            self.end(reason, error)

    def _drop_candidate(self) -> None:
        candidate, self.candidate = self.candidate, None
        if candidate is not None:
            candidate.abort()

    def _finish(self, *, graceful: bool, error: TransportError | None = None) -> None:
        self.state = STATE_CLOSED
        self.deadline = math.inf
        transport, self.transport = self.transport, None
        self._drop_candidate()
        if transport is not None:
            if graceful:
                transport.close()
            else:
                transport.abort()
        self.outbox = []
        self._buffered = 0
        self._sink.on_close(self._reason, error)


def packet_size(packet: Outgoing) -> int:
    """Return the bytes of a packet in a polling payload."""
    if isinstance(packet, Message) and packet.binary:
        return 1 + (len(packet.data) + 2) // 3 * 4
    return _weight(packet)


def _weight(packet: Outgoing) -> int:
    return len(packet.data) if isinstance(packet, Message) else len(packet)
