"""Writes outboxes to their transports: replies every loop turn, broadcasts in slices.

A delivery is nine parts system call, so what counts is how many packets one write carries: a
session's packets wait for the end of the loop turn and leave together. Sessions with replies
(*hot*) are written every turn, those of broadcasts (*bulk*) some at a time, so that a broadcast
to thousands does not make others wait. Both take a session's whole outbox, so order holds.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from limpet_adapters.counters import count
from limpet_worker.engineio.payload import packet_payload
from limpet_worker.websocket.frames import packet_frame

if TYPE_CHECKING:
    from limpet_adapters.packet import EncodedPacket
    from limpet_worker.engineio.options import EngineOptions
    from limpet_worker.engineio.session import Session
    from limpet_worker.engineio.traffic import Traffic

logger = logging.getLogger("limpet.engineio")

SLOT: Final = 64
"""Bytes that a queued packet weighs besides its own."""
HEAVY: Final = 65_536
"""Bytes that are not left waiting for the end of the turn."""

_COMPACT: Final = 4096


class Flusher:
    """The sessions of a process that have something to write (``engine.flusher``)."""

    __slots__ = (
        "_bulk_slice",
        "_call_soon",
        "_compact_at",
        "_held",
        "_traffic",
        "bulk",
        "heavy",
        "hot",
        "scheduled",
    )

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        options: EngineOptions,
        traffic: Traffic,
    ) -> None:
        self._call_soon = call_soon
        self._traffic = traffic
        self._bulk_slice = options.bulk_slice
        self.heavy = min(HEAVY, options.soft_limit, options.soft_packets * SLOT)
        """Weight of an outbox that is flushed at once, or judged when it cannot be."""
        self.hot: list[Session] = []
        """Sessions that a reply or a packet of their own waits for."""
        self.bulk: deque[Session] = deque()
        """Sessions that only broadcasts wait for; one that is flushed meanwhile stays in here."""
        self.scheduled = False
        """Whether ``flush`` will be called."""
        self._held = False
        """Whether whoever called ``hold`` will see to that."""
        self._compact_at = _COMPACT
        """Length of ``bulk`` at which repeated entries are looked for."""

    def schedule(self) -> None:
        """See to it that ``flush`` is called in the next loop turn."""
        self.scheduled = True
        self._call_soon(self.flush)

    def hold(self) -> None:
        """Let what follows in this turn wait for ``release`` or ``flush_held``: one of them must
        be called. Saves the loop a turn of its own for the answers to one read.
        """
        if not self.scheduled:
            self.scheduled = self._held = True

    def release(self) -> None:
        """Write the replies of a read; broadcasts wait for those of the reads beside it."""
        if self._held:
            self._held = False
            if self.bulk:
                self._call_soon(self.flush)
                return
            self.scheduled = False
            hot = self.hot
            if hot:
                self.hot = []
                self._write(hot)

    def flush_held(self) -> None:
        """Write all that was held."""
        if self._held:
            self._held = self.scheduled = False
            if self.hot or self.bulk:
                self.flush()

    def flush(self) -> None:
        """Write the hot sessions and a slice of the others."""
        try:
            hot = self.hot
            if hot:
                self.hot = []
                self._write(hot)
            if self.bulk:
                self._write(self._slice())
        finally:  # nobody would write anything any more
            self.scheduled = False
            if self.bulk or self.hot:
                self.schedule()

    def _slice(self) -> list[Session]:
        """Take from ``bulk`` what may be written now."""
        bulk = self.bulk
        if len(bulk) > self._compact_at:
            self._compact()
        part: list[Session] = []
        most = self._bulk_slice
        while bulk and len(part) < most:
            session = bulk.popleft()
            if session.out is not None and not session.blocked:
                part.append(session)
        return part

    def _write(self, sessions: Iterable[Session]) -> None:
        rest = iter(sessions)
        while not self._write_some(rest):
            pass

    def _write_some(self, sessions: Iterator[Session]) -> bool:
        """Write until the end (True) or until one session's transport raises, which ends it."""
        session: Session | None = None
        messages = size = 0  # of WebSockets
        try:
            for session in sessions:
                out = session.out
                if out is None or session.blocked:
                    continue
                session.out = None
                wire = session.wire
                if wire is not None:
                    if isinstance(out, bytes):
                        messages += 1
                    else:
                        messages += len(out)
                        out = b"".join(out)
                    size += len(out)
                    wire.write(out)
                elif session.polling is not None:
                    session.polling.answer(out)
        except Exception:  # the others must not wait forever for what one did
            logger.exception("writing to a session failed")
            if session is not None:
                try:
                    session.fail("transport error")
                except Exception:
                    logger.exception("ending a session failed")
            return False
        finally:
            self._traffic.websocket_out += messages
            self._traffic.websocket_bytes_out += size
        return True

    def _compact(self) -> None:
        """Drop repeated entries and those with nothing to write."""
        kept = dict.fromkeys(session for session in self.bulk if session.out is not None)
        self.bulk.clear()
        self.bulk.extend(kept)
        self._compact_at = max(_COMPACT, 2 * len(kept))

    def broadcast(
        self, sessions: Iterable[Session], packet: EncodedPacket, volatile: bool = False
    ) -> None:
        """Send a packet to many sessions; a volatile one only to those that can take it now.

        No sink is called before the last session has been served, so ``sessions`` may be a live
        view of what sinks change.
        """
        if volatile:
            sessions = self._able(sessions)
        frame = packet.frame or packet_frame(packet)
        payload = packet.payload  # made when the first polling session is met
        frame_weight = len(frame) + SLOT
        bulk = self.bulk
        limit = self.heavy
        heavy: list[Session] = []
        for session in sessions:
            if session.wire is not None:
                item = frame
                weight = frame_weight
            else:
                if payload is None:
                    payload = packet_payload(packet)
                item = payload
                weight = len(payload) + SLOT
            out = session.out
            if out is None:
                session.out = item
                bulk.append(session)
            elif isinstance(out, list):
                out.append(item)
                session.weight += weight
                if session.weight > limit:
                    heavy.append(session)
            else:
                session.out = [out, item]
                session.weight = len(out) + SLOT + weight
                if session.weight > limit:
                    heavy.append(session)
        if bulk and not self.scheduled:
            self.schedule()
        for session in heavy:
            session.press()

    @staticmethod
    def _able(sessions: Iterable[Session]) -> list[Session]:
        every = list(sessions)
        able = [session for session in every if not session.blocked]
        if len(able) < len(every):
            count("limpet_packets_dropped_total", len(every) - len(able), reason="volatile")
        return able
