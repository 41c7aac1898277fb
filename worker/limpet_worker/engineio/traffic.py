"""What went through the sessions of a process: plain numbers that the hot path adds to."""

from __future__ import annotations

from typing import Final

from limpet_adapters.counters import count

_TRANSPORTS: Final = ("polling", "websocket")


class Traffic:
    """Packets and bytes since they were last handed on to the counters.

    Packets are those of Engine.IO, pings and pongs included; a Socket.IO packet that is sent with
    attachments is one. Bytes are those of WebSocket frames and of payloads, not of HTTP heads.
    """

    __slots__ = (
        "polling_bytes_in",
        "polling_bytes_out",
        "polling_in",
        "polling_out",
        "websocket_bytes_in",
        "websocket_bytes_out",
        "websocket_in",
        "websocket_out",
    )

    def __init__(self) -> None:
        self.polling_in = self.polling_bytes_in = 0
        self.polling_out = self.polling_bytes_out = 0
        self.websocket_in = self.websocket_bytes_in = 0
        self.websocket_out = self.websocket_bytes_out = 0

    def hand_on(self) -> None:
        """Add all to the counters of the process and begin anew."""
        for transport in _TRANSPORTS:
            for direction in ("in", "out"):
                for unit, name in (("messages", direction), ("bytes", f"bytes_{direction}")):
                    amount = getattr(self, f"{transport}_{name}")
                    if amount:
                        setattr(self, f"{transport}_{name}", 0)
                        count(
                            f"limpet_transport_{unit}_total",
                            amount,
                            direction=direction,
                            transport=transport,
                        )
