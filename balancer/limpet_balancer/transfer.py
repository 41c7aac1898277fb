"""One end of a channel: messages and file descriptors over a unix SEQPACKET socket."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from enum import Enum
from pathlib import Path
from struct import Struct
from typing import Final

from limpet_balancer.handover import (
    DATA_LIMIT,
    MESSAGE_LIMIT,
    HandoverError,
    Message,
    Parcel,
    decode,
    encode_connection,
    split,
)

SEND_BUFFER: Final = 1 << 20
"""Bytes asked for; the kernel gives at most net.core.wmem_max."""
MESSAGES_PER_TURN: Final = 64
"""Messages read before other sockets get their turn."""

_FD: Final = Struct("i")
_CREDENTIALS: Final = Struct("3i")
_ONE_FD: Final = socket.CMSG_LEN(_FD.size)
"""Room for exactly one descriptor: CMSG_SPACE would let a second one in."""
_NOT_NOW: Final = frozenset(
    # ETOOMANYREFS: an unprivileged user has RLIMIT_NOFILE descriptors in flight (unix(7))
    (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
)
_GONE: Final = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF))
# One for all: a message is decoded before the next is read.
_buffer: Final = bytearray(MESSAGE_LIMIT)
_view: Final = memoryview(_buffer)


class Sent(Enum):
    """What became of a message."""

    YES = "yes"
    LATER = "later"
    """The kernel does not take it now."""
    GONE = "gone"
    """The other end has closed; what it sent before can still be read."""


class EndOfLink(Exception):  # noqa: N818 - an event, not an error
    """The other end has closed, and all it sent has been read."""


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the process at the other end of a unix socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def is_ours(uid: int) -> bool:
    """Say whether a user may be at the other end: our own or root."""
    return uid in {os.getuid(), 0}


def meeting_point(path: Path) -> socket.socket:
    """Return the socket where workers register, put in place of an older one in one step."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    meeting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        meeting.bind(str(fresh))
        fresh.chmod(0o600)
        meeting.listen(256)
        meeting.setblocking(False)
        fresh.rename(path)
    except OSError:
        meeting.close()
        raise
    return meeting


def take_down(path: Path, inode: int) -> None:
    """Remove a meeting point, unless another balancer has put its own in its place.

    Args:
        path: where it was.
        inode: its file's number.
    """
    try:
        if path.stat().st_ino == inode:
            path.unlink()
    except OSError:  # the run directory may be gone
        pass


def connect(path: Path) -> socket.socket:
    """Return a channel to the balancer at a path.

    Raises:
        OSError: there is none, or it belongs to another user (root may connect to any).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.connect(str(path))
        _, uid = peer_credentials(sock)
        if not is_ours(uid) and os.getuid():
            raise PermissionError(errno.EACCES, f"{path} belongs to uid {uid}")
    except OSError:
        sock.close()
        raise
    return sock


def _too_large() -> Message:
    raise HandoverError(f"message of more than {MESSAGE_LIMIT} bytes")


class Link:
    """Sends and receives messages; never blocks.

    Small messages that the kernel does not take now wait in order in `outbox`; connections do
    not: their sender decides anew.
    """

    __slots__ = ("fd", "outbox", "reset", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.outbox: deque[bytes] = deque()
        self.reset = False
        """The other end has closed with bytes unread. Then this one is to be read to its end in
        one go: libuv polls a socket no more after it has seen an error."""

    def send(self, message: bytes) -> Sent:
        """Send a small message, or keep it for `flush`."""
        self.outbox.append(message)
        return self.flush()

    def send_now(self, message: bytes) -> Sent:
        """Send a small message now or not at all; it never overtakes what is kept."""
        sent = self.flush()
        return self._send([message], []) if sent is Sent.YES else sent

    def flush(self) -> Sent:
        """Send what has been kept."""
        outbox = self.outbox
        while outbox:
            sent = self._send([outbox[0]], [])
            if sent is not Sent.YES:
                return sent
            outbox.popleft()
        return Sent.YES

    def send_connection(self, number: int, parcel: Parcel) -> Sent:
        """Send a connection; nothing of it counts unless the answer is YES.

        Raises:
            HandoverError: it has more bytes than a connection can travel with.
        """
        if self.outbox and self.flush() is not Sent.YES:
            return Sent.LATER
        data = parcel.data
        continued = len(data) > DATA_LIMIT
        if continued:
            pieces, data = split(number, data)
            for piece in pieces:  # a repeated send begins at offset 0 again
                sent = self._send([piece], [])
                if sent is not Sent.YES:
                    return sent
        head = encode_connection(number, parcel, continued)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(parcel.sock.fileno()))]
        return self._send([head, data], rights)

    def _send(self, parts: list[bytes], ancillary: list[tuple[int, int, bytes]]) -> Sent:
        try:
            self.sock.sendmsg(parts, ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno in _NOT_NOW:
                return Sent.LATER
            if error.errno in _GONE:
                return Sent.GONE
            raise
        return Sent.YES

    def receive(self) -> tuple[Message, int] | None:
        """Return the next message and its descriptor (-1 for none), or None when there is none.

        Raises:
            EndOfLink: there will be none any more.
            HandoverError: a message that the protocol does not allow.
        """
        while True:
            try:
                size, ancillary, flags, _ = self.sock.recvmsg_into(
                    [_buffer], _ONE_FD, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return None
            except ConnectionResetError:
                # Told once, ahead of what is queued, when the other end left bytes unread.
                self.reset = True
                continue
            except OSError as error:
                raise EndOfLink from error
            break
        if size == 0:
            raise EndOfLink
        fd = -1
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fd = _FD.unpack_from(content)[0]
        try:
            return decode(_view[:size]) if not flags & socket.MSG_TRUNC else _too_large(), fd
        except HandoverError:
            if fd >= 0:
                os.close(fd)
            raise

    def close(self) -> None:
        """Close this end; descriptors in messages not read are closed with it."""
        self.sock.close()
