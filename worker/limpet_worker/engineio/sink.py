"""What sits on an Engine.IO session and takes what comes from the client."""

from __future__ import annotations

from typing import Final, Protocol


class Sink(Protocol):
    """What sits on a session and takes what comes from the client."""

    def on_text(self, data: bytes) -> None:
        """Take a text message: valid UTF-8, without the packet type."""

    def on_binary(self, data: bytes) -> None:
        """Take a binary message."""

    def on_upgrade(self) -> None:
        """Know that the session runs over WebSocket now."""

    def on_close(self, reason: str) -> None:
        """Know that the session has ended. Called once, and nothing follows it.

        Called within ``Session.close`` too, but never within a ``send`` or a broadcast.
        """


class NoSink:
    """Takes what nobody wants: before the application has a sink, and after the end."""

    __slots__ = ()

    def on_text(self, data: bytes) -> None:
        """Drop a text message."""

    def on_binary(self, data: bytes) -> None:
        """Drop a binary message."""

    def on_upgrade(self) -> None:
        """Ignore it."""

    def on_close(self, reason: str) -> None:
        """Ignore it."""


NO_SINK: Final = NoSink()
