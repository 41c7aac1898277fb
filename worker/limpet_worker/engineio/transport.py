"""What a session needs of the transports that carry it; fakes of these are enough to test one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from limpet_worker.engineio.session import Session


class Wire(Protocol):
    """Where finished WebSocket frames are written; ``asyncio.Transport`` is one."""

    def write(self, data: bytes) -> None:
        """Take bytes; what the kernel does not take is kept, and ``blocked`` is set."""


class Responder(Protocol):
    """A GET that waits for its answer."""

    def respond(self, payload: bytes) -> None:
        """Answer 200 with the payload; called once, possibly before ``poll`` returns."""

    def refuse(self) -> None:
        """Answer 400, the session is unknown; called once instead of ``respond``."""


class WebSocket(Protocol):
    """A WebSocket, as the session sees it that runs over it or may change to it."""

    paused: bool
    """Whether it can take nothing just now."""

    @property
    def wire(self) -> Wire | None:
        """Where its frames are written; None once the connection is gone."""

    def answer_probe(self) -> None:
        """Send ``3probe``."""

    def carry(self, session: Session) -> None:
        """Know that what comes from now on belongs to this session."""

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Forget the session, send a close frame and end the connection soon."""

    def abort(self) -> None:
        """Forget the session and end the connection at once."""
