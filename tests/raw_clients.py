"""Socket.IO clients from bytes up, many to a process, that take nothing for granted.

What comes and was not to come (a second answer, an event nobody waits for, a strange status) is
noted in ``problems``, which a test asserts to be empty.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, cast

Address = tuple[str, int]
PATH: Final = "/socket.io/?EIO=4&transport="
_SEPARATOR: Final = "\x1e"
_TEXT: Final = 0x1
_CLOSE: Final = 0x8
_PING: Final = 0x9
_PONG: Final = 0xA


class EndedError(ConnectionError):
    """The connection ended, or the session did, while an answer was waited for."""


class BadAnswerError(Exception):
    """An HTTP answer that is no success."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body[:120]!r}")
        self.status = status


# --- HTTP ---------------------------------------------------------------------------------------


class HttpConnection(asyncio.Protocol):
    """A keep-alive connection, one request at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport
        self.requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.all.discard(self)
        if self in self._pool.idle:
            self._pool.idle.remove(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EndedError(f"the connection ended under a request: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        length = int(headers["content-length"])
        if len(body) < length:
            return
        self._buffer = body[length:]
        if self._answer is not None and self._answer.cancelled():
            return  # whoever asked has just left
        if self._buffer or self._answer is None or self._answer.done():
            self._pool.problems.append(f"more than the answer to a request: {data[:200]!r}")
            return
        if headers.get("connection", "").lower() == "close":
            self._transport.close()
        self._answer.set_result((int(status.split(" ")[1]), body[:length]))

    async def request(self, data: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of its answer."""
        self.requests += 1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            return await self._answer
        finally:
            self._answer = None

    @property
    def closing(self) -> bool:
        """Whether it takes no more requests."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close at once."""
        self._transport.abort()


class Pool:
    """Keep-alive connections; each request goes to a random one of those that are free.

    Args:
        address: where they connect.
        problems: where to note what must not happen.
        spare: so many stay free at least, for chance to have a choice.
    """

    def __init__(self, address: Address, problems: list[str], spare: int = 0) -> None:
        self.address = address
        self.problems = problems
        self.spare = spare
        self.all: set[HttpConnection] = set()
        self.idle: list[HttpConnection] = []

    async def request(self, method: str, target: str, body: bytes = b"") -> bytes:
        """Return the body of the answer.

        Raises:
            BadAnswerError: the status is not 200.
            EndedError: the connection ended before the answer.
            OSError: no connection was to be had.
        """
        if len(self.idle) > self.spare:
            connection = self.idle.pop(random.randrange(len(self.idle)))
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: HttpConnection(self), *self.address
            )
        head = f"{method} {target} HTTP/1.1\r\nHost: test.example\r\n"
        if method == "POST":
            head += f"Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {len(body)}\r\n"
        try:
            status, answer = await connection.request(head.encode() + b"\r\n" + body)
        except asyncio.CancelledError:
            connection.close()  # its answer is still to come
            raise
        if not connection.closing:
            self.idle.append(connection)
        if status != 200:
            raise BadAnswerError(status, answer)
        return answer

    def close(self) -> None:
        """Close all connections at once."""
        for connection in list(self.all):
            connection.close()


# --- WebSocket ----------------------------------------------------------------------------------


def frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """Return a client's frame; its mask is zero, which masks are allowed to be."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def take_frame(buffer: bytes) -> tuple[int, bytes, bytes] | None:
    """Return opcode and payload of a server's first frame, and the rest; None: not whole yet."""
    if len(buffer) < 2:
        return None
    assert buffer[0] & 0xF0 == 0x80, "a fragment, or reserved bits"
    assert not buffer[1] & 0x80, "a masked frame"
    size, start = buffer[1], 2
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(buffer[2:start], "big")
    if len(buffer) < start + size:
        return None
    return buffer[0] & 0x0F, buffer[start : start + size], buffer[start + size :]


class WebSocket(asyncio.Protocol):
    """The transport of a client, from its opening handshake."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._buffer = b""
        self._transport: asyncio.Transport  # set by connection_made
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, address: Address) -> None:
        """Connect and switch protocols."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, *address)
        self._transport.write(
            f"GET {PATH}websocket HTTP/1.1\r\nHost: test.example\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        await self._opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(EndedError(f"the handshake was not answered: {exc}"))
        self._client.end(f"transport closed: {exc}")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._opened.done():
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            status = int(head.split(b" ", 2)[1])
            if status != 101:
                self._opened.set_exception(BadAnswerError(status, head + rest))
                return
            self._buffer = rest
            self._opened.set_result(None)
        while (taken := take_frame(self._buffer)) is not None:
            opcode, payload, self._buffer = taken
            if opcode == _TEXT:
                self._client.packet(payload.decode())
            elif opcode == _PING:
                self._transport.write(frame(payload, _PONG))
            elif opcode == _CLOSE:
                self._transport.write(frame(payload, _CLOSE))
                self._client.end(f"closed: {payload!r}")
            else:
                self._client.problems.append(f"frame of opcode {opcode}")

    def send(self, packet: str) -> None:
        """Send an Engine.IO packet."""
        self._transport.write(frame(packet.encode()))

    def send_bytes(self, data: bytes) -> None:
        """Send what may be no frame at all."""
        self._transport.write(data)

    async def close(self) -> None:
        """End the connection, if there ever was one."""
        if hasattr(self, "_transport"):
            self._transport.abort()


# --- polling ------------------------------------------------------------------------------------


class Polling:
    """The transport of a client that never upgrades: a GET that waits, a POST when need be."""

    def __init__(self, client: Client, pool: Pool, *, owns_pool: bool) -> None:
        self._client = client
        self._pool = pool
        self._owns_pool = owns_pool
        self._outgoing: list[str] = []
        self._posting: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def target(self) -> str:
        """Where the session's requests go."""
        return f"{PATH}polling&sid={self._client.sid}"

    async def open(self) -> None:
        """Open a session and begin to poll."""
        self._take(await self._pool.request("GET", f"{PATH}polling"))
        self._polling = asyncio.create_task(self._guarded(self._poll))

    def send(self, packet: str) -> None:
        """Send an Engine.IO packet, with the next POST."""
        self._outgoing.append(packet)
        if self._posting is None:
            self._posting = asyncio.create_task(self._guarded(self._post))

    async def close(self) -> None:
        """Close the session, and see that the server does."""
        if self._client.reason is None and self._polling is not None:
            self._closing = True
            self.send("1")
            await asyncio.wait({self._polling}, timeout=5)
            if self._posting is not None:
                await asyncio.wait({self._posting}, timeout=5)
        for task in (self._polling, self._posting):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._owns_pool:
            self._pool.close()

    def _take(self, body: bytes) -> None:
        for packet in body.decode().split(_SEPARATOR):
            self._client.packet(packet)

    async def _poll(self) -> None:
        while self._client.reason is None and not self._closing:
            self._take(await self._pool.request("GET", self.target))

    async def _post(self) -> None:
        while self._outgoing:
            packets, self._outgoing = self._outgoing, []
            body = _SEPARATOR.join(packets).encode()
            answer = await self._pool.request("POST", self.target, body)
            if answer != b"ok":
                self._client.problems.append(f"POST answered {answer!r}")
        self._posting = None

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (OSError, BadAnswerError) as error:
            if self._closing and isinstance(error, BadAnswerError) and error.status == 400:
                return  # a poll that came after the POST that closed the session
            self._client.end(f"transport error: {error!r}")


# --- Socket.IO ----------------------------------------------------------------------------------


class Client:
    """A Socket.IO client in the main namespace.

    Args:
        address: where the cluster listens.
        transport: ``websocket`` or ``polling``.
        pool: connections of polling that are shared with others; None: its own.
        problems: where to note what must not happen; None: its own list.
    """

    def __init__(
        self,
        address: Address,
        transport: str = "websocket",
        *,
        pool: Pool | None = None,
        problems: list[str] | None = None,
    ) -> None:
        self.address = address
        self.transport_name = transport
        self.problems: list[str] = [] if problems is None else problems
        self.sid = ""
        self.id = ""
        self.on_event: Callable[[str, list[Any]], None] | None = None
        self.reason: str | None = None
        """Why it ended; None while it did not."""
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.transport: WebSocket | Polling
        if transport == "websocket":
            self.transport = WebSocket(self)
        else:
            own = Pool(address, self.problems)
            self.transport = Polling(self, pool or own, owns_pool=pool is None)
        self._connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[list[Any]]] = {}
        self._numbers = itertools.count()

    async def connect(self, timeout: float = 10.0) -> Self:
        """Open a session and connect to the main namespace.

        Raises:
            BadAnswerError: refused with a status.
            OSError: no connection, or it ended.
            TimeoutError: not in time.
        """
        try:
            async with asyncio.timeout(timeout):
                if isinstance(self.transport, WebSocket):
                    await self.transport.open(self.address)
                else:
                    await self.transport.open()
                self.transport.send("40")
                await self._connected
        except BaseException:
            await self.close()
            raise
        return self

    async def call(self, event: str, *args: object, timeout: float = 10.0) -> Any:
        """Emit an event and return the first argument of its acknowledgement.

        Raises:
            EndedError: the client was lost before.
            TimeoutError: not in time.
        """
        answer = await self.call_all(event, *args, timeout=timeout)
        return answer[0]

    async def call_all(self, event: str, *args: object, timeout: float = 10.0) -> list[Any]:
        """Emit an event and return all arguments of its acknowledgement; raises as `call`."""
        if self.reason is not None:
            raise EndedError(self.reason)
        number = next(self._numbers)
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        self.transport.send(f"42{number}{json.dumps([event, *args])}")
        async with asyncio.timeout(timeout):
            return await future

    def emit(self, event: str, *args: object) -> None:
        """Emit an event."""
        if self.reason is None:
            self.transport.send("42" + json.dumps([event, *args]))

    async def close(self) -> None:
        """Leave; no problem then, and no loss."""
        self.on_event = _ignore
        await self.transport.close()
        self.end("client closed")
        if not self._connected.cancelled():
            self._connected.exception()  # seen

    # --- called by the transport ----------------------------------------------------------------

    def packet(self, packet: str) -> None:
        """Take one Engine.IO packet."""
        kind = packet[:2] if packet[:1] == "4" else packet[:1]
        if kind == "42":
            event, *args = json.loads(packet[2:])
            if self.on_event is None:
                self.problems.append(f"{self.id}: event {packet[:120]}")
            else:
                self.on_event(event, args)
        elif kind == "43":
            digits = packet[2 : packet.index("[")]
            future = self._answers.pop(int(digits), None)
            if future is None:
                self.problems.append(f"{self.id}: an acknowledgement nobody waits for: {packet}")
            elif not future.done():
                future.set_result(json.loads(packet[2 + len(digits) :]))
        elif kind == "2":
            self.transport.send("3")
        elif kind == "0" and not self.sid:
            self.sid = json.loads(packet[1:])["sid"]
        elif kind == "40" and not self.id and not self._connected.done():
            self.id = json.loads(packet[2:])["sid"]
            self._connected.set_result(None)
        elif kind in {"1", "41"}:
            self.end(f"the server closed: {packet}")
        elif packet != "6":
            self.problems.append(f"{self.id}: unexpected packet {packet[:120]!r}")

    def end(self, reason: str) -> None:
        """Note that the session is over; whoever waits is told."""
        if self.reason is not None:
            return
        self.reason = reason
        self.ended.set_result(reason)
        if not self._connected.done():
            self._connected.set_exception(EndedError(reason))
        for future in self._answers.values():
            if not future.done():
                future.set_exception(EndedError(reason))
        self._answers.clear()


def _ignore(_event: str, _args: list[Any]) -> None:
    pass


async def eventually(
    condition: Callable[[], object], timeout: float, what: Callable[[], str] | str = ""
) -> float:
    """Wait until a condition holds and return how long that took; fail with ``what`` if never."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            text = what if isinstance(what, str) else what()
            raise AssertionError(text or f"not true within {timeout:g} s")
        await asyncio.sleep(0.01)
    return time.monotonic() - began
