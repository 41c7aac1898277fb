"""The sessions of one process: opened and attached here, timed by one wheel, flushed together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Literal

import orjson

from limpet_adapters.counters import count, counters, histogram
from limpet_adapters.identity import redact
from limpet_worker.engineio.flush import Flusher
from limpet_worker.engineio.options import EngineOptions
from limpet_worker.engineio.polling import PollingTransport
from limpet_worker.engineio.request import HandshakeRequest
from limpet_worker.engineio.session import STATE_OPEN, STATE_OPENING, Session
from limpet_worker.engineio.sink import Sink
from limpet_worker.engineio.traffic import Traffic
from limpet_worker.engineio.wheel import Timed, Wheel
from limpet_worker.websocket.frames import TEXT, encode
from limpet_worker.websocket.transport import connection_factory

logger = logging.getLogger("limpet.engineio")

_SLICE: Final = 256
"""Timers that may fire before other work has its turn."""
_ACCEPTED: Final = 'limpet_handshakes_total{result="ok"}'
_LIFETIMES: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
"""Bounds of how long sessions last, in seconds."""
_STALL: Final = 1.0
"""Seconds of a blocked loop after which what lies unread is read before deadlines are judged."""


class EngineServer:
    """All Engine.IO sessions of a process. The front door opens them, sinks sit on them."""

    def __init__(
        self,
        options: EngineOptions,
        on_session: Callable[[Session], Sink],
        new_id: Callable[[], str],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Make a server that runs on ``loop`` (the running one, when it is None).

        ``on_session`` is called for each session before its client knows of it, and returns what
        takes its messages; it may send already.
        """
        self.options = options
        self.loop = loop or asyncio.get_running_loop()
        self.clock = clock or self.loop.time
        """Monotonic seconds."""
        self.sessions: dict[str, Session] = {}
        """By sid; also those that wait for a last poll (``session.closed`` is True then)."""
        self.traffic = Traffic()
        """What went through the sessions."""
        self.flusher = Flusher(self.loop.call_soon, options, self.traffic)
        self.session_seconds = histogram("limpet_session_duration_seconds", _LIFETIMES)
        """How long sessions lasted."""
        self.ping_rtt = histogram("limpet_ping_rtt_seconds")
        """From a ping to its pong."""
        self.slow: set[Session] = set()
        """Sessions over a soft limit, or about to end for the hard one."""
        self.websockets = 0
        """Sessions that run over WebSocket."""
        self.goodbyes: set[object] = set()
        """WebSockets of sessions that are over, until their closing handshake is."""
        self.on_fewer: Callable[[], None] | None = None
        """Called with each session that is gone; None: nobody cares."""
        self._on_session = on_session
        self._new_id = new_id
        self._new_connection = connection_factory(self.loop)
        self.receive_buffer = memoryview(bytearray(65_536))
        """Where connections of asyncio's own loops are read into, one after the other."""
        # A hundredth of a second for short intervals (test suites), a tenth for usual ones.
        shortest = min(options.ping_interval, options.ping_timeout)
        self.wheel = Wheel(min(max(shortest / 20, 0.01), 0.1))
        self._timer: asyncio.Handle | None = None
        """The next call of ``_tick``; None while the wheel is empty."""
        self._tick_due = 0.0
        self._stalled = False
        """Whether the last tick was put off because the loop had been blocked."""
        self._polling_open = self._open_packet(upgrades=options.allow_upgrades)
        self._websocket_open = self._open_packet(upgrades=False)

    @property
    def full(self) -> bool:
        """Whether ``max_sessions`` is reached: new sessions should be refused with a 503."""
        most = self.options.max_sessions
        return most is not None and len(self.sessions) >= most

    # --- opening ---------------------------------------------------------

    def open(self, request: HandshakeRequest, transport: Literal["polling"] = "polling") -> Session:
        """Begin a polling session; its open packet is the first thing its first poll gets."""
        session = Session(self, self._new_id(), request, transport)
        session.polling = PollingTransport(session)
        session.out = self._polling_open % session.sid.encode("ascii")
        self._begin(session)
        return session

    def open_websocket(
        self,
        request: HandshakeRequest,
        transport: asyncio.Transport,
        response: bytes,
        extra: bytes = b"",
    ) -> Session:
        """Begin a WebSocket session on a connection whose handshake has been checked.

        Takes the connection over (``set_protocol``), writes ``response`` (the whole 101) and the
        open packet in one write, then reads ``extra``: what the client sent behind its handshake.
        """
        session = Session(self, self._new_id(), request, "websocket")
        connection = self._new_connection(self)
        open_packet = self._websocket_open % session.sid.encode("ascii")
        session.out = response + encode(TEXT, open_packet)
        session.websocket = connection
        session.wire = transport
        session.blocked = False
        self.websockets += 1
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.carry(session)
        self._begin(session)
        session.flush()
        if extra:
            connection.data_received(extra)
        return session

    def upgrade_websocket(
        self,
        session: Session,
        transport: asyncio.Transport,
        response: bytes,
        extra: bytes = b"",
    ) -> None:
        """Take over a connection as the WebSocket that ``session`` wants to change to.

        Writes ``response`` (the 101). A session that is upgraded, being upgraded or closed
        already does not want it: the WebSocket is closed right after the 101.
        """
        connection = self._new_connection(self)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        transport.write(response)
        if not session.offer(connection):
            count("limpet_upgrades_total", result="not wanted")
            connection.close()
        else:
            connection.candidate_of = session
            self.arm(connection, self.clock() + self.options.upgrade_timeout)
        if extra:
            connection.data_received(extra)

    def _begin(self, session: Session) -> None:
        self.sessions[session.sid] = session
        now = session.opened_at = session.pinged_at = self.clock()
        session.deadline = now + self.options.ping_interval
        self.arm(session, session.deadline)
        count("limpet_sessions_opened_total", transport=session.transport_name)
        try:
            sink = self._on_session(session)
        except BaseException:
            if session.websocket is not None:
                session.websocket.abort()  # even the 101 has not been sent
            session.fail("server error")
            raise
        counters[_ACCEPTED] += 1
        if session.state == STATE_OPENING:
            session.state = STATE_OPEN
        if session.closed:
            sink.on_close("forced close")  # by the application, before it gave its sink
        else:
            session.sink = sink
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("session %s opened: %r", redact(session.sid), session.request)

    def _open_packet(self, *, upgrades: bool) -> bytes:
        """Return the open packet with ``%s`` for the sid."""
        options = self.options
        able = upgrades and "websocket" in options.transports
        body = orjson.dumps(
            {
                "sid": "%s",
                "upgrades": ["websocket"] if able else [],
                "pingInterval": round(options.ping_interval * 1000),
                "pingTimeout": round(options.ping_timeout * 1000),
                "maxPayload": options.max_http_buffer_size,
            }
        )
        return b"0" + body

    # --- what sessions ask for -------------------------------------------

    def upgraded(self, session: Session) -> None:
        """Count a session that runs over WebSocket now."""
        self.websockets += 1
        count("limpet_upgrades_total", result="ok")
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("session %s upgraded", redact(session.sid))

    def forget(self, session: Session) -> None:
        """Let go of a session that is CLOSED."""
        if self.sessions.pop(session.sid, None) is None:
            return
        if session.transport_name == "websocket":
            self.websockets -= 1
        self.wheel.cancel(session)
        self.slow.discard(session)
        if self.on_fewer is not None:
            self.on_fewer()

    def end_slow(self, session: Session) -> None:
        """End a session that is over the hard limit, once nobody is in the middle of sending."""
        self.slow.add(session)
        self.loop.call_soon(self._judge_slow)

    def _judge_slow(self) -> None:
        now = self.clock()
        for session in list(self.slow):
            if not session.judge(now):
                self.slow.discard(session)

    # --- time ------------------------------------------------------------

    def arm(self, item: Timed, deadline: float) -> None:
        """Put a session or connection on the timer wheel."""
        self.wheel.add(item, deadline)
        if self._timer is None:
            self._wait()

    def _wait(self) -> None:
        step = self.wheel.granularity
        self._tick_due = self.clock() + step
        self._timer = self.loop.call_later(step, self._tick)

    def _tick(self) -> None:
        now = self.clock()
        if now - self._tick_due > _STALL and not self._stalled:
            # Pongs may lie in the sockets since long ago: let them be read first.
            self._stalled = True
            count("limpet_loop_stalls_total")
            self._wait()
            return
        self._stalled = False
        more = True  # an error in one session's end must not stop the others' time
        try:
            if self.slow:
                self._judge_slow()
            more = self.wheel.advance(now, _SLICE)
        finally:
            if more:
                self._tick_due = now
                self._timer = self.loop.call_soon(self._tick)
            elif self.wheel or self.slow:
                self._wait()
            else:
                self._timer = None

    # --- ending ----------------------------------------------------------

    def close_all(self, reason: str = "server shutting down", *, discard: bool = False) -> None:
        """Close every session so that its client comes back, see ``Session.send_away``; or leave
        nothing of them, with ``discard``.
        """
        for session in list(self.sessions.values()):
            if discard:
                session.close(reason, discard=True)
            else:
                session.send_away(reason)

    def stop(self) -> None:
        """Stop the timers; for the end of the process, after ``close_all``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stats(self) -> dict[str, int]:
        """Return the figures ``sessions``, ``polling``, ``websocket`` and ``slow``."""
        sessions = len(self.sessions)
        return {
            "sessions": sessions,
            "polling": sessions - self.websockets,
            "websocket": self.websockets,
            "slow": len(self.slow),
        }
