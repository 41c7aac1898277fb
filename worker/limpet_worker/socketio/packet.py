"""Socket.IO packets, revision 5: from bytes and back, binary attachments included.

No sockets and no clock here. The grammar of a packet's text, which travels inside an Engine.IO
message, is ``<type>[<attachments>-][<namespace>,][<ack id>][<JSON payload>]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from typing import Any, Final

import orjson

from limpet_adapters.packet import EncodedPacket
from limpet_worker.socketio.errors import PacketError

CONNECT: Final = 0
DISCONNECT: Final = 1
EVENT: Final = 2
ACK: Final = 3
CONNECT_ERROR: Final = 4
BINARY_EVENT: Final = 5
BINARY_ACK: Final = 6

RESERVED: Final = frozenset(
    ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener")
)
"""Event names that neither side may emit."""

MAX_ACK_ID: Final = 2**53 - 1
"""The largest integer that every implementation can echo."""
MAX_ATTACHMENTS: Final = 10
"""Attachments per packet that other implementations accept."""
MAX_ATTACHED_BYTES: Final = 10_000_000
"""Bytes of one packet's attachments together, unless told otherwise."""

_HEADER: Final = re.compile(rb"([0-6])(?:([0-9]{1,9})-)?(/[^,]*,?)?([0-9]+)?").match
_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a whole pair
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    rb"|\\."
)

loads = orjson.loads


class Packet:
    """A packet that came in; ``data`` is the parsed payload.

    While ``missing`` is not 0 the packet waits for attachments: give them to ``attach``.
    """

    __slots__ = ("attached", "data", "id", "missing", "namespace", "size", "type")

    def __init__(
        self, type_: int, namespace: str, id_: int | None, data: Any, missing: int = 0
    ) -> None:
        self.type = type_
        """``CONNECT`` to ``CONNECT_ERROR``; the binary types appear as ``EVENT`` and ``ACK``."""
        self.namespace = namespace
        self.id = id_
        """Id of the acknowledgement, None when the sender wants none."""
        self.data = data
        """Payload; None also when there is none."""
        self.missing = missing
        """Attachments still to come."""
        self.attached: list[bytes] | None = None
        self.size = 0
        """Bytes attached so far."""

    def attach(self, data: bytes, limit: int = MAX_ATTACHED_BYTES) -> bool:
        """Add the next attachment; return True when the packet is complete.

        Raises:
            PacketError: more bytes than ``limit``, or a placeholder that names no attachment.
        """
        if self.attached is None:
            self.attached = []
        self.size += len(data)
        if self.size > limit:
            raise PacketError("attachments too large")
        self.attached.append(data)
        self.missing -= 1
        if self.missing:
            return False
        self.data = _fill(self.data, self.attached)
        self.attached = None
        return True


def decode(text: bytes, max_attachments: int = MAX_ATTACHMENTS) -> Packet:
    """Parse the text of a packet, strictly.

    An event without any payload is valid (``data`` is None) and means nothing.

    Raises:
        PacketError: for everything the protocol forbids, with its reason.
    """
    header = _HEADER(text)
    if header is None:
        raise PacketError("unknown type")
    kind = text[0] - 48
    count, name, number = header.group(2, 3, 4)
    missing = 0
    if kind >= BINARY_EVENT:
        if count is None or not (missing := int(count)):
            raise PacketError("illegal attachments")
        if missing > max_attachments:
            raise PacketError("too many attachments")
        kind -= BINARY_EVENT - EVENT
    elif count is not None:
        raise PacketError("invalid payload")
    namespace = "/" if name is None else _name(name)
    id_ = None
    if number is not None and (len(number) > 16 or (id_ := int(number)) > MAX_ACK_ID):
        raise PacketError("invalid ack id")
    end = header.end()
    if end == len(text):
        return Packet(kind, namespace, id_, None, missing)
    data = parse(text[end:])
    if not _VALID[kind](data):
        raise PacketError("invalid payload")
    return Packet(kind, namespace, id_, data, missing)


def parse(payload: bytes) -> Any:
    """Parse JSON; half a surrogate pair (an emoji cut in two by a client) becomes U+FFFD.

    Raises:
        PacketError: it is not JSON, or too deep.
    """
    try:
        return loads(payload)
    except orjson.JSONDecodeError:
        mended = _ESCAPE.sub(_whole, payload)
        if mended == payload:
            raise PacketError("invalid payload") from None
    try:
        return loads(mended)
    except orjson.JSONDecodeError:
        raise PacketError("invalid payload") from None


def event_name(data: list[Any]) -> str:
    """Return the name of a valid event; a numeric one as JavaScript would write it."""
    name = data[0]
    if type(name) is str:
        return name
    if type(name) is float and name.is_integer() and abs(name) < 1e21:
        return str(int(name))
    return str(name)


def _name(raw: bytes) -> str:
    try:
        return (raw[:-1] if raw[-1] == 0x2C else raw).decode()
    except UnicodeDecodeError:  # the layer below checks; a caller without one is served too
        raise PacketError("invalid namespace") from None


def _whole(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if escape[1] is not None else escape[0]


def _is_event(data: Any) -> bool:
    if type(data) is not list or not data:
        return False
    name = data[0]
    if type(name) is str:
        return name not in RESERVED
    return type(name) is int or type(name) is float


_VALID: Final[tuple[Callable[[Any], bool], ...]] = (
    lambda data: type(data) is dict,  # CONNECT
    lambda _: False,  # DISCONNECT has no payload
    _is_event,  # EVENT
    lambda data: type(data) is list,  # ACK
    lambda data: type(data) is dict or type(data) is str,  # CONNECT_ERROR
)


def _fill(data: Any, attached: list[bytes]) -> Any:
    """Put attachments where their placeholders are, without recursion: a client chose the depth."""
    top = [data]
    waiting: list[Any] = [top]
    while waiting:
        container = waiting.pop()
        entries = enumerate(container) if type(container) is list else container.items()
        for key, value in entries:
            kind = type(value)
            if kind is dict:
                if value.get("_placeholder") is True:
                    number = value.get("num")
                    if type(number) is not int or not 0 <= number < len(attached):
                        raise PacketError("illegal attachments")
                    container[key] = attached[number]  # an existing key: no change of size
                    continue
                waiting.append(value)
            elif kind is list:
                waiting.append(value)
    return top[0]


# --- out ------------------------------------------------------------------


def prefix(namespace: str) -> bytes:
    """Return what stands for a namespace in a packet: nothing for ``/``, else ``/name,``."""
    return b"" if namespace == "/" else namespace.encode() + b","


def encode_event(
    prefix: bytes, arguments: Sequence[object], id_: int | None = None
) -> bytes | EncodedPacket:
    """Encode an event, whose ``arguments`` begin with its name: its text, unless it has binary.

    Raises:
        TypeError: an argument, named by its type, that cannot be sent.
    """
    head = prefix if id_ is None else b"%b%d" % (prefix, id_)
    try:
        return b"2%b%b" % (head, _dumps(arguments, None, _OPTIONS))
    except TypeError:
        return _encode_with_attachments(b"2", b"5", head, arguments)


def encode_ack(prefix: bytes, id_: int, arguments: Sequence[object]) -> bytes | EncodedPacket:
    """Encode the acknowledgement of an event: its text, unless it has binary.

    Raises:
        TypeError: an argument, named by its type, that cannot be sent.
    """
    try:
        return b"3%b%d%b" % (prefix, id_, _dumps(arguments, None, _OPTIONS))
    except TypeError:
        return _encode_with_attachments(b"3", b"6", b"%b%d" % (prefix, id_), arguments)


def encode_connect(prefix: bytes, socket_id: str) -> bytes:
    """Encode the server's answer to a CONNECT."""
    return b'0%b{"sid":"%b"}' % (prefix, socket_id.encode())


def encode_connect_error(prefix: bytes, message: str, data: object = None) -> bytes:
    """Encode the refusal of a CONNECT; no ``data`` when it is None.

    Raises:
        TypeError: data that cannot be sent; attachments are not possible here.
    """
    error: dict[str, object] = {"message": message}
    if data is not None:
        error["data"] = data
    return b"4%b%b" % (prefix, dumps(error))


def encode_disconnect(prefix: bytes) -> bytes:
    """Encode the end of a namespace."""
    return b"1" + prefix


def dumps(value: object, convert: Callable[[object], object] | None = None) -> bytes:
    """Encode as JSON; without ``convert`` it may have no binary in it.

    Raises:
        TypeError: something in it, named by its type, that JSON cannot carry.
    """
    try:
        return _dumps(value, convert or _convert, _OPTIONS | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise TypeError(f"cannot be sent: {error}") from error


# orjson writes NaN and the infinities as null, as JSON.stringify does; dates go through
# _convert, because JavaScript's form differs from orjson's.
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATETIME
_dumps = orjson.dumps


def _encode_with_attachments(
    plain: bytes, binary: bytes, head: bytes, arguments: Sequence[object]
) -> bytes | EncodedPacket:
    """Encode again what the fast path could not: binary, dates, keys that are not strings.

    Trying the fast path first is cheaper than a hook made for each packet: most have no binary.
    """
    attachments: list[bytes] = []

    def convert(value: object) -> object:
        if isinstance(value, (bytes, bytearray, memoryview)):
            # bytes() of what may still change: the packet is sent later.
            attachments.append(bytes(value))
            return {"_placeholder": True, "num": len(attachments) - 1}
        return _convert(value)

    payload = dumps(arguments, convert)
    if not attachments:
        return b"%b%b%b" % (plain, head, payload)
    count = len(attachments)
    return EncodedPacket(b"%b%d-%b%b" % (binary, count, head, payload), tuple(attachments))


def _convert(value: object) -> object:
    if isinstance(value, datetime):
        # As JSON.stringify writes a Date. A naive time is taken as UTC.
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment.isoformat(timespec="milliseconds")[:-6] + "Z"
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise TypeError(f"{type(value).__qualname__} is neither JSON nor bytes")
