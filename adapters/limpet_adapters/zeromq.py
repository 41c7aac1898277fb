"""The adapter of a cluster: local delivery first, then one frame on the bus for the others."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from limpet_adapters import buckets as topics
from limpet_adapters import wire
from limpet_adapters.buckets import Buckets
from limpet_adapters.contract import JOINED, BroadcastOptions, Deliver, Joined, Member
from limpet_adapters.identity import ID_LENGTH, address_of
from limpet_adapters.memory import MemoryAdapter
from limpet_adapters.packet import EncodedPacket

if TYPE_CHECKING:
    from limpet_adapters.bus import Bus


class Barrier:
    """Waits, each time it is awaited, until subscriptions are in force; costs nothing otherwise."""

    __slots__ = ("_bus", "_topics")

    def __init__(self, bus: Bus, waited: tuple[bytes, ...]) -> None:
        self._bus = bus
        self._topics = waited

    def __await__(self) -> Generator[object, None, None]:
        return self._bus.barrier(self._topics).__await__()


class ZeroMQAdapter(MemoryAdapter):
    """Rooms and broadcast of a namespace among the workers of a cluster.

    Each room with a local member holds the topic of its bucket on the bus, and the adapter that of
    its namespace. Own rooms need none: a message to a socket id goes to the inbox of its worker.
    """

    __slots__ = ("_bus", "_topic", "_whole")

    def __init__(self, bus: Bus, namespace: str, deliver: Deliver) -> None:
        super().__init__(namespace, deliver)
        self._bus = bus
        hashed = Buckets(namespace, bus.buckets)
        self._topic = hashed.topic
        self._whole = hashed.whole
        bus.hold(self._whole)

    def ready(self) -> Joined:
        """Return what to await before the first socket is added to the namespace."""
        if self._bus.confirmed(self._whole):
            return JOINED
        return Joined(Barrier(self._bus, (self._whole,)))

    def join(self, member: Member, rooms: Iterable[str]) -> Joined:
        """Put a socket into rooms; awaiting waits for the hub's acknowledgement, 1 s at most."""
        bus = self._bus
        waited: tuple[bytes, ...] = ()
        for room in rooms:
            if room == member.id:
                continue
            topic = self._topic(room)
            if self.enter(member, room):
                bus.hold(topic)
            if not bus.confirmed(topic):
                waited = (*waited, topic)
        return Joined(Barrier(bus, waited)) if waited else JOINED

    def emptied(self, room: str) -> None:
        """Let go of the room's topic: its last local member left."""
        self._bus.release(self._topic(room))

    def broadcast(self, packet: EncodedPacket, options: BroadcastOptions) -> None:
        """Deliver to the chosen sockets of this worker, then send the packet to the others."""
        super().broadcast(packet, options)
        if options.local:
            return
        topic = self._destination(options.rooms)
        if topic is not None:
            payload = wire.encode_broadcast(self.namespace, packet, options)
            self._bus.publish(topic, wire.BROADCAST, payload)

    def receive(self, message: wire.Broadcast) -> None:
        """Deliver a broadcast of another worker to the chosen sockets of this one."""
        super().broadcast(message.packet(), message.options())

    def _destination(self, rooms: frozenset[str]) -> bytes | None:
        """Return the topic of a broadcast; None when it is for a socket of this worker alone."""
        if not rooms:
            return self._whole
        if len(rooms) == 1:
            (room,) = rooms
            if len(room) == ID_LENGTH:
                address = address_of(room)
                if address == self._bus.address:
                    return None
                if address is not None:
                    worker_id = self._bus.workers.get(address)
                    if worker_id is not None:
                        return topics.inbox(worker_id)
            return self._topic(room)
        destinations = {self._topic(room) for room in rooms}
        if len(destinations) == 1 and not any(map(address_of, rooms)):
            return destinations.pop()
        return topics.CLUSTER_TOPIC

    async def close(self) -> None:
        """Forget all sockets and rooms and let go of their topics."""
        for room in self._rooms:
            self._bus.release(self._topic(room))
        await super().close()
        self._bus.forget(self.namespace)
        self._bus.release(self._whole)
