"""The control connection between a worker and the hub of its host: messages, requests, answers.

A unix stream socket carries ``u32 length | msgpack [type, id, kind, body]``; both ends may send and
ask at any time. Only peers of our own user are let in. The hub's end is a `ControlServer`; a worker
holds one `ControlClient`, which connects again for ever, and its parts (bus, presence, figures)
attach to it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, cast

import msgspec

from limpet_adapters.counters import count

logger = logging.getLogger("limpet.control")

MESSAGE_LIMIT: Final = 32 * 1024 * 1024
"""Bytes one message may have; a longer one ends the connection."""
BACKLOG_LIMIT: Final = 128 * 1024 * 1024
"""Bytes that may wait for a peer that does not read; above it the connection ends."""
TASKS_LIMIT: Final = 1024
"""Handlers of one connection that may be waiting at a time; further requests are refused."""
RECONNECT: Final = (0.05, 0.25)
"""First and longest pause, in seconds, between two attempts to reach the hub: a hub that starts
waits one second for the workers of the hub before it, so all have tried several times by then."""
REFUSED: Final = 1.0
"""Seconds until the next attempt after the hub has refused us."""

_SEND: Final = 0
_REQUEST: Final = 1
_ANSWER: Final = 2
_REFUSAL: Final = 3

_LENGTH: Final = struct.Struct(">I")
_decode = msgspec.msgpack.Decoder(tuple[int, int, str, object]).decode
_encode = msgspec.msgpack.Encoder().encode

Handler = Callable[["ControlConnection", object], "object | Awaitable[object]"]
"""Takes the body of a message; what it returns (or what that awaits to) answers a request."""


class ControlError(Exception):
    """The other end refused a request; the text is its reason. Handlers raise it to refuse."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who a worker is: the body of its first request, ``hello``."""

    worker_id: int
    """Random 64-bit id of this life of the worker."""
    node: int
    slot: int
    incarnation: int
    pid: int
    """As the worker sees it; the hub trusts only the credentials of the peer."""
    name: str = ""


class ControlConnection(asyncio.Protocol):
    """One control connection, either end.

    Args:
        handlers: by kind, for messages and requests of the other end.
        on_open: called when the connection is there.
        on_closed: called once when it is gone, with the reason or None.
    """

    __slots__ = (
        "_answers",
        "_buffer",
        "_next",
        "_on_closed",
        "_on_open",
        "_tasks",
        "_transport",
        "closed",
        "handlers",
        "owner",
        "peer_pid",
        "peer_uid",
    )

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        on_open: Callable[[ControlConnection], None] | None = None,
        on_closed: Callable[[ControlConnection, Exception | None], None] | None = None,
    ) -> None:
        self.handlers = handlers
        self.closed = False
        """The connection is gone; sends are dropped."""
        self.peer_pid = 0
        """Process at the other end, from the kernel; 0 before the connection is made."""
        self.peer_uid = -1
        """User of the other end, from the kernel; -1 before the connection is made."""
        self.owner: object = None
        """Whatever the side that holds the connection wants to find again: in the hub a Hello."""
        self._on_open = on_open
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._next = 0
        self._answers: dict[int, Callable[[object, Exception | None], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- use ---------------------------------------------------------------

    def send(self, kind: str, body: object) -> None:
        """Send a message that has no answer; dropped when the connection is gone.

        Raises:
            ControlError: the message is longer than `MESSAGE_LIMIT`.
        """
        self._write(_SEND, 0, kind, body)

    async def request(self, kind: str, body: object, timeout: float) -> object:
        """Ask the other end and return its answer; ``timeout`` in seconds.

        Raises:
            ControlError: refused by the other end, or too long a message.
            TimeoutError: no answer in time.
            ConnectionError: the connection is gone, or ended before the answer.
        """
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def answered(body: object, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(body)
            else:
                future.set_exception(error)

        number = self.call(kind, body, answered)
        try:
            async with asyncio.timeout(timeout):
                return await future
        finally:
            self._answers.pop(number, None)

    def call(
        self, kind: str, body: object, answered: Callable[[object, Exception | None], None]
    ) -> int:
        """Ask the other end; ``answered(body, error)`` is called in the order of arrival.

        Unlike after `request`, nothing that came later has been handled by then.

        Raises:
            ControlError: the message is longer than `MESSAGE_LIMIT`.
            ConnectionError: the connection is gone.
        """
        if self.closed or self._transport is None:
            raise ConnectionError("the control connection is gone")
        number = self._next = self._next + 1
        self._write(_REQUEST, number, kind, body)
        self._answers[number] = answered
        return number

    def close(self) -> None:
        """End the connection once what was sent is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- transport ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport and ask the kernel who is at its other end."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=65536, low=16384)
        peer = transport.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.peer_pid, self.peer_uid, _ = struct.unpack("3i", credentials)
        if self.peer_uid not in {os.getuid(), 0}:
            count("limpet_control_refused_total", reason="foreign user")
            logger.warning("control connection of uid %d refused", self.peer_uid)
            self._transport.abort()
            return
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes and handle each message that is complete."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 4 and not self.closed:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MESSAGE_LIMIT:
                self._violated(f"a message of {length} bytes; at most {MESSAGE_LIMIT}")
                return
            if len(buffer) - at - 4 < length:
                break
            with memoryview(buffer) as view:
                message = bytes(view[at + 4 : at + 4 + length])
            at += 4 + length
            try:
                what, number, kind, body = _decode(message)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self._violated(str(error))
                return
            self._handle(what, number, kind, body)
        if at:
            del buffer[:at]

    def eof_received(self) -> None:
        """The other end is gone: so are we."""

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits for answers, stop handlers that wait, tell the holder."""
        self.closed = True
        self._transport = None
        self._buffer.clear()
        answers, self._answers = self._answers, {}
        for answered in answers.values():
            answered(None, ConnectionError("the control connection ended before the answer"))
        for task in self._tasks:
            task.cancel()
        on_closed, self._on_open, self._on_closed = self._on_closed, None, None
        if on_closed is not None:
            on_closed(self, error)

    # --- inside ------------------------------------------------------------

    def _write(self, what: int, number: int, kind: str, body: object) -> None:
        transport = self._transport
        if transport is None or self.closed:
            return
        message = _encode((what, number, kind, body))
        if len(message) > MESSAGE_LIMIT:
            raise ControlError(
                f"{kind}: {len(message)} bytes; a message has at most {MESSAGE_LIMIT}"
            )
        transport.write(_LENGTH.pack(len(message)) + message)
        if transport.get_write_buffer_size() > BACKLOG_LIMIT:
            count("limpet_control_closed_total", reason="peer does not read")
            logger.warning("pid %d does not read its control connection", self.peer_pid)
            transport.abort()

    def _violated(self, why: str) -> None:
        count("limpet_control_closed_total", reason="bad message")
        logger.warning("bad message on the control connection of pid %d: %s", self.peer_pid, why)
        self._buffer.clear()
        self.abort()

    def _handle(self, what: int, number: int, kind: str, body: object) -> None:
        if what >= _ANSWER:
            answered = self._answers.pop(number, None)  # None: its request timed out
            if answered is not None:
                answered(body, None if what == _ANSWER else ControlError(str(body)))
            return
        handler = self.handlers.get(kind)
        if handler is None:
            count("limpet_control_refused_total", reason="unknown kind")
            if what == _REQUEST:
                self._write(_REFUSAL, number, "", f"unknown request {kind[:40]!r}")
            return
        try:
            result = handler(self, body)
        except Exception as error:  # noqa: BLE001  (whatever it is, the other end must hear of it)
            self._failed(what, number, kind, error)
            return
        if inspect.isawaitable(result):
            if len(self._tasks) >= TASKS_LIMIT:
                if inspect.iscoroutine(result):
                    result.close()
                self._failed(what, number, kind, ControlError("too many requests at a time"))
                return
            task = asyncio.get_running_loop().create_task(self._finish(what, number, kind, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif what == _REQUEST:
            self._answer(number, kind, result)

    async def _finish(self, what: int, number: int, kind: str, waiting: Awaitable[object]) -> None:
        try:
            result = await waiting
        except Exception as error:  # noqa: BLE001  (as in _handle)
            self._failed(what, number, kind, error)
        else:
            if what == _REQUEST:
                self._answer(number, kind, result)

    def _answer(self, number: int, kind: str, result: object) -> None:
        try:
            self._write(_ANSWER, number, "", result)
        except Exception as error:  # noqa: BLE001  (too long, or of a type that msgpack lacks)
            self._failed(_REQUEST, number, kind, error)

    def _failed(self, what: int, number: int, kind: str, error: Exception) -> None:
        if isinstance(error, ControlError | msgspec.ValidationError):
            count("limpet_control_refused_total", reason="refused")
            logger.debug("control %s refused: %s", kind, error)
            reason = str(error)
        else:
            logger.error("control handler %s failed", kind, exc_info=error)
            reason = f"{kind} failed: {type(error).__name__}"
        if what == _REQUEST:
            self._write(_REFUSAL, number, "", reason)


class ControlServer:
    """The hub's end: listens on a unix socket (mode 0600) and keeps the connections.

    Handlers are registered by kind before or after `start`; a handler tells the connections apart
    by ``connection.owner``, which is theirs to set.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handlers: dict[str, Handler] = {}
        self.connections: set[ControlConnection] = set()
        """Those that are open, whether they have said hello or not."""
        self.on_connect: list[Callable[[ControlConnection], None]] = []
        """Called with each new connection, before anything of it is read."""
        self.on_close: list[Callable[[ControlConnection], None]] = []
        """Called once with each connection that ended."""
        self._server: asyncio.AbstractServer | None = None

    def handle(self, kind: str, handler: Handler) -> None:
        """Register the handler of a kind, for messages and requests alike."""
        if kind in self.handlers:
            raise ValueError(f"{kind} has a handler already")
        self.handlers[kind] = handler

    async def start(self) -> None:
        """Listen; a socket file that an earlier hub left is replaced."""
        self.path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: ControlConnection(self.handlers, self._opened, self._closed),
                str(self.path),
                backlog=512,
            )
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening, end all connections and remove the socket file."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.close()
        for _ in range(100):
            if not self.connections:
                return
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()

    def _opened(self, connection: ControlConnection) -> None:
        self.connections.add(connection)
        for told in self.on_connect:
            told(connection)

    def _closed(self, connection: ControlConnection, _error: Exception | None) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            for told in self.on_close:
                told(connection)


class ControlClient:
    """A worker's end: connects, says hello, and connects again whenever the connection ends.

    Args:
        path: socket of the hub.
        hello: body of the first request, or what makes it anew for each connection.
    """

    def __init__(self, path: Path, hello: Hello | Callable[[], object]) -> None:
        self.path = path
        self.handlers: dict[str, Handler] = {}
        self.connection: ControlConnection | None = None
        """The connection, from the hub's welcome to its end; None in between."""
        self.welcome: dict[str, object] = {}
        """What the hub last answered to hello."""
        self._hello: Callable[[], object] = (lambda: hello) if isinstance(hello, Hello) else hello
        self._parts: list[
            tuple[
                Callable[[ControlConnection, dict[str, object]], None] | None,
                Callable[[], None] | None,
            ]
        ] = []
        self._task: asyncio.Task[None] | None = None
        self._connected: asyncio.Event = asyncio.Event()
        self._ended: asyncio.Event = asyncio.Event()
        self._welcomed = False
        self._refused = False

    def handle(self, kind: str, handler: Handler) -> None:
        """Register the handler of a kind, for messages and requests alike."""
        if kind in self.handlers:
            raise ValueError(f"{kind} has a handler already")
        self.handlers[kind] = handler

    def attach(
        self,
        on_connected: Callable[[ControlConnection, dict[str, object]], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Be told of each welcome and of each end of the connection, in the order of attaching.

        When the connection is there already, ``on_connected`` is called at once.
        """
        self._parts.append((on_connected, on_lost))
        if self.connection is not None and on_connected is not None:
            on_connected(self.connection, self.welcome)

    def start(self) -> None:
        """Begin to connect; to be called in the running loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def connected(self) -> ControlConnection:
        """Wait for the connection and return it."""
        while self.connection is None:
            await self._connected.wait()
        return self.connection

    def send(self, kind: str, body: object) -> bool:
        """Send a message without answer; False when there is no connection now."""
        if self.connection is None:
            return False
        self.connection.send(kind, body)
        return True

    async def request(self, kind: str, body: object, timeout: float) -> object:
        """Ask the hub and return its answer; ``timeout`` in seconds, waiting to connect included.

        Raises:
            ControlError: refused by the hub.
            TimeoutError: no connection or no answer in time.
            ConnectionError: the connection ended before the answer.
        """
        async with asyncio.timeout(timeout):
            connection = await self.connected()
            return await connection.request(kind, body, timeout)

    async def close(self) -> None:
        """End the connection and connect no more; what was sent is written first."""
        task, self._task = self._task, None
        if task is None:
            return
        if self.connection is not None:
            self.connection.close()
            try:
                async with asyncio.timeout(1.0):
                    await self._ended.wait()
            except TimeoutError:
                pass
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass

    # --- inside ------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause, longest = RECONNECT
        while self._task is not None:
            self._ended.clear()
            connection = ControlConnection(self.handlers, self._opened, self._closed)
            try:
                await loop.create_unix_connection(lambda c=connection: c, str(self.path))  # type: ignore[misc]
            except OSError as error:
                logger.debug("no hub at %s: %s", self.path, error)
            else:
                try:
                    await self._ended.wait()
                except asyncio.CancelledError:
                    connection.abort()
                    raise
                if self._welcomed:
                    self._welcomed = False
                    pause = RECONNECT[0]
                elif self._refused:
                    self._refused = False
                    pause = REFUSED
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _opened(self, connection: ControlConnection) -> None:
        def answered(body: object, error: Exception | None) -> None:
            if error is not None or not isinstance(body, dict):
                if not connection.closed:
                    self._refused = True
                    logger.warning("the hub refused us: %s", error or "bad welcome")
                connection.abort()
                return
            self.welcome = body
            self.connection = connection
            self._welcomed = True
            self._connected.set()
            for on_connected, _ in self._parts:
                if on_connected is not None:
                    on_connected(connection, body)

        connection.call("hello", self._hello(), answered)

    def _closed(self, connection: ControlConnection, _error: Exception | None) -> None:
        if self.connection is connection:
            self.connection = None
            self._connected.clear()
            for _, on_lost in self._parts:
                if on_lost is not None:
                    on_lost()
        self._ended.set()
