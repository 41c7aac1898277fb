"""WebSocket frames (RFC 6455 section 5) without I/O: a parser that calls back, and encoders."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from limpet_worker.websocket.mask import apply_mask

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

NORMAL_CLOSURE: Final = 1000
PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005
"""What a close frame without a code means (never sent)."""
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009

_FIN: Final = 0x80
_RSV1: Final = 0x40
_MASKED: Final = 0x80
_MAX_CONTROL: Final = 125
_U16: Final = struct.Struct("!H").unpack_from
_U64: Final = struct.Struct("!Q").unpack_from


class FrameError(Exception):
    """The peer broke the protocol; the connection fails with this close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        """Close code of RFC 6455 section 7.4.1."""
        self.reason = reason
        """What was wrong; at most 123 bytes of ASCII, as a close frame takes it."""


class Extension(Protocol):
    """What may use the first reserved bit of messages (permessage-deflate does)."""

    def inflate(self, data: bytes, limit: int) -> bytes:
        """Return the message. Raises FrameError: broken, or larger than ``limit``."""


class FrameParser:
    """Turns bytes, split anywhere, into messages and control frames; subclasses take those.

    What is kept between two calls is at most one message of ``limit`` bytes; a frame that would
    exceed it is refused by its header, before its payload is kept.
    """

    __slots__ = (
        "_first",
        "_mask",
        "_message",
        "_message_first",
        "_need",
        "_partial",
        "_quick",
        "extension",
        "limit",
        "muted",
    )

    from_client: ClassVar[bool] = True
    """Whether the peer is a client, whose frames must be masked (section 5.1)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Largest message in bytes."""
        self.muted = False
        """Whether all that still comes is ignored; True after a close frame."""
        self.extension: Extension | None = None
        """What reads messages with the first reserved bit; None: such a bit is an error."""
        self._partial: bytearray | None = None
        """Start of a frame that has not come whole; None between frames."""
        self._need = 0
        """Payload bytes of the frame in ``_partial``; 0 while its header is not whole either."""
        self._first = 0
        """First byte of the frame in ``_partial`` (set with ``_need``)."""
        self._mask = b""
        """Masking key of that frame; empty when it has none."""
        self._message: bytearray | None = None
        """The fragments so far of a message in several frames; None outside of one."""
        self._message_first = 0
        """First byte of the frame that began ``_message``."""
        self._quick = self.from_client
        """Whether a short masked text frame can be read on sight: not inside of a message."""

    def on_text(self, payload: bytes) -> None:
        """Take a text message: valid UTF-8."""
        raise NotImplementedError

    def on_binary(self, payload: bytes) -> None:
        """Take a binary message."""
        raise NotImplementedError

    def on_ping(self, payload: bytes) -> None:
        """Take a ping frame, to be answered with its payload."""
        raise NotImplementedError

    def on_pong(self, payload: bytes) -> None:
        """Take a pong frame."""
        raise NotImplementedError

    def on_close_frame(self, code: int, reason: str) -> None:
        """Take a close frame; nothing follows. ``code`` is 1005 when it had none."""
        raise NotImplementedError

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream.

        Raises:
            FrameError: The peer broke the protocol. The parser must not be fed again.
        """
        partial = self._partial
        if partial is not None:
            data = self._resume(partial, data)
        at = 0
        end = len(data)
        while at < end:
            if self.muted:
                return
            # Nearly every frame: whole, text, unfragmented, masked, shorter than 64 KiB. Anything
            # else (also a header that is not whole) is left to the general way.
            start = at + 6
            if data[at] == 0x81 and start <= end and self._quick:
                length = data[at + 1] - 0x80
                if length == 126:
                    length = data[at + 2] << 8 | data[at + 3]
                    start += 2
                elif length == 127:
                    length = -1
                stop = start + length
                if start <= stop <= end and length <= self.limit:
                    payload = apply_mask(data[start:stop], data[start - 4 : start])
                    if not payload.isascii():
                        check_utf8(payload)
                    at = stop
                    self.on_text(payload)
                    continue
            at = self._frame(data, at, end)

    def _frame(self, data: bytes, at: int, end: int) -> int:
        """Read the frame at ``at``, or keep what is there of it; return where to go on."""
        if end - at < 2:
            self._partial = bytearray(data[at:])
            return end
        first = data[at]
        second = data[at + 1]
        self._check(first, second)
        length = second & 0x7F
        start = at + 2
        if length == 126:
            start += 2
        elif length == 127:
            start += 8
        masked = second >= _MASKED
        if masked:
            start += 4
        if start > end:
            self._partial = bytearray(data[at:])
            return end
        if length == 126:
            length = _U16(data, at + 2)[0]
        elif length == 127:
            length = _U64(data, at + 2)[0]
            if length >> 63:
                raise FrameError(PROTOCOL_ERROR, "frame length out of range")
        if not first & 0x08:  # control frames are short, and stand outside of messages
            whole = length if self._message is None else length + len(self._message)
            if whole > self.limit:
                raise FrameError(TOO_BIG, "message too big")
        mask = data[start - 4 : start] if masked else b""
        stop = start + length
        if stop > end:
            # Not made as large as announced: who only announces must not cost that memory.
            self._partial = bytearray(memoryview(data)[start:])
            self._need = length
            self._first = first
            self._mask = mask
            return end
        payload = data[start:stop]
        self._complete(first, apply_mask(payload, mask) if masked else payload)
        return stop

    def _resume(self, partial: bytearray, data: bytes) -> bytes:
        """Go on with the frame of which ``partial`` came; return what follows it."""
        if not self._need:  # its header is not whole: less than 14 bytes
            self._partial = None
            return bytes(partial) + data
        missing = self._need - len(partial)
        if len(data) < missing:
            partial += data
            return b""
        partial += memoryview(data)[:missing]
        self._partial = None
        self._need = 0
        payload = apply_mask(partial, self._mask) if self._mask else bytes(partial)
        self._complete(self._first, payload)
        return data[missing:]

    def _check(self, first: int, second: int) -> None:
        """Refuse what the first two bytes of a frame must not say (section 5.2)."""
        opcode = first & 0x0F
        if first & 0x70:
            known = first & 0x70 == _RSV1 and self.extension is not None
            if not known or opcode not in {TEXT, BINARY}:
                raise FrameError(PROTOCOL_ERROR, "reserved bit set")
        if (second >= _MASKED) is not self.from_client:
            raise FrameError(PROTOCOL_ERROR, "mask bit wrong")
        if opcode in {CLOSE, PING, PONG}:
            if not first & _FIN:
                raise FrameError(PROTOCOL_ERROR, "fragmented control frame")
            if second & 0x7F > _MAX_CONTROL:
                raise FrameError(PROTOCOL_ERROR, "control frame too long")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise FrameError(PROTOCOL_ERROR, "continuation of nothing")
        elif opcode in {TEXT, BINARY}:
            if self._message is not None:
                raise FrameError(PROTOCOL_ERROR, "message inside a message")
        else:
            raise FrameError(PROTOCOL_ERROR, "unknown opcode")

    def _complete(self, first: int, payload: bytes) -> None:
        """Take a whole, unmasked frame."""
        opcode = first & 0x0F
        if opcode in {TEXT, BINARY} and first & _FIN:
            self._deliver(first, payload)
        elif opcode in {TEXT, BINARY}:
            self._message = bytearray(payload)
            self._message_first = first
            self._quick = False
        elif opcode == CONTINUATION and (message := self._message) is not None:
            message += payload
            if first & _FIN:
                self._message = None
                self._quick = self.from_client
                self._deliver(self._message_first, bytes(message))
        elif opcode == PING:
            self.on_ping(payload)
        elif opcode == PONG:
            self.on_pong(payload)
        else:
            code, reason = parse_close(payload)
            self.muted = True
            self.on_close_frame(code, reason)

    def _deliver(self, first: int, payload: bytes) -> None:
        """Hand on a whole message."""
        if first & _RSV1 and (extension := self.extension) is not None:
            payload = extension.inflate(payload, self.limit)
        if first & 0x0F == BINARY:
            self.on_binary(payload)
            return
        if not payload.isascii():
            check_utf8(payload)
        self.on_text(payload)


def check_utf8(payload: bytes) -> None:
    """Check the payload of a text message (section 8.1).

    Raises:
        FrameError: It is not UTF-8.
    """
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "text is not UTF-8") from None


def parse_close(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a close frame (section 5.5.1).

    Raises:
        FrameError: A code that must not be sent, or half of one, or a reason that is not UTF-8.
    """
    if not payload:
        return NO_STATUS, ""
    if len(payload) == 1:
        raise FrameError(PROTOCOL_ERROR, "close frame of one byte")
    code: int = _U16(payload)[0]
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(PROTOCOL_ERROR, "close code that must not be sent")
    try:
        return code, payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "close reason is not UTF-8") from None


def encode(opcode: int, payload: bytes, mask: bytes = b"", *, final: bool = True) -> bytes:
    """Return a frame; ``mask`` is 4 random bytes when it goes from a client to a server."""
    size = len(payload)
    first = opcode | _FIN if final else opcode
    bit = _MASKED if mask else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65_536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + mask + apply_mask(payload, mask) if mask else head + payload


def close_frame(code: int | None = None, reason: str = "") -> bytes:
    """Return an unmasked close frame; without a code the peer sees 1005."""
    if code is None:
        return b"\x88\x00"
    return encode(CLOSE, struct.pack("!H", code) + reason.encode("utf-8"))


# A text message of Engine.IO is the digit 4 and its text: header and digit at once, by length.
_MESSAGE_HEAD: Final = tuple(bytes((0x81, size + 1)) + b"4" for size in range(125))


def message_frame(text: bytes) -> bytes:
    """Return the frame of an Engine.IO text message (packet type ``4``)."""
    size = len(text)
    if size < 125:
        return _MESSAGE_HEAD[size] + text
    size += 1
    if size < 65_536:
        return struct.pack("!BBHB", 0x81, 126, size, 0x34) + text
    return struct.pack("!BBQB", 0x81, 127, size, 0x34) + text


def packet_frame(packet: EncodedPacket) -> bytes:
    """Return all frames of a packet, joined: its text, then its attachments. Made only once."""
    frame = packet.frame
    if frame is None:
        frame = message_frame(packet.text)
        if packet.attachments:
            frame += b"".join([encode(BINARY, data) for data in packet.attachments])
        packet.frame = frame
    return frame
