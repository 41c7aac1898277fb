"""Pictures that pass through the chat: what may be sent, and whether a piece is the right one.

Nothing of a picture is kept. The server remembers what was announced and how far it came, checks
each piece against that, and passes it on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeGuard

SIZE: Final = 8 << 20
"""Bytes of a picture at most."""
PIECE: Final = 128 << 10
"""Bytes of a piece; the last one of a picture may be shorter. Also in the base64 of polling this is
far below the largest message that a server takes unless told otherwise."""

_SIGNATURES: Final[dict[str, Callable[[bytes], bool]]] = {
    "image/png": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda head: head.startswith(b"\xff\xd8\xff"),
    "image/gif": lambda head: head.startswith((b"GIF87a", b"GIF89a")),
    "image/webp": lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
    "image/avif": lambda head: head[4:12] in {b"ftypavif", b"ftypavis"},
}
TYPES: Final = tuple(_SIGNATURES)
"""What browsers show and what cannot carry a script."""


class PictureError(ValueError):
    """A picture, or a piece of one, that is not taken; the message says why."""


class Picture:
    """One picture on its way.

    Args:
        room: where it is shown.
        type: its media type, one of ``TYPES``.
        size: its bytes.
        next: number of the piece that comes next: earlier ones passed over another connection.

    Raises:
        PictureError: another type, or no size a picture may have, or no number of a piece.
    """

    __slots__ = ("next", "room", "size", "type")

    def __init__(self, room: str, type: object, size: object, next: object = 0) -> None:  # noqa: A002
        if not isinstance(type, str) or type not in _SIGNATURES:
            raise PictureError(f"type: expected one of {', '.join(TYPES)}")
        if not _whole(size) or not 0 < size <= SIZE:
            raise PictureError(f"size: expected 1 to {SIZE} bytes")
        self.room = room
        self.type = type
        self.size = size
        if not _whole(next) or not 0 <= next <= self.pieces:
            raise PictureError(f"next: expected 0 to {self.pieces}")
        self.next = next
        """Number of the piece that comes next."""

    @property
    def pieces(self) -> int:
        """How many pieces it has."""
        return -(-self.size // PIECE)

    @property
    def got(self) -> int:
        """How many of its bytes have passed."""
        return min(self.next * PIECE, self.size)

    def take(self, number: object, data: object) -> None:
        """Take the next piece.

        Raises:
            PictureError: it is not the next, has another length, or is not of the type announced.
        """
        if not _whole(number) or number != self.next or self.next >= self.pieces:
            raise PictureError(f"piece: expected number {self.next} of {self.pieces}")
        self._check(number, data)
        self.next += 1

    def again(self, number: object, data: object) -> None:
        """Take a piece for the second time: somebody missed it.

        Raises:
            PictureError: it has not passed yet, has another length, or is not of the type.
        """
        if not _whole(number) or not 0 <= number < self.next:
            raise PictureError(f"piece: expected a number below {self.next}")
        self._check(number, data)

    def _check(self, number: int, data: object) -> None:
        expected = min(PIECE, self.size - number * PIECE)
        if not isinstance(data, bytes) or len(data) != expected:
            raise PictureError(f"piece {number}: expected {expected} bytes")
        if number == 0 and not _SIGNATURES[self.type](data[:16]):
            raise PictureError(f"type: this is no {self.type}")


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
