"""The generator's event loop: epoll, timers and non-blocking connections."""

from __future__ import annotations

import errno
import heapq
import itertools
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

Address = tuple[str, int] | str
"""Host and port, or the path of a unix socket."""

_ERROR: Final = select.EPOLLERR | select.EPOLLHUP
_SOURCES: Final = tuple(f"127.0.0.{i}" for i in range(2, 18))
_now = time.monotonic


class Loop:
    """Dispatches readiness to handlers and due timers to callbacks; not thread-safe.

    Scenarios read from top to bottom and call `run_until` where they wait.
    """

    __slots__ = ("_count", "_epoll", "_handlers", "_timers", "read_size")

    def __init__(self, read_size: int = 16384) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.read_size = read_size
        """Bytes asked for at each receive."""

    def close(self) -> None:
        """Let go of the epoll descriptor."""
        self._epoll.close()

    def watch(self, fd: int, handler: Callable[[int], None], mask: int) -> None:
        """Call the handler with the events whenever fd is ready (level-triggered)."""
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Watch fd for other events."""
        self._epoll.modify(fd, mask)

    def unwatch(self, fd: int) -> None:
        """Forget fd; before it is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call back once at that time of `time.monotonic`."""
        heapq.heappush(self._timers, (when, next(self._count), callback))

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back once after so many seconds."""
        self.call_at(_now() + delay, callback)

    def run_until(self, done: Callable[[], bool], timeout: float) -> bool:
        """Run until `done` says so (asked after each batch of events); False after the timeout."""
        deadline = _now() + timeout
        while not done():
            now = _now()
            if now >= deadline:
                return False
            self._turn(deadline - now)
        return True

    def run_for(self, seconds: float) -> None:
        """Run for so many seconds."""
        deadline = _now() + seconds
        while (now := _now()) < deadline:
            self._turn(deadline - now)

    def _turn(self, longest: float) -> None:
        timers = self._timers
        if timers:
            longest = min(longest, max(0.0, timers[0][0] - _now()))
        handlers = self._handlers
        for fd, events in self._epoll.poll(longest, 512):
            handler = handlers.get(fd)
            if handler is not None:  # closed by an earlier handler of this batch
                handler(events)
        if timers:
            now = _now()
            while timers and timers[0][0] <= now:
                heapq.heappop(timers)[2]()


class Wire:
    """A non-blocking stream connection that buffers what the kernel does not take."""

    __slots__ = (
        "_connecting",
        "_loop",
        "_sock",
        "_stamped",
        "_unsent",
        "arrived",
        "closed",
        "fd",
        "on_data",
        "on_end",
    )

    def __init__(
        self,
        loop: Loop,
        address: Address,
        on_data: Callable[[bytes], None],
        on_end: Callable[[], None],
        *,
        first: bytes = b"",
        source: int = -1,
    ) -> None:
        self._loop = loop
        self.on_data = on_data
        """Gets every chunk; may be replaced at any time."""
        self.on_end = on_end
        """Called once when the other side ends or the connection fails, not after `close`."""
        self._unsent = first
        self._connecting = True
        self._stamped = False
        self.arrived = 0.0
        """When the kernel took the last bytes in, seconds since 1970; see `stamp_arrivals`."""
        self.closed = False
        if isinstance(address, str):
            self._sock = socket.socket(socket.AF_UNIX)
        else:
            self._sock = socket.socket()
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source >= 0:
                # Ports of one address to one server end at 28,000; the loopback net has more.
                self._sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                self._sock.bind((_SOURCES[source % len(_SOURCES)], 0))
        self._sock.setblocking(False)
        self.fd = self._sock.fileno()
        result = self._sock.connect_ex(address)
        if result not in {0, errno.EINPROGRESS}:
            # Told from the loop, never from within the constructor.
            loop.call_later(0.0, self._end)
            return
        loop.watch(self.fd, self._ready, select.EPOLLIN | select.EPOLLOUT)

    def send(self, data: bytes) -> None:
        """Send or queue the bytes; does nothing on a closed connection."""
        if self._unsent or self._connecting:
            self._unsent += data
            return
        if self.closed:
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._loop.call_later(0.0, self._end)
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)

    def stamp_arrivals(self) -> None:
        """Have the kernel tell when bytes come: how late we look is not the server's doing."""
        self._sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        self._stamped = True

    def _receive(self) -> bytes:
        if not self._stamped:
            return self._sock.recv(self._loop.read_size)
        data, ancillary, _flags, _address = self._sock.recvmsg(self._loop.read_size, 64)
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == _TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC(value)
                self.arrived = seconds + nanoseconds / 1e9
        return data

    def close(self, *, reset: bool = False) -> None:
        """Close; with reset at once and without a TIME_WAIT left behind."""
        if self.closed:
            return
        self.closed = True
        if self.fd in self._loop._handlers:  # noqa: SLF001 - one module, two halves
            self._loop.unwatch(self.fd)
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._sock.close()

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self.on_end()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._writable()
        if events & ~select.EPOLLOUT and not self.closed:
            try:
                data = self._receive()
            except BlockingIOError:
                return
            except OSError:
                self._end()
                return
            if data:
                self.on_data(data)
            else:
                self._end()

    def _writable(self) -> None:
        if self._connecting:
            if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end()
                return
            self._connecting = False
        unsent, self._unsent = self._unsent, b""
        self._loop.modify(self.fd, select.EPOLLIN)
        if unsent:
            self.send(unsent)


_TIMESTAMPNS: Final = 35
"""SO_TIMESTAMPNS, which Python 3.11 does not name."""
_TIMESPEC: Final = struct.Struct("qq").unpack
_BIND_ADDRESS_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT, which Python 3.11 does not name."""
