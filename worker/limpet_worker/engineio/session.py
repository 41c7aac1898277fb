"""An Engine.IO session without any I/O: its states, its outbox, its heartbeat, its upgrade.

=========== ==================================== ================================================
state       means                                left by
=========== ==================================== ================================================
OPENING     the application is being told        OPEN when it has given a sink
OPEN        messages flow                        UPGRADING, CLOSING, CLOSED
UPGRADING   a WebSocket has probed; messages     OPEN: packet ``5`` (over WebSocket now), or the
            still flow by polling                WebSocket failed (still polling); CLOSING, CLOSED
CLOSING     closed by us; the last packets wait  CLOSED: they and then the packet ``1`` were
            for the client's next poll           fetched (``1`` unless it was sent away), or went
                                                 over a WebSocket that had probed, or
                                                 ``close_timeout``
CLOSED      nothing is left but the object
=========== ==================================== ================================================

From the application's side the session ends with CLOSING or CLOSED, whichever comes first: then
``sink.on_close`` is called. A WebSocket that waits (OPEN) or has probed (UPGRADING) is the
*candidate*; it fails alone, the session goes on by polling.

The reasons: ``transport close`` (the client left), ``transport error`` (what it did breaks the
transport's rules, or a poll was dropped), ``parse error`` (not a packet), ``ping timeout``,
``slow consumer`` (too much unsent), and those that ``close`` is given: ``forced close``,
``server shutting down``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from limpet_adapters.counters import count
from limpet_worker.engineio.flush import SLOT
from limpet_worker.engineio.payload import (
    BINARY_MESSAGE,
    CLOSE,
    MESSAGE,
    NOOP,
    OPEN,
    PING,
    PONG,
    PROBE,
    SEPARATOR,
    UPGRADE,
    PayloadError,
    binary_of,
    binary_part,
    frames_of,
    packet_payload,
)
from limpet_worker.engineio.polling import PollingTransport
from limpet_worker.engineio.request import HandshakeRequest
from limpet_worker.engineio.sink import NO_SINK, Sink
from limpet_worker.websocket.frames import BINARY, encode, message_frame, packet_frame

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket
    from limpet_worker.engineio.server import EngineServer
    from limpet_worker.engineio.transport import WebSocket, Wire

__all__ = ["HandshakeRequest", "Session", "Sink"]

STATE_OPENING: Final = 0
STATE_OPEN: Final = 1
STATE_UPGRADING: Final = 2
STATE_CLOSING: Final = 3
STATE_CLOSED: Final = 4

_PING_FRAME: Final = b"\x81\x012"
_DOOMED: Final = -1.0
_COUNTED: Final = {
    "ping timeout": "limpet_ping_timeouts_total",
    "slow consumer": "limpet_slow_consumer_disconnects_total",
}


class Session:
    """One client's session. Callers see one ordered stream each way, whatever carries it."""

    __slots__ = (
        "blocked",
        "candidate",
        "deadline",
        "engine",
        "grace",
        "opened_at",
        "out",
        "over_since",
        "pinged_at",
        "polling",
        "pong_due",
        "request",
        "sid",
        "sink",
        "state",
        "tick",
        "transport_name",
        "websocket",
        "weight",
        "wire",
    )

    def __init__(
        self, engine: EngineServer, sid: str, request: HandshakeRequest, transport_name: str
    ) -> None:
        self.engine = engine
        self.sid = sid
        """The session id: a bearer secret, not to be logged or shown."""
        self.request = request
        """The request that began the session."""
        self.sink: Sink = NO_SINK
        self.state = STATE_OPENING
        self.transport_name = transport_name
        """"polling" or "websocket"; stays what it was when the session ends."""
        self.polling: PollingTransport | None = None
        """The polling transport; None once the session runs over WebSocket, or has ended."""
        self.websocket: WebSocket | None = None
        """The WebSocket that carries the session; None while it polls, or when it has ended."""
        self.wire: Wire | None = None
        """Where frames are written: set exactly while ``websocket`` is."""
        self.candidate: WebSocket | None = None
        """A WebSocket that wants to take over from polling."""
        self.out: bytes | list[bytes] | None = None
        """The outbox: packets as the transport writes them (frames, or parts of a payload)."""
        self.weight = 0
        """Bytes in the outbox and ``SLOT`` for each packet; counts only while it is a list."""
        self.blocked = True
        """Whether the transport can take nothing just now: no GET waits, or the kernel is full."""
        self.over_since = 0.0
        """Since when the outbox has been over a soft limit; 0 when it is not."""
        self.deadline = 0.0
        """When the next ping, the pong that is due, or the last poll is too late."""
        self.pong_due = False
        """Whether a ping has not been answered."""
        self.grace = False
        """Whether any packet still prolongs the wait for the pong (once for each ping)."""
        self.tick = 0
        """Where the session is on the timer wheel; the wheel's."""
        self.opened_at = self.pinged_at = 0.0
        """When it began, and when the last ping was sent."""

    @property
    def closed(self) -> bool:
        """Whether the session has ended (``on_close`` was called): nothing can be sent."""
        return self.state > STATE_UPGRADING

    @property
    def upgrading(self) -> bool:
        """Whether a WebSocket has probed: polls are answered at once."""
        return self.state == STATE_UPGRADING

    @property
    def writable(self) -> bool:
        """Whether a packet sent now would leave now; volatile packets are for such moments."""
        return not self.blocked

    # --- sending ---------------------------------------------------------

    def send(self, data: str | bytes) -> None:
        """Send a message: text when it is a str, binary when it is bytes.

        Text must not contain U+001E while the session polls: there it parts packets.
        """
        if isinstance(data, str):
            self.send_text(data.encode("utf-8"))
        elif self.state <= STATE_UPGRADING:
            self.enqueue(binary_part(data) if self.wire is None else encode(BINARY, data))

    def send_text(self, data: bytes) -> None:
        """Send a text message that is UTF-8 already: the quickest way for one client's packet."""
        if self.state <= STATE_UPGRADING:
            self.enqueue(MESSAGE + data if self.wire is None else message_frame(data))

    def send_packet(self, packet: EncodedPacket) -> None:
        """Send a packet and its attachments as one unit."""
        if self.state <= STATE_UPGRADING:
            if self.wire is None:
                self.enqueue(packet.payload or packet_payload(packet))
            else:
                self.enqueue(packet.frame or packet_frame(packet))

    def enqueue(self, item: bytes) -> None:
        """Put something finished into the outbox: frames, or a part of a payload."""
        flusher = self.engine.flusher
        out = self.out
        if out is None:
            self.out = item
            flusher.hot.append(self)
        else:
            if isinstance(out, list):
                out.append(item)
                self.weight += len(item) + SLOT
            else:
                self.out = [out, item]
                self.weight = len(out) + len(item) + 2 * SLOT
            if self.weight > flusher.heavy:
                self.press()
            # What lies there may be a broadcast's and wait for its slice: this must not.
            hot = flusher.hot
            if not self.blocked and not (hot and hot[-1] is self):
                hot.append(self)
        if not flusher.scheduled:
            flusher.schedule()

    def flush(self) -> None:
        """Write the outbox now, as far as the transport can take anything."""
        out = self.out
        if out is None or self.blocked:
            return
        self.out = None
        if self.wire is not None:
            self._write(out)
        elif self.polling is not None:
            self.polling.answer(out)

    def _write(self, out: bytes | list[bytes]) -> None:
        traffic = self.engine.traffic
        if isinstance(out, bytes):
            traffic.websocket_out += 1
        else:
            traffic.websocket_out += len(out)
            out = b"".join(out)
        traffic.websocket_bytes_out += len(out)
        if self.wire is not None:
            self.wire.write(out)

    def unblock(self) -> None:
        """Go on writing: the transport can take something again."""
        self.blocked = False
        if self.over_since > 0.0:
            self.over_since = 0.0
            self.engine.slow.discard(self)
        self.flush()

    # --- limits ----------------------------------------------------------

    def press(self) -> None:
        """Flush a heavy outbox early, or judge it when it cannot be flushed."""
        if not self.blocked:
            self.flush()
        out = self.out
        if not isinstance(out, list):
            return
        if self.state > STATE_UPGRADING:
            if self.state == STATE_CLOSED:
                self.out = None
        elif self._unsent(out) > self.engine.options.hard_limit:
            self.out = None
            self.over_since = _DOOMED
            self.engine.end_slow(self)
        elif self.over_since == 0.0 and self._is_over(out):
            self.over_since = self.engine.clock()
            self.engine.slow.add(self)

    def judge(self, now: float) -> bool:
        """Return whether the session is over a limit still; end it when that lasts too long."""
        if self.state > STATE_UPGRADING:
            return False
        if self.over_since != _DOOMED:
            out = self.out
            if not isinstance(out, list) or not self._is_over(out):
                self.over_since = 0.0
                return False
            if now - self.over_since <= self.engine.options.soft_seconds:
                return True
        websocket = self.websocket
        if websocket is not None:
            websocket.abort()  # a close frame would wait behind what it does not read
        self.fail("slow consumer")
        return False

    def _unsent(self, out: list[bytes]) -> int:
        # Not counting the first packet: an empty outbox takes any one, however large.
        return self.weight - len(out) * SLOT - len(out[0])

    def _is_over(self, out: list[bytes]) -> bool:
        options = self.engine.options
        return self._unsent(out) > options.soft_limit or len(out) > options.soft_packets

    # --- receiving -------------------------------------------------------

    def receive(self, packet: bytes) -> None:
        """Take a packet in its text form, from a payload or a WebSocket text frame."""
        kind = packet[:1]
        if self.state > STATE_UPGRADING:
            if kind == CLOSE:
                self.fail("transport close")
        elif kind == PONG:
            self.pong()
        else:
            if self.grace:
                self.refresh()
            if kind == MESSAGE:
                self.sink.on_text(packet[1:])
            elif kind == BINARY_MESSAGE:
                self._receive_base64(packet)
            elif kind == CLOSE:
                self.fail("transport close", NOOP)
            elif kind == PING:
                self.refuse("transport error", "ping from client")
            elif kind in {OPEN, UPGRADE, NOOP}:
                count("limpet_packets_ignored_total", reason="out of place")
            else:
                self.refuse("parse error", "unknown packet type")

    def _receive_base64(self, packet: bytes) -> None:
        try:
            data = binary_of(packet)
        except PayloadError:
            self.refuse("parse error", "not base64")
        else:
            self.sink.on_binary(data)

    def refuse(self, reason: str, why: str) -> None:
        """End the session for a bad packet, and count ``why``."""
        count("limpet_packets_refused_total", reason=why)
        self.fail(reason)

    # --- heartbeat -------------------------------------------------------

    def pong(self) -> None:
        """Take a pong: the next ping is an interval from now."""
        engine = self.engine
        now = engine.clock()
        if self.pong_due:
            engine.ping_rtt.observe(now - self.pinged_at)
        self.pong_due = self.grace = False
        self.deadline = now + engine.options.ping_interval

    def expire(self) -> bool:
        """End the session if its pong is too late already; the wheel would a moment later."""
        if not self.pong_due or self.engine.clock() < self.deadline:
            return False
        self.fail("ping timeout")
        return True

    def refresh(self) -> None:
        """Wait longer for the pong that is due: something else came, so the client lives."""
        self.grace = False
        self.deadline = self.engine.clock() + self.engine.options.ping_timeout

    def on_deadline(self, now: float) -> float | None:
        """Ping, or end the session; called by the timer wheel."""
        state = self.state
        if state == STATE_CLOSED:
            return None
        options = self.engine.options
        if now >= self.deadline:
            if state == STATE_CLOSING:
                unsent = len(self.out) - 1 if isinstance(self.out, list) else 0
                if unsent:
                    count("limpet_packets_dropped_total", unsent, reason="never fetched")
                self._forget()
                return None
            if self.pong_due:
                self.fail("ping timeout")
                return None
            self.pong_due = self.grace = True
            self.pinged_at = now
            # From when the ping was due: the wheel is a little late, the client's clock is not.
            late = 2 * self.engine.wheel.granularity
            self.deadline = max(self.deadline, now - late) + options.ping_timeout
            self.enqueue(PING if self.wire is None else _PING_FRAME)
        if state == STATE_CLOSING:
            return self.deadline
        # A pong may set a deadline that is earlier than the one it was waited for, but not
        # earlier than an interval from now.
        return min(self.deadline, now + options.ping_interval)

    # --- upgrade ---------------------------------------------------------

    def offer(self, candidate: WebSocket) -> bool:
        """Take a WebSocket that may carry the session later; False when it is not wanted."""
        if (
            self.state != STATE_OPEN
            or self.polling is None
            or self.candidate is not None
            or not self.engine.options.allow_upgrades
        ):
            return False
        self.candidate = candidate
        return True

    def candidate_packet(self, candidate: WebSocket, packet: bytes) -> None:
        """Take a packet that came on the candidate."""
        if candidate is not self.candidate:
            return
        if packet == PROBE and self.state <= STATE_UPGRADING:
            candidate.answer_probe()
            self.state = STATE_UPGRADING
            # The client waits for its open poll to end before it goes on: end it now.
            if self.polling is not None:
                self.polling.release()
        elif packet == UPGRADE and self.state <= STATE_UPGRADING:
            self._upgrade(candidate)
        elif packet == UPGRADE:
            out = self.out
            if isinstance(out, list) and out[0] != CLOSE and candidate.wire is not None:
                candidate.wire.write(frames_of(SEPARATOR.join(out[: out.index(CLOSE)])))
            self._forget()
        else:
            count("limpet_upgrades_total", result="unexpected packet")
            self.candidate_lost(candidate)
            candidate.close()

    def candidate_lost(self, candidate: WebSocket) -> None:
        """Go on by polling: the WebSocket that wanted to take over has failed."""
        if candidate is self.candidate:
            self.candidate = None
            if self.state == STATE_UPGRADING:
                self.state = STATE_OPEN

    def _upgrade(self, candidate: WebSocket) -> None:
        polling = self.polling
        if polling is not None:
            polling.release()  # with what is queued, when a poll waits
            self.polling = None
            polling.detach(NOOP)
        out = self.out
        if out is not None:
            self.out = frames_of(out if isinstance(out, bytes) else SEPARATOR.join(out))
        self.candidate = None
        self.websocket = candidate
        self.wire = candidate.wire
        self.state = STATE_OPEN
        self.transport_name = "websocket"
        candidate.carry(self)
        self.engine.upgraded(self)
        self.sink.on_upgrade()
        if candidate is self.websocket:  # the sink may have closed the session
            if candidate.paused:
                self.blocked = True
            else:
                self.unblock()

    # --- ending ----------------------------------------------------------

    def close(
        self, reason: str = "forced close", *, discard: bool = False, code: int | None = None
    ) -> None:
        """End the session; what was sent before still goes out, unless it is discarded.

        A WebSocket gets a close frame with ``code``, or without one, as stock servers do it.

        ``sink.on_close(reason)`` is called before this returns. A client that polls but has no
        poll open just now finds its last packets at the next one, within ``close_timeout``.
        """
        if self.state > STATE_UPGRADING:
            if discard and self.state == STATE_CLOSING:
                self._forget()
            return
        out = self.out
        if discard or out is None:
            last: list[bytes] = []
        else:
            last = out if isinstance(out, list) else [out]
        polling = self.polling
        if self.wire is not None:
            if last:
                self._write(last)
        elif polling is not None and not discard and (last or polling.responder is None):
            # The close packet comes alone: stock clients act on it before they have handled the
            # messages of the same payload, and one that was told to leave would come back.
            if self.state != STATE_UPGRADING:
                self._drop_candidate()  # one that has probed fetches the rest: polls are over
            self._await_last_poll([*last, CLOSE])
            if polling.responder is not None:
                polling.answer(self.last_poll())
            self._tell(reason)
            return
        self._forget(code=code)
        self._tell(reason)

    def send_away(self, reason: str, code: int | None = None) -> None:
        """End the session so that the client comes back: as `close`, but a poll never gets ``1``.

        Stock Python clients that poll take that packet for the end they wanted themselves. Instead
        the poll that waits, or the next one, is told that its session is unknown, and every client
        connects anew then.
        """
        if self.state > STATE_UPGRADING:
            return
        polling = self.polling
        if polling is None or self.state == STATE_UPGRADING:  # polls are over
            self.close(reason, code=code)
            return
        out = self.out
        if out is not None and polling.responder is None:
            self._drop_candidate()
            self._await_last_poll([*out, NOOP] if isinstance(out, list) else [out, NOOP])
        elif out is not None:
            self.out = None
            polling.answer(out)
            self._forget(NOOP)
        else:
            responder = polling.responder
            polling.responder = None
            self._forget()
            if responder is not None:
                responder.refuse()
        self._tell(reason)

    def fail(self, reason: str, answer: bytes = CLOSE) -> None:
        """End the session at once: the client left, or did something that cannot be.

        A poll that waits gets ``answer``, a WebSocket a close frame.
        """
        state = self.state
        if state == STATE_CLOSED:
            return
        self._forget(answer)
        if state != STATE_CLOSING:
            self._tell(reason)

    def _await_last_poll(self, out: list[bytes]) -> None:
        """Keep packets for the next poll: up to ``1``, which comes alone, or up to ``6``."""
        self.out = out
        self.blocked = True
        self.state = STATE_CLOSING
        self.deadline = self.engine.clock() + self.engine.options.close_timeout
        self.engine.arm(self, self.deadline)

    def last_poll(self) -> bytes:
        """Return what a poll gets of a session that is CLOSING: the last packets, then the end."""
        out = self.out
        if isinstance(out, list) and NOOP in out:
            self._forget()
            return SEPARATOR.join(out[: out.index(NOOP)])
        end = out.index(CLOSE) if isinstance(out, list) else 0
        if not isinstance(out, list) or not end:
            self._forget()
            return CLOSE
        self.out = [CLOSE]
        return SEPARATOR.join(out[:end])

    def _forget(self, answer: bytes = CLOSE, code: int | None = None) -> None:
        """Let go of everything, so that no cycle of references is left.

        A poll that waits gets ``answer``, after everything else: the request behind it on its
        connection may be for this session again.
        """
        self.state = STATE_CLOSED
        self.blocked = True
        self.out = None
        self._drop_candidate()
        websocket = self.websocket
        self.websocket = self.wire = None
        if websocket is not None:
            websocket.close(code)
        polling = self.polling
        self.polling = None
        self.engine.forget(self)
        if polling is not None:
            polling.detach(answer)

    def _drop_candidate(self) -> None:
        candidate = self.candidate
        self.candidate = None
        if candidate is not None:
            candidate.close()

    def _tell(self, reason: str) -> None:
        engine = self.engine
        count("limpet_sessions_closed_total", transport=self.transport_name, reason=reason)
        engine.session_seconds.observe(engine.clock() - self.opened_at)
        if reason in _COUNTED:
            count(_COUNTED[reason])
        sink = self.sink
        self.sink = NO_SINK
        sink.on_close(reason)
