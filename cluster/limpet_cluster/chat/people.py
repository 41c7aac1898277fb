"""Who is in the rooms of the chat: asked of presence now and then, told as differences.

Each worker asks for the rooms in which it has somebody, and tells its own clients what changed
since they were told last. What its own clients do is looked at within moments and told on every
worker; the questions each two seconds find the rest: clients of a worker that died, and what a
hub could not say while it was away. Nobody in any room: nothing is asked.

So a change may be told twice, and a client counts it once: ``entered`` and ``left`` say how it is,
not how often it happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from itertools import islice
from typing import Final

from limpet_worker.presence import PresenceUnavailable
from limpet_worker.socketio.server import Server
from limpet_worker.socketio.socket import Socket

logger = logging.getLogger("limpet.chat")

INTERVAL: Final = 2.0
"""Seconds between two questions for one room."""
CROWD: Final = 200
"""Users of a room whose names are told; of more people only how many they are."""
_SOON: Final = 0.05
"""Seconds in which changes of this worker's own clients gather before presence is asked."""
_ROUND: Final = 200
"""Rooms asked for in one round at most; the others have their turn in the next."""
_CHANGES: Final = 20
"""Changes that are told one by one; when there are more, everybody is told anew."""
_PATIENCE: Final = 2.0
"""Seconds that presence may take to answer."""


class Room:
    """What this worker's members of a room were told."""

    __slots__ = ("asked", "count", "known", "names", "renamed")

    def __init__(self) -> None:
        self.names: frozenset[str] | None = None
        """Who is there; None while nobody knows, or when it is a crowd."""
        self.count: int | None = None
        """How many users are there; None while nobody knows."""
        self.asked = 0
        """Number of the latest question."""
        self.known = 0
        """Number of the latest question whose answer is in here."""
        self.renamed: list[tuple[str, str]] = []
        """Names before and after that nobody was told of: whichever question finds them tells."""

    @property
    def told(self) -> dict[str, object]:
        """As clients are told: in order, and how many they are."""
        return {
            "users": None if self.names is None else sorted(self.names),
            "count": self.count,
        }


class People:
    """The rooms that clients of this worker are in, and the one task that asks who else is.

    Args:
        io: the server of the chat.
    """

    def __init__(self, io: Server) -> None:
        self.interval = INTERVAL
        self._io = io
        self._rooms: dict[str, Room] = {}
        """Whom to ask for next comes first."""
        self._changed: set[str] = set()
        """Rooms that clients of this worker left since they were asked for."""
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        """Runs while somebody is in a room."""

    @property
    def watching(self) -> bool:
        """Whether the task runs."""
        return self._task is not None

    async def enter(self, socket: Socket, name: str) -> dict[str, object]:
        """Tell everybody of somebody who has joined a room; return who is there."""
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room()
        self._watch()
        try:
            await self._look(name, room, everywhere=True, newcomer=socket)
        except PresenceUnavailable:
            socket.to(name).emit("entered", {"room": name, "user": socket.user})
            if room.names is not None:
                room.names |= {socket.user}
        return room.told

    async def rename(self, socket: Socket, name: str, before: str) -> None:
        """Tell everybody in a room of somebody's new name."""
        room = self._rooms.setdefault(name, Room())
        renamed = (before, str(socket.user))
        room.renamed.append(renamed)
        self._watch()
        try:
            await self._look(name, room, everywhere=True)
        except PresenceUnavailable:
            if renamed in room.renamed:
                self._tell_renamed(name, renamed)
                if room.names is not None:
                    room.names = room.names - {before} | {renamed[1]}
        finally:
            if renamed in room.renamed:
                room.renamed.remove(renamed)

    def left(self, name: str) -> None:
        """Find out soon whether somebody who left a room was the last of that name there."""
        self._rooms.setdefault(name, Room())
        self._changed.add(name)
        self._watch()
        if self._wake is not None:
            self._wake.set()

    async def ask(self, name: str) -> dict[str, object]:
        """Return who is in a room, whether or not somebody of this worker is.

        Raises:
            PresenceUnavailable: nobody knows.
        """
        names, count, _ = await self._ask(name)
        return {"users": None if names is None else sorted(names), "count": count}

    async def close(self) -> None:
        """End the task."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._rooms.clear()
        self._changed.clear()

    # --- the task ----------------------------------------------------------

    def _watch(self) -> None:
        if self._task is None and self._io.presence.source is not None:
            self._wake = asyncio.Event()
            self._task = asyncio.create_task(self._run(self._wake), name="chat people")

    async def _run(self, wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self.interval
        try:
            while self._rooms:
                try:
                    async with asyncio.timeout_at(due):
                        await wake.wait()
                    await asyncio.sleep(_SOON)
                except TimeoutError:
                    due = loop.time() + self.interval
                    await self._round(list(islice(self._rooms, _ROUND)), everywhere=False)
                wake.clear()
                changed, self._changed = self._changed, set()
                await self._round(changed, everywhere=True)
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    async def _round(self, names: Collection[str], *, everywhere: bool) -> None:
        for name in names:
            room = self._rooms.pop(name, None)
            if room is None:
                continue
            self._rooms[name] = room
            try:
                await self._look(name, room, everywhere=everywhere)
            except PresenceUnavailable as error:
                # What was told stays; what changed meanwhile will be found by comparison.
                logger.debug("who is where: %s", error)
                return
            if not self._io.of("/").adapter.rooms.get(name) and name not in self._changed:
                self._rooms.pop(name, None)

    # --- one question ------------------------------------------------------

    async def _look(
        self,
        name: str,
        room: Room,
        *,
        everywhere: bool,
        newcomer: Socket | None = None,
    ) -> None:
        """Ask who is in a room, and tell its members what changed.

        Args:
            name: of the room.
            room: what was told of it.
            everywhere: whether the members on other workers are told as well.
            newcomer: who has just joined and needs not be told.

        Raises:
            PresenceUnavailable: nobody knows.
        """
        room.asked += 1
        number = room.asked
        names, count, complete = await self._ask(name)
        if number < room.known:
            return  # a later question was answered first
        room.known = number
        before, before_count = room.names, room.count
        if before is not None and names is not None and not complete:
            names |= before  # a hub that has just started does not know yet who is gone
        room.names, room.count = names, count if names is None else len(names)
        to = self._io.to(name) if newcomer is None else newcomer.to(name)
        if not everywhere:
            to = to.local
        if names is None or before is None:
            if newcomer is not None and names is not None:
                # The first of this worker, or the first since presence is back.
                to.emit("entered", {"room": name, "user": newcomer.user})
                to = to.local
            if (names, room.count) != (before, before_count):
                to.local.emit("people", {"room": name, **room.told})
            return
        came, went = names - before, before - names
        for renamed in [one for one in room.renamed if one[0] in went and one[1] in came]:
            room.renamed.remove(renamed)
            self._tell_renamed(name, renamed)
            came, went = came - {renamed[1]}, went - {renamed[0]}
        if len(came) + len(went) > _CHANGES:
            to.local.emit("people", {"room": name, **room.told})
            return
        for user in sorted(went):
            to.emit("left", {"room": name, "user": user})
        for user in sorted(came):
            to.emit("entered", {"room": name, "user": user})

    def _tell_renamed(self, name: str, renamed: tuple[str, str]) -> None:
        before, after = renamed
        self._io.to(name).emit("renamed", {"room": name, "from": before, "to": after})

    async def _ask(self, name: str) -> tuple[frozenset[str] | None, int, bool]:
        """Return who is in a room (None: a crowd), how many, and whether that is all."""
        presence = self._io.presence
        count = await presence.count(name, timeout=_PATIENCE)
        if count.users > CROWD:
            return None, count.users, count.complete
        users = await presence.list(name, timeout=_PATIENCE)
        return frozenset(one.user for one in users), len(users), users.complete
