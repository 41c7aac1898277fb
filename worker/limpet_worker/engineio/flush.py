"""Writes outboxes to their transports: replies every loop turn, broadcasts in slices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket

    from limpet_worker.engineio.session import Session


class Flusher:
    """``engine.flusher``: the sessions that have something to write."""

    def broadcast(
        self, sessions: Iterable[Session], packet: EncodedPacket, volatile: bool = False
    ) -> None:
        """Send a packet to many sessions. None of their sinks is called meanwhile."""
        raise NotImplementedError
