"""Sends the clients of a worker away as a `Drain` plans it, without cutting anything off."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from limpet_adapters.counters import count, gauge
from limpet_adapters.identity import redact
from limpet_worker.drain import Drain, DrainOptions
from limpet_worker.engineio.server import EngineServer
from limpet_worker.engineio.session import Session
from limpet_worker.socketio.client import Client

logger = logging.getLogger("limpet.drain")

REASON: Final = "server shutting down"
"""What the application is told of sockets that are drained."""
SERVICE_RESTART: Final = 1012
"""Close code of WebSockets (RFC 6455's registry): come again."""
_STEP: Final = 0.01
"""Seconds between two looks at least: what falls into it is closed together."""
_SCAN: Final = 0.25
"""Seconds after which newcomers are looked for, and whether anybody is left."""
_ONE_POLL: Final = 0.3
"""Seconds for a client to send its next poll."""
_SCANNED: Final = 5000
"""Sessions that are looked through so often; with more it is done more seldom."""


class Drainer:
    """The drain of one worker: begun, hurried, undone.

    Clients are sent away on the level of Engine.IO and never get a Socket.IO DISCONNECT, after
    which stock clients would not come back. Whatever was sent to them before arrives before.

    Args:
        engine: whose sessions are closed.
        options: how gently.
        chance: returns numbers from 0 up to 1.
    """

    def __init__(
        self,
        engine: EngineServer,
        options: DrainOptions,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.options = options
        self.before_close: list[Callable[[Session], None]] = []
        """Called with each session just before it is closed: the place to hand over what its
        client could take up again elsewhere (connection state recovery; nothing does yet)."""
        self.engine = engine
        self._chance = chance
        self._plan: Drain[Session] | None = None
        """None while nobody is sent away."""
        self._window: float | None = None
        """How long it takes, if somebody said so."""
        self._alone = False
        """Nobody takes the clients: only what handlers still do is worth waiting for."""
        self._timer: asyncio.TimerHandle | None = None
        self._scan_at = 0.0
        self._polled_at = -1.0
        """When the last client that polls was sent away."""
        self._empty = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether clients are being sent away, or have been."""
        return self._plan is not None

    @property
    def remaining(self) -> int:
        """How many sessions are left, those included that have yet to fetch their last packets."""
        return len(self.engine.sessions)

    def left(self) -> float:
        """Return in how many seconds the last client's instant comes; 0 when it has come."""
        plan = self._plan
        if plan is None or not self.engine.sessions:
            return 0.0
        return max(0.0, plan.ends - self.engine.clock())

    # --- what may be asked of it ------------------------------------------

    def begin(self, *, grace: float | None = None, window: float | None = None) -> None:
        """Send everybody away; begins anew when it has begun already.

        Args:
            grace: seconds before the first, instead of what the options say.
            window: over exactly so many seconds, instead of what the budget takes.
        """
        self._window = window
        self._make_plan(grace, workers=1)
        self._alone = False
        self._empty.clear()
        self.show()
        count("limpet_drains_total")
        logger.info("draining for %.1f s, sessions: %d", self.left(), self.remaining)
        self._tick()

    def share(self, workers: int) -> None:
        """Know how many workers drain at this moment: they share the budget of reconnects.

        A drain that closes clients already goes on as it is.
        """
        plan = self._plan
        if plan is not None and self._window is None:
            grace = plan.first - self.engine.clock()
            if grace > 0.0:
                self._make_plan(grace, workers)
                self._tick()

    def _make_plan(self, grace: float | None, workers: int) -> None:
        options = self.options if grace is None else replace(self.options, grace=grace)
        sessions = _open(self.engine)
        length = options.length(len(sessions), workers) if self._window is None else self._window
        self._plan = Drain(options, sessions, self.engine.clock(), self._chance, length=length)

    def hurry(self, patience: float, *, alone: bool) -> None:
        """Close everybody now, those with running handlers within ``patience`` seconds.

        ``alone``: there is nobody to take them, so nobody is waited for who does nothing.
        """
        plan = self._plan
        if plan is None:
            return
        self._alone = self._alone or alone
        plan.hurry(self.engine.clock(), patience)
        self._tick()

    def undo(self) -> None:
        """Keep those who are left."""
        self._plan = None
        self._empty.clear()
        self._cancel()
        self.show()

    async def emptied(self) -> None:
        """Wait until everybody has been closed; their last packets may still be under way."""
        await self._empty.wait()

    def polls_settled(self) -> bool:
        """Say whether those who poll have had time for the poll that tells them to go.

        Without us it would wait at the balancer until the slot's next holder has registered.
        """
        return self.engine.clock() - self._polled_at >= _ONE_POLL

    def show(self) -> None:
        """Set the gauges."""
        gauge("limpet_draining", float(self.draining))
        gauge("limpet_drain_sessions_remaining", self.remaining if self.draining else 0)

    def close(self) -> None:
        """Do nothing any more."""
        self._cancel()

    # --- the drain --------------------------------------------------------

    def _tick(self) -> None:
        self._cancel()
        plan = self._plan
        if plan is None:
            return
        engine = self.engine
        now = engine.clock()
        for session in plan.due(now, self._is_busy):
            self._send_away(session)
        if now >= self._scan_at or not plan:
            self._scan_at = now + _SCAN * max(1.0, len(engine.sessions) / _SCANNED)
            here = _open(engine)
            plan.add(here, now)  # whom the balancer had sent before it heard of this
            if not here:
                self._empty.set()
        at = max(now + _STEP, min(plan.next_look(), self._scan_at))
        self._timer = engine.loop.call_later(at - now, self._tick)

    def _send_away(self, session: Session) -> None:
        if session.closed:
            return
        for hook in self.before_close:
            try:
                hook(session)
            except Exception:
                logger.exception("session %s could not be handed over", redact(session.sid))
        if session.polling is not None:
            self._polled_at = self.engine.clock()
        session.send_away(REASON, SERVICE_RESTART)

    def _is_busy(self, session: Session) -> bool:
        """Say whether to close it now would cut something off."""
        if session.closed:
            return False
        client = session.sink
        if isinstance(client, Client) and client.busy:
            return True
        polling = session.polling
        if polling is not None and polling.poster is not None:
            return True  # half a message has come
        if self._alone:
            return False
        return (
            session.out is not None
            or session.candidate is not None
            or (isinstance(client, Client) and client.asked)
        )

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _open(engine: EngineServer) -> list[Session]:
    return [session for session in engine.sessions.values() if not session.closed]
