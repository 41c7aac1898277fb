"""`limpet start`: starts hub, workers and balancer, replaces what dies, ends them all."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from pathlib import Path
from typing import Any, Final

from limpet_adapters.counters import count
from limpet_adapters.notify import Notifier
from limpet_adapters.rundir import RunDirectory
from limpet_cluster import commands
from limpet_cluster.lifecycle import SPAWN, Child, Policy, State
from limpet_cluster.notices import NoticeBoard
from limpet_cluster.reload import CodeWatcher
from limpet_cluster.spawn import Command, spawn

log = logging.getLogger("limpet.supervisor")

_WATCH_EACH: Final = 0.5
_LATE: Final = 1.0
"""Seconds a timer of ours may be late before the children's silence is put down to us."""
_START_ATTEMPTS: Final = 3
"""Times a process may be killed by a signal before the cluster was ready for the first time."""


class StartError(Exception):
    """The cluster cannot start; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The processes of one cluster on this host."""

    hub: Command
    balancer: Command
    workers: Sequence[Command]


class Phase(Enum):
    """How far the cluster as a whole has come."""

    HUB = auto()  # the workers would only knock at a closed door
    OTHERS = auto()
    RUNNING = auto()
    ENDING_WORKERS = auto()  # first: hub and balancer are there to the end for their goodbyes
    ENDING_OTHERS = auto()
    ENDED = auto()


_ENDING: Final = frozenset({Phase.ENDING_WORKERS, Phase.ENDING_OTHERS, Phase.ENDED})


class Supervisor:
    """Keeps the processes of a plan running until it is told to end them.

    Everything happens in ``_pump``, which is called after each event (a child ended, a child
    spoke, a timer, a signal), performs what has become due, and sets the next timer.
    """

    def __init__(
        self,
        run_directory: RunDirectory,
        plan: Plan,
        *,
        policy: Policy | None = None,
        watch: Path | None = None,
        on_ready: Callable[[float], None] | None = None,
        describe: Mapping[str, Any] | None = None,
    ) -> None:
        self.run_directory = run_directory
        self.policy = policy or Policy()
        self.phase = Phase.HUB
        self._children: dict[str, Child] = {}
        self._commands: dict[str, Command] = {}
        self._workers: list[Child] = []
        self._hub = self._add("hub", plan.hub)
        for number, command in enumerate(plan.workers):
            self._workers.append(self._add(f"worker-{number}", command))
        self._balancer = self._add("balancer", plan.balancer)
        self._watch = watch
        """Folder whose code restarts the workers; None: not in development."""
        self._on_ready = on_ready
        self._describe = dict(describe or {})
        self._failure = ""  # why the start failed; empty while it did not
        self._forced = False  # whether somebody had to be killed at the end
        self._loop: asyncio.AbstractEventLoop  # set by run
        self._board: NoticeBoard  # set by run
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._ended: asyncio.Future[None]  # set by run
        self._began = time.monotonic()
        self._notifier = Notifier.from_environment()
        self._shown: dict[str, str] = {}  # last error shown of each child
        self._terminal = _has_terminal()  # whether we began with one

    def _add(self, name: str, command: Command) -> Child:
        child = self._children[name] = Child(name, self.policy)
        self._commands[name] = command
        return child

    # --- the whole story ------------------------------------------------------

    async def run(self) -> int:
        """Start everything, keep it running, end it on TERM or INT; return the exit code.

        Raises:
            StartError: a process failed before the cluster was ready for the first time.
        """
        self._loop = loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        lock = _lock(self.run_directory.path)
        board = self._board = NoticeBoard(self.run_directory.notify, self._told)
        server = commands.CommandServer(
            self.run_directory.path / commands.NAME, {"status": self._status}
        )
        try:
            board.attach(loop)
            await server.start()
            self._handle_signals()
            self._notifier.start_watchdog(loop)
            if self._watch is not None:
                self._watch_code(CodeWatcher(self._watch))
            self._hub.start(loop.time())
            self._pump()
            await self._ended
        finally:
            self._kill_all()
            server.close()
            board.close(loop)
            self._notifier.close()
            os.close(lock)
        if self._failure:
            raise StartError(self._failure)
        return 1 if self._forced else 0

    def stop(self) -> None:
        """End the cluster: the workers first, nobody is left to take their clients."""
        if self.phase in _ENDING:
            return
        log.info("ending %d workers, balancer and hub", len(self._workers))
        self._notifier.stopping()
        self.phase = Phase.ENDING_WORKERS
        self._end(self._workers)
        self._pump()

    def quick(self) -> None:
        """End the cluster on the spot."""
        self.phase = Phase.ENDING_OTHERS
        for child in self._children.values():
            child.stop(self._loop.time())  # one that waits for its restart has nobody to kill
        if self._kill_all():
            self._forced = True
        self._pump()

    def _status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        now = self._loop.time()
        return {
            "pid": os.getpid(),
            "phase": self.phase.name.lower(),
            "ready": self._all_ready(),
            "run_directory": str(self.run_directory.path),
            **self._describe,
            "processes": [
                {
                    "name": child.name,
                    "pid": child.pid or None,
                    "state": child.state.value,
                    "status": child.status,
                    "seconds": round(now - child.started_at, 3) if child.pid else None,
                    "restarts": child.restarts,
                    "error": child.error,
                }
                for child in self._children.values()
            ],
        }

    # --- events ---------------------------------------------------------------

    def _handle_signals(self) -> None:
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self._interrupted,
            signal.SIGQUIT: self.quick,
            signal.SIGCHLD: self._reap,
        }
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it ignored
            handlers[signal.SIGHUP] = self._hung_up
        for number, handler in handlers.items():
            self._loop.add_signal_handler(number, handler)

    def _interrupted(self) -> None:
        if self.phase in _ENDING:
            self.quick()
        else:
            self.stop()

    def _hung_up(self) -> None:
        """Tell a reload, which somebody asks for, from a terminal that was closed."""
        if self._terminal and not _has_terminal():
            self.stop()
        else:
            log.warning("SIGHUP is kept for a reload, which is not there yet; nothing changed")

    def _told(self, pid: int, fields: dict[str, str]) -> None:
        child = next((c for c in self._children.values() if c.pid == pid and pid), None)
        if child is None:
            count("limpet_notify_bad_total", reason="stranger")
            return
        before = child.state
        child.told(fields, self._loop.time())
        if child.state is not before:
            again = child.restarts and child.state is State.READY
            level = logging.INFO if again else logging.DEBUG
            log.log(level, "%s (pid %d) is %s", child.name, pid, child.state)
            self._pump()

    def _reap(self) -> None:
        """Collect every process that ended: ours, and as PID 1 also those nobody else will."""
        adopts = os.getpid() == 1
        while True:
            try:
                if adopts:
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                else:
                    ended = next(filter(None, map(_peek, self._pids())), None)
            except ChildProcessError:
                break
            if ended is None:
                break
            pid = ended.si_pid
            child = next((c for c in self._children.values() if c.pid == pid), None)
            if child is not None and not self._commands[child.name].foreground:
                # What the process left behind goes with it. Its number is not given to another
                # before we have collected it.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if child is not None:
                self._exited(child, os.waitstatus_to_exitcode(status))
        self._pump()

    def _pids(self) -> list[int]:
        return [child.pid for child in self._children.values() if child.pid]

    def _exited(self, child: Child, code: int) -> None:
        # Its last words may still wait to be read, an error at start above all.
        self._board.drain()
        pid, was, now = child.pid, child.state, self._loop.time()
        pause = child.exited(now)
        if self.phase in _ENDING or was is State.STOPPING:
            log.debug("%s (pid %d) ended: %s", child.name, pid, _how(code))
            return
        if self.phase is not Phase.RUNNING and self._fails_start(child, code, was):
            return
        if self._watch is not None and child.error and child in self._workers:
            child.hold()
            self._show(child)
            log.warning("%s waits for the code to change", child.name)
            return
        if child.error:
            self._show(child)
        log.warning("%s (pid %d) %s; it starts again in %.2g s", child.name, pid, _how(code), pause)

    def _fails_start(self, child: Child, code: int, was: State) -> bool:
        if self._watch is not None and child.error and child in self._workers:
            return False
        too_slow = was in (State.ABORTING, State.KILLED) and not child.was_ready
        if code < 0 and not too_slow and child.failures < _START_ATTEMPTS:
            return False
        if too_slow:
            reason = f"{child.name} was not ready after {self.policy.start_timeout:g} s"
        else:
            reason = child.error or f"{child.name} {_how(code)} before it was ready"
        self._failure = reason
        self.stop()
        return True

    def _show(self, child: Child) -> None:
        """Log why a child cannot start, in full only when it is news."""
        if child.error not in self._shown.values():
            log.error("%s cannot start: %s", child.name, child.error)
        self._shown[child.name] = child.error

    def _watch_code(self, watcher: CodeWatcher) -> None:
        changed = watcher.changed()
        if changed and self.phase not in _ENDING:
            names = [os.path.relpath(path, watcher.root) for path in changed[:3]]
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            log.info("%s%s changed: the workers start again", ", ".join(names), more)
            self._shown.clear()
            for child in self._workers:
                if child.wanted and child.restart(self._loop.time()):
                    self._signal(child, signal.SIGTERM)
            self._pump()
        self._loop.call_later(_WATCH_EACH, self._watch_code, watcher)

    # --- what follows from them -------------------------------------------------

    def _pump(self) -> None:
        now = self._loop.time()
        if now - self._timer_at > _LATE:
            # We were stopped, or the machine was: read what came, then count silence anew.
            self._board.drain()
            for child in self._children.values():
                child.forgive(now)
        self._timer_at = inf
        for child in self._children.values():
            action = child.due(now)
            if action is SPAWN:
                self._spawn(child)
            elif isinstance(action, signal.Signals):
                self._lose_patience(child, action)
        self._advance(now)
        self._arm()

    def _advance(self, now: float) -> None:
        if self.phase is Phase.HUB and self._hub.state is State.READY:
            self.phase = Phase.OTHERS
            for child in (*self._workers, self._balancer):
                child.start(now)
        elif self.phase is Phase.OTHERS and self._all_ready():
            self.phase = Phase.RUNNING
            if self._on_ready is not None:
                self._on_ready(time.monotonic() - self._began)
            self._notifier.ready(f"{len(self._workers)} workers")
        elif self.phase is Phase.ENDING_WORKERS and _all_idle(self._workers):
            self.phase = Phase.ENDING_OTHERS
            self._end([self._balancer, self._hub])
        if self.phase is Phase.ENDING_OTHERS and _all_idle(self._children.values()):
            self.phase = Phase.ENDED
            if not self._ended.done():
                self._ended.set_result(None)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = min(child.due_at() for child in self._children.values())
        if at < inf and self.phase is not Phase.ENDED:
            self._timer_at = max(at, self._loop.time())
            self._timer = self._loop.call_at(self._timer_at, self._pump)

    def _all_ready(self) -> bool:
        return all(child.state is State.READY for child in self._children.values())

    def _spawn(self, child: Child) -> None:
        try:
            pid = spawn(
                self._commands[child.name], str(self.run_directory.notify), self.policy.stall_after
            )
        except OSError as error:  # no memory, too many processes
            child.error = f"cannot start {child.name}: {error.strerror or error}"
            child.spawned(0, self._loop.time())
            self._exited(child, 1)
            return
        child.spawned(pid, self._loop.time())
        log.debug("%s started, pid %d", child.name, pid)

    def _lose_patience(self, child: Child, number: signal.Signals) -> None:
        if number is signal.SIGABRT:
            waited = self.policy.stall_after if child.was_ready else self.policy.start_timeout
            log.error(
                "%s (pid %d) has been silent for %g s; it is replaced",
                child.name, child.pid, waited,
            )  # fmt: skip
        elif self.phase in _ENDING:
            self._forced = True
            log.error("%s (pid %d) did not end in time; it is killed", child.name, child.pid)
        self._signal(child, number)

    def _end(self, children: Sequence[Child]) -> None:
        now = self._loop.time()
        for child in children:
            if child.stop(now):
                self._signal(child, signal.SIGTERM)

    def _kill_all(self) -> bool:
        killed = False
        for child in self._children.values():
            if child.kill():
                killed = True
                self._signal(child, signal.SIGKILL)
        return killed

    def _signal(self, child: Child, number: signal.Signals) -> None:
        # The child is not collected yet, so the pid is still its own.
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _peek(pid: int) -> os.waitid_result | None:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def _all_idle(children: Iterable[Child]) -> bool:
    return all(child.state is State.IDLE for child in children)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _lock(directory: Path) -> int:
    """Make this process the only supervisor of a run directory, until it ends."""
    fd = os.open(directory / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StartError(
            f"a cluster runs in {directory} already (pid {holder}); "
            "stop it, or start this one with another --name"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
