"""An HTTP/1.1 connection: its requests one after the other, each with somebody who answers it.

What is not Engine.IO's goes to aiohttp. What is, is the matter of the class in ``polling.py``
that is built on this one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from limpet_adapters.counters import count
from limpet_worker.http import answers
from limpet_worker.http.request import BadRequest, ChunkedBody, Head, SizedBody, find_head
from limpet_worker.http.site import detach

if TYPE_CHECKING:
    from limpet_worker.http.frontdoor import Doorway

logger = logging.getLogger("limpet.http")

MAX_WAITING: Final = 65_536
"""Bytes read ahead of the request being answered; beyond it reading is paused."""

_MAX_SKIPPED: Final = 16_777_216
"""Bytes of an unwanted body that are read and dropped so that the client sees the answer."""

# What a connection is doing.
HEAD: Final = 0  # between requests, or the head of one has begun to come
BODY: Final = 1  # the body of a POST to a session is coming
SKIP: Final = 2  # the request is answered, its body is still coming and is dropped
BUSY: Final = 3  # a poll waits, or the app thinks about letting a client in
SITE: Final = 4  # aiohttp answers
MOVE: Final = 5  # goes to another worker as soon as the last answer is out
OVER: Final = 6  # closed, closing, or somebody else's


class Connection(asyncio.Protocol):
    """One connection, from its first byte until it closes or somebody else takes it over."""

    __slots__ = (
        "_advancing",
        "_body",
        "_body_size",
        "_buffer",
        "_close_after",
        "_doorway",
        "_first",
        "_head",
        "_lines",
        "_partial",
        "_site",
        "_site_answered",
        "_state",
        "_transport",
        "_writing_paused",
        "deadline",
    )

    def __init__(self, doorway: Doorway, data: bytes = b"") -> None:
        self._doorway = doorway
        self._transport: asyncio.Transport = None  # type: ignore[assignment] # until it is made
        self._first = True
        """The first request since the connection came has not been read yet."""
        self._state = HEAD
        self._buffer = data
        """What was read and not used."""
        self._advancing = False
        """Requests are being taken from the buffer further up the stack."""
        self._partial = False
        """The buffer holds a head of which the end has not come."""
        self._writing_paused = False
        self.deadline = 0.0
        """When the connection is ended for what it failed to do; 0: it may wait."""

        # Of the request being answered.
        self._head: Head = None  # type: ignore[assignment] # until the first has come
        self._lines = b""
        """Header lines of its answer that are known already: date, CORS, cookie."""
        self._close_after = False
        """The connection is closed after its answer."""
        self._body: SizedBody | ChunkedBody | None = None
        """What is still to come of its body; None: nothing."""
        self._body_size = 0
        """Bytes of it that have come, where they are counted."""
        self._site: asyncio.Protocol | None = None
        """aiohttp's handler; it stays for the next request to the site. None: not needed yet."""
        self._site_answered = False

    @property
    def transport(self) -> asyncio.Transport:
        """The connection itself."""
        return self._transport

    # --- called by the transport ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        doorway = self._doorway
        doorway.entered(self)
        self.deadline = doorway.after(doorway.head_timeout)
        if self._buffer:
            self._advance()

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            if not self._writing_paused:
                self._advance()
            elif len(self._buffer) > MAX_WAITING:
                self._transport.pause_reading()
        elif state == BODY:
            self._read_body(data)
        elif state == SITE:
            self._feed_site(data)
        elif state == SKIP:
            self._buffer = data
            self._finish()
        elif state != OVER:
            self._buffer += data
            if len(self._buffer) > MAX_WAITING:
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Treat a half-closed connection as closed: clients of polling mean just that by it."""
        return False

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._site is not None:
            self._site.pause_writing()
        if self._state == HEAD:
            self.deadline = self._doorway.after(self._doorway.write_timeout)

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._site is not None:
            self._site.resume_writing()
        # Not from here: asyncio's transport must not be closed while it calls this.
        if self._state == MOVE:
            asyncio.get_running_loop().call_soon(self._move)
        elif self._state == HEAD:
            self.deadline = self._doorway.after(self._doorway.idle_timeout)
            asyncio.get_running_loop().call_soon(self._advance)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = OVER
        self._doorway.left(self)
        self._buffer = b""
        self.deadline = 0.0
        if self._site is not None:
            self._site.connection_lost(exc)
            self._site = None

    # --- called by the doorway --------------------------------------------------------------

    def expire(self) -> None:
        """End the connection: its deadline has passed."""
        self.deadline = 0.0
        if self._writing_paused or self._state not in {HEAD, BODY}:
            count("limpet_connections_aborted_total", reason="timeout")
            self.abort()
        elif self._state == HEAD and not self._buffer:
            count("limpet_connections_idle_total")
            self._leave()
        else:
            self._refuse_http(BadRequest(408, "timeout"))

    def close(self) -> None:
        """Close the connection once what was written is out, and aiohttp's answer with it."""
        if self._state == SITE:
            self._close_after = True
        elif self._state != OVER:
            self._leave()

    def give_back(self) -> bool:
        """Go back to the balancer, unless a request is being answered (False)."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        self._transport.abort()

    # --- requests ---------------------------------------------------------------------------

    def _advance(self) -> None:
        """Take requests from the buffer until one has to wait for something."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._state == HEAD and self._buffer and not self._writing_paused:
                if not self._next_request():
                    return
        finally:
            self._advancing = False

    def _next_request(self) -> bool:
        """Start on the request at the head of the buffer; False: it is not whole yet."""
        buffer = self._buffer
        if buffer[0] in b"\r\n":  # RFC 9112 section 2.2: empty lines before a request
            buffer = self._buffer = buffer.lstrip(b"\r\n")
            if not buffer:
                return False
        doorway = self._doorway
        try:
            end = find_head(buffer)
            if not end:
                if not self._partial:
                    self._partial = True
                    self.deadline = doorway.after(doorway.head_timeout)
                return False
            head = doorway.parse(buffer[:end])
        except BadRequest as fault:
            self._refuse_http(fault)
            return False
        self._partial = False
        self.deadline = 0.0
        self._head = head
        self._body = head.body()
        self._lines = doorway.date
        self._close_after = not head.keep_alive
        doorway.requests += 1
        if b"expect" in head.headers and head.headers[b"expect"].lower() != b"100-continue":
            self._first = False
            self._buffer = buffer[end:]
            self._answer(answers.empty(417, self._response_lines()))
        elif head.path in doorway.files:
            self._first = False
            self._buffer = buffer[end:]
            compress = doorway.compress_from is not None
            file = doorway.files[head.path]
            self._answer(file.answer(head, self._response_lines(), compress=compress))
        elif head.target.startswith(doorway.prefix):
            self._engine_request(head, end)
        elif not doorway.has_site:
            self._first = False
            self._buffer = buffer[end:]
            self._answer(answers.plain(404, "Not Found", self._response_lines()))
        else:
            self._first = False
            self._to_site(head, end)
        return True

    def _engine_request(self, head: Head, end: int) -> None:
        """Answer a request to the Engine.IO path, or begin to."""
        raise NotImplementedError

    def _read_body(self, data: bytes) -> None:
        """Take bytes while the state is BODY."""
        raise NotImplementedError

    def _move(self) -> None:
        """Go elsewhere: the state is MOVE, and what was written is out."""
        raise NotImplementedError

    def _refuse_http(self, fault: BadRequest) -> None:
        count("limpet_http_refused_total", reason=fault.reason)
        logger.debug("refused: %s", fault.reason)
        text = f"{fault.status} {fault.reason}"
        lines = self._doorway.date + answers.CLOSE
        self._transport.write(answers.plain(fault.status, text, lines))
        self._leave()

    # --- the site ---------------------------------------------------------------------------

    def _to_site(self, head: Head, end: int) -> None:
        """Feed a request to aiohttp."""
        buffer = self._buffer
        site = self._site
        if site is None:
            site = self._doorway.connect_site(self._transport)
            if site is None:
                count("limpet_requests_refused_total", reason="starting")
                self._buffer = buffer[end:]
                self._answer(answers.unavailable("Not ready yet", self._response_lines()))
                return
            self._site = site
            if self._writing_paused:
                site.pause_writing()
        if head.method == b"CONNECT" or (
            head.upgrade and head.headers.get(b"upgrade", b"").lower() == b"websocket"
        ):
            # What follows may be no HTTP: the connection is aiohttp's for good.
            self._site = None
            self._vacate()
            self._transport.set_protocol(site)
            site.data_received(buffer)
            return
        self._state = SITE
        self._site_answered = False
        site.data_received(buffer[:end])
        rest = buffer[end:]
        self._buffer = b""
        if self._body is not None or rest:
            self._feed_site(rest)

    def _feed_site(self, data: bytes) -> None:
        """Pass on what belongs to the request's body, keep what follows it."""
        site = self._site
        body = self._body
        if site is None:
            return
        if body is not None and data:
            try:
                _, used = body.feed(data)
            except BadRequest as fault:
                # aiohttp would let its handler wait for the rest. The answer may have begun, so
                # there is nothing to say; the handler sees the connection lost.
                count("limpet_http_refused_total", reason=fault.reason)
                self._leave()
                return
            if body.done:
                self._body = None
            site.data_received(data[:used])
            data = data[used:]
        if data:
            self._buffer += data
            if len(self._buffer) > MAX_WAITING:
                self._transport.pause_reading()
        if self._site_answered and self._body is None:
            self._site_done()

    def site_answered(self, keep_alive: bool) -> None:
        """Know that aiohttp has handed over the last byte of its answer."""
        if self._state != SITE:
            return
        self._site_answered = True
        if not keep_alive:
            self._close_after = True
            self.deadline = self._doorway.after(self._doorway.write_timeout)
        if self._body is None:
            # aiohttp is still on the stack, in the handler's task.
            asyncio.get_running_loop().call_soon(self._site_done)

    def _site_done(self) -> None:
        if self._state != SITE or not self._site_answered:
            return
        if not self._transport.is_reading() and len(self._buffer) <= MAX_WAITING:
            # aiohttp paused over a body that nobody read, and would stay so.
            self._drop_site()
        self._finish()

    def _drop_site(self) -> None:
        site, self._site = self._site, None
        if site is not None:
            detach(site)

    # --- the end of a request ---------------------------------------------------------------

    def _response_lines(self) -> bytes:
        """The header lines of the answer, with ``Connection`` where it must be said."""
        if self._close_after:
            return self._lines + answers.CLOSE
        return self._lines + answers.KEEP_ALIVE if self._head.http10 else self._lines

    def _answer(self, data: bytes) -> None:
        """Write a whole response and go on with what follows the request."""
        if self._head.method == b"HEAD":
            data = data[: data.index(b"\r\n\r\n") + 4]
        self._transport.write(data)
        self._finish()

    def _finish(self) -> None:
        """Leave the request behind: its response is written."""
        if self._body is not None and not self._skip_body():
            return
        self._body = None
        if self._close_after:
            self._leave()
            return
        self._state = HEAD
        doorway = self._doorway
        self.deadline = doorway.after(
            doorway.write_timeout if self._writing_paused else doorway.idle_timeout
        )
        transport = self._transport
        if not transport.is_reading() and len(self._buffer) <= MAX_WAITING:
            transport.resume_reading()
        if self._buffer:
            self._advance()

    def _skip_body(self) -> bool:
        """Drop the rest of an answered request's body; False: it is not whole yet."""
        body = cast("SizedBody | ChunkedBody", self._body)
        data = self._buffer
        try:
            _, used = body.feed(data)
        except BadRequest as fault:
            count("limpet_http_refused_total", reason=fault.reason)
            self._leave()
            return False
        self._buffer = data[used:]
        if body.done:
            return True
        if b"expect" in self._head.headers and self._state != SKIP:
            # The body may never come now, and then nobody knows where the next request begins.
            self._leave()
            return False
        # Closing now would reset the connection, and the client might not see the answer.
        if self._state != SKIP:
            self._state = SKIP
            self._body_size = 0
            self.deadline = self._doorway.after(self._doorway.skip_timeout)
        self._body_size += used
        if self._body_size > _MAX_SKIPPED:
            count("limpet_connections_aborted_total", reason="unwanted body")
            self.abort()
        return False

    def _leave(self) -> None:
        """Close the connection once everything written is out."""
        self._state = OVER
        self._buffer = b""
        self.deadline = self._doorway.after(self._doorway.write_timeout)
        self._transport.close()

    def _vacate(self) -> None:
        """Step aside: the connection is somebody else's from here on."""
        self._state = OVER
        self.deadline = 0.0
        self._buffer = b""
        self._drop_site()
        self._doorway.left(self)
