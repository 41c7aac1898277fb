"""Emits to one client that are volatile or wait for an answer only so long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limpet_worker.socketio.acks import ask
from limpet_worker.socketio.broadcast import (
    EMITTED,
    BroadcastOperator,
    Emitted,
    Selecting,
    check_event,
)

if TYPE_CHECKING:
    from limpet_worker.socketio.socket import Socket


class SocketOperator(Selecting):
    """Emits to one client with conditions; or, with rooms, a broadcast to others with them."""

    __slots__ = ("_seconds", "_socket", "_volatile")

    def __init__(
        self, socket: Socket, *, volatile: bool = False, seconds: float | None = None
    ) -> None:
        self._socket = socket
        self._volatile = volatile
        self._seconds = seconds

    @property
    def volatile(self) -> SocketOperator:
        """Drop what is emitted when the client cannot take it at this instant."""
        return SocketOperator(self._socket, volatile=True, seconds=self._seconds)

    def timeout(self, seconds: float) -> SocketOperator:
        """Limit how long ``emit_with_ack`` waits, in seconds."""
        return SocketOperator(self._socket, volatile=self._volatile, seconds=seconds)

    @property
    def broadcast(self) -> BroadcastOperator:
        """Select everybody in the namespace but this socket."""
        return self._everybody()

    def emit(self, event: str, *args: object) -> Emitted:
        """Send an event to this client, see ``Socket.emit``."""
        check_event(event)
        self._socket.send_event((event, *args), None, volatile=self._volatile)
        return EMITTED

    def send(self, *args: object) -> Emitted:
        """Send the event ``message``."""
        return self.emit("message", *args)

    async def emit_with_ack(self, event: str, *args: object) -> Any:
        """Send an event and return what the client acknowledges it with, see ``Socket``.

        Raises:
            AckTimeout: the client did not answer in time.
            Disconnected: the client went before it answered.
        """
        check_event(event)
        return await ask(self._socket, (event, *args), self._seconds, volatile=self._volatile)

    def _everybody(self) -> BroadcastOperator:
        operator = self._socket.broadcast
        if self._volatile:
            operator = operator.volatile
        return operator if self._seconds is None else operator.timeout(self._seconds)
