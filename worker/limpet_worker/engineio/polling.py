"""The polling transport: one GET at a time waits for packets, POSTs bring them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from limpet_worker.engineio.session import Session


class Responder(Protocol):
    """A GET that waits for its answer."""

    def respond(self, payload: bytes) -> None:
        """Answer 200 with the payload; called once, possibly before ``poll`` returns."""


class PollingTransport:
    """What a session that polls has beside its outbox (``session.polling``)."""

    __slots__ = ("poster", "responder", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.responder: Responder | None = None
        """The GET that waits; None between polls."""
        self.poster: object | None = None
        """Whoever reads the body of a POST just now: set and cleared by the front door, which
        must call ``session.fail("transport error")`` when a second POST comes meanwhile."""

    def poll(self, responder: Responder) -> bool:
        """Take a GET. False: it is refused (400, empty body) and the session is closed.

        The first GET of two gets the packet ``1``.
        """
        raise NotImplementedError

    def poll_aborted(self, responder: Responder) -> None:
        """Say that the client dropped a GET before its answer: ends the session."""
        raise NotImplementedError

    def post(self, body: bytes) -> bool:
        """Take the packets of a whole POST body. True: answer ``ok``, even when they were bad and
        have closed the session; False: refused (400, empty body)."""
        raise NotImplementedError
