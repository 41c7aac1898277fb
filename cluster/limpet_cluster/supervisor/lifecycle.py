"""The life of one supervised process as a state machine: no processes, no clock, no signals.

========  ==================================  ==============================================
state     means                               left by
========  ==================================  ==============================================
idle      not wanted                          ``start`` → waiting
waiting   wanted, starts at ``due_at``        its time comes → starting
starting  runs, has not said READY=1          READY=1 → ready; start_timeout → aborting
ready     runs and works                      silent for stall_after → aborting
stopping  was told to end (SIGTERM)           stop_timeout → killed
aborting  was told to dump and die (SIGABRT)  abort_grace → killed
killed    was sent SIGKILL                    its exit
========  ==================================  ==============================================

The exit of the process leads to waiting (with back-off) while it is wanted, else to idle.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final


class State(StrEnum):
    """Where a child is in its life."""

    IDLE = "idle"
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ABORTING = "aborting"
    KILLED = "killed"


RUNNING: Final = frozenset(
    {State.STARTING, State.READY, State.STOPPING, State.ABORTING, State.KILLED}
)
"""The states in which there is a process."""


class Spawn:
    """What ``due`` returns when a new process is to be started."""


class End(StrEnum):
    """Why a process ended, in few enough words for a label of a figure."""

    SIGNAL = "signal"  # killed by somebody else, or crashed
    EXIT = "exit"  # ended of its own will, with whatever code
    STALLED = "stalled"  # silent for too long
    SLOW = "start_timeout"  # not ready in time
    STOP = "stop"  # with the whole cluster
    RELOAD = "reload"
    RESTART = "restart"
    SCALE = "scale"
    CODE = "code"  # changed, in development


SPAWN: Final = Spawn()
Action = Spawn | signal.Signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How patient the supervisor is; all in seconds, 0 means no limit."""

    start_timeout: float = 60.0
    stall_after: float = 15.0
    abort_grace: float = 2.0
    stop_timeout: float = 10.0
    backoff_first: float = 0.25
    backoff_longest: float = 30.0
    healthy_after: float = 60.0
    """Ready for that long, a process has its earlier failures forgiven."""


class Child:
    """One child: told what happened, it answers what to do next and when."""

    __slots__ = (
        "_beat_at",
        "_because",
        "_deadline",
        "_final",
        "_jitter",
        "_ready_at",
        "ends",
        "error",
        "failures",
        "last_end",
        "last_reason",
        "name",
        "pid",
        "policy",
        "restarts",
        "started_at",
        "state",
        "status",
        "wanted",
        "was_ready",
    )

    def __init__(
        self, name: str, policy: Policy, jitter: Callable[[], float] = random.random
    ) -> None:
        self.name = name
        self.policy = policy
        self.state = State.IDLE
        self.wanted = False
        """Whether it is to run again after it ended."""
        self.pid = 0
        """0 while there is no process."""
        self.status = ""
        """Its own last line on what it does."""
        self.error = ""
        """Why it could not start, in its own words; empty once it was ready again."""
        self.failures = 0
        """Ends in a row without ``healthy_after`` seconds of health between them."""
        self.restarts = 0
        """Processes started for this child after the first."""
        self.ends: dict[str, int] = {}
        """How often its processes ended, by reason (`End`)."""
        self.last_end = ""
        """How the last of them ended, for people; empty while none has."""
        self.last_reason = End.EXIT
        """The reason of that, once there is one."""
        self.started_at = -inf
        self.was_ready = False
        """Whether any of its processes was ever ready."""
        self._ready_at = inf
        self._beat_at = -inf
        self._deadline = inf  # of the present state
        self._because = End.STOP  # why it was told to end, or is being killed
        self._final = False  # whether the deadline of its end can no longer be put off
        self._jitter = jitter

    @property
    def is_up(self) -> bool:
        """Whether its present process was ever ready."""
        return self.pid > 0 and self._ready_at < inf

    # --- what happens to it ---------------------------------------------------

    def start(self, now: float) -> None:
        """Want it running from now on."""
        self.wanted = True
        if self.state is State.IDLE:
            self.state = State.WAITING
            self._deadline = now

    def spawned(self, pid: int, now: float) -> None:
        """Its process exists."""
        if self.started_at != -inf:
            self.restarts += 1
        self.pid = pid
        self.started_at = now
        self.state = State.STARTING
        self.status = ""
        self._final = False
        self._ready_at = inf
        self._deadline = now + self.policy.start_timeout if self.policy.start_timeout else inf

    def told(self, fields: Mapping[str, str], now: float) -> None:
        """Its process sent a datagram (the fields of sd_notify)."""
        self.status = fields.get("STATUS", self.status)
        if "X_LIMPET_ERROR" in fields:
            self.error = fields["X_LIMPET_ERROR"]
        if fields.get("READY") == "1" and self.state is State.STARTING:
            self.state = State.READY
            self.was_ready = True
            self.error = ""
            self._ready_at = self._beat_at = now
            self._deadline = inf
        if fields.get("WATCHDOG") == "1":
            self._beat_at = now
        extension = fields.get("EXTEND_TIMEOUT_USEC", "")
        extendable = self.state in (State.STARTING, State.STOPPING) and not self._final
        if extension.isdigit() and extendable:
            seconds = int(extension) / 1e6
            if self.state is State.STOPPING:  # when it asks no more it may take as long as any
                seconds = max(seconds, self.policy.stop_timeout)
            self._deadline = max(self._deadline, now + seconds)

    def exited(self, now: float, code: int = 0) -> float:
        """Its process ended; return the seconds until the next one starts, inf when none does.

        Args:
            now: the time.
            code: its exit code, negative for the signal that killed it.
        """
        healthy = now - self._ready_at >= self.policy.healthy_after
        asked = self.state is State.STOPPING or (
            self.state is State.KILLED and self._because not in (End.STALLED, End.SLOW)
        )
        self._note_end(code)
        self.pid = 0
        if not self.wanted:
            self.state = State.IDLE
            self._deadline = inf
            return inf
        self.state = State.WAITING
        if asked:
            self._deadline = now
            return 0.0
        self.failures = 1 if healthy else self.failures + 1
        pause = self._pause()
        self._deadline = now + pause
        return pause

    def stop(self, now: float, because: End = End.STOP) -> bool:
        """Want it gone; return whether its process is to be told so with SIGTERM."""
        self.wanted = False
        return self._end(now, because)

    def hurry(self, now: float, within: float) -> bool:
        """Cut short the time a process has for its end; return whether one is about to end."""
        if self.state is not State.STOPPING:
            return False
        self._deadline = min(self._deadline, now + within)
        self._final = True
        return True

    def restart(self, now: float, because: End = End.RESTART) -> bool:
        """Want a fresh process at once; return whether the present one is to get SIGTERM."""
        self.wanted = True
        self.failures = 0
        if self.state is State.IDLE:
            self.state = State.WAITING
        if self.state is State.WAITING:
            self._deadline = now
            return False
        return self._end(now, because)

    def hold(self) -> None:
        """Do not start it before the next ``restart``: a retry cannot help."""
        if self.state is State.WAITING:
            self._deadline = inf

    def kill(self) -> bool:
        """Lose patience; return whether its process is to get SIGKILL."""
        if self.state not in RUNNING:
            return False
        if self.state in (State.STARTING, State.READY):
            self._because = End.STOP
        self.state = State.KILLED
        self._deadline = inf
        return True

    def forgive(self, now: float) -> None:
        """Count its silence from now: the supervisor itself could not listen."""
        self._beat_at = now

    # --- what to do ---------------------------------------------------------

    def due_at(self) -> float:
        """Return when ``due`` should be asked next."""
        if self.state is State.READY and self.policy.stall_after:
            return self._beat_at + self.policy.stall_after
        return self._deadline

    def due(self, now: float) -> Action | None:
        """Return what is to be done now; the state has moved on as if it were done."""
        if now < self.due_at():
            return None
        if self.state is State.WAITING:
            self._deadline = inf  # until ``spawned`` or ``exited``
            return SPAWN
        if self.state in (State.STARTING, State.READY):
            self._because = End.STALLED if self.state is State.READY else End.SLOW
            self.state = State.ABORTING
            self._deadline = now + self.policy.abort_grace
            return signal.SIGABRT
        if self.kill():
            return signal.SIGKILL
        return None

    def _note_end(self, code: int) -> None:
        if self.state in (State.STOPPING, State.ABORTING, State.KILLED):
            reason = self._because
        else:
            reason = End.EXIT if code >= 0 else End.SIGNAL
        self.last_reason = reason
        self.ends[reason] = self.ends.get(reason, 0) + 1
        described = describe_exit(code)
        self.last_end = (
            described if reason in (End.EXIT, End.SIGNAL) else f"{_IN_WORDS[reason]}; {described}"
        )

    def _end(self, now: float, because: End) -> bool:
        if self.state in (State.IDLE, State.WAITING):
            self.state = State.IDLE
            self._deadline = inf
            return False
        if self.state not in (State.STARTING, State.READY):
            return False
        self._because = because
        self._deadline = now + self.policy.stop_timeout if self.policy.stop_timeout else inf
        if self.state is State.STARTING:  # nobody to drain, and it may be deaf while it loads
            self._deadline = min(self._deadline, now + self.policy.abort_grace)
            self._final = True
        self.state = State.STOPPING
        return True

    def _pause(self) -> float:
        policy = self.policy
        doubled = policy.backoff_first * 2.0 ** min(self.failures - 1, 30)
        return min(policy.backoff_longest, doubled) * (0.75 + 0.5 * self._jitter())


_IN_WORDS: Final = {
    End.STALLED: "was silent for too long",
    End.SLOW: "was not ready in time",
    End.STOP: "was stopped",
    End.RELOAD: "was replaced by a reload",
    End.RESTART: "was restarted",
    End.SCALE: "was scaled away",
    End.CODE: "was replaced as the code changed",
}


def describe_exit(code: int) -> str:
    """Return how a process ended: ``ended with exit code 3``, ``was killed by SIGKILL``."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
