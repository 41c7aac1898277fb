"""The generator's Socket.IO clients: over WebSocket, over polling, and by upgrade."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import orjson
from scripts.benchmark.frames import (
    CLOSE,
    ENGINE_PONG,
    PING,
    PONG,
    TEXT,
    FrameReader,
    ResponseReader,
    frame,
    polling_get,
    polling_post_head,
    upgrade_request,
)
from scripts.benchmark.loop import Address, Loop, Wire

CONNECT_FRAME = frame(b"40")
_PROBE = frame(b"2probe")
_UPGRADED = frame(b"5")
SEPARATOR = b"\x1e"


class Target(NamedTuple):
    """Where the server is and what must be known to be fair to it."""

    host: str
    port: int
    path: str = "/socket.io/"
    pause: float = 0.0
    """Seconds between the polling handshake and the next request, for servers that need it."""

    @property
    def address(self) -> Address:
        """Where to connect."""
        return self.host, self.port


def _nothing() -> None:
    pass


class WebSocketClient:
    """A Socket.IO connection over WebSocket from its first byte.

    `on_ready` is called when CONNECT is answered, `on_lost` when the connection ends on the
    other side. A scenario may put its own receiver into `wire.on_data`; pings are its own then,
    or it passes what it does not know to `receive`.
    """

    __slots__ = (
        "_ack",
        "_answers",
        "_head",
        "on_lost",
        "on_message",
        "on_ready",
        "pings",
        "reader",
        "ready",
        "tag",
        "wire",
    )

    def __init__(
        self,
        loop: Loop,
        target: Target,
        on_ready: Callable[[], None] = _nothing,
        on_lost: Callable[[], None] = _nothing,
        *,
        source: int = -1,
        sid: str = "",
    ) -> None:
        self.on_ready = on_ready
        self.on_lost = on_lost
        self.on_message: Callable[[int, bytes], None] | None = None
        """Gets (opcode, payload) of what is neither a ping nor an answer to `call`."""
        self.reader = FrameReader()
        self.ready = False
        self.pings = 0
        self.tag = 0
        """Whatever the scenario wants to remember."""
        self._ack = 0
        self._answers: dict[bytes, Callable[[list[object]], None]] = {}
        self._head = b""
        request = upgrade_request(target.host, target.port, target.path, sid)
        self.wire = Wire(
            loop, target.address, self._handshake, self._lost, first=request, source=source
        )

    def send(self, text: bytes) -> None:
        """Send one Engine.IO text message."""
        self.wire.send(frame(text))

    def call(self, event: str, *args: object, answer: Callable[[list[object]], None]) -> None:
        """Emit an event and have the arguments of its acknowledgement."""
        number = b"%d" % (90_000_000 + self._ack)
        self._ack += 1
        self._answers[number] = answer
        self.send(b"42" + number + orjson.dumps([event, *args]))

    def receive(self, data: bytes) -> None:
        """Take bytes of the stream; the receiver of a connection that has none of its own."""
        for opcode, payload in self.reader.feed(data):
            if opcode == TEXT and payload == b"2":
                self.pings += 1
                self.wire.send(ENGINE_PONG)
            elif opcode == TEXT and self._answers and payload[:2] == b"43":
                self._answered(opcode, payload)
            elif opcode == PING:
                self.wire.send(frame(payload, PONG))
            elif opcode == CLOSE:
                self.wire.close()
                self._lost()
            elif self.on_message is not None:
                self.on_message(opcode, payload)

    def close(self, *, reset: bool = False) -> None:
        """Close without a word."""
        self.ready = False
        self.wire.close(reset=reset)

    def _answered(self, opcode: int, payload: bytes) -> None:
        number, _, rest = payload[2:].partition(b"[")
        answer = self._answers.pop(number, None)
        if answer is not None:
            answer(orjson.loads(b"[" + rest))
        elif self.on_message is not None:
            self.on_message(opcode, payload)

    def _lost(self) -> None:
        self.ready = False
        self.on_lost()

    def _handshake(self, data: bytes) -> None:
        self._head += data
        top, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            return
        self._head = b""
        if not top.startswith(b"HTTP/1.1 101"):
            self.wire.close()
            self._lost()
            return
        self.wire.on_data = self._opening
        self._switched()
        if rest:
            self.wire.on_data(rest)

    def _switched(self) -> None:
        """The WebSocket is open; the server speaks first on a new session."""

    def _opening(self, data: bytes) -> None:
        for _opcode, payload in self.reader.feed(data):
            if payload[:1] == b"0":
                self.wire.send(CONNECT_FRAME)
            elif payload[:2] == b"40":
                self.wire.on_data = self.receive
                self.ready = True
                self.on_ready()
            elif payload == b"2":
                self.wire.send(ENGINE_PONG)


class HttpChannel:
    """A keep-alive HTTP/1.1 connection with one request under way; connects again when closed."""

    __slots__ = ("_address", "_answer", "_failed", "_loop", "_reader", "_wire", "busy")

    def __init__(self, loop: Loop, address: Address, failed: Callable[[str], None]) -> None:
        self._loop = loop
        self._address = address
        self._failed = failed
        self._reader = ResponseReader()
        self._wire: Wire | None = None
        self._answer: Callable[[int, bytes], None] | None = None
        self.busy = False

    def request(self, data: bytes, answer: Callable[[int, bytes], None]) -> None:
        """Send a request; `answer` gets status and body, `failed` is called if none comes."""
        self.busy = True
        self._answer = answer
        if self._wire is None or self._wire.closed:
            self._reader = ResponseReader()
            self._wire = Wire(self._loop, self._address, self._data, self._ended, first=data)
        else:
            self._wire.send(data)

    def close(self) -> None:
        """Close without a word."""
        self._answer = None
        if self._wire is not None:
            self._wire.close()

    def _data(self, data: bytes) -> None:
        try:
            result = self._reader.feed(data)
        except ValueError as error:
            self.close()
            self._failed(str(error))
            return
        if result is None:
            return
        if self._reader.closes and self._wire is not None:
            self._wire.close()
        answer, self._answer = self._answer, None
        self.busy = False
        if answer is None:
            self._failed("an answer without a request")
        else:
            answer(*result)

    def _ended(self) -> None:
        # Between requests the server may close; the next request connects again.
        if self._answer is not None:
            self._answer = None
            self._failed("the connection ended under a request")


class PollingClient:
    """A Socket.IO connection over polling: one channel for polls, one for posts.

    `on_packet` gets each Engine.IO packet but pings; `on_posted` is called when a POST is done.
    Pure polling: the next poll starts as soon as one is answered, until `hold` is set.
    """

    __slots__ = (
        "_loop",
        "_outgoing",
        "_poll_request",
        "failed",
        "hold",
        "on_packet",
        "on_posted",
        "on_ready",
        "pick",
        "polling",
        "posting",
        "ready",
        "sid",
        "tag",
        "target",
    )

    def __init__(
        self,
        loop: Loop,
        target: Target,
        pick: Callable[[], HttpChannel],
        failed: Callable[[str], None],
        on_ready: Callable[[], None] = _nothing,
    ) -> None:
        self._loop = loop
        self.target = target
        self.pick = pick
        """Gives the channel of the next request."""
        self.failed = failed
        self.on_ready = on_ready
        self.on_packet: Callable[[bytes], None] | None = None
        self.on_posted = _nothing
        self.hold = False
        """No new poll is started while this is set."""
        self.polling = self.posting = self.ready = False
        self.sid = ""
        self.tag = 0
        self._poll_request = b""
        self._outgoing: list[bytes] = []
        pick().request(polling_get(target.host, target.port, target.path), self._opened)

    def post(self, packet: bytes) -> None:
        """Send a packet; while another POST is under way it waits for that."""
        if self.posting:
            self._outgoing.append(packet)
            return
        target = self.target
        self.posting = True
        head = polling_post_head(target.host, target.port, target.path, self.sid, len(packet))
        self.pick().request(head + packet, self._posted)

    def poll(self) -> None:
        """Start a poll if none is under way."""
        if not self.polling:
            self.polling = True
            self.pick().request(self._poll_request, self._polled)

    def _opened(self, status: int, body: bytes) -> None:
        if status != 200 or body[:1] != b"0":
            self.failed(f"handshake answered {status} {body[:80]!r}")
            return
        self.sid = orjson.loads(body[1:])["sid"]
        target = self.target
        self._poll_request = polling_get(target.host, target.port, target.path, self.sid)
        if target.pause:
            self._loop.call_later(target.pause, self._connect)
        else:
            self._connect()

    def _connect(self) -> None:
        self.post(b"40")
        self.poll()

    def _posted(self, status: int, body: bytes) -> None:
        self.posting = False
        if status != 200 or body not in {b"ok", b"OK"}:
            self.failed(f"POST answered {status} {body[:80]!r}")
            return
        if self._outgoing:
            packets, self._outgoing = self._outgoing, []
            self.post(SEPARATOR.join(packets))
        else:
            self.on_posted()

    def _polled(self, status: int, body: bytes) -> None:
        self.polling = False
        if status != 200:
            self.failed(f"GET answered {status} {body[:80]!r}")
            return
        if not self.hold:
            self.poll()
        for packet in body.split(SEPARATOR):
            if packet == b"2":
                self.post(b"3")
            elif not self.ready and packet[:2] == b"40":
                self.ready = True
                self.on_ready()
            elif self.on_packet is not None:
                self.on_packet(packet)


class UpgradeClient:
    """A session that starts by polling and moves to WebSocket, as stock clients do it.

    Handshake, CONNECT posted while a poll waits, probe on a new connection, the waiting poll
    answered with NOOP, upgrade packet; `on_done` is called when an event was acknowledged over
    the WebSocket. A packet that is still told by the last poll is not lost.
    """

    __slots__ = ("_channels", "_failed", "_loop", "_on_done", "_probed", "polling", "socket")

    def __init__(
        self,
        loop: Loop,
        target: Target,
        on_done: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._on_done = on_done
        self._failed = failed
        self._probed = False
        self._channels = (
            HttpChannel(loop, target.address, failed),
            HttpChannel(loop, target.address, failed),
        )
        self.socket: WebSocketClient | None = None
        self.polling = PollingClient(loop, target, self._pick, failed, self._probe)
        self.polling.on_packet = self._packet

    def close(self) -> None:
        """Close all connections without a word."""
        for channel in self._channels:
            channel.close()
        if self.socket is not None:
            self.socket.close()

    def _pick(self) -> HttpChannel:
        first, second = self._channels
        return second if first.busy else first

    def _probe(self) -> None:
        self.socket = _Probing(
            self._loop, self.polling.target, self._pong, self._lost, sid=self.polling.sid
        )

    def _pong(self) -> None:
        # From now on no new poll; the one that waits ends with NOOP.
        self._probed = self.polling.hold = True
        if not self.polling.polling:
            self._upgrade()

    def _packet(self, packet: bytes) -> None:
        if packet != b"6":
            self._failed(f"polled {packet[:80]!r}")
        elif self._probed:
            self._upgrade()

    def _upgrade(self) -> None:
        if self.socket is not None:
            self.socket.wire.send(_UPGRADED)
            self.socket.call("echo", "upgraded", answer=self._acknowledged)

    def _acknowledged(self, args: list[object]) -> None:
        if args == ["upgraded"]:
            self._on_done()
        else:
            self._failed(f"acknowledged with {args!r}")

    def _lost(self) -> None:
        self._failed("the WebSocket of the upgrade ended")


class _Probing(WebSocketClient):
    """The WebSocket of an upgrade: ready when the probe is answered."""

    __slots__ = ()

    def _switched(self) -> None:
        self.wire.send(_PROBE)

    def _opening(self, data: bytes) -> None:
        for _opcode, payload in self.reader.feed(data):
            if payload == b"3probe":
                self.wire.on_data = self.receive
                self.ready = True
                self.on_ready()
