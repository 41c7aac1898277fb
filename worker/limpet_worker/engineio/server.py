"""The sessions of one process: opened and attached here, timed by one wheel, flushed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from limpet_worker.engineio.options import EngineOptions
from limpet_worker.engineio.request import HandshakeRequest
from limpet_worker.engineio.session import Session, Sink


class EngineServer:
    """All Engine.IO sessions of a process. The front door calls it, the sinks sit on its sessions."""

    def __init__(
        self,
        options: EngineOptions,
        on_session: Callable[[Session], Sink],
        new_id: Callable[[], str],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.options = options
        self.sessions: dict[str, Session] = {}
        """By sid; also those that wait for a last poll (``session.closed`` is True then)."""
        raise NotImplementedError

    @property
    def full(self) -> bool:
        """Whether ``max_sessions`` is reached: new ones should get a 503."""
        raise NotImplementedError

    def open(self, request: HandshakeRequest, transport: Literal["polling"]) -> Session:
        """Begin a polling session; its open packet is the first thing its first poll gets."""
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

    def close_all(self, reason: str = "server shutting down", *, discard: bool = False) -> None:
        """Close every session; polls that wait are answered, WebSockets get a close frame."""
        raise NotImplementedError

    def stats(self) -> dict[str, int]:
        """Return the figures ``sessions``, ``polling``, ``websocket``."""
        raise NotImplementedError
