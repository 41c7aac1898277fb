"""The front door: an HTTP connection whose Engine.IO requests are answered here.

Who answers is decided for each request: polling here, a WebSocket by the transport that takes the
connection over, other paths by aiohttp. A request for a session of another worker, or for a new
session on a connection that was placed before, goes back to the balancer with its connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from urllib.parse import unquote

from limpet_adapters.counters import count
from limpet_adapters.identity import address_of, redact
from limpet_worker import running
from limpet_worker.engineio.request import HandshakeRequest
from limpet_worker.http import answers, checks
from limpet_worker.http.checks import Refusal
from limpet_worker.http.connection import BODY, BUSY, HEAD, MOVE, OVER, Connection
from limpet_worker.http.moving import hand_back
from limpet_worker.http.request import (
    BadRequest,
    ChunkedBody,
    Head,
    Headers,
    SizedBody,
    find_head,
    parse_query,
)
from limpet_worker.http.upgrade import asks_websocket, handshake_fault, switching

if TYPE_CHECKING:
    from limpet_worker.engineio.session import Session
    from limpet_worker.http.frontdoor import Doorway

    TakeOver: TypeAlias = Callable[[asyncio.Transport, bytes, bytes], object]

logger = logging.getLogger("limpet.http")

MAX_HOPS: Final = 8
"""Hand-overs of one request between workers before it is answered where it is."""


class FrontDoor(Connection):
    """A connection, and what it is doing for a session."""

    __slots__ = ("_address", "_final", "_hops", "_pieces", "_session", "_task")

    def __init__(
        self,
        doorway: Doorway,
        data: bytes = b"",
        address: tuple[str, int] | str | None = None,
        hops: int = 0,
        final: bool = False,
    ) -> None:
        super().__init__(doorway, data)
        self._address = address
        """Of the client, as whoever accepted the connection said; None: ask the transport."""
        self._hops = hops
        """How often the first request was handed over on its way here."""
        self._final = final
        """The first request is answered here, whoever its session belongs to."""
        self._pieces: list[bytes] = []
        """What has come of the body of a POST."""
        self._session: Session | None = None
        """Whose poll waits, or whose POST is coming."""
        self._task: asyncio.Task[None] | None = None
        """The app is asked whether it lets the client in."""

    def connection_lost(self, exc: Exception | None) -> None:
        state = self._state
        super().connection_lost(exc)
        if self._task is not None:
            self._task.cancel()
            self._task = None
        session, self._session = self._session, None
        if session is None:
            return
        polling = session.polling
        if state == BUSY:
            count("limpet_polls_aborted_total")
            if polling is not None:
                polling.poll_aborted(self)
        elif polling is not None and polling.poster is self:
            # Half a POST is a message lost: the session must not go on without it.
            polling.poster = None
            session.fail("transport error")

    def expire(self) -> None:
        if self._state == BODY:
            session = self._release_post()
            if session is not None:
                session.fail("transport error")
        super().expire()

    # --- Engine.IO --------------------------------------------------------------------------

    def _engine_request(self, head: Head, end: int) -> None:
        doorway = self._doorway
        upgrading = head.upgrade and asks_websocket(head)
        refusal: Refusal | None = None
        if doorway.cors_enabled:
            try:
                if head.method == b"OPTIONS" and self._preflight(head, end):
                    return
                self._lines += doorway.cors.lines(head.headers.get(b"origin"))
                if upgrading and not doorway.cors.admits_websocket(head.headers):
                    refusal = checks.FOREIGN_ORIGIN
            except Exception:  # an origin function of the app's
                logger.exception("the CORS origin function failed")
                refusal = checks.APP_FAILURE

        query = parse_query(head.query)
        refusal = checks.check_request(head, query, doorway.transports, upgrading) or refusal
        session: Session | None = None
        sid = query.get("sid")
        if refusal is None:
            if sid:
                session = self._find(sid, head)
                if session is None:
                    if self._belongs_elsewhere(sid):
                        count("limpet_unknown_sid_total", action="forwarded")
                        self._start_move()
                        return
                    refusal = checks.UNKNOWN_SID
                else:
                    refusal = checks.check_session(head, query, session.transport_name, upgrading)
            else:
                refusal = checks.check_handshake(head, query, upgrading)
                if refusal is None and doorway.migrator is not None and self._is_placed_anew():
                    self._start_move()
                    return
        self._drop_head(end)
        if refusal is not None:
            self._refuse(refusal, upgrading, sid)
        elif session is None:
            self._begin_session(head, query, upgrading)
        elif upgrading:
            self._to_websocket(head, session)
        elif head.method == b"GET":
            self._poll(session)
        else:
            self._post(head, session)

    def _find(self, sid: str, head: Head) -> Session | None:
        session = self._doorway.engine.sessions.get(sid)
        # Not for a POST: that may be the pong, read late because the loop was busy.
        if session is not None and head.method == b"GET" and session.expire():
            return None
        return session

    def _preflight(self, head: Head, end: int) -> bool:
        lines = self._doorway.cors.preflight(head.headers)
        if lines is None:
            return False
        self._drop_head(end)
        self._lines += lines
        self._answer(answers.preflight(self._response_lines()))
        return True

    def _drop_head(self, end: int) -> None:
        """The request stays here: what is left in the buffer follows its head."""
        self._first = False
        self._buffer = self._buffer[end:]

    def _refuse(self, refusal: Refusal, websocket: bool, sid: str | None = None) -> None:
        count("limpet_requests_refused_total", reason=refusal.name)
        if not sid:
            count("limpet_handshakes_total", result=refusal.name)
        elif refusal is checks.UNKNOWN_SID:
            count("limpet_unknown_sid_total", action="rejected")
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("refused: %s (sid %s)", refusal.name, redact(sid) if sid else "none")
        if websocket:
            self._close_after = True
            self._answer(answers.refused_websocket(refusal, self._response_lines()))
        else:
            self._answer(answers.refused(refusal, self._response_lines()))

    def _refuse_handshake(self, fault: str) -> None:
        count("limpet_requests_refused_total", reason=f"websocket {fault}")
        self._close_after = True
        self._answer(answers.bad_handshake(fault, self._response_lines()))

    def _refuse_unavailable(self, reason: str, text: str, *, websocket: bool) -> None:
        count("limpet_requests_refused_total", reason=reason)
        self._close_after = self._close_after or websocket
        self._answer(answers.unavailable(text, self._response_lines()))

    def _begin_session(self, head: Head, query: dict[str, str], upgrading: bool) -> None:
        """Open a session, if the app and the limits let it."""
        if upgrading:
            fault = handshake_fault(head.headers)
            if fault:
                count("limpet_handshakes_total", result=f"websocket {fault}")
                self._refuse_handshake(fault)
                return
        doorway = self._doorway
        request = HandshakeRequest(
            method=head.method.decode("ascii"),
            target=head.target,
            path=unquote(head.path),
            query=query,
            headers=Headers(head.headers),
            address=self._client_address(),
            secure=False,
            time=time.time(),
        )
        allow = doorway.engine.options.allow_request
        if allow is None:
            self._open(request, upgrading)
            return
        running.SOCKET.set(None)  # sessions of several clients may share a connection
        try:
            verdict = allow(request)
        except Exception:  # the app's own
            logger.exception("allow_request failed")
            self._refuse(checks.APP_FAILURE, upgrading)
            return
        if isawaitable(verdict):
            self._state = BUSY
            self._task = asyncio.get_running_loop().create_task(
                self._ask(request, upgrading, verdict)
            )
        else:
            self._decided(request, upgrading, verdict)

    async def _ask(
        self, request: HandshakeRequest, upgrading: bool, verdict: Awaitable[object]
    ) -> None:
        """Wait for the app's decision; a client that leaves meanwhile cancels it."""
        refusal: Refusal | None = None
        decision: object = None
        try:
            decision = await verdict
        except Exception:  # the app's own
            logger.exception("allow_request failed")
            refusal = checks.APP_FAILURE
        if self._state != BUSY:
            return
        self._task = None
        if refusal is not None:
            self._refuse(refusal, upgrading)
        else:
            self._decided(request, upgrading, decision)

    def _decided(self, request: HandshakeRequest, upgrading: bool, verdict: object) -> None:
        if isinstance(verdict, str):
            self._refuse(checks.forbidden(verdict), upgrading)
        elif verdict is None or verdict:
            self._open(request, upgrading)
        else:
            self._refuse(checks.FORBIDDEN, upgrading)

    def _open(self, request: HandshakeRequest, upgrading: bool) -> None:
        doorway = self._doorway
        refusal = checks.check_version(request.query)
        if refusal is not None:
            self._refuse(refusal, upgrading)
            return
        engine = doorway.engine
        if engine.full:
            count("limpet_handshakes_total", result="full")
            self._refuse_unavailable("full", "Too many sessions", websocket=upgrading)
            return
        try:
            if upgrading:
                self._hand_to_websocket(
                    lambda transport, response, extra: engine.open_websocket(
                        request, transport, response, extra
                    )
                )
                return
            session = engine.open(request, "polling")
        except Exception:  # the app's connect code
            logger.exception("a session could not be opened")
            if self._state == OVER:
                count("limpet_handshakes_total", result=checks.APP_FAILURE.name)
                self.abort()
            else:
                self._refuse(checks.APP_FAILURE, upgrading)
            return
        cookie = doorway.cookie
        if cookie is not None:
            self._lines += cookie[0] + session.sid.encode("ascii") + cookie[1]
        self._poll(session)

    def _client_address(self) -> tuple[str, int] | str:
        address = self._address
        if address is None:
            peer = self._transport.get_extra_info("peername")
            address = (peer[0], peer[1]) if isinstance(peer, tuple) else str(peer or "")
        return address

    # --- polling ----------------------------------------------------------------------------

    def _poll(self, session: Session) -> None:
        """Let a GET wait for packets; it may be answered before this returns."""
        polling = session.polling
        if polling is None:
            self._refuse(checks.TRANSPORT_MISMATCH, False, session.sid)
            return
        self._state = BUSY
        self._session = session
        if not polling.poll(self):
            self._session = None
            count("limpet_requests_refused_total", reason="duplicate poll")
            self._answer(answers.empty(400, self._response_lines()))

    def respond(self, payload: bytes) -> None:
        """Answer the GET that waits: called by the session's transport, once."""
        self._session = None
        if self._state != BUSY:
            return
        lines = self._response_lines()
        self._answer(answers.poll(payload, lines, self._head, self._doorway.compress_from))

    def refuse(self) -> None:
        """Refuse the GET that waits: its session is no more, and its client shall connect anew."""
        session, self._session = self._session, None
        if self._state == BUSY and session is not None:
            self._refuse(checks.UNKNOWN_SID, False, session.sid)

    def _post(self, head: Head, session: Session) -> None:
        """Take a POST: its body is given to the session when it is whole."""
        polling = session.polling
        if polling is None:
            self._refuse(checks.TRANSPORT_MISMATCH, False, session.sid)
            return
        if polling.poster is not None:
            other = polling.poster
            polling.poster = None
            if isinstance(other, FrontDoor):
                other.abort()
            self._fail_post(session, "duplicate POST")
            return
        if head.headers.get(b"content-type") == b"application/octet-stream":
            self._fail_post(session, "binary POST")
            return
        limit = self._doorway.max_body
        length = head.length
        if length > limit:
            self._too_large(session)
            return
        buffer = self._buffer
        if len(buffer) >= length and not head.chunked:
            # Nearly always: the whole body came with its head.
            self._body = None
            self._buffer = buffer[length:]
            self._posted(session, buffer[:length])
            return
        self._state = BODY
        self._session = session
        self._pieces = []
        self._body_size = 0
        polling.poster = self
        self.deadline = self._doorway.after(self._doorway.body_timeout)
        self._buffer = b""
        if buffer:
            self._read_body(buffer)
        elif b"expect" in head.headers and not head.http10:
            self._transport.write(answers.CONTINUE)

    def _read_body(self, data: bytes) -> None:
        body = cast("SizedBody | ChunkedBody", self._body)
        try:
            pieces, used = body.feed(data)
        except BadRequest as fault:
            session = self._release_post()
            if session is not None:
                session.fail("transport error")
            self._body = None
            self._refuse_http(fault)
            return
        self._pieces += pieces
        self._body_size += sum(map(len, pieces))
        if self._body_size > self._doorway.max_body:
            self._buffer = data[used:]
            session = self._release_post()
            if session is not None:
                self._too_large(session)
        elif body.done:
            self._body = None
            self._buffer = data[used:]
            whole = b"".join(self._pieces)
            session = self._release_post()
            if session is not None:
                self._posted(session, whole)

    def _release_post(self) -> Session | None:
        """End the reading of a POST body; return whose it was."""
        session, self._session = self._session, None
        self._pieces = []
        if session is not None and session.polling is not None:
            session.polling.poster = None
        return session

    def _posted(self, session: Session, body: bytes) -> None:
        polling = session.polling
        if polling is None:  # upgraded while the body came
            self._refuse(checks.TRANSPORT_MISMATCH, False, session.sid)
        elif polling.post(body):
            self._answer(answers.posted(self._response_lines()))
        else:
            count("limpet_requests_refused_total", reason="bad POST")
            self._answer(answers.empty(400, self._response_lines()))

    def _fail_post(self, session: Session, reason: str) -> None:
        count("limpet_requests_refused_total", reason=reason)
        logger.debug("session %s: %s", redact(session.sid), reason)
        session.fail("transport error")
        self._answer(answers.empty(400, self._response_lines()))

    def _too_large(self, session: Session) -> None:
        """Refuse a body over the limit. Its packets are lost, so the session ends, and says so."""
        count("limpet_requests_refused_total", reason="body too large")
        logger.debug("session %s: POST larger than allowed", redact(session.sid))
        session.fail("transport error")
        self._answer(answers.empty(413, self._response_lines()))

    # --- WebSocket --------------------------------------------------------------------------

    def _to_websocket(self, head: Head, session: Session) -> None:
        """Give the connection to a session that changes over to WebSocket."""
        fault = handshake_fault(head.headers)
        if fault:
            count("limpet_upgrades_total", result=f"websocket {fault}")
            self._refuse_handshake(fault)
            return
        engine = self._doorway.engine
        self._hand_to_websocket(
            lambda transport, response, extra: engine.upgrade_websocket(
                session, transport, response, extra
            )
        )

    def _hand_to_websocket(self, take_over: TakeOver) -> None:
        response = switching(self._head.headers[b"sec-websocket-key"], self._lines)
        extra = self._buffer
        self._vacate()
        transport = self._transport
        if not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()
        take_over(transport, response, extra)

    # --- to another worker ------------------------------------------------------------------

    def _belongs_elsewhere(self, sid: str) -> bool:
        """Say whether a session that is not here may live in another worker."""
        migrator = self._doorway.migrator
        if migrator is None or address_of(sid) is None or migrator.owns(sid):
            return False
        return not (self._first and (self._final or self._hops >= MAX_HOPS))

    def _is_placed_anew(self) -> bool:
        """Say whether a request that would open a session is the balancer's to place."""
        if self._first:  # as it has just been; but it may have crossed our word that we drain
            return self._doorway.draining and self._hops < MAX_HOPS
        return True

    def give_back(self) -> bool:
        """Give the connection back, unless a request is being answered (False).

        To close it instead could cut off the next request, which may be on its way.
        """
        transport = self._transport
        if self._state != HEAD or transport.is_closing() or transport.get_write_buffer_size():
            return False
        if transport.is_reading():
            transport.pause_reading()
        hops = self._hops if self._first else 0
        doorway = self._doorway
        if hand_back(doorway.migrator, transport, self._buffer, self._client_address(), hops):
            doorway.moved += 1
            self._vacate()
            transport.abort()
        else:
            self._leave()
        return True

    def _start_move(self) -> None:
        """Send connection and request elsewhere, as soon as what was written has left."""
        self._state = MOVE
        self._transport.pause_reading()
        if self._transport.get_write_buffer_size():
            # Calls pause_writing now and resume_writing when the last byte is out.
            self._transport.set_write_buffer_limits(high=0)
            self.deadline = self._doorway.after(self._doorway.write_timeout)
        else:
            self._move()

    def _move(self) -> None:
        if self._state != MOVE or self._transport.is_closing():
            return
        doorway = self._doorway
        # Hops are counted for one request, by the balancer; a later one starts afresh.
        hops = self._hops if self._first else 0
        address = self._client_address()
        self.deadline = 0.0
        if hand_back(doorway.migrator, self._transport, self._buffer, address, hops):
            doorway.moved += 1
            self._vacate()
            # Closes our descriptor and nothing else: the connection lives on in its copy.
            self._transport.abort()
            return
        # It should have moved and cannot: the client is asked to come again.
        self._transport.set_write_buffer_limits()
        self._transport.resume_reading()
        head = self._head
        self._drop_head(find_head(self._buffer))
        self._refuse_unavailable(
            "no balancer", "No worker available", websocket=head.upgrade and asks_websocket(head)
        )
