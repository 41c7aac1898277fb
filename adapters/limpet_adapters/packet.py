"""A Socket.IO packet once it is encoded: made once, framed once, shared by all its receivers."""

from __future__ import annotations


class EncodedPacket:
    """The text of a Socket.IO packet and its attachments, with the framed forms kept beside it.

    The framed forms are filled in by the transport that first needs them, so that a broadcast
    pays for each of them once, however many clients receive it.
    """

    __slots__ = ("attachments", "frame", "payload", "text")

    def __init__(self, text: bytes, attachments: tuple[bytes, ...] = ()) -> None:
        self.text = text
        """The packet without the Engine.IO type, for example ``b'2["chat","hi"]'``."""
        self.attachments = attachments
        """Its binary attachments, in the order of their placeholders."""
        self.frame: bytes | None = None
        """All WebSocket frames of the packet, joined; None until a WebSocket needs them."""
        self.payload: bytes | None = None
        """Its part of a polling payload; None until a polling client needs it."""

    def size(self) -> int:
        """Return the bytes of the text and all attachments."""
        return len(self.text) + sum(map(len, self.attachments))
