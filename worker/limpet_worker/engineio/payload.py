"""Polling payloads: several packets in one body, parted by 0x1E, binary ones in base64."""

from __future__ import annotations

from binascii import Error, a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Final

from limpet_worker.websocket.frames import BINARY, TEXT, encode

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket

SEPARATOR: Final = b"\x1e"

OPEN: Final = b"0"
CLOSE: Final = b"1"
PING: Final = b"2"
PONG: Final = b"3"
MESSAGE: Final = b"4"
UPGRADE: Final = b"5"
NOOP: Final = b"6"
BINARY_MESSAGE: Final = b"b"
"""What a binary message begins with in a payload; a WebSocket frame of its own says it there."""

PROBE: Final = b"2probe"
PROBE_ANSWER: Final = b"3probe"


class PayloadError(ValueError):
    """A packet that cannot be read."""


def split(body: bytes, limit: int) -> tuple[list[bytes], bool]:
    """Return the packets of a payload, not read yet, and whether there were more than ``limit``.

    Only the first ``limit`` packets are returned.
    """
    packets = body.split(SEPARATOR, limit)
    if len(packets) > limit:
        return packets[:limit], True
    return packets, False


def binary_part(data: bytes) -> bytes:
    """Return a binary message as it stands in a payload."""
    return BINARY_MESSAGE + b2a_base64(data, newline=False)


def binary_of(part: bytes) -> bytes:
    """Return the data of a binary message from a payload.

    Raises:
        PayloadError: What follows the ``b`` is not base64.
    """
    try:
        return a2b_base64(memoryview(part)[1:], strict_mode=True)
    except Error as error:
        raise PayloadError(f"binary packet: {error}") from None


def packet_payload(packet: EncodedPacket) -> bytes:
    """Return the form of a packet and its attachments in a payload. Made only once."""
    payload = packet.payload
    if payload is None:
        payload = MESSAGE + packet.text
        if packet.attachments:
            payload = SEPARATOR.join([payload, *map(binary_part, packet.attachments)])
        packet.payload = payload
    return payload


def frames_of(payload: bytes) -> bytes:
    """Return our own payload as WebSocket frames: it waited for a poll, but an upgrade came."""
    return b"".join(
        [
            encode(BINARY, a2b_base64(memoryview(part)[1:]))
            if part.startswith(BINARY_MESSAGE)
            else encode(TEXT, part)
            for part in payload.split(SEPARATOR)
        ]
    )
