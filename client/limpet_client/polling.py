"""The polling transport of a client: one GET waits at the server, one POST at a time goes there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from limpet_client.engine import Message, Outgoing
from limpet_client.errors import TransportError
from limpet_worker.engineio.payload import CLOSE, SEPARATOR, binary_part

if TYPE_CHECKING:
    from limpet_client.engine import EngineSession
    from limpet_client.http import Http
    from limpet_client.tasks import Running


class PollingTransport:
    """Polls for as long as it is not paused. A poll that ends early ends the session there."""

    __slots__ = ("_http", "_pausing", "_poll", "_post", "_session", "_tasks", "ended", "writable")

    name: ClassVar[str] = "polling"

    def __init__(self, session: EngineSession, http: Http, tasks: Running) -> None:
        self._session = session
        self._http = http
        self._tasks = tasks
        self._poll: asyncio.Task[None] | None = None
        """The loop of polls; None while it rests."""
        self._post: asyncio.Task[None] | None = None
        """The POST that is on its way; None between two."""
        self._pausing = False
        self.ended = False
        """Whether nothing of it counts any more."""
        self.writable = True
        """Whether no POST is on its way."""

    def open(self) -> None:
        """Begin with the handshake."""
        self._poll = self._tasks.start(self._run())

    def write(self, packets: list[Outgoing]) -> None:
        """Send packets in one POST."""
        self.writable = False
        self._post = self._tasks.start(self._send(encode_payload(packets)))

    def pause(self) -> None:
        """Let the last poll and the last POST end."""
        self._pausing = True
        self._rest()

    def resume(self) -> None:
        """Poll again."""
        self._pausing = False
        if self._poll is None and not self.ended:
            self._poll = self._tasks.start(self._run())

    def close(self) -> None:
        """Tell the server that the session ends; it lets the last poll go then."""
        if not self.ended:
            self.ended = True
            self._tasks.start(self._say_goodbye())

    def abort(self) -> None:
        """Drop what is on its way."""
        self.ended = True
        for task in (self._poll, self._post):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._poll = self._post = None

    async def _run(self) -> None:
        session = self._session
        while not self.ended and not self._pausing:
            try:
                payload = await self._http.get(session.sid)
            except TransportError as error:
                session.on_error(self, error)  # which ignores it when this has ended
                return
            for packet in payload.split(SEPARATOR):
                session.on_text(self, packet)
        self._poll = None
        self._rest()

    async def _send(self, payload: bytes) -> None:
        try:
            await self._http.post(self._session.sid, payload)
        except TransportError as error:
            self._session.on_error(self, error)
            return
        self._post = None
        if self.ended:
            return
        self.writable = True
        self._rest()
        self._session.on_drain(self)

    async def _say_goodbye(self) -> None:
        try:
            await self._http.post(self._session.sid, CLOSE)
        except TransportError:
            pass  # it has ended anyway
        finally:
            self.abort()

    def _rest(self) -> None:
        if self._pausing and self._poll is None and self._post is None and not self.ended:
            self._session.on_paused(self)


def encode_payload(packets: list[Outgoing]) -> bytes:
    """Return packets as the body of a POST."""
    return SEPARATOR.join([_part(packet) for packet in packets])


def _part(packet: Outgoing) -> bytes:
    if isinstance(packet, Message):
        return binary_part(packet.data) if packet.binary else packet.data
    return packet
