"""The worker's end of the channel to the balancer: takes connections over and sends others back."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from limpet_adapters.counters import count
from limpet_adapters.identity import WorkerAddress, address_of
from limpet_balancer.answers import unavailable
from limpet_balancer.handover import (
    ASK_STATS_MESSAGE,
    BYE_MESSAGE,
    CONNECTION_LIMIT,
    DRAINING_MESSAGE,
    READY_MESSAGE,
    UNDRAIN_MESSAGE,
    Acknowledge,
    Address,
    Assembler,
    Connection,
    HandoverError,
    Ledger,
    Message,
    Parcel,
    Piece,
    Register,
    Reject,
    Stats,
    encode_acknowledge,
    encode_load,
    encode_register,
    encode_reject,
)
from limpet_balancer.transfer import MESSAGES_PER_TURN, EndOfLink, Link, Sent, connect

logger = logging.getLogger("limpet.channel")

RECONNECT_FIRST: Final = 0.05
RECONNECT_LONGEST: Final = 0.25
REPORT_INTERVAL: Final = 1.0
REPORT_SOON: Final = 0.05
"""Seconds from the end of a session until the balancer knows: it counts on by itself what it hands
over, but only we know who left. All that end in that time are one report."""
MIGRATION_PATIENCE: Final = 5.0
"""Seconds that a connection on its way back waits for a balancer."""
MIGRATIONS_LIMIT: Final = 1024
_RETRY: Final = 0.02


class _Migration(Parcel):
    """A connection on its way back to the balancer; our copy is kept until it is acknowledged."""

    __slots__ = ("until",)

    until: float
    """When it is given up, unless the balancer has it by then."""


class WorkerChannel:
    """A worker's connection to the balancer of its host, made anew for ever when it ends.

    Args:
        path: the balancer's socket in the run directory.
        address: what this worker is routed by.
        worker_id: random id of this life of the worker.
        adopt: called with each connection that becomes ours: a non-blocking socket, the bytes
            read from it, the client's address, how often it has been sent back for the request
            in those bytes, and whether we must answer it even if its session is unknown. The
            socket belongs to the callee.
        load: returns the number of sessions; those count too that will be sessions in a moment,
            because the balancer no longer counts what we have acknowledged.
        loop: the event loop, by default the running one.
        limit: sessions after which this worker takes no new ones; 0 for no limit.
    """

    __slots__ = (
        "_address",
        "_adopt",
        "_assembler",
        "_closed",
        "_connected_at",
        "_delay",
        "_draining",
        "_full",
        "_held",
        "_leaving",
        "_ledger",
        "_limit",
        "_link",
        "_load",
        "_loop",
        "_lost_at",
        "_path",
        "_ready",
        "_reconnect_handle",
        "_rejected",
        "_report_handle",
        "_retry_handle",
        "_soon_handle",
        "_starved",
        "_taken",
        "_unsent",
        "_worker_id",
        "adopted",
        "met",
        "migrated",
    )

    def __init__(  # noqa: PLR0917 - the order in which a worker knows them
        self,
        path: Path,
        address: WorkerAddress,
        worker_id: int,
        adopt: Callable[[socket.socket, bytes, Address, int, bool], None],
        load: Callable[[], int],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        limit: int = 0,
    ) -> None:
        self._path = path
        self._address = address
        self._worker_id = worker_id
        self._adopt = adopt
        self._load = load
        self._loop = loop or asyncio.get_running_loop()
        self._limit = limit
        self._link: Link | None = None
        """None while there is no balancer."""
        self._assembler = Assembler()
        self._taken: list[Parcel] = []
        """Received, but the acknowledgement is not on its way: not ours yet."""
        self._rejected: list[int] = []
        """Numbers of connections that came without a descriptor."""
        self._held = False
        """The acknowledgement could not be sent: nothing more is read until it is."""
        self._ledger: Ledger[_Migration] = Ledger()
        self._unsent: deque[_Migration] = deque()
        self._ready = False
        self._draining = False
        self._leaving = False
        """BYE has been said."""
        self._full = False
        self._starved = False
        """Out of descriptors since the last report."""
        self._closed = True
        self._lost_at = 0.0
        self._connected_at = 0.0
        self._delay = RECONNECT_FIRST
        self._reconnect_handle: asyncio.TimerHandle | None = None
        self._report_handle: asyncio.TimerHandle | None = None
        self._retry_handle: asyncio.TimerHandle | None = None
        self._soon_handle: asyncio.TimerHandle | None = None
        """Of a report ahead of its time; None: none is due."""
        self.met = asyncio.Event()
        """Set once there is a balancer; it stays set when that ends."""
        self.adopted = 0
        """Connections taken over so far."""
        self.migrated = 0
        """Connections given back so far."""

    # --- life ---------------------------------------------------------------------------

    def start(self, *, ready: bool = True) -> None:
        """Register with the balancer; unless ``ready``, no new sessions come until `set_ready`."""
        self._ready = self._ready or ready
        self._closed = False
        self._lost_at = time.monotonic()
        self._connect()
        self._report_handle = self._loop.call_later(REPORT_INTERVAL, self._report)

    def set_ready(self) -> None:
        """Take new sessions from now on."""
        self._ready = True
        self._tell(READY_MESSAGE)

    def set_draining(self) -> None:
        """Take no new sessions any more; what belongs to our sessions still comes."""
        self._draining = True
        self._tell(DRAINING_MESSAGE)

    def undrain(self) -> None:
        """Take new sessions again."""
        self._draining = False
        self._tell(UNDRAIN_MESSAGE)

    def set_full(self, full: bool) -> None:
        """Refuse new sessions for another reason than their number (memory), or no longer."""
        if full is not self._full:
            self._full = full
            self._tell(encode_load(self._load(), full))

    def session_ended(self) -> None:
        """Have the balancer know soon that there is room: who left a worker often comes right back,
        and thousands may."""
        if self._soon_handle is None and self._link is not None:
            self._soon_handle = self._loop.call_later(REPORT_SOON, self._report_now)

    def leave(self) -> None:
        """Say BYE: nothing comes any more but what is on its way; connections can still go back."""
        if not self._leaving:
            self._leaving = True
            self._tell(BYE_MESSAGE)

    def close(self) -> None:
        """Leave with BYE. What is not acknowledged yet is placed anew by the balancer."""
        if self._closed:
            return
        self.leave()
        self._closed = True
        for handle in (
            self._reconnect_handle,
            self._report_handle,
            self._retry_handle,
            self._soon_handle,
        ):
            if handle is not None:
                handle.cancel()
        self._reconnect_handle = self._report_handle = None
        self._retry_handle = self._soon_handle = None
        self._drop_link()
        for migration in self._ledger.rest():
            migration.sock.close()  # in the balancer's queue, which outlives our end
        while self._unsent:
            self._give_up(self._unsent.popleft())

    @property
    def connected(self) -> bool:
        """Whether there is a balancer."""
        return self._link is not None

    @property
    def room(self) -> int:
        """How many connections can be given back now."""
        return MIGRATIONS_LIMIT - len(self._unsent) - self._ledger.count

    @property
    def unsent(self) -> int:
        """Connections on their way back that are not even in the balancer's queue."""
        return len(self._unsent)

    # --- migration ----------------------------------------------------------------------

    def owns(self, sid: str) -> bool:
        """Say whether a session id names this life of this worker."""
        return address_of(sid) == self._address

    def migrate(self, sock: socket.socket, data: bytes, address: Address, hops: int) -> bool:
        """Give a connection back with the bytes read from it, to be placed like a new one.

        Args:
            sock: ours from now on if the answer is True.
            data: begins with the head of the request that is not for us, complete; nothing, when
                there is no request and the next one is for the balancer to place.
            address: the client's.
            hops: how often this request has been given back before: what `adopt` was told for
                the first request of a connection, 0 for every later one.

        Returns:
            False when it cannot be given back: no balancer for seconds, or too many bytes.
        """
        now = time.monotonic()
        if (
            self._closed
            or len(data) > CONNECTION_LIMIT
            or len(self._unsent) + self._ledger.count >= MIGRATIONS_LIMIT
            or (self._link is None and now - self._lost_at >= MIGRATION_PATIENCE)
        ):
            count("limpet_migrations_refused_total")
            return False
        migration = _Migration(sock, int(sock.family), address, data, hops=min(hops, 255))
        migration.until = now + MIGRATION_PATIENCE
        self._unsent.append(migration)
        self._send_migrations()
        return True

    def _send_migrations(self) -> None:
        link = self._link
        unsent = self._unsent
        while unsent and link is not None:
            migration = unsent[0]
            sent = link.send_connection(self._ledger.next_number, migration)
            if sent is not Sent.YES:
                break
            unsent.popleft()
            self._ledger.add(migration)
            self.migrated += 1
        if unsent:
            self._arm()

    @staticmethod
    def _give_up(migration: _Migration) -> None:
        """Answer 503: between two responses the client can take it. But not what it did not ask."""
        count("limpet_migrations_lost_total")
        if migration.data:
            try:
                answer = unavailable("no balancer")
                migration.sock.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass
        migration.sock.close()

    # --- the link -----------------------------------------------------------------------

    def _connect(self) -> None:
        self._reconnect_handle = None
        try:
            link = Link(connect(self._path))
        except OSError as error:
            logger.debug("no balancer at %s: %s", self._path, error)
            self._reconnect_handle = self._loop.call_later(self._delay, self._connect)
            self._delay = min(self._delay * 2, RECONNECT_LONGEST)
            return
        self._connected_at = time.monotonic()
        self._link = link
        self.met.set()
        self._assembler = Assembler()
        self._loop.add_reader(link.fd, self._readable)
        register = Register(self._address, self._worker_id, os.getpid(), self._limit)
        link.send(encode_register(register))
        link.send(encode_load(self._load(), self._full))
        if self._ready:
            link.send(READY_MESSAGE)
        if self._draining:
            link.send(DRAINING_MESSAGE)
        if self._leaving:
            link.send(BYE_MESSAGE)
        logger.info("registered with the balancer")
        self._send_migrations()

    def _tell(self, message: bytes) -> None:
        if self._link is not None and self._link.send(message) is Sent.LATER:
            self._arm()

    def _report(self) -> None:
        self._report_handle = self._loop.call_later(REPORT_INTERVAL, self._report)
        self._report_now()

    def _report_now(self) -> None:
        if self._soon_handle is not None:
            self._soon_handle.cancel()
            self._soon_handle = None
        link = self._link
        if link is not None and not link.outbox:
            link.send(encode_load(self._load(), self._full or self._starved))
            self._starved = False

    def _readable(self) -> None:
        """Read a batch, acknowledge it, then adopt it."""
        link = self._link
        if link is None:
            return
        ended = False
        left = MESSAGES_PER_TURN
        try:
            while left > 0 or link.reset:
                left -= 1
                received = link.receive()
                if received is None:
                    break
                self._received(*received)
        except EndOfLink:
            ended = True
        except HandoverError as error:
            ended = True
            count("limpet_channel_errors_total")
            logger.warning("channel to the balancer closed: %s", error)
        if self._taken or self._rejected:
            self._confirm()
        if ended:
            self._lost()

    def _received(self, message: Message, fd: int) -> None:
        if isinstance(message, Connection):
            try:
                data = self._assembler.connection(message)
            except HandoverError:
                if fd >= 0:
                    os.close(fd)
                raise
            if fd < 0:
                # The kernel had no room in our table (EMFILE); the balancer still has its copy.
                self._rejected.append(message.number)
                self._starved = True
                count("limpet_channel_rejected_total")
                return
            sock = socket.socket(message.family, socket.SOCK_STREAM, 0, fileno=fd)
            sock.setblocking(False)
            hops, final = message.hops, message.final
            taken = Parcel(sock, message.family, message.address, data, hops=hops, final=final)
            self._taken.append(taken)
            return
        if fd >= 0:
            os.close(fd)
            raise HandoverError(f"a descriptor with {type(message).__name__}")
        if isinstance(message, Piece):
            self._assembler.piece(message)
        elif isinstance(message, Acknowledge):
            for migration in self._ledger.acknowledge(message.upto):
                migration.sock.close()
        elif isinstance(message, Reject):
            migration = self._ledger.reject(message.number)
            migration.until = time.monotonic() + MIGRATION_PATIENCE
            self._unsent.append(migration)
            self._arm()
        else:
            raise HandoverError(f"a balancer does not send {type(message).__name__}")

    def _confirm(self) -> None:
        """Acknowledge what has been read, and adopt it once that is on its way.

        When the balancer is gone its copies are gone too, so what it sent is ours: a living one
        never closes a channel before its worker does.
        """
        link = self._link
        if link is not None:
            for number in self._rejected:
                link.send(encode_reject(number))
            self._rejected.clear()
            if link.send_now(encode_acknowledge(self._assembler.received)) is Sent.LATER:
                self._held = True
                self._loop.remove_reader(link.fd)
                self._arm()
                return
            self._held = False
        taken, self._taken = self._taken, []
        self.adopted += len(taken)
        for each in taken:
            try:
                self._adopt(each.sock, each.data, each.address, each.hops, each.final)
            except Exception:
                logger.exception("a connection could not be adopted")
                each.sock.close()

    def _lost(self) -> None:
        """The balancer has gone: register with the next, and send it what was not taken over."""
        logger.info("the balancer has gone")
        self._drop_link()
        now = self._lost_at = time.monotonic()
        if now - self._connected_at >= RECONNECT_LONGEST:
            self._delay = RECONNECT_FIRST
        else:  # it turned us away: no storm of registrations
            self._delay = min(self._delay * 2, RECONNECT_LONGEST)
        rest = self._ledger.rest()
        self._ledger = Ledger()  # the next channel counts from 1
        for migration in rest:
            migration.until = now + MIGRATION_PATIENCE
        self._unsent.extendleft(reversed(rest))
        if self._unsent:
            self._arm()
        self._reconnect_handle = self._loop.call_later(self._delay, self._connect)

    def _drop_link(self) -> None:
        if self._link is not None:
            self._loop.remove_reader(self._link.fd)
            self._link.close()
            self._link = None
        for each in self._taken:
            each.sock.close()
        self._taken.clear()
        self._rejected.clear()
        self._held = False

    # --- trying again -------------------------------------------------------------------

    def _arm(self) -> None:
        if self._retry_handle is None and not self._closed:
            self._retry_handle = self._loop.call_later(_RETRY, self._retry)

    def _read_again(self) -> None:
        if not self._held and self._link is not None:
            self._loop.add_reader(self._link.fd, self._readable)

    def _retry(self) -> None:
        self._retry_handle = None
        if self._held:
            self._confirm()
            self._read_again()
        if self._link is not None and self._link.flush() is Sent.LATER:
            self._arm()
        self._send_migrations()
        now = time.monotonic()
        kept = deque(m for m in self._unsent if now < m.until)
        if len(kept) != len(self._unsent):
            for migration in self._unsent:
                if now >= migration.until:
                    self._give_up(migration)
            self._unsent = kept


async def ask_stats(path: Path, timeout: float = 2.0) -> dict[str, object]:
    """Return the figures of the balancer at a path (see `Balancer.stats`).

    Args:
        path: the balancer's socket in the run directory.
        timeout: seconds to wait.

    Raises:
        OSError: there is no balancer.
        TimeoutError: it does not answer.
        HandoverError: it answers something else.
    """
    loop = asyncio.get_running_loop()
    link = Link(connect(path))
    readable = asyncio.Event()
    loop.add_reader(link.fd, readable.set)
    try:
        link.send(ASK_STATS_MESSAGE)
        async with asyncio.timeout(timeout):
            await readable.wait()
        received = link.receive()
    except EndOfLink:
        raise ConnectionResetError(f"the balancer at {path} has gone") from None
    finally:
        loop.remove_reader(link.fd)
        link.close()
    if received is None or not isinstance(received[0], Stats):
        raise HandoverError("the balancer did not send its figures")
    return received[0].figures
