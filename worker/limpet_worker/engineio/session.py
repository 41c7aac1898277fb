"""An Engine.IO session without any I/O: its states, its outbox, its heartbeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from limpet_worker.engineio.request import HandshakeRequest

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket

    from limpet_worker.engineio.polling import PollingTransport

__all__ = ["HandshakeRequest", "Session", "Sink"]


class Sink(Protocol):
    """What sits on a session and takes what comes from the client."""

    def on_text(self, data: bytes) -> None:
        """Take a text message: valid UTF-8, without the packet type."""

    def on_binary(self, data: bytes) -> None:
        """Take a binary message."""

    def on_upgrade(self) -> None:
        """Know that the session runs over WebSocket now."""

    def on_close(self, reason: str) -> None:
        """Know that the session has ended. Called once, and nothing follows; called from within
        ``session.close()`` too."""


class Session:
    """One client's session. Callers see one ordered stream each way, whatever carries it."""

    __slots__ = ("polling", "request", "sid", "sink", "transport_name")

    sid: str
    transport_name: str
    """"polling" or "websocket"."""
    request: HandshakeRequest
    sink: Sink
    polling: PollingTransport | None
    """None once the session runs over WebSocket, and when it began with one."""

    @property
    def closed(self) -> bool:
        """Whether the session has ended (``on_close`` was called): nothing can be sent."""
        raise NotImplementedError

    @property
    def writable(self) -> bool:
        """Whether a packet sent now would leave now; volatile packets are for such moments."""
        raise NotImplementedError

    def send(self, data: str | bytes) -> None:
        """Send a message: text when it is a str, binary when it is bytes."""
        raise NotImplementedError

    def send_text(self, data: bytes) -> None:
        """Send a text message that is UTF-8 already: the fastest way for a packet to one client."""
        raise NotImplementedError

    def send_packet(self, packet: EncodedPacket) -> None:
        """Send a packet and its attachments as one unit."""
        raise NotImplementedError

    def close(self, reason: str = "forced close", *, discard: bool = False) -> None:
        """End the session; what was sent before still goes out, unless it is discarded.

        ``sink.on_close(reason)`` is called before this returns.
        """
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """End the session at once because of something wrong; a waiting GET gets ``1``."""
        raise NotImplementedError
