"""A worker's end of the bus: raw ZeroMQ sockets on the event loop, around the cores of the bus.

A life of the bus, the same at start and after each restart of the hub: the hub welcomes us on the
control connection; a fresh SUB connects and subscribes everything, a sentinel last; when the hub
has the sentinels of all workers it says ``bus.open``; a PUSH connects and what waited is sent; our
own probe comes back: ready. Nothing here ever waits for the hub: while it is away messages queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import zmq

from limpet_adapters import buckets as topics
from limpet_adapters import wire
from limpet_adapters.bus_control import BusOpen, BusRepair, BusWelcome, BusWorkers, RepairRequest
from limpet_adapters.contract import Deliver
from limpet_adapters.control import ControlClient, ControlConnection
from limpet_adapters.counters import count
from limpet_adapters.identity import WorkerAddress
from limpet_adapters.outgoing import Outgoing, Waiting
from limpet_adapters.rundir import RunDirectory
from limpet_adapters.sequence import Request, Sequencer, Stream
from limpet_adapters.zeromq import ZeroMQAdapter

if TYPE_CHECKING:
    from limpet_adapters.sequence import Loss

logger = logging.getLogger("limpet.bus")

RECEIVE_HWM: Final = 200_000
"""Frames that wait in a SUB; what comes on top is dropped by ZeroMQ, and found by its number."""
SEND_HWM: Final = 50_000
"""Frames that wait in a PUSH before it refuses more."""
UNCONFIRMED_BYTES: Final = 256 * 1024 * 1024
"""Bytes handed to the PUSH that no beat has confirmed; above it messages wait in our own queue."""
READ_BATCH: Final = 500
"""Frames read in one go, before other work of the loop has its turn."""
SUBSCRIBE_BATCH: Final = 1_000
"""Topics subscribed in one go at the start of a life."""
BARRIER_SECONDS: Final = 1.0
"""How long a join waits for its subscription."""
LINGER_SECONDS: Final = 10.0
"""How long a topic that nobody needs any more stays subscribed."""
_RETRY: Final = 0.005
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)
_FEW: Final = 3
_UNHEARD: Final = 2.0  # a subscription that long without an answer is made again
_OVERDUE: Final = 0.05  # later than that a timer says that the loop hung, not that time passed

Gap = dict[str, object]
"""What the application is told of a loss: ``kind`` (``lost``, or ``uncertain``: maybe lost),
``count``, ``reason``, and for a topic ``bucket``, ``first`` and ``last``. An uncertain one is told
after each restart of the hub; its count is that of our own messages, 0 when all were confirmed."""


class Bus:
    """The bus as one worker has it.

    Args:
        rundir: where the hub's sockets are.
        control: the control connection; the bus attaches to it and lives with it.
        worker_id: random id of this life of the worker, the origin of its messages.
        address: what the ids of this worker's sockets name.
        buckets: into how many topics rooms are hashed, 1 to 65,536; as the hub says.
        linger: seconds that a topic stays subscribed after its last room is gone; 0 is none.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(  # noqa: PLR0915 - the inventory of its state
        self,
        rundir: RunDirectory,
        control: ControlClient,
        worker_id: int,
        address: WorkerAddress,
        *,
        buckets: int = topics.DEFAULT_BUCKETS,
        linger: float = LINGER_SECONDS,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> None:
        topics.check(buckets)
        if linger < 0:
            raise ValueError(f"linger={linger}: expected seconds >= 0")
        self.worker_id = worker_id
        self.address = address
        self.buckets = buckets
        self.on_gap = on_gap
        """Told of each loss, for the application."""
        self.before_reading: Callable[[], object] = _nothing
        self.after_reading: Callable[[], object] = _nothing
        """Called around each batch of frames: what they send may be written together."""
        self.ready = asyncio.Event()
        """Set while the hub takes our messages and we read its own."""
        self.workers: dict[WorkerAddress, int] = {}
        """The worker id behind each address that lives on this host."""
        self.sequencer = Sequencer()
        self._rundir = rundir
        self._control = control
        self._linger = linger
        self._loop = asyncio.get_running_loop()
        self._origin = worker_id.to_bytes(8, "big")
        self._adapters: dict[str, ZeroMQAdapter] = {}
        # subscriptions
        self._references: dict[bytes, int] = {}
        self._lingering: dict[bytes, float] = {}  # unneeded topics: until when they stay
        self._subscribed: set[bytes] = set()  # on the SUB of this life
        self._unconfirmed: dict[bytes, float] = {}  # since when we wait for an answer
        self._barriers: dict[bytes, list[asyncio.Future[None]]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        # this life of the hub
        self._incarnation: int | None = None  # None before the first welcome
        self._had_life = False  # a hub was open to us before
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sub: zmq.Socket[bytes] | None = None
        self._look: Callable[[int], int]  # of the SUB
        self._sub_fd = -1
        self._drain_due = False
        self._push: zmq.Socket[bytes] | None = None  # None until the hub is open
        self._push_send: Callable[[bytes, int], object] | None = None
        # sending
        self._sending = False
        self._closed = False
        self._outgoing = Outgoing()
        self._retry: asyncio.TimerHandle | None = None
        self._counter = 0  # frames handed to the PUSH
        self._confirmed = 0  # frames that the hub said it has
        self._handed_bytes = 0
        self._confirmed_bytes = 0
        self._marks: list[tuple[int, int]] = []  # counter and bytes handed, at the last beats
        # repairs
        self._expiry: asyncio.TimerHandle | None = None
        self._lost = 0
        self._uncertain = 0
        self._dropped = 0
        self._read = 0  # frames, and their bytes
        self._read_bytes = 0

        for topic in (topics.CLUSTER_TOPIC, topics.HUB_TOPIC, topics.inbox(worker_id)):
            self.hold(topic)
        control.handle("bus.open", self._opened)
        control.handle("bus.workers", self._workers_changed)
        control.attach(self._welcomed, self._control_lost)

    # --- for adapters ------------------------------------------------------

    def adapter(self, namespace: str, deliver: Deliver) -> ZeroMQAdapter:
        """Return the adapter of a namespace; one each.

        Raises:
            ValueError: the namespace has one already.
        """
        if namespace in self._adapters:
            raise ValueError(f"namespace {namespace!r} has an adapter already")
        adapter = self._adapters[namespace] = ZeroMQAdapter(self, namespace, deliver)
        return adapter

    def forget(self, namespace: str) -> None:
        """Give the adapter of a namespace no more messages."""
        self._adapters.pop(namespace, None)

    def hold(self, topic: bytes) -> None:
        """Need a topic once more; the first time it is subscribed."""
        references = self._references.get(topic, 0)
        self._references[topic] = references + 1
        if references or self._lingering.pop(topic, None) is not None:
            return
        self.sequencer.subscribe(topic)
        self._unconfirmed[topic] = self._loop.time()
        if self._sub is not None:
            self._subscribe(topic)

    def release(self, topic: bytes) -> None:
        """Need a topic once less; after the last time it lingers, then it is unsubscribed."""
        references = self._references[topic] - 1
        if references:
            self._references[topic] = references
            return
        del self._references[topic]
        if not self._linger:
            self._unsubscribe(topic)
            return
        self._lingering[topic] = self._loop.time() + self._linger
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._linger, self._end_lingering)

    def confirmed(self, topic: bytes) -> bool:
        """Tell whether the subscription of a topic that is held is in force."""
        return topic not in self._unconfirmed

    async def barrier(self, waited: Iterable[bytes]) -> None:
        """Wait until the subscriptions of topics are in force, for 1 s at most."""
        waiting: dict[bytes, asyncio.Future[None]] = {}
        for topic in waited:
            if topic in self._unconfirmed and topic not in waiting:
                future = waiting[topic] = self._loop.create_future()
                self._barriers.setdefault(topic, []).append(future)
        if not waiting:
            return
        try:
            async with asyncio.timeout(BARRIER_SECONDS):
                for future in waiting.values():
                    await future
        except TimeoutError:
            count("limpet_join_barrier_incomplete_total")
            logger.debug("a join went on before its subscription was in force")
        finally:
            for topic, future in waiting.items():
                futures = self._barriers.get(topic, [])
                if future in futures:  # not confirmed
                    future.cancel()
                    futures.remove(future)
                    if not futures:
                        del self._barriers[topic]

    def publish(self, topic: bytes, kind: int, payload: bytes) -> None:
        """Send a message to all workers that read a topic; never blocks."""
        if len(payload) > wire.MESSAGE_LIMIT - wire.HEADER_SIZE:
            self._drop(1, "too large")
            return
        if self._closed:
            self._drop(1, "closed")
            return
        if len(self._outgoing) or not self._hand_over(topic, kind, payload):
            dropped = self._outgoing.put(Waiting(self._loop.time(), topic, kind, payload))
            if dropped:
                self._drop(dropped, "queue full")
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY, self._flush)

    # --- state -------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Return the figures of the bus, for the operator."""
        sequencer = self.sequencer
        return {
            "ready": int(self.ready.is_set()),
            "topics": len(sequencer.streams),
            "unconfirmed_topics": len(self._unconfirmed),
            "lingering_topics": len(self._lingering),
            "sent": self._counter,
            "sent_bytes": self._handed_bytes,
            "read": self._read,
            "read_bytes": self._read_bytes,
            "queued": len(self._outgoing),
            "queued_bytes": self._outgoing.size,
            "dropped": self._dropped,
            "lost": self._lost,
            "uncertain": self._uncertain,
            "gaps": sequencer.gaps,
            "repaired": sequencer.repaired_frames,
            "doubles": sequencer.doubles,
        }

    async def close(self) -> None:
        """Leave the bus; what was handed to the hub before is still sent."""
        self._closed = True
        self.ready.clear()
        self._sending = False
        if len(self._outgoing):
            self._drop(len(self._outgoing), "closed")
        for timer in (self._sweep, self._retry, self._expiry):
            if timer is not None:
                timer.cancel()
        self._sweep = self._retry = self._expiry = None
        for topic in list(self._barriers):
            self._confirm(topic)
        self._close_sub()
        if self._push is not None:
            self._push.close(linger=200)
            self._push = self._push_send = None
        context, self._context = self._context, None
        if context is not None:
            await self._loop.run_in_executor(None, context.term)

    # --- lives of the hub --------------------------------------------------

    def _welcomed(self, connection: ControlConnection, welcome: Mapping[str, object]) -> None:
        if self._closed:  # the worker's end is near, and takes its control connection last
            return
        try:
            bus = msgspec.convert(welcome.get("bus"), BusWelcome)
        except msgspec.ValidationError as error:
            logger.warning("the hub's welcome has no bus: %s", error)
            connection.close()
            return
        if bus.buckets != self.buckets:
            logger.error("buckets=%d: the hub has buckets=%d", self.buckets, bus.buckets)
            connection.close()
            return
        if bus.incarnation != self._incarnation:
            self._begin_life(bus.incarnation)
        elif self._sub is not None:  # the control connection was cut, the hub is the same
            mark = topics.sentinel(self.worker_id)
            if mark in self._subscribed:
                self._sub.unsubscribe(mark)
                self._subscribed.discard(mark)
                self._subscribe(mark)

    def _begin_life(self, incarnation: int) -> None:
        if self._incarnation is not None:
            # What the hub had not confirmed of ours; of others' to us we cannot know.
            self._tell_uncertain(self._counter - self._confirmed, "hub restart")
        self._incarnation = incarnation
        self._confirmed = self._counter
        self._confirmed_bytes = self._handed_bytes
        self._marks.clear()
        self._close_push()
        self._close_sub()
        self._handle_all(self.sequencer.restart())
        self._settle()
        now = self._loop.time()
        for topic in self.sequencer.streams:
            self._unconfirmed[topic] = now
        if self._context is None:
            self._context = zmq.Context()
        sub = self._context.socket(zmq.SUB)
        sub.setsockopt(zmq.LINGER, 0)
        sub.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        sub.setsockopt(zmq.SNDHWM, 0)  # else the 1,001st subscription in a row is lost in silence
        sub.setsockopt(zmq.MAXMSGSIZE, wire.MESSAGE_LIMIT)
        sub.connect(self._rundir.bus("out", incarnation))
        self._sub = sub
        self._look = wire.looker(sub)
        self._sub_fd = int(sub.getsockopt(zmq.FD))
        self._loop.add_reader(self._sub_fd, self._drain)
        self._subscribe_all(sub, list(self.sequencer.streams))

    def _subscribe_all(self, sub: zmq.Socket[bytes], rest: list[bytes]) -> None:
        """Subscribe everything, in slices, the sentinel last."""
        if sub is not self._sub:
            return
        batch, rest = rest[:SUBSCRIBE_BATCH], rest[SUBSCRIBE_BATCH:]
        for topic in batch:
            if topic in self.sequencer.streams and topic not in self._subscribed:
                self._subscribe(topic)
        if rest:
            self._loop.call_soon(self._subscribe_all, sub, rest)
        else:
            self._subscribe(topics.sentinel(self.worker_id))

    def _opened(self, _connection: ControlConnection, body: object) -> None:
        opened = msgspec.convert(body, BusOpen)
        if opened.incarnation != self._incarnation or self._context is None:
            return
        self._set_workers(opened.workers)
        if self._push is None:
            push = self._context.socket(zmq.PUSH)
            push.setsockopt(zmq.LINGER, 0)
            push.setsockopt(zmq.SNDHWM, SEND_HWM)
            push.connect(self._rundir.bus("in", opened.incarnation))
            self._push = push
            self._push_send = wire.sender(push)
            if opened.late and self._had_life:
                self._tell_uncertain(0, "late to the hub")
            self._had_life = True
        self._sending = True
        self._flush()
        self.publish(topics.inbox(self.worker_id), wire.PROBE, b"")

    def _workers_changed(self, _connection: ControlConnection, body: object) -> None:
        self._set_workers(msgspec.convert(body, BusWorkers).workers)

    def _set_workers(self, workers: Iterable[tuple[int, int, int, int]]) -> None:
        self.workers = {
            WorkerAddress(node, slot, incarnation): worker_id
            for node, slot, incarnation, worker_id in workers
        }

    def _control_lost(self) -> None:
        # Messages wait in our own queue from here: the PUSH would take them for a dead hub too.
        self.ready.clear()
        self._sending = False

    def _close_sub(self) -> None:
        if self._sub is not None:
            self._loop.remove_reader(self._sub_fd)
            self._sub.close(linger=0)
            self._sub = None
        self._subscribed.clear()

    def _close_push(self) -> None:
        if self._push is not None:
            self._push.close(linger=0)
            self._push = self._push_send = None
        self._sending = False

    # --- subscriptions -----------------------------------------------------

    def _subscribe(self, topic: bytes) -> None:
        if self._sub is None:
            return
        self._sub.subscribe(topic)
        self._subscribed.add(topic)
        if not self._drain_due:  # any call on the socket may swallow the wake-up of its FD
            self._drain_due = True
            self._loop.call_soon(self._drain)

    def _unsubscribe(self, topic: bytes) -> None:
        self.sequencer.unsubscribe(topic)
        self._confirm(topic)  # nobody is left to wait for it
        if self._sub is not None and topic in self._subscribed:
            self._subscribed.discard(topic)
            self._sub.unsubscribe(topic)
            if not self._drain_due:
                self._drain_due = True
                self._loop.call_soon(self._drain)

    def _end_lingering(self) -> None:
        self._sweep = None
        now = self._loop.time()
        for topic, until in list(self._lingering.items()):  # in the order of their ends
            if until > now:
                self._sweep = self._loop.call_at(until + self._linger / 8, self._end_lingering)
                break
            del self._lingering[topic]
            self._unsubscribe(topic)

    def _confirm(self, topic: bytes) -> None:
        self._unconfirmed.pop(topic, None)
        for future in self._barriers.pop(topic, ()):
            if not future.done():
                future.set_result(None)

    # --- receiving ---------------------------------------------------------

    def _drain(self) -> None:
        self._drain_due = False
        sub = self._sub
        if sub is None:
            return
        receive = sub.recv
        streams = self.sequencer.streams
        origin = self._origin
        nowait = zmq.NOBLOCK
        integer = int.from_bytes
        look = self._look
        self.before_reading()
        messages = size = 0
        try:
            for number in range(READ_BATCH):
                # When little comes, asking first is cheaper than to be refused at the end.
                if 0 < number < _FEW and not look(_EVENTS) & _READABLE:
                    return
                frame = receive(nowait)
                messages += 1
                size += len(frame)
                stream = streams.get(frame[:3])
                if stream is None:
                    continue  # unsubscribed since
                sequence = integer(frame[24:32], "big")
                if sequence == stream.ready and frame[3] == 1:  # wire.BROADCAST
                    stream.ready = stream.next = sequence + 1
                    if frame[4:12] != origin:
                        self._deliver(frame)
                else:
                    self._received(stream, frame)
                    if sub is not self._sub:
                        return
        except zmq.Again:
            return
        finally:
            self._read += messages
            self._read_bytes += size
            self.after_reading()
        self._drain_due = True  # more is waiting, and the FD may not fire again
        self._loop.call_soon(self._drain)

    def _received(self, stream: Stream, frame: bytes) -> None:
        """Take a frame that is not simply the next broadcast."""
        try:
            header = wire.header(frame)
        except wire.WireError as error:
            self._bad(error)
            return
        if header.incarnation != self._incarnation:
            return
        now = self._loop.time()
        if header.kind == wire.ACKNOWLEDGED:
            self.sequencer.acknowledged(stream, header.sequence, now)
            self._confirm(stream.topic)
        else:
            self._handle_all(self.sequencer.received(stream, frame, now))
        self._settle()

    def _handle_all(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            kind = frame[3]
            if kind == wire.BROADCAST:
                if frame[4:12] != self._origin:
                    self._deliver(frame)
            elif kind == wire.BEAT:
                self._beat(frame)
            elif kind == wire.PROBE and frame[4:12] == self._origin and self._sending:
                self.ready.set()

    def _deliver(self, frame: bytes) -> None:
        try:
            message = wire.decode_broadcast(frame)
        except wire.WireError as error:
            self._bad(error)
            return
        adapter = self._adapters.get(message.namespace)
        if adapter is not None:
            try:
                adapter.receive(message)
            except Exception:
                count("limpet_bus_failed_total")
                logger.exception("delivering a broadcast of %s failed", message.namespace)

    def _bad(self, error: wire.WireError) -> None:
        count("limpet_bus_bad_frames_total")
        logger.warning("bad frame on the bus: %s", error)

    def _beat(self, frame: bytes) -> None:
        try:
            beat = wire.decode_beat(frame)
        except wire.WireError as error:
            self._bad(error)
            return
        now = self._loop.time()
        self._control.send("bus.heard", beat.number)
        for topic, last in beat.topics:
            stream = self.sequencer.streams.get(topic)
            if stream is not None:
                self.sequencer.revealed(stream, last, now)
        for origin, counter in beat.confirmed:
            if origin == self.worker_id:
                self._confirm_sent(counter)
        if self._sub is not None:
            for topic, since in list(self._unconfirmed.items()):
                if since < now - _UNHEARD and topic in self._subscribed:
                    count("limpet_bus_resubscribed_total")
                    self._unconfirmed[topic] = now
                    self._sub.unsubscribe(topic)
                    self._subscribe(topic)
        self._settle()

    # --- repairs -----------------------------------------------------------

    def _settle(self) -> None:
        """Do what the sequencer asks for: requests, losses to tell, a timer."""
        sequencer = self.sequencer
        if sequencer.requests:
            requests, sequencer.requests = sequencer.requests, []
            for request in requests:
                self._request(request)
        if sequencer.losses:
            losses, sequencer.losses = sequencer.losses, []
            self._tell_lost(losses)
        deadline = sequencer.deadline()
        if self._expiry is None and deadline < float("inf"):
            self._expiry = self._loop.call_at(deadline, self._expire, deadline)

    def _request(self, request: Request) -> None:
        connection = self._control.connection
        if connection is None:
            return  # the deadline ends the wait
        count("limpet_bus_repairs_total")
        connection.call(
            "bus.repair",
            RepairRequest(request.stream.topic, request.first, request.last),
            partial(self._repaired, request),
        )

    def _repaired(self, request: Request, body: object, error: Exception | None) -> None:
        if error is not None:
            logger.debug("no repair: %s", error)
            return
        try:
            answer = msgspec.convert(body, BusRepair)
            for frame in answer.frames:
                header = wire.header(frame)
                if (header.topic, header.incarnation) != (request.stream.topic, self._incarnation):
                    return  # of another life of the hub
        except (msgspec.ValidationError, wire.WireError) as bad:
            logger.warning("bad repair: %s", bad)
            return
        through = min(max(answer.through, request.first), request.last)
        now = self._loop.time()
        self._handle_all(self.sequencer.repaired(request.stream, answer.frames, through, now))
        self._settle()

    def _expire(self, due: float, again: bool = False) -> None:
        self._expiry = None
        now = self._loop.time()
        if now > due + _OVERDUE and not again:
            # The loop hung: the answer is probably there, unread. Read it first.
            self._expiry = self._loop.call_later(_OVERDUE, self._expire, due, True)
            return
        self._handle_all(self.sequencer.expired(now))
        self._settle()

    # --- sending -----------------------------------------------------------

    def _hand_over(self, topic: bytes, kind: int, payload: bytes) -> bool:
        send = self._push_send
        if (
            send is None
            or not self._sending
            or self._handed_bytes - self._confirmed_bytes > UNCONFIRMED_BYTES
        ):
            return False
        counter = self._counter + 1
        frame = wire.frame(topic, kind, self.worker_id, counter, payload)
        try:
            send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._counter = counter
        self._handed_bytes += len(frame)
        return True

    def _flush(self) -> None:
        """Hand over what waits, as far as it goes, and try again shortly."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        outgoing = self._outgoing
        expired = outgoing.expire(self._loop.time())
        if expired:
            self._drop(expired, "too old")
        while len(outgoing):
            message = outgoing.first()
            if not self._hand_over(message.topic, message.kind, message.payload):
                break
            outgoing.pop()
        if len(outgoing):
            delay = _RETRY if self._sending else _RETRY * 20
            self._retry = self._loop.call_later(delay, self._flush)

    def _confirm_sent(self, counter: int) -> None:
        self._confirmed = max(self._confirmed, counter)
        if counter >= self._counter:
            self._confirmed_bytes = self._handed_bytes
            self._marks.clear()
            return
        while self._marks and self._marks[0][0] <= counter:
            self._confirmed_bytes = self._marks.pop(0)[1]
        self._marks.append((self._counter, self._handed_bytes))

    # --- telling -----------------------------------------------------------

    def _drop(self, amount: int, reason: str) -> None:
        self._dropped += amount
        count("limpet_bus_dropped_total", amount, reason=reason)
        if self._dropped == amount or reason == "too large":
            logger.warning("messages to other workers dropped: %s", reason)
        self._tell({"kind": "lost", "count": amount, "reason": reason})

    def _tell_lost(self, losses: list[Loss]) -> None:
        total = sum(loss.frames for loss in losses)
        self._lost += total
        count("limpet_bus_lost_total", total)
        logger.warning("%d messages of other workers lost", total)
        for loss in losses:
            self._tell(
                {
                    "kind": "lost",
                    "count": loss.frames,
                    "reason": "not repaired",
                    "bucket": int.from_bytes(loss.topic[:2], "big"),
                    "first": loss.first,
                    "last": loss.last,
                }
            )

    def _tell_uncertain(self, amount: int, reason: str) -> None:
        self._uncertain += amount
        count("limpet_bus_uncertain_total", amount, reason=reason)
        logger.warning("messages may have been lost, of ours %d: %s", amount, reason)
        self._tell({"kind": "uncertain", "count": amount, "reason": reason})

    def _tell(self, gap: Gap) -> None:
        if self.on_gap is not None:
            try:
                self.on_gap(gap)
            except Exception:
                logger.exception("the handler of bus gaps failed")


def _nothing() -> None:
    """Do nothing, before and after a batch."""
