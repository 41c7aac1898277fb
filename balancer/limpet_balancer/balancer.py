"""The balancer: accepts, reads request heads, and hands connections over to workers."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from limpet_adapters.counters import count
from limpet_adapters.identity import address_of
from limpet_balancer.answers import (
    BAD_REQUEST,
    HEAD_TIMEOUT,
    HEAD_TOO_LARGE,
    Closing,
    response,
    unavailable,
)
from limpet_balancer.config import HEAD_LIMIT, BalancerConfig
from limpet_balancer.figures import Now, Totals
from limpet_balancer.handover import (
    Acknowledge,
    AskStats,
    Assembler,
    Bye,
    Connection,
    Draining,
    HandoverError,
    Load,
    Message,
    Piece,
    Ready,
    Register,
    Reject,
    Undrain,
    encode_acknowledge,
    encode_reject,
    encode_stats,
)
from limpet_balancer.head import HEAD_END, BadRequestLine, Place, Request, RequestReader
from limpet_balancer.heads import Failed, WaitingHeads, judge
from limpet_balancer.listening import Listener, backlog_of, describe
from limpet_balancer.placing import (
    HOPS_LIMIT,
    Arrival,
    Kind,
    Placing,
    Refusal,
    Worker,
)
from limpet_balancer.slots import HeldSlots
from limpet_balancer.transfer import (
    MESSAGES_PER_TURN,
    SEND_BUFFER,
    EndOfLink,
    Link,
    Sent,
    is_ours,
    meeting_point,
    peer_credentials,
    take_down,
)

logger = logging.getLogger("limpet.balancer")

ACCEPTS_PER_TURN: Final = 64
"""Connections accepted before channels get their turn."""
_SPACE: Final = 32
_TICK: Final = 0.025
"""Seconds between looks at what waits; there is no timer while nothing does."""
_LAST_ANSWERS: Final = 0.1
"""Seconds that clients get at the end to read an answer."""
_EMFILE_PAUSE: Final = 0.1
_NO_WORKER_YET: Final = "no worker yet"
_WORKERS_COME: Final = 1.0
"""Seconds that a balancer waits for the workers of an earlier one before it accepts."""
_OUT_OF_RESOURCES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_CHANNELS_LIMIT: Final = 512

_FAILED_ANSWERS: Final = {
    Failed.SLOW: HEAD_TIMEOUT,
    Failed.TOO_LARGE: HEAD_TOO_LARGE,
    Failed.NOT_HTTP: BAD_REQUEST,
}


class Channel:
    """One process connected to the balancer's socket: a worker once it has registered."""

    __slots__ = ("assembler", "incoming", "link", "rejected", "worker")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.worker: Worker | None = None
        self.assembler = Assembler()
        self.incoming: list[Arrival] = []
        """Migrated connections whose acknowledgement is not on its way yet: not ours."""
        self.rejected: list[int] = []
        """Numbers of those that came without a descriptor."""


class Balancer:
    """Accepts connections and places them; see `process` for what is around it.

    Args:
        config: limits, paths, times.
        listeners: public sockets, listening and non-blocking; taken over.
    """

    def __init__(
        self,
        config: BalancerConfig,
        listeners: Sequence[socket.socket],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._loop = loop
        self._listeners = [Listener(listener) for listener in listeners]
        self._held = HeldSlots(config.run)
        self.placing = Placing(config.node, config.limits, self._held)
        self._reader = RequestReader(config.engine_path, config.health_path)
        self._heads = WaitingHeads(
            loop, config.heads, config.head_timeout, self._head_came, self._head_failed
        )
        self._closing = Closing(loop)
        self._meeting: socket.socket | None = None
        """Where workers connect."""
        self._meeting_file = 0
        """Number of its file, by which it is known."""
        self._channels: dict[int, Channel] = {}
        """By descriptor."""
        self._channel_of: dict[Worker, Channel] = {}
        self._pauses: set[str] = set()
        """Why nothing is accepted at this moment."""
        self._tick_handle: asyncio.TimerHandle | None = None
        self._ending = False
        self._totals = Totals(loop)

    # --- start and end ------------------------------------------------------------------

    def start(self) -> None:
        """Let workers register, and begin to accept.

        Raises:
            OSError: the socket in the run directory cannot be made.
        """
        self._totals.process.start()
        path = self._config.run.balancer
        self._meeting = meeting_point(path)
        self._meeting_file = path.stat().st_ino
        self._loop.add_reader(self._meeting.fileno(), self._accept_channels)
        if self._held():
            # An earlier balancer's workers are there and register at once. Until then clients are
            # safer in the backlog, which outlives us, than here.
            self._pause(_NO_WORKER_YET)
            self._loop.call_later(_WORKERS_COME, self._resume, _NO_WORKER_YET)
        for listener in self._listeners:
            if not self._pauses:
                self._loop.add_reader(listener.fileno(), self._accept, listener)
            logger.info("listening on %s", describe(listener))

    async def finish(self) -> None:
        """Stop accepting, hand out everything held, and close."""
        self._ending = True
        self._totals.process.stop()
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        now = time.monotonic()
        for arrival in self._heads.take_all():
            self._hand_out_partial(arrival, now)
        until = now + self._config.finish_timeout
        while now < until and (self.placing.waits or self._owed) and self._is_anyone_there():
            self._serve(now)
            await asyncio.sleep(0.01)
            now = time.monotonic()
        for arrival in self.placing.drop_waiting():
            self._refuse(arrival, Refusal.NO_WORKER, now)
        if self._tick_handle is not None:
            self._tick_handle.cancel()
            self._tick_handle = None
        if self._meeting is not None:
            self._loop.remove_reader(self._meeting.fileno())
            self._meeting.close()
            take_down(self._config.run.balancer, self._meeting_file)
        for channel in self._channels.values():
            self._loop.remove_reader(channel.link.fd)
            channel.link.close()
        for worker in self._channel_of:
            for arrival in worker.ledger.rest():
                arrival.sock.close()
        if self._closing:
            await asyncio.sleep(_LAST_ANSWERS)
        self._closing.close()

    def _is_anyone_there(self) -> bool:
        """Say whether waiting may help: some worker is registered, or could be in a moment."""
        return bool(self._channel_of or self._held())

    def _hand_out_partial(self, arrival: Arrival, now: float) -> None:
        """Give a head as it is to a worker, whose own front door reads the rest."""
        if arrival.data:
            try:
                self._bind(arrival, self._reader.read(arrival.data))
            except BadRequestLine:
                arrival.kind = Kind.ANY
            self._place(arrival, now)
        else:
            arrival.sock.close()

    # --- clients ------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        now = time.monotonic()
        family = listener.family_number
        for _ in range(ACCEPTS_PER_TURN):
            try:
                fd, peer = listener.accept_fd()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._out_of_descriptors()
                    break
                continue  # accept(2): an error of the connection, not of the listener
            self._totals.accepted += 1
            sock = socket.socket(family, socket.SOCK_STREAM, 0, fileno=fd)
            if isinstance(peer, tuple):
                host = peer[0]
                if host.startswith("::ffff:"):  # an IPv4 client of an IPv6 listener
                    host = host.removeprefix("::ffff:")
                arrival = Arrival(sock, family, (host, peer[1]), b"")
            else:
                arrival = Arrival(sock, family, "unix", b"")
            arrival.came_at = now
            self._read_head(arrival, now)
        if self.placing.anyone_waits:
            self._serve(now)

    def _read_head(self, arrival: Arrival, now: float) -> None:
        try:
            data = arrival.sock.recv(HEAD_LIMIT, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._await_head(arrival, now)
            return
        except OSError:
            data = b""
        if not data:
            arrival.sock.close()
            return
        arrival.data = data
        if data.endswith(HEAD_END) and data[0] > _SPACE:  # whole and without a body: most are
            self._route(arrival, now)
        else:
            self._judge(arrival, now)

    def _judge(self, arrival: Arrival, now: float) -> None:
        verdict = judge(arrival.data)
        if verdict is True:
            self._route(arrival, now)
        elif verdict is False:
            self._await_head(arrival, now)
        else:
            self._head_failed(arrival, verdict)

    def _await_head(self, arrival: Arrival, now: float) -> None:
        if self._ending:
            self._hand_out_partial(arrival, now)
            return
        self._heads.add(arrival, now)
        self._arm()

    def _head_came(self, arrival: Arrival) -> None:
        arrival.since = 0.0  # what it waited for its own head is no wait for a worker
        self._route(arrival, time.monotonic())

    def _head_failed(self, arrival: Arrival, why: Failed) -> None:
        count("limpet_balancer_heads_failed_total", reason=why.value)
        logger.debug("no request head from %s: %s", arrival.address, why.value)
        answer = _FAILED_ANSWERS.get(why)
        if answer is None:
            arrival.sock.close()
        else:
            self._answer(arrival, answer, time.monotonic())

    def _route(self, arrival: Arrival, now: float) -> None:
        try:
            request = self._reader.read(arrival.data)
        except BadRequestLine:
            self._head_failed(arrival, Failed.NOT_HTTP)
            return
        if request.place is Place.HEALTH:
            self._answer_health(arrival, request, now)
            return
        self._bind(arrival, request)
        self._place(arrival, now)

    def _bind(self, arrival: Arrival, request: Request) -> None:
        if request.sid is not None:
            self._totals.routed["sid"] += 1
            self.placing.bind(arrival, address_of(request.sid))
        elif request.place is Place.ENGINE and request.method == b"GET":
            self._totals.routed["new"] += 1
            arrival.kind = Kind.NEW
        else:
            self._totals.routed["any"] += 1
            arrival.kind = Kind.ANY

    def _answer_health(self, arrival: Arrival, request: Request, now: float) -> None:
        health = self.placing.health
        status = "200 OK" if health == "ok" else "503 Service Unavailable"
        head_only = request.method == b"HEAD"
        self._answer(arrival, response(status, {"status": health}, head_only=head_only), now)

    def _answer(self, arrival: Arrival, content: bytes, now: float) -> None:
        self._closing.answer(arrival.sock, content, now)
        self._arm()

    # --- placing ------------------------------------------------------------------------

    def _place(self, arrival: Arrival, now: float) -> None:
        decision = self.placing.place(arrival, now)
        if decision is None:
            self._arm()
            if self.placing.crowded:
                self._pause("waiting")
        else:
            self._act(arrival, decision, now)

    def _act(self, arrival: Arrival, decision: Worker | Refusal, now: float) -> None:
        if isinstance(decision, Refusal):
            self._refuse(arrival, decision, now)
            return
        link = self._channel_of[decision].link
        sent = link.send_connection(decision.ledger.next_number, arrival)
        if sent is Sent.YES:
            self.placing.handed(decision, arrival, now)
            self._totals.handed_over += 1
            self._totals.route_seconds.observe(time.monotonic() - arrival.came_at)
        else:
            self.placing.back(decision, arrival, now)
            self._arm()

    def _serve(self, now: float) -> None:
        """Give out what no longer has to wait."""
        if self.placing.anyone_waits:
            for arrival, decision in self.placing.due(now):
                self._act(arrival, decision, now)
        if "waiting" in self._pauses and not self.placing.crowded:
            self._resume("waiting")

    def _refuse(self, arrival: Arrival, why: Refusal, now: float) -> None:
        self._totals.refused[why.value] += 1
        count("limpet_balancer_refused_total", reason=why.value)
        if why is Refusal.NO_WORKER:
            count("limpet_balancer_no_worker_total")
        self._answer(arrival, unavailable(why.value), now)

    # --- pauses and the tick ------------------------------------------------------------

    def _out_of_descriptors(self) -> None:
        self._totals.out_of_descriptors()
        logger.warning("out of file descriptors: accepting pauses for %g s", _EMFILE_PAUSE)
        self._pause("emfile")
        self._loop.call_later(_EMFILE_PAUSE, self._resume, "emfile")

    def _pause(self, why: str) -> None:
        if why not in self._pauses:
            count("limpet_balancer_pauses_total", reason=why)
        if not self._pauses and not self._ending:
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())
        self._pauses.add(why)

    def _resume(self, why: str) -> None:
        if why not in self._pauses:
            return
        self._pauses.remove(why)
        if not self._pauses and not self._ending:
            for listener in self._listeners:
                self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _arm(self) -> None:
        if self._tick_handle is None:
            self._tick_handle = self._loop.call_later(_TICK, self._tick)

    def _tick(self) -> None:
        self._tick_handle = None
        now = time.monotonic()
        self._heads.expire(now)
        self._closing.expire(now)
        pending = False
        for channel in list(self._channels.values()):
            if channel.worker is not None:
                channel.worker.blocked = False
            if channel.incoming or channel.rejected:
                self._confirm(channel, now)
            if channel.link.outbox:
                channel.link.flush()
            pending = pending or bool(channel.link.outbox or channel.incoming)
        self._serve(now)
        if pending or self.placing.waits or self._heads or self._closing:
            self._arm()

    # --- channels -----------------------------------------------------------------------

    def _accept_channels(self) -> None:
        assert self._meeting is not None  # noqa: S101 - its reader is gone before it is
        try:
            sock, _ = self._meeting.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # The connection stays in the backlog and would wake us at once again.
            logger.warning("cannot accept a worker's channel: %s", error)
            self._totals.out_of_descriptors()
            self._loop.remove_reader(self._meeting.fileno())
            self._loop.call_later(_EMFILE_PAUSE, self._resume_channels)
            return
        pid, uid = peer_credentials(sock)
        if not is_ours(uid) or len(self._channels) >= _CHANNELS_LIMIT:
            count("limpet_balancer_channels_refused_total")
            logger.warning("refused a channel from pid %d of uid %d", pid, uid)
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        channel = Channel(Link(sock))
        self._channels[channel.link.fd] = channel
        self._loop.add_reader(channel.link.fd, self._channel_readable, channel)

    def _resume_channels(self) -> None:
        if self._meeting is not None and not self._ending:
            self._loop.add_reader(self._meeting.fileno(), self._accept_channels)

    def _channel_readable(self, channel: Channel) -> None:
        """Read a batch; at the channel's end its last acknowledgements have been read by then."""
        now = time.monotonic()
        ended = False
        left = MESSAGES_PER_TURN
        try:
            while left > 0 or channel.link.reset:
                left -= 1
                received = channel.link.receive()
                if received is None:
                    break
                self._received(channel, *received, now)
        except EndOfLink:
            ended = True
        except HandoverError as error:
            ended = True
            count("limpet_balancer_channel_errors_total")
            logger.warning("channel closed: %s", error)
        if channel.incoming or channel.rejected:
            self._confirm(channel, now, ended)
        if ended:
            self._channel_ended(channel, now)
        self._serve(now)

    def _received(self, channel: Channel, message: Message, fd: int, now: float) -> None:
        worker = channel.worker
        if isinstance(message, Acknowledge) and worker is not None and fd < 0:
            for arrival in worker.ledger.acknowledge(message.upto):
                arrival.sock.close()
            worker.blocked = False
            return
        if isinstance(message, Connection) and worker is not None:
            self._take_back(channel, message, fd)
            return
        if fd >= 0:
            os.close(fd)
            raise HandoverError(f"a descriptor with {type(message).__name__}")
        if isinstance(message, Piece):
            channel.assembler.piece(message)
        elif isinstance(message, AskStats):
            channel.link.send(encode_stats(self.stats()))
        elif isinstance(message, Register):
            self._register(channel, message, now)
        elif worker is None:
            raise HandoverError(f"{type(message).__name__} before Register")
        else:
            self._heard(worker, message, now)

    def _heard(self, worker: Worker, message: Message, now: float) -> None:
        if isinstance(message, Load):
            self.placing.load(worker, message.sessions, message.full)
        elif isinstance(message, Ready):
            logger.info("worker %d is ready", worker.address.slot)
            self.placing.ready(worker)
            self._resume(_NO_WORKER_YET)
        elif isinstance(message, Draining):
            logger.info("worker %d is draining", worker.address.slot)
            self.placing.draining(worker, now)
        elif isinstance(message, Undrain):
            logger.info("worker %d takes sessions again", worker.address.slot)
            self.placing.undrain(worker)
        elif isinstance(message, Bye):
            self.placing.bye(worker, now)
        elif isinstance(message, Reject):
            self._totals.rejected += 1
            self.placing.rejected(worker, message.number, now)
            self._arm()
        else:
            raise HandoverError(f"a worker does not send {type(message).__name__}")

    def _register(self, channel: Channel, register: Register, now: float) -> None:
        if channel.worker is not None:
            raise HandoverError("registered twice")
        if register.address.node != self._config.node:
            raise HandoverError(f"worker of node {register.address.node} registers here")
        worker, _ = self.placing.register(register, now)
        channel.worker = worker
        self._channel_of[worker] = channel
        logger.info("worker %d registered (pid %d)", register.address.slot, register.pid)

    def _take_back(self, channel: Channel, connection: Connection, fd: int) -> None:
        """Note a migrated connection; it is ours only once the acknowledgement is on its way."""
        try:
            data = channel.assembler.connection(connection)
        except HandoverError:
            if fd >= 0:
                os.close(fd)
            raise
        if fd < 0:
            self._totals.out_of_descriptors()
            channel.rejected.append(connection.number)
            return
        sock = socket.socket(connection.family, socket.SOCK_STREAM, 0, fileno=fd)
        hops = connection.hops + 1
        final = connection.final or hops >= HOPS_LIMIT
        if hops >= HOPS_LIMIT:
            count("limpet_balancer_hops_exceeded_total")
        arrival = Arrival(sock, connection.family, connection.address, data, hops=hops, final=final)
        channel.incoming.append(arrival)

    def _confirm(self, channel: Channel, now: float, ended: bool = False) -> None:
        """Acknowledge migrated connections, then route them.

        A worker that is gone cannot send them again: they are routed all the same.
        """
        link = channel.link
        sent = Sent.GONE if ended else link.flush()
        if sent is Sent.LATER:
            self._arm()
            return
        if sent is Sent.YES:
            for number in channel.rejected:
                link.send(encode_reject(number))
            channel.rejected.clear()
            sent = link.send_now(encode_acknowledge(channel.assembler.received))
            if sent is Sent.LATER:
                self._arm()
                return
        channel.rejected.clear()
        incoming, channel.incoming = channel.incoming, []
        self._totals.migrated += len(incoming)
        for arrival in incoming:
            arrival.came_at = now
            self._judge(arrival, now)

    def _channel_ended(self, channel: Channel, now: float) -> None:
        """Dispatch anew what the worker has not acknowledged: the clients notice nothing."""
        self._loop.remove_reader(channel.link.fd)
        del self._channels[channel.link.fd]
        channel.link.close()
        worker = channel.worker
        if worker is None:
            return
        del self._channel_of[worker]
        self._held.forget()
        rest = self.placing.leave(worker, now)
        logger.info("worker %d left, %d connections to place anew", worker.address.slot, len(rest))
        self._totals.redispatched += len(rest)
        for arrival in rest:
            self._place(arrival, now)

    # --- figures ------------------------------------------------------------------------

    @property
    def _owed(self) -> int:
        return sum(worker.ledger.count for worker in self._channel_of)

    def stats(self) -> dict[str, object]:
        """Return the figures of this balancer: totals since its start, and what waits now."""
        backlogs = [backlog_of(listener) for listener in self._listeners]
        now = Now(
            heads=len(self._heads),
            unacknowledged=self._owed,
            paused=sorted(self._pauses),
            accepting=not self._pauses and not self._ending,
            backlog=sum(one[0] for one in backlogs),
            backlog_limit=sum(one[1] for one in backlogs),
        )
        return self._totals.stats(self.placing, now)
