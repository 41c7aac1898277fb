"""What the client raises, and gives to handlers.

::

    SocketIOError
    ├── ConnectError        (also a ConnectionError) no connection: refused, or none to be made
    │   └── TransportError  what the network or HTTP said of it
    ├── AckTimeout          (also a TimeoutError) no acknowledgement came in time
    ├── Disconnected        (also a ConnectionError) the connection went while an ack was awaited
    ├── NotSent             a volatile event with an acknowledgement was dropped
    └── SendBufferFull      more was emitted than may wait

Options that cannot be raise ``OptionError``, arguments that cannot be sent ``TypeError``,
reserved event names ``ValueError``.
"""

from __future__ import annotations

from typing import Any

from limpet_worker.socketio.errors import AckTimeout, Disconnected, SocketIOError

__all__ = [
    "AckTimeout",
    "ConnectError",
    "Disconnected",
    "NotSent",
    "SendBufferFull",
    "SocketIOError",
    "TransportError",
]


class ConnectError(SocketIOError, ConnectionError):
    """A connection could not be made; handlers of ``connect_error`` get it.

    When the server refused, ``refused`` is True, the message and ``data`` are what it said, and
    nothing is tried again. Otherwise the client goes on by itself, as its options say.
    """

    def __init__(self, message: str, data: Any = None, *, refused: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.data = data
        """What the server added to its refusal; None without."""
        self.refused = refused
        """Whether a server answered with a refusal."""


class TransportError(ConnectError):
    """The layer below failed: a connection refused, an HTTP status, a broken WebSocket.

    Handlers of ``disconnect`` get it as their second argument when that is why.
    """

    def __init__(
        self, message: str, *, description: int | str | None = None, context: str = ""
    ) -> None:
        super().__init__(message)
        self.description = description
        """The HTTP status, or the close code of a WebSocket; None when there was none."""
        self.context = context
        """The start of the body that came with it; empty without."""


class NotSent(SocketIOError):  # noqa: N818 - says what happened, as AckTimeout does
    """A volatile event could not be sent at this instant, so its acknowledgement will not come."""


class SendBufferFull(SocketIOError):  # noqa: N818
    """Too much waits to be sent already; the event was not taken."""
