"""The adapter contract: who is in which room of a namespace, and how a broadcast reaches them.

One adapter belongs to one namespace of one worker. Every engine (memory, ZeroMQ, later others)
implements this contract and passes the same conformance tests (``tests/adapters/conformance.py``).
Cluster requests (fetching sockets, server-side events, acknowledged broadcasts) will be further
methods of this contract; nothing here may assume that rooms or sockets are local only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Mapping
from typing import Any, Protocol

from limpet_adapters.packet import EncodedPacket


class Member(Protocol):
    """What an adapter knows of a socket: its id, which is also the name of its own room."""

    @property
    def id(self) -> str:
        """The public socket id."""

    joined: Collection[str]
    """The rooms it is in besides its own, ``()`` at first. Kept here, so that the adapter needs
    no table of its own per socket; only the adapter writes it."""


class BroadcastOptions:
    """To whom a broadcast goes. Empty ``rooms`` means the whole namespace."""

    __slots__ = ("except_rooms", "local", "rooms", "volatile")

    def __init__(
        self,
        rooms: frozenset[str] = frozenset(),
        except_rooms: frozenset[str] = frozenset(),
        *,
        local: bool = False,
        volatile: bool = False,
    ) -> None:
        self.rooms = rooms
        self.except_rooms = except_rooms
        self.local = local
        """Only to the sockets of this worker."""
        self.volatile = volatile
        """May be dropped for a client whose transport cannot take it at that instant."""


class Joined:
    """What a join returns. Awaiting it waits until the membership is in force cluster-wide."""

    __slots__ = ("_waiting",)

    def __init__(self, waiting: Awaitable[object] | None = None) -> None:
        self._waiting = waiting

    def __await__(self) -> Generator[object, None, None]:
        if self._waiting is not None:
            yield from self._waiting.__await__()


JOINED = Joined()
"""For a membership that was in force at once."""

Deliver = Callable[[Collection[Any], EncodedPacket, bool], None]
"""``deliver(members, packet, volatile)``: puts a packet into the outbox of each member.

``members`` are the objects that were given to ``Adapter.add``; the collection may be a live view
of the adapter's, so it is read before the call returns.
"""


class Adapter(ABC):
    """Rooms and broadcast of one namespace on one worker.

    A socket is in its own room (the room named as its id) from ``add`` to ``remove``; that room
    costs nothing and does not appear in ``rooms``.
    """

    @property
    @abstractmethod
    def sockets(self) -> Mapping[str, Any]:
        """The local sockets by id. Not to be changed by the caller."""

    @property
    @abstractmethod
    def rooms(self) -> Mapping[str, Collection[Any]]:
        """Each room with a local member, and these members; own rooms are left out.

        Not to be changed by the caller.
        """

    @abstractmethod
    def rooms_of(self, member: Member) -> Collection[str]:
        """Return the rooms a local socket is in, its own room included."""

    def ready(self) -> Joined:
        """Return what to await before the first socket is added to a namespace.

        Then broadcasts to the whole namespace by other workers reach this one. Several may
        await it, so what it wraps is a future and no coroutine.
        """
        return JOINED

    @abstractmethod
    def add(self, member: Member) -> None:
        """Take in a socket of this worker that has just connected to the namespace."""

    @abstractmethod
    def remove(self, member: Member) -> None:
        """Take a local socket out of every room and of the namespace: it disconnected.

        Its ``joined`` is ``()`` afterwards. Nothing happens when it was not added.
        """

    @abstractmethod
    def join(self, member: Member, rooms: Iterable[str]) -> Joined:
        """Put an added socket into rooms, at once on this worker; awaiting gives the barrier.

        Rooms it is in already count too: awaiting waits until *their* membership is in force.
        """

    @abstractmethod
    def leave(self, member: Member, room: str) -> None:
        """Take a local socket out of a room; nothing happens when it is not in it.

        Its own room cannot be left.
        """

    @abstractmethod
    def broadcast(self, packet: EncodedPacket, options: BroadcastOptions) -> None:
        """Deliver to the chosen sockets of the whole cluster, each once; never blocks.

        Local sockets are served before the message leaves this worker.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back what the adapter holds; the namespace ended."""
