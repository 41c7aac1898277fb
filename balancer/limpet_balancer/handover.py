"""The hand-over protocol: messages between balancer and worker, and the ledger of what is owed.

The two ends meet on a unix SEQPACKET socket; one message is one packet and opens with its kind.
A connection travels as its file descriptor and the bytes read from it so far. The receiver
acknowledges *before* it looks at a byte, and owns the connection from then on; the sender keeps
its copy until then. Acknowledgements are cumulative, so one answers a whole batch.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from struct import Struct
from struct import error as struct_error
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from limpet_adapters.identity import WorkerAddress

VERSION: Final = 1
DATA_LIMIT: Final = 65_536
"""Bytes of a connection that one message carries: a stock kernel caps SO_SNDBUF at 208 KiB."""
PIECES_LIMIT: Final = 4
"""Messages of bytes that may go ahead of one connection (an event loop reads 256 KiB at once)."""
CONNECTION_LIMIT: Final = (PIECES_LIMIT + 1) * DATA_LIMIT
"""Bytes read so far that a connection can travel with."""
MESSAGE_LIMIT: Final = DATA_LIMIT + 512
"""Bytes of the largest message: what a receive buffer must hold."""
HOST_LIMIT: Final = 255

Address: TypeAlias = tuple[str, int] | str
"""Host and port of a client, or ``"unix"`` for one on a unix socket."""

REGISTER: Final = 1
READY: Final = 2
LOAD: Final = 3
DRAINING: Final = 4
BYE: Final = 5
CONNECTION: Final = 6
PIECE: Final = 7
ACKNOWLEDGE: Final = 8
REJECT: Final = 9
ASK_STATS: Final = 10
STATS: Final = 11
UNDRAIN: Final = 12

_REGISTER: Final = Struct("!BBHBBQII")
_LOAD: Final = Struct("!BI?")
_CONNECTION: Final = Struct("!BQBBHB")
_PIECE: Final = Struct("!BQI")
_NUMBER: Final = Struct("!BQ")

_FINAL: Final = 1
_CONTINUED: Final = 2
_FAMILY_SHIFT: Final = 2
_FAMILIES: Final = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
_FAMILY_CODES: Final = {int(family): code for code, family in enumerate(_FAMILIES)}


class Parcel:
    """A connection that changes hands."""

    __slots__ = ("address", "data", "family", "final", "hops", "sock")

    def __init__(
        self,
        sock: socket.socket,
        family: int,
        address: Address,
        data: bytes,
        *,
        hops: int = 0,
        final: bool = False,
    ) -> None:
        self.sock = sock
        self.family = family
        """Of the socket, as a plain number."""
        self.address: Address = address
        """The client's."""
        self.data = data
        """What has been read from it."""
        self.hops = hops
        """How often a worker has sent it back for the request it carries."""
        self.final = final
        """Whoever gets it must answer it."""


class HandoverError(Exception):
    """A message that the protocol does not allow: the other end is broken or of another version."""


class Register(NamedTuple):
    """Worker → balancer, first of all: who it is. ``limit`` is its session limit, 0 for none."""

    address: WorkerAddress
    worker_id: int
    pid: int
    limit: int


class Ready(NamedTuple):
    """Worker → balancer: it takes new sessions from now on."""


class Load(NamedTuple):
    """Worker → balancer, each second: its sessions, and whether it refuses new ones."""

    sessions: int
    full: bool


class Draining(NamedTuple):
    """Worker → balancer: no new sessions; those it has still belong to it."""


class Undrain(NamedTuple):
    """Worker → balancer: it takes new sessions again.

    An older balancer ends the channel over a kind it does not know; the worker then registers
    anew, as one that does not drain.
    """


class Bye(NamedTuple):
    """Worker → balancer: it leaves, its sessions have ended."""


class Connection(NamedTuple):
    """Either direction, with one file descriptor: a connection and the bytes read from it."""

    number: int
    hops: int
    final: bool
    continued: bool
    family: int
    address: Address
    data: bytes


class Piece(NamedTuple):
    """Either direction: bytes that belong before those of the connection of the same number."""

    number: int
    offset: int
    data: bytes


class Acknowledge(NamedTuple):
    """Either direction: all connections up to this number are owned by the receiver."""

    upto: int


class Reject(NamedTuple):
    """Either direction: this connection came without its descriptor (EMFILE); it stays yours."""

    number: int


class AskStats(NamedTuple):
    """Anyone → balancer: send your figures."""


class Stats(NamedTuple):
    """Balancer → whoever asked: its figures."""

    figures: dict[str, object]


Message: TypeAlias = (
    Register
    | Ready
    | Load
    | Draining
    | Undrain
    | Bye
    | Connection
    | Piece
    | Acknowledge
    | Reject
    | AskStats
    | Stats
)


def encode_register(register: Register) -> bytes:
    """Return the message that a worker opens its channel with."""
    node, slot, incarnation = register.address
    return _REGISTER.pack(
        REGISTER,
        VERSION,
        node,
        slot,
        incarnation,
        register.worker_id,
        register.pid,
        register.limit,
    )


def encode_load(sessions: int, full: bool) -> bytes:
    """Return a report of a worker's sessions."""
    return _LOAD.pack(LOAD, sessions, full)


def encode_acknowledge(upto: int) -> bytes:
    """Return the acknowledgement of all connections up to a number."""
    return _NUMBER.pack(ACKNOWLEDGE, upto)


def encode_reject(number: int) -> bytes:
    """Return the refusal of one connection; goes ahead of the acknowledgement that covers it."""
    return _NUMBER.pack(REJECT, number)


def encode_stats(figures: dict[str, object]) -> bytes:
    """Return the balancer's figures as a message (JSON)."""
    return bytes((STATS,)) + json.dumps(figures, separators=(",", ":")).encode()


READY_MESSAGE: Final = bytes((READY,))
DRAINING_MESSAGE: Final = bytes((DRAINING,))
UNDRAIN_MESSAGE: Final = bytes((UNDRAIN,))
BYE_MESSAGE: Final = bytes((BYE,))
ASK_STATS_MESSAGE: Final = bytes((ASK_STATS,))


def encode_connection(number: int, parcel: Parcel, continued: bool = False) -> bytes:
    """Return what goes before a connection's bytes in its message (sent as two buffers).

    Args:
        number: the ledger's next.
        parcel: the connection; its bytes and descriptor are not part of the answer.
        continued: pieces of it have gone ahead.
    """
    flags = _FAMILY_CODES[parcel.family] << _FAMILY_SHIFT
    if parcel.final:
        flags |= _FINAL
    if continued:
        flags |= _CONTINUED
    address = parcel.address
    if isinstance(address, str):
        return _CONNECTION.pack(CONNECTION, number, parcel.hops, flags, 0, 0)
    host = address[0].encode()[:HOST_LIMIT]
    return _CONNECTION.pack(CONNECTION, number, parcel.hops, flags, address[1], len(host)) + host


def split(number: int, data: bytes) -> tuple[list[bytes], bytes]:
    """Return finished PIECE messages for all bytes but the last, and those last bytes.

    Raises:
        HandoverError: more than `CONNECTION_LIMIT` bytes.
    """
    if len(data) > CONNECTION_LIMIT:
        raise HandoverError(f"{len(data)} bytes are too many, at most {CONNECTION_LIMIT}")
    pieces = []
    offset = 0
    while len(data) - offset > DATA_LIMIT:
        head = _PIECE.pack(PIECE, number, offset)
        pieces.append(head + data[offset : offset + DATA_LIMIT])
        offset += DATA_LIMIT
    return pieces, data[offset:]


def decode(message: bytes | memoryview) -> Message:
    """Return the message in one packet; its data are copied out.

    Raises:
        HandoverError: unknown kind, wrong length, or a field out of range.
    """
    try:
        return _decode(message)
    except (struct_error, UnicodeDecodeError) as error:
        raise HandoverError(f"bad message: {error}") from None


def _decode(message: bytes | memoryview) -> Message:
    if not message:
        raise HandoverError("empty message")
    kind = message[0]
    if kind == ACKNOWLEDGE:
        return Acknowledge(_NUMBER.unpack(message)[1])
    if kind == CONNECTION:
        return _decode_connection(message)
    if kind == LOAD:
        _, sessions, full = _LOAD.unpack(message)
        return Load(sessions, full)
    if kind == REGISTER:
        _, version, node, slot, incarnation, worker_id, pid, limit = _REGISTER.unpack(message)
        if version != VERSION:
            raise HandoverError(f"version {version}, expected {VERSION}")
        return Register(WorkerAddress(node, slot, incarnation), worker_id, pid, limit)
    if kind == PIECE:
        _, number, offset = _PIECE.unpack_from(message)
        return Piece(number, offset, bytes(message[_PIECE.size :]))
    if kind == REJECT:
        return Reject(_NUMBER.unpack(message)[1])
    if kind == STATS:
        return Stats(_figures(bytes(message[1:])))
    if kind in _EMPTY:
        if len(message) != 1:
            raise HandoverError(f"kind {kind} has {len(message)} bytes, expected 1")
        return _EMPTY[kind]
    raise HandoverError(f"unknown kind {kind}")


_EMPTY: Final[dict[int, Message]] = {
    READY: Ready(),
    DRAINING: Draining(),
    UNDRAIN: Undrain(),
    BYE: Bye(),
    ASK_STATS: AskStats(),
}


def _decode_connection(message: bytes | memoryview) -> Connection:
    _, number, hops, flags, port, length = _CONNECTION.unpack_from(message)
    start = _CONNECTION.size + length
    code = flags >> _FAMILY_SHIFT
    if code >= len(_FAMILIES) or len(message) < start:
        raise HandoverError(f"bad connection header: flags {flags}, host of {length} bytes")
    address: Address = "unix"
    if length:
        address = (bytes(message[_CONNECTION.size : start]).decode("ascii"), port)
    final = bool(flags & _FINAL)
    continued = bool(flags & _CONTINUED)
    data = bytes(message[start:])
    return Connection(number, hops, final, continued, _FAMILIES[code], address, data)


def _figures(text: bytes) -> dict[str, object]:
    try:
        figures = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HandoverError(f"bad figures: {error}") from None
    if not isinstance(figures, dict):
        raise HandoverError("figures are no object")
    return figures


Item = TypeVar("Item")


class Ledger(Generic[Item]):
    """What one end has handed over and the other has not acknowledged, oldest first."""

    __slots__ = ("_first", "_items", "count")

    def __init__(self) -> None:
        self._items: deque[Item | None] = deque()
        """None stands for a rejected one, until the acknowledgement passes over it."""
        self._first = 1
        self.count = 0
        """How many are unacknowledged."""

    @property
    def next_number(self) -> int:
        """The number that the next one will have."""
        return self._first + len(self._items)

    @property
    def oldest(self) -> Item | None:
        """What has been waiting the longest, or None."""
        items = self._items
        if items and items[0] is not None:
            return items[0]
        return next((item for item in items if item is not None), None)

    def add(self, item: Item) -> None:
        """Note what has just been sent under `next_number`."""
        self._items.append(item)
        self.count += 1

    def acknowledge(self, upto: int) -> list[Item]:
        """Forget everything up to a number, and return it.

        Raises:
            HandoverError: the number was never sent.
        """
        if upto >= self._first + len(self._items):
            raise HandoverError(f"acknowledges {upto}, but only {self.next_number - 1} were sent")
        done = []
        items = self._items
        while self._first <= upto:
            item = items.popleft()
            self._first += 1
            if item is not None:
                done.append(item)
        self.count -= len(done)
        return done

    def reject(self, number: int) -> Item:
        """Take one out again, and return it.

        Raises:
            HandoverError: it is not in the ledger.
        """
        at = number - self._first
        if not 0 <= at < len(self._items):
            raise HandoverError(f"rejects {number}, which is not open")
        item = self._items[at]
        if item is None:
            raise HandoverError(f"rejects {number} twice")
        self._items[at] = None
        self.count -= 1
        return item

    def rest(self) -> list[Item]:
        """Return what was never acknowledged, oldest first, and forget it: the channel ended."""
        rest = [item for item in self._items if item is not None]
        self._first += len(self._items)
        self._items.clear()
        self.count = 0
        return rest


class Assembler:
    """Puts a connection's pieces together, and checks that none is missing between two."""

    __slots__ = ("_number", "_pieces", "received")

    def __init__(self) -> None:
        self.received = 0
        """Number of the newest connection: what an acknowledgement names."""
        self._pieces = bytearray()
        self._number = 0

    def piece(self, piece: Piece) -> None:
        """Keep bytes for the connection that follows; offset 0 begins anew (a repeated send).

        Raises:
            HandoverError: out of order, or more than a connection may travel with.
        """
        if piece.number != self.received + 1:
            raise HandoverError(f"piece of {piece.number}, expected {self.received + 1}")
        if piece.offset == 0:
            self._pieces.clear()
            self._number = piece.number
        if piece.number != self._number or piece.offset != len(self._pieces):
            raise HandoverError(f"piece at {piece.offset}, expected {len(self._pieces)}")
        if len(self._pieces) + len(piece.data) > PIECES_LIMIT * DATA_LIMIT:
            raise HandoverError(f"pieces of more than {PIECES_LIMIT * DATA_LIMIT} bytes")
        self._pieces += piece.data

    def connection(self, connection: Connection) -> bytes:
        """Return all the bytes of a connection.

        Raises:
            HandoverError: a number was left out or repeated, or the pieces did not come.
        """
        if connection.number != self.received + 1:
            raise HandoverError(f"connection {connection.number}, expected {self.received + 1}")
        if connection.continued and self._number != connection.number:
            raise HandoverError(f"pieces of connection {connection.number} did not come")
        self.received = connection.number
        if not connection.continued:
            if self._pieces:
                self._pieces.clear()
            return connection.data
        data = bytes(self._pieces) + connection.data
        self._pieces.clear()
        return data
