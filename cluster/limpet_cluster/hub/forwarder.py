"""The hub's bus: takes what workers send, numbers it per topic, and hands it to who subscribed.

A life of the hub: XPUB is bound at `Forwarder.start`; PULL only when every worker that held a slot
then has subscribed all it needs (its sentinel came), or after 1 s; then ``bus.open`` goes to the
workers. So nothing is sent past a worker that is still coming back after a restart of the hub.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec
import zmq

from limpet_adapters import buckets as topics
from limpet_adapters import wire
from limpet_adapters.bus_control import BusOpen, BusRepair, BusWelcome, BusWorkers, RepairRequest
from limpet_adapters.control import ControlConnection, ControlError, Hello
from limpet_adapters.counters import count, observe
from limpet_adapters.ring import RING_BYTES, RING_SECONDS, Published, Ring
from limpet_adapters.rundir import RunDirectory, held_slots
from limpet_cluster.hub.control import HubControl

logger = logging.getLogger("limpet.bus")

SEND_HWM: Final = 200_000
"""Frames that wait for one subscriber; what comes on top is dropped for it alone."""
RECEIVE_HWM: Final = 50_000
"""Frames of one worker that wait to be read."""
CONNECTIONS: Final = 512
"""Workers that may connect in one instant."""
BATCH: Final = 500
"""Frames forwarded in one go, before other work of the loop has its turn."""
OPEN_SECONDS: Final = 1.0
"""How long a starting hub waits for the workers of the hub before it."""
BEAT_SECONDS: Final = 1.0
STALL_SECONDS: Final = 15.0
"""A worker that has not echoed a beat for so long is deaf."""
UNREAD_BYTES: Final = 256 * 1024 * 1024
"""Bytes published between the last beat that a worker echoed and the last it should have; above
it the worker is deaf."""

_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)
_FEW: Final = 3

Deaf = Callable[[ControlConnection, Hello, str], None]
"""Told once of a worker that does not read the bus: its connection, who it is, and why."""


class Subscriber:
    """What the hub knows of one worker on the bus."""

    __slots__ = ("connection", "deaf", "heard_at", "heard_beat", "heard_bytes", "hello", "present")

    def __init__(self, connection: ControlConnection, hello: Hello, now: float) -> None:
        self.connection = connection
        self.hello = hello
        self.present = False
        """Its sentinel came: it is subscribed to all it needs."""
        self.heard_beat = 0
        self.heard_bytes = 0
        """What had been published in all at the last beat it echoed."""
        self.heard_at = now
        """When it last echoed a beat that was new."""
        self.deaf = False
        """Found deaf, and told."""


class Forwarder:
    """The bus of one host.

    Args:
        rundir: where the sockets are bound.
        control: its greeters, handlers and listeners are extended here; start it after `start`.
        buckets: into how many topics rooms are hashed; told to the workers, who must agree.
        ring_bytes, ring_seconds: what is kept for repairs.
        beat_seconds: how often workers are told what they should have read.
        stall_after: seconds without an echo after which a worker is deaf.
        unread_bytes: bytes published since its last echo after which a worker is deaf.
        on_deaf: told of each deaf worker, to replace it.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        rundir: RunDirectory,
        control: HubControl,
        *,
        buckets: int = topics.DEFAULT_BUCKETS,
        ring_bytes: int = RING_BYTES,
        ring_seconds: float = RING_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
        stall_after: float = STALL_SECONDS,
        unread_bytes: int = UNREAD_BYTES,
        on_deaf: Deaf | None = None,
    ) -> None:
        topics.check(buckets)
        if beat_seconds <= 0:
            raise ValueError(f"beat_seconds={beat_seconds}: expected seconds > 0")
        if stall_after < 3 * beat_seconds:
            raise ValueError(
                f"stall_after={stall_after}: expected at least three beats of {beat_seconds} s"
            )
        self.incarnation = secrets.randbits(32)
        """Random number of this life of the hub."""
        self.on_deaf = on_deaf
        self.open = False
        """PULL is bound; workers may send."""
        self._rundir = rundir
        self._buckets = buckets
        self._beat_seconds = beat_seconds
        self._stall_after = stall_after
        self._unread_bytes = unread_bytes
        self._ring_bytes = ring_bytes
        self._subscribers: dict[int, Subscriber] = {}
        self._awaited: set[int] = set()  # slots whose workers we wait for before opening
        # forwarding
        self._published: dict[bytes, Published] = {}
        self._ring = Ring(ring_bytes, ring_seconds)
        self._changed: list[Published] = []
        self._latest: dict[bytes, bytes] = {}  # last frame of each origin since the beat
        self._messages = 0
        self._bytes = 0  # of all frames sent
        # beats
        self._beat_number = 0
        self._beat_at = 0.0
        self._beat_bytes: dict[int, int] = {}  # what had been sent at each of the last beats
        self._beat_times: dict[int, float] = {}  # and when
        # sockets
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._xpub: zmq.Socket[bytes] | None = None
        self._pull: zmq.Socket[bytes] | None = None
        self._readers: list[int] = []
        self._send: Callable[[bytes, int], object] = _unbound
        self._look: Callable[[int], int]  # of the PULL, once it is bound
        self._look_out: Callable[[int], int]  # of the XPUB
        self._subscriptions_due = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

        control.greeters.append(self._greet)
        control.on_lost.append(self._worker_lost)
        control.handle("bus.repair", self._repair)
        control.handle("bus.heard", self._heard)

    # --- life --------------------------------------------------------------

    async def start(self) -> None:
        """Bind XPUB, remove what earlier hubs left, and wait for the workers to come back."""
        self._remove_files("bus-*")
        self._context = zmq.Context()
        xpub = self._context.socket(zmq.XPUB)
        xpub.setsockopt(zmq.LINGER, 0)
        xpub.setsockopt(zmq.SNDHWM, SEND_HWM)
        xpub.setsockopt(zmq.RCVHWM, 0)  # subscriptions: bounded by the topics there are
        xpub.setsockopt(zmq.XPUB_VERBOSE, 1)
        xpub.setsockopt(zmq.BACKLOG, CONNECTIONS)
        xpub.bind(self._rundir.bus("out", self.incarnation))
        self._xpub = xpub
        self._send = wire.sender(xpub)
        self._look_out = wire.looker(xpub)
        self._read_with(xpub, self._take_subscriptions)
        self._awaited = set(held_slots(self._rundir))
        now = self._loop.time()
        self._beat_at = now
        self._timers["beat"] = self._loop.call_at(now + self._beat_seconds, self._beat)
        self._timers["open"] = self._loop.call_later(OPEN_SECONDS, self._open, "waited long enough")
        self._open_if_complete()

    async def close(self) -> None:
        """Leave: unbind and remove the sockets; what subscribers have not read is dropped."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for reader in self._readers:
            self._loop.remove_reader(reader)
        self._readers.clear()
        self._send = _unbound
        self.open = False
        for socket in (self._pull, self._xpub):
            if socket is not None:
                socket.close(linger=0)
        self._pull = self._xpub = None
        context, self._context = self._context, None
        if context is not None:
            await self._loop.run_in_executor(None, context.term)
            self._remove_files(f"bus-*-{self.incarnation:08x}")

    def _remove_files(self, pattern: str) -> None:
        for path in self._rundir.path.glob(pattern):
            path.unlink(missing_ok=True)

    def stats(self) -> dict[str, int]:
        """Return the figures of the bus, for the operator."""
        return {
            "open": int(self.open),
            "messages": self._messages,
            "bytes": self._bytes,
            "topics": len(self._published),
            "workers": sum(subscriber.present for subscriber in self._subscribers.values()),
            "ring_frames": len(self._ring),
            "ring_bytes": self._ring.size,
            "ring_limit": self._ring_bytes,
        }

    def _open_if_complete(self) -> None:
        if not self.open and self._awaited <= {
            subscriber.hello.slot for subscriber in self._subscribers.values() if subscriber.present
        }:
            self._open("everybody is here")

    def _open(self, why: str) -> None:
        if self.open or self._context is None:
            return
        self._timers.pop("open").cancel()
        pull = self._context.socket(zmq.PULL)
        pull.setsockopt(zmq.LINGER, 0)
        pull.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        pull.setsockopt(zmq.MAXMSGSIZE, wire.MESSAGE_LIMIT)
        pull.setsockopt(zmq.BACKLOG, CONNECTIONS)
        pull.bind(self._rundir.bus("in", self.incarnation))
        self._pull = pull
        self._look = wire.looker(pull)
        self.open = True
        logger.debug("the bus is open: %s", why)
        self._read_with(pull, self._forward)
        for subscriber in self._subscribers.values():
            if subscriber.present:
                self._tell_open(subscriber, late=False)

    def _read_with(self, socket: zmq.Socket[bytes], read: Callable[[], None]) -> None:
        descriptor = int(socket.getsockopt(zmq.FD))
        self._readers.append(descriptor)
        self._loop.add_reader(descriptor, read)
        self._loop.call_soon(read)  # what came before is not announced

    # --- workers -----------------------------------------------------------

    def _greet(self, connection: ControlConnection, hello: Hello) -> dict[str, object]:
        if self._xpub is None:
            raise ControlError("the hub is not ready")
        self._subscribers[hello.worker_id] = Subscriber(connection, hello, self._loop.time())
        self._tell_workers(but=hello.worker_id)
        return {"bus": BusWelcome(self.incarnation, self._buckets)}

    def _worker_lost(self, _connection: ControlConnection, hello: Hello) -> None:
        if self._subscribers.pop(hello.worker_id, None) is not None:
            self._tell_workers()

    def _workers(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple(
            (hello.node, hello.slot, hello.incarnation, hello.worker_id)
            for hello in (subscriber.hello for subscriber in self._subscribers.values())
        )

    def _tell_workers(self, but: int = 0) -> None:
        if self.open:
            body = BusWorkers(self._workers())
            for subscriber in self._subscribers.values():
                if subscriber.present and subscriber.hello.worker_id != but:
                    subscriber.connection.send("bus.workers", body)

    def _tell_open(self, subscriber: Subscriber, *, late: bool) -> None:
        subscriber.connection.send("bus.open", BusOpen(self.incarnation, self._workers(), late))

    def _sentinel(self, worker_id: int) -> None:
        subscriber = self._subscribers.get(worker_id)
        if subscriber is None:
            return  # gone already
        subscriber.present = True
        subscriber.heard_at = self._loop.time()
        subscriber.heard_beat = self._beat_number
        subscriber.heard_bytes = self._bytes
        if self.open:
            self._tell_open(subscriber, late=True)
        else:
            self._open_if_complete()

    def _heard(self, connection: ControlConnection, body: object) -> None:
        hello = connection.owner
        subscriber = self._subscribers.get(hello.worker_id) if isinstance(hello, Hello) else None
        if subscriber is None or not isinstance(body, int) or body <= subscriber.heard_beat:
            return
        sent = self._beat_bytes.get(body)
        if sent is not None:
            subscriber.heard_beat = body
            subscriber.heard_bytes = sent
            subscriber.heard_at = self._loop.time()
            observe(
                "limpet_bus_delivery_lag_seconds",
                time.monotonic() - self._beat_times[body],
                worker=f"w{subscriber.hello.slot}",
            )

    def _find_deaf(self, now: float) -> None:
        for subscriber in list(self._subscribers.values()):
            if subscriber.deaf or not subscriber.present:
                continue
            # up to the beat before this one: it had a whole beat's time to echo that
            unread = self._beat_bytes.get(self._beat_number - 1, 0) - subscriber.heard_bytes
            silent = now - subscriber.heard_at
            if unread > self._unread_bytes:
                why = f"{unread} bytes behind"
            elif silent > self._stall_after:
                why = f"silent for {silent:.1f} s"
            else:
                continue
            subscriber.deaf = True
            count("limpet_bus_deaf_total")
            logger.warning(
                "worker in slot %d does not read the bus: %s", subscriber.hello.slot, why
            )
            if self.on_deaf is not None:
                self.on_deaf(subscriber.connection, subscriber.hello, why)

    # --- forwarding --------------------------------------------------------

    def _forward(self) -> None:
        """Number and send what workers sent; the hot path."""
        pull = self._pull
        if pull is None:
            return
        receive = pull.recv
        look = self._look
        send = self._send
        add = self._ring.add
        published = self._published
        latest = self._latest
        changed = self._changed
        pack = wire.STAMP.pack
        incarnation = self.incarnation
        nowait = zmq.NOBLOCK
        size = 0
        messages = 0
        try:
            while messages < BATCH:
                # When little comes, asking first is cheaper than to be refused at the end.
                if 0 < messages < _FEW and not look(_EVENTS) & _READABLE:
                    break
                frame = receive(nowait)
                messages += 1
                topic = published.get(frame[:3])
                if topic is None or len(frame) < wire.HEADER_SIZE:
                    topic = self._admit(frame)
                    if topic is None:
                        continue
                latest[frame[4:12]] = frame
                sequence = topic.sequence = topic.sequence + 1
                if not topic.subscribed:
                    continue
                frame = frame[:20] + pack(incarnation, sequence) + frame[32:]
                send(frame, nowait)
                add(topic, frame)
                size += len(frame)
                if not topic.changed:
                    topic.changed = True
                    changed.append(topic)
            if messages == BATCH:
                self._loop.call_soon(self._forward)  # more waits, and the FD may not fire again
        except zmq.Again:
            pass
        self._messages += messages
        self._bytes += size
        self._take_subscriptions()  # a send may have swallowed the wake-up of the XPUB's FD

    def _admit(self, frame: bytes) -> Published | None:
        """Return the new topic of a frame; None when the frame is none."""
        try:
            header = wire.header(frame)
        except wire.WireError as error:
            count("limpet_bus_bad_frames_total")
            logger.warning("bad frame on the bus: %s", error)
            return None
        return self._topic(header.topic)

    def _topic(self, name: bytes) -> Published:
        topic = self._published.get(name)
        if topic is None:
            topic = self._published[name] = Published(name)
        return topic

    def _take_subscriptions(self) -> None:
        """Acknowledge each subscription on its own topic, with the topic's last number."""
        self._subscriptions_due = False
        xpub = self._xpub
        if xpub is None:
            return
        try:
            for number in range(BATCH):
                if number < _FEW and not self._look_out(_EVENTS) & _READABLE:
                    return
                message = xpub.recv(zmq.NOBLOCK)
                name = message[1:]
                if len(name) != topics.TOPIC_SIZE:
                    worker_id = topics.sentinel_of(name)
                    if worker_id is not None and message[0]:
                        self._sentinel(worker_id)
                    continue
                topic = self._topic(name)
                topic.subscribed = bool(message[0])
                if topic.subscribed:
                    self._send(
                        wire.acknowledgement(name, self.incarnation, topic.sequence), zmq.NOBLOCK
                    )
        except zmq.Again:
            return
        if not self._subscriptions_due:
            self._subscriptions_due = True
            self._loop.call_soon(self._take_subscriptions)

    def _repair(self, connection: ControlConnection, body: object) -> BusRepair:
        if not isinstance(connection.owner, Hello):
            raise ControlError("say hello first")
        request = msgspec.convert(body, RepairRequest)
        topic = self._published.get(request.topic)
        if topic is None or request.first > request.last:
            raise ControlError("there is nothing to repair")
        count("limpet_bus_repairs_total")
        answer = self._ring.find(topic, request.first, request.last)
        return BusRepair(tuple(answer.frames), answer.through)

    # --- beats -------------------------------------------------------------

    def _beat(self) -> None:
        """Say what was sent, let old frames go, look for deaf workers."""
        now = self._loop.time()
        late = now - self._beat_at - self._beat_seconds
        hung = late > self._beat_seconds / 2  # then nobody could be heard
        if hung:
            for subscriber in self._subscribers.values():
                subscriber.heard_at += late
        self._beat_at = now
        self._timers["beat"] = self._loop.call_later(self._beat_seconds, self._beat)

        changed = [(topic.topic, topic.sequence) for topic in self._changed]
        for topic in self._changed:
            topic.changed = False
        self._changed.clear()
        confirmed = [wire.sent_by(frame) for frame in self._latest.values()]
        self._latest.clear()

        number = self._beat_number = self._beat_number + 1
        payload = wire.encode_beat(number, changed, confirmed)
        topic = self._topic(topics.HUB_TOPIC)
        topic.sequence += 1
        frame = wire.stamped(
            wire.frame(topics.HUB_TOPIC, wire.BEAT, 0, 0, payload), self.incarnation, topic.sequence
        )
        if topic.subscribed:
            self._send(frame, zmq.NOBLOCK)
            self._ring.add(topic, frame)
            self._bytes += len(frame)
        self._beat_bytes[number] = self._bytes
        self._beat_times[number] = time.monotonic()
        oldest = number - 4 * max(1, int(self._stall_after / self._beat_seconds))
        self._beat_bytes.pop(oldest, None)
        self._beat_times.pop(oldest, None)

        self._ring.expire(now)
        if not hung:
            self._find_deaf(now)
        self._take_subscriptions()


def _unbound(_frame: bytes, _flags: int) -> object:
    """Stand in for the XPUB's send while there is none."""
    return None
