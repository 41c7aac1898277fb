"""The adapter of one process: rooms and broadcast in plain dictionaries, nothing crosses a wire.

Other adapters build on it: what they add is how a broadcast leaves the worker and comes in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from limpet_adapters.contract import JOINED, Adapter, BroadcastOptions, Deliver, Joined, Member
from limpet_adapters.packet import EncodedPacket

_FEW: Final = 8
"""Up to so many rooms a socket keeps them in a tuple: a set costs 216 bytes when empty."""


class MemoryAdapter(Adapter):
    """Rooms and broadcast of a namespace among the sockets of this process.

    Args:
        namespace: its name, for example ``/`` or ``/chat``.
        deliver: puts a packet into the outbox of each member it is given.
    """

    __slots__ = ("_rooms", "_sockets", "deliver", "namespace")

    def __init__(self, namespace: str, deliver: Deliver) -> None:
        self.namespace = namespace
        self.deliver = deliver
        self._sockets: dict[str, Member] = {}
        self._rooms: dict[str, set[Member]] = {}

    @property
    def sockets(self) -> Mapping[str, Any]:
        """The local sockets by id."""
        return self._sockets

    @property
    def rooms(self) -> Mapping[str, Collection[Any]]:
        """Each room with a local member, and these members; own rooms are left out."""
        return self._rooms

    def rooms_of(self, member: Member) -> Collection[str]:
        """Return the rooms a local socket is in, its own room included."""
        if self._sockets.get(member.id) is not member:
            return ()
        return (member.id, *member.joined)

    def add(self, member: Member) -> None:
        """Take in a socket that has just connected to the namespace."""
        self._sockets[member.id] = member

    def remove(self, member: Member) -> None:
        """Take a socket out of every room and of the namespace."""
        if self._sockets.get(member.id) is not member:
            return
        del self._sockets[member.id]
        rooms, member.joined = member.joined, ()
        for room in rooms:
            self._discard(member, room)

    def join(self, member: Member, rooms: Iterable[str]) -> Joined:
        """Put a socket into rooms; in one process that is in force at once."""
        for room in rooms:
            self.enter(member, room)
        return JOINED

    def enter(self, member: Member, room: str) -> bool:
        """Put a socket into one room; tell whether it is now the room's first local member."""
        joined = member.joined
        if room in joined or room == member.id:
            return False
        if isinstance(joined, set):
            joined.add(room)
        elif len(joined) < _FEW:
            member.joined = (*joined, room)
        else:
            member.joined = {*joined, room}
        members = self._rooms.get(room)
        if members is None:
            self._rooms[room] = {member}
            return True
        members.add(member)
        return False

    def leave(self, member: Member, room: str) -> None:
        """Take a socket out of a room; its own room cannot be left."""
        joined = member.joined
        if room not in joined:
            return
        if isinstance(joined, set):
            joined.discard(room)
        else:
            member.joined = tuple(other for other in joined if other != room)
        self._discard(member, room)

    def _discard(self, member: Member, room: str) -> None:
        """Take a socket off the room's list, and the list away with its last member."""
        members = self._rooms[room]
        members.discard(member)
        if not members:
            del self._rooms[room]
            self.emptied(room)

    def emptied(self, room: str) -> None:
        """Hear that the last local member of a room left. For adapters that build on this one."""

    def broadcast(self, packet: EncodedPacket, options: BroadcastOptions) -> None:
        """Deliver to the chosen sockets of this process, each once."""
        chosen = self.select(options)
        if chosen:
            self.deliver(chosen, packet, options.volatile)

    def select(self, options: BroadcastOptions) -> Collection[Member]:
        """Return the local sockets that a broadcast is for, each once; maybe a live view."""
        rooms = options.rooms
        chosen: Collection[Member]
        if not rooms:
            chosen = self._sockets.values()
        elif len(rooms) == 1:
            (room,) = rooms
            chosen = self._members(room)
        else:
            union: set[Member] = set()
            for room in rooms:
                union.update(self._members(room))
            chosen = union
        if not options.except_rooms or not chosen:
            return chosen
        excluded: set[Member] = set()
        for room in options.except_rooms:
            excluded.update(self._members(room))
        if not excluded:
            return chosen
        return [member for member in chosen if member not in excluded]

    def _members(self, room: str) -> Collection[Member]:
        """Return the local members of a room, be it a room, somebody's own, or both at once."""
        members = self._rooms.get(room)
        owner = self._sockets.get(room)
        if owner is None:
            return members if members is not None else ()
        return {owner} if members is None else {owner, *members}

    async def close(self) -> None:
        """Forget all sockets and rooms."""
        for member in self._sockets.values():
            member.joined = ()
        self._sockets.clear()
        self._rooms.clear()
