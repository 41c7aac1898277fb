"""The polling transport without HTTP: one GET at a time waits for packets, POSTs bring them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limpet_adapters.counters import count
from limpet_worker.engineio.payload import CLOSE, NOOP, SEPARATOR, split
from limpet_worker.engineio.transport import Responder

if TYPE_CHECKING:
    from limpet_worker.engineio.session import Session

__all__ = ["PollingTransport", "Responder"]


class PollingTransport:
    """What a session that polls has beside its outbox (``session.polling``)."""

    __slots__ = ("poster", "responder", "session")

    def __init__(self, session: Session) -> None:
        self.session: Session | None = session
        """None once the session has ended or runs over WebSocket."""
        self.responder: Responder | None = None
        """The GET that waits; None between polls."""
        self.poster: object | None = None
        """Whoever reads the body of a POST just now: set and cleared by the front door, which
        calls ``session.fail("transport error")`` when a second POST comes meanwhile."""

    def poll(self, responder: Responder) -> bool:
        """Take a GET. False: it is refused (400, empty body) and the session is closed.

        Of two GETs at a time the first gets the packet ``1`` and the second is refused.
        """
        session = self.session
        if session is None:
            return False
        if self.responder is not None:
            count("limpet_polls_refused_total", reason="duplicate")
            session.fail("transport error")
            return False
        if session.closed:
            responder.respond(session.last_poll())
            return True
        self.responder = responder
        session.unblock()
        if session.upgrading:
            self.release()
        return True

    def poll_aborted(self, responder: Responder) -> None:
        """Say that the client dropped a GET before its answer: ends the session."""
        if responder is not self.responder:
            return
        self.responder = None
        session = self.session
        if session is not None:
            session.blocked = True
            session.fail("transport error")

    def post(self, body: bytes) -> bool:
        """Take the packets of a whole POST body.

        True: answer ``ok``, even when a packet was bad and has closed the session; those before
        it have been taken. False: refused (400, empty body).
        """
        session = self.session
        if session is None:
            return False
        engine = session.engine
        packets, more = split(body, engine.options.max_payload_packets)
        engine.traffic.polling_in += len(packets)
        engine.traffic.polling_bytes_in += len(body)
        ascii_only = body.isascii()
        for packet in packets:
            if not ascii_only and not _is_text(packet):
                session.refuse("parse error", "not UTF-8")
            else:
                session.receive(packet)
            if self.session is None:
                return True
        if more:
            session.refuse("parse error", "too many packets")
        return True

    def answer(self, out: bytes | list[bytes]) -> None:
        """Answer the GET that waits."""
        responder = self.responder
        self.responder = None
        messages = 1
        if not isinstance(out, bytes):
            messages = len(out)
            out = SEPARATOR.join(out)
        session = self.session
        if session is not None:
            session.blocked = True
            traffic = session.engine.traffic
            traffic.polling_out += messages
            traffic.polling_bytes_out += len(out)
        if responder is not None:
            responder.respond(out)

    def release(self) -> None:
        """Answer a GET that waits, if there is one: with what is queued or with nothing at all."""
        session = self.session
        if session is not None and self.responder is not None:
            session.flush()
            if self.responder is not None:
                self.answer(NOOP)

    def detach(self, answer: bytes = CLOSE) -> None:
        """Let go of the session. A GET that waits, or that was pipelined behind the one just
        answered, gets ``answer``.
        """
        self.session = None
        responder = self.responder
        self.responder = None
        if responder is not None:
            responder.respond(answer)


def _is_text(packet: bytes) -> bool:
    try:
        packet.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
