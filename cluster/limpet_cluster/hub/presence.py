"""The hub's part of presence around its index: takes batches in, purges the dead, answers workers.

Nothing here holds the loop for more than a few milliseconds: batches wait in an inbox and are
applied, and hidden shares are swept out, in slices of `SLICE`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from limpet_adapters.control import ControlConnection, Hello
from limpet_adapters.counters import count
from limpet_adapters.presence import Home, PresenceIndex, seen
from limpet_adapters.presence_ops import (
    CountAnswer,
    CountQuery,
    ListPage,
    ListQuery,
    PresenceCodecError,
    UserAnswer,
    UserQuery,
    decode,
)
from limpet_cluster.hub.control import HubControl
from limpet_cluster.hub.members import Member, Members

logger = logging.getLogger("limpet.presence")

SLICE: Final = 0.004
"""Seconds of long work in one turn of the loop."""
RESYNC_GRACE: Final = 5.0
"""Seconds after its start for which a hub waits for workers that were there before it."""
ROOMS_NAMED: Final = 10_000
"""Rooms of one user that an answer names at most."""
_INLINE: Final = 4096
"""A batch of at most so many bytes is applied where it arrives."""
_SWEPT: Final = 256
"""Entries taken out between two looks at the clock."""
_HOUSEKEEPING: Final = 1.0


class HubPresence:
    """Feeds the index from the control connections and answers what workers ask.

    Args:
        control: handlers of the ``presence`` kinds are added to it.
        members: says who is there and who died.
        node: name of this host, as it is shown.
        held_slots: returns the slots that living processes hold, whether registered or not.
    """

    def __init__(
        self,
        control: HubControl,
        members: Members,
        node: str,
        held_slots: Callable[[], Collection[int]],
        grace: float = RESYNC_GRACE,
    ) -> None:
        self.index = PresenceIndex()
        self.node = node
        self._members = members
        self._held_slots = held_slots
        self._loop = asyncio.get_running_loop()
        self._awaited = set(held_slots())
        """Slots whose holders were there before us and have yet to tell what they hold."""
        self._deadline = self._loop.time() + grace
        self._inbox: deque[tuple[int, ControlConnection, bytes]] = deque()
        self._taken = 0
        """Batches taken from the inbox so far."""
        self._pumping = False
        self._housekeeping = self._loop.call_later(_HOUSEKEEPING, self._keep_house)
        members.on_joined.append(self._joined)
        members.on_gone.append(self._gone)
        control.handle("presence", self._batch)
        control.handle("presence.list", self._list)
        control.handle("presence.count", self._count)
        control.handle("presence.user", self._user)

    @property
    def complete(self) -> bool:
        """Everybody who should have told us what they hold has done so."""
        return not self._awaited and not self._members.lost

    async def settled(self, timeout: float = 1.0) -> None:
        """Wait until counts need no look at each entry; gives up after ``timeout`` seconds."""
        deadline = self._loop.time() + timeout
        # Rare and short, and several things end it: not worth a waiter in each of them.
        while (  # noqa: ASYNC110
            self._inbox or not self.index.settled
        ) and self._loop.time() < deadline:
            await asyncio.sleep(0.002)

    def close(self) -> None:
        """Do no more work."""
        self._housekeeping.cancel()
        self._inbox.clear()
        self._pumping = True  # none is begun any more

    # --- taking in ---------------------------------------------------------

    def _joined(self, member: Member) -> None:
        self.index.register(member.worker_id, Home(self.node, member.name, member.hello.slot))

    def _gone(self, member: Member, dead: bool) -> None:
        held = self.index.drop_worker(member.worker_id, dead=dead)
        count("limpet_presence_ops_total", op="drop_worker")
        if held:
            logger.info("%s is gone with %d connections", member.name, held)
        self._pump_soon()

    def _batch(self, connection: ControlConnection, body: object) -> None:
        hello = connection.owner
        if not isinstance(hello, Hello):
            return
        if not isinstance(body, bytes):
            self._refuse(connection, f"a batch is bytes, not {type(body).__name__}")
        elif len(body) <= _INLINE and not self._inbox:
            self._apply(hello.worker_id, connection, body)
        else:
            self._inbox.append((hello.worker_id, connection, body))
            self._pump_soon()

    def _apply(self, worker_id: int, connection: ControlConnection, body: bytes) -> None:
        try:
            batch = decode(body)
        except PresenceCodecError as error:
            self._refuse(connection, str(error))
            return
        if self.index.receive(worker_id, batch):
            member = self._members.living.get(worker_id)
            if member is not None:
                self._awaited.discard(member.hello.slot)
            count("limpet_presence_pulls_total", kind="snapshot")
            self._pump_soon()
        for kind, amount in Counter(map(type, batch.ops)).items():
            count("limpet_presence_ops_total", amount, op=kind.__name__.lower())

    def _refuse(self, connection: ControlConnection, why: str) -> None:
        """End the connection: the worker comes again and tells everything anew."""
        count("limpet_presence_bad_batches_total")
        logger.error("bad presence batch of pid %d: %s", connection.peer_pid, why[:200])
        connection.abort()

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Work for one slice; comes again in the loop's next turn when there is more."""
        until = time.monotonic() + SLICE
        inbox = self._inbox
        more = True
        try:
            while more and time.monotonic() < until:
                if inbox:
                    worker_id, connection, body = inbox.popleft()
                    self._taken += 1
                    self._apply(worker_id, connection, body)
                else:
                    more = self.index.sweep(_SWEPT)
        finally:
            self._pumping = False
            if more:
                self._pump_soon()

    def _keep_house(self) -> None:
        """Each second: drop unused sorted indexes; see who is still awaited after a start."""
        now = self._loop.time()
        self._housekeeping = self._loop.call_later(_HOUSEKEEPING, self._keep_house)
        self.index.expire(now)
        if self._awaited:
            self._awaited &= set(self._held_slots())
            if self._awaited and now >= self._deadline:
                slots = ", ".join(map(str, sorted(self._awaited)))
                count("limpet_presence_incomplete_total")
                logger.warning("slots %s are held but told us nothing: not awaited longer", slots)
                self._awaited.clear()

    # --- answers to workers ------------------------------------------------

    async def _caught_up(self) -> None:
        """Wait until what arrived before now is applied, so that a worker reads its own writes."""
        until = self._taken + len(self._inbox)
        while self._taken < until and self._inbox:  # noqa: ASYNC110  (as in settled)
            await asyncio.sleep(0)

    async def _list(self, _connection: ControlConnection, body: object) -> ListPage:
        query = msgspec.convert(body, ListQuery)
        await self._caught_up()
        room = self.index.room(query.namespace, query.room)
        found = self.index.member_connections(room, self._loop.time(), after=query.after)
        page = list(itertools.islice(found, query.limit + 1))
        more = len(page) > query.limit
        del page[query.limit :]
        return ListPage(
            connections=[seen(one, one.rooms[query.room]) for one in page],
            next=(page[-1].user, page[-1].id) if more else None,
            complete=self.complete,
        )

    async def _count(self, _connection: ControlConnection, body: object) -> CountAnswer:
        query = msgspec.convert(body, CountQuery)
        await self._caught_up()
        users, connections = self.index.occupancy(self.index.room(query.namespace, query.room))
        return CountAnswer(users=users, connections=connections, complete=self.complete)

    async def _user(self, _connection: ControlConnection, body: object) -> UserAnswer:
        query = msgspec.convert(body, UserQuery)
        await self._caught_up()
        found = self.index.where(query.user)
        rooms = {(one.namespace.name, room) for one in found for room in one.rooms}
        return UserAnswer(
            connections=[seen(one, one.connected_at) for one in found[: query.limit]],
            rooms=sorted(rooms)[:ROOMS_NAMED],
            complete=self.complete,
        )
