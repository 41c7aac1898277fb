"""What the Socket.IO layer raises.

    SocketIOError
    ├── ConnectionRefused   raised by an app's middleware: the client gets CONNECT_ERROR
    ├── AckTimeout          (also a TimeoutError) no acknowledgement came in time
    ├── Disconnected        (also a ConnectionError) the socket went while an ack was awaited
    ├── NotStarted          a broadcast, or a namespace's sockets, before the server runs
    └── PacketError         bad input of a client; never reaches an app

Arguments that cannot be sent raise ``TypeError``, reserved event names ``ValueError``.
"""

from __future__ import annotations


class SocketIOError(Exception):
    """Base of all errors of the Socket.IO layer."""


class ConnectionRefused(SocketIOError):  # noqa: N818 - says what happens, as users raise it
    """Raise it in a middleware to refuse a connection to the namespace.

    The client's ``connect_error`` gets an error with this message and, if given, this data.
    The connection below stays open until ``connect_timeout``, so the client may try again.

    Args:
        message: what the client is told, for example ``"not authorized"``.
        data: more for the client, anything that JSON can carry.
    """

    def __init__(self, message: str = "Connection refused", data: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data


class AckTimeout(SocketIOError, TimeoutError):  # noqa: N818
    """The other side did not acknowledge in time; what comes later is ignored."""


class Disconnected(SocketIOError, ConnectionError):  # noqa: N818
    """The socket disconnected before it acknowledged, or had done so already."""


class NotStarted(SocketIOError):  # noqa: N818
    """The server does not run (yet, or any more), so there is nothing to broadcast to."""


class PacketError(SocketIOError):
    """A client sent what the protocol forbids; the session ends, the reason is counted.

    ``reason`` is of a small fixed set, fit for a counter's label.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
