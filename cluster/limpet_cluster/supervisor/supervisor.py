"""`limpet start`: starts hub, workers and balancer, replaces what dies, ends them all."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import Enum, auto
from math import inf
from pathlib import Path
from typing import Any, Final

from limpet_adapters.counters import count, counters
from limpet_adapters.notify import Notifier
from limpet_adapters.rundir import RunDirectory, RunDirectoryError
from limpet_cluster.fleet.fleet import FleetError, Say
from limpet_cluster.supervisor import commands
from limpet_cluster.supervisor.ground import StartError, has_terminal, lock, lock_again, peek, tidy
from limpet_cluster.supervisor.lifecycle import SPAWN, Child, End, Policy, State, describe_exit
from limpet_cluster.supervisor.notices import NoticeBoard
from limpet_cluster.supervisor.operations import Operations
from limpet_cluster.supervisor.spawn import Command, Plan, Renewal, spawn
from limpet_cluster.supervisor.watcher import CodeWatcher

__all__ = ["Phase", "Plan", "Renewal", "StartError", "Supervisor"]

log = logging.getLogger("limpet.supervisor")

_WATCH_EACH: Final = 0.5
_LATE: Final = 1.0
"""Seconds a timer of ours may be late before the children's silence is put down to us."""
_START_ATTEMPTS: Final = 3
"""Times a process may be killed by a signal before the cluster was ready for the first time."""
_AT_ONCE: Final = 1.0
"""Seconds a process has for its end when the cluster is to end at once."""


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
        renew: Callable[[], Renewal] | None = None,
    ) -> None:
        self.run_directory = run_directory
        self.policy = policy or Policy()
        self.plan = plan
        self.phase = Phase.HUB
        self.forced = False
        """Whether somebody had to be killed at the end."""
        self.ended: asyncio.Future[None]  # set by run, done when nobody is left
        self._children: dict[str, Child] = {}
        self._commands: dict[str, Command] = {}
        self._spawned: dict[str, Command] = {}
        self._hub = self._add("hub", plan.hub)
        self._balancer = self._add("balancer", plan.balancer)
        self._workers: dict[int, Child] = {}  # by slot
        for slot, command in enumerate(plan.workers):
            self._workers[slot] = self._add(f"worker-{slot}", command)
        self._arrivals: dict[str, asyncio.Future[None]] = {}  # of children to become READY
        self._departures: dict[str, asyncio.Future[None]] = {}  # of children to be gone
        self._worker_ends: dict[str, int] = {}  # by reason, of all workers there ever were
        self._operations = Operations(self, renew)
        self._watch = watch
        """Folder whose code restarts the workers; None: not in development."""
        self._on_ready = on_ready
        self._describe = dict(describe or {})
        self._failure = ""  # why the start failed; empty while it did not
        self._at_once = False  # whether the end is to be a quick one
        self._loop: asyncio.AbstractEventLoop  # set by run
        self._board: NoticeBoard  # set by run
        self._server: commands.CommandServer  # set by run
        self._lock = -1  # descriptor of our lock on the run directory
        self._settling: asyncio.Task[None] | None = None  # once the run directory was made anew
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._began = time.monotonic()
        self._notifier = Notifier.from_environment()
        self._shown: dict[str, str] = {}  # last error shown of each child
        self._terminal = has_terminal()  # whether we began with one

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
        self.ended = loop.create_future()
        self._lock = lock(self.run_directory.path)
        board = self._board = NoticeBoard(self.run_directory.notify, self._told)
        server = self._server = commands.CommandServer(
            self.run_directory.path / commands.NAME,
            {"status": self._status, **self._operations.verbs},
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
            await self.ended
            await server.finish()
        finally:
            self._kill_all()
            if not board.lost:  # else what is there is another's
                tidy(self.run_directory)
            server.close()
            board.close(loop)
            self._notifier.close()
            os.close(self._lock)
        if self._failure:
            raise StartError(self._failure)
        return 1 if self.forced else 0

    def stop(self) -> None:
        """End the cluster: the workers first, nobody is left to take their clients."""
        if self.phase in _ENDING:
            return
        log.info("ending %d workers, balancer and hub", len(self.slots()))
        self._notifier.stopping()
        self.phase = Phase.ENDING_WORKERS
        self._operations.interrupt()
        self._end(self._workers.values())
        self._pump()

    def quick(self) -> None:
        """End the cluster at once: nobody waits for running handlers; asked again, kill it."""
        if self._at_once:
            self.phase = Phase.ENDING_OTHERS
            for child in self._children.values():
                child.stop(self._loop.time())  # nobody is to come back
            if self._kill_all():
                self.forced = True
        else:
            self._at_once = True
            self.stop()
            for child in self._children.values():
                if child.hurry(self._loop.time(), _AT_ONCE) and child in self._workers.values():
                    self._signal(child, signal.SIGQUIT)
        self._pump()

    def _status(self, _: Mapping[str, Any], __: Say) -> dict[str, Any]:
        now = self._loop.time()
        slots = {child.name: slot for slot, child in self._workers.items()}
        return {
            "pid": os.getpid(),
            "phase": self.phase.name.lower(),
            "ready": self._all_ready(),
            "run_directory": str(self.run_directory.path),
            **self._describe,
            **self._operations.status(),
            "worker_ends": self._worker_ends,
            "counters": dict(counters),
            "processes": [
                {
                    "name": child.name,
                    "slot": slots.get(child.name),
                    "pid": child.pid or None,
                    "state": child.state.value,
                    "status": child.status,
                    "seconds": round(now - child.started_at, 3) if child.pid else None,
                    "restarts": child.restarts,
                    "ends": child.ends,
                    "last_end": child.last_end,
                    "error": child.error,
                }
                for child in self._in_order()
            ],
        }

    def _in_order(self) -> list[Child]:
        """Return the children as they are listed: the hub, the workers by slot, the balancer."""
        return [self._hub, *(one for _, one in sorted(self._workers.items())), self._balancer]

    # --- what operations do with it ---------------------------------------------

    def slots(self) -> list[int]:
        """Return the slots whose workers are wanted."""
        return sorted(slot for slot, child in self._workers.items() if child.wanted)

    async def bring_up(self, slot: int, command: Command) -> None:
        """Start a worker and wait until it is ready; one that fails is tried again.

        Raises:
            FleetError: it ended before, or was too slow.
        """
        child = self._workers.get(slot)
        if child is None:
            child = self._workers[slot] = self._add(f"worker-{slot}", command)
        self._commands[child.name] = command
        child.restart(self._loop.time())
        await self._arrival(child)

    async def take_down(self, slot: int, because: End) -> None:
        """Tell a worker to end, and wait until it is gone."""
        child = self._workers.get(slot)
        if child is None:
            return
        if child.stop(self._loop.time(), because):
            self._signal(child, signal.SIGTERM)
        if child.state is not State.IDLE:
            gone = self._departures[child.name] = self._loop.create_future()
            self._pump()
            try:
                await gone
            finally:
                self._departures.pop(child.name, None)

    async def replace(self, name: str, command: Command) -> None:
        """Replace the hub or the balancer, and wait until the new one is ready.

        Raises:
            FleetError: it ended before, or was too slow; it is tried again.
        """
        child = self._children[name]
        self._commands[name] = command
        if child.restart(self._loop.time()):
            self._signal(child, signal.SIGTERM)
        await self._arrival(child)

    def status_of(self, slot: int) -> str:
        """Return a worker's last line on what it does; empty where there is none."""
        child = self._workers.get(slot)
        return child.status if child is not None else ""

    def error_of(self, name: str) -> str:
        """Return why the hub or the balancer cannot start; empty when it can."""
        return self._children[name].error

    def ends_of(self, slot: int) -> tuple[Mapping[str, int], str]:
        """Return how often the workers of a slot have ended, by reason, and how the last did."""
        child = self._workers.get(slot)
        return ({}, "") if child is None else (child.ends, child.last_end)

    def adopt(self, plan: Plan) -> None:
        """Have another plan: new workers follow it, hub and balancer when they start again."""
        self.plan = plan
        self._commands[self._hub.name] = plan.hub
        self._commands[self._balancer.name] = plan.balancer

    def runs(self, name: str) -> Command | None:
        """Return what the present process of a child was started with; None before the first."""
        return self._spawned.get(name)

    def follow(self, policy: Policy, describe: Mapping[str, Any]) -> None:
        """Keep to another policy from now on, and tell other facts about the cluster."""
        self.policy = policy
        for child in self._children.values():
            child.policy = policy
        self._describe.update(describe)
        self._pump()

    def forget(self) -> None:
        """Drop the workers that are gone for good."""
        for slot, child in list(self._workers.items()):
            if not child.wanted and child.state is State.IDLE:
                del self._workers[slot], self._children[child.name], self._commands[child.name]
                self._spawned.pop(child.name, None)
                self._shown.pop(child.name, None)

    def remaining(self) -> list[str]:
        """Return the names of the processes that still run."""
        return [child.name for child in self._in_order() if child.pid]

    async def _arrival(self, child: Child) -> None:
        arrival = self._arrivals[child.name] = self._loop.create_future()
        self._pump()
        try:
            await arrival
        finally:
            self._arrivals.pop(child.name, None)

    # --- events ---------------------------------------------------------------

    def _handle_signals(self) -> None:
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self._interrupted,
            signal.SIGQUIT: self.quick,
            signal.SIGCHLD: self._reap,
            signal.SIGTTIN: lambda: self._operations.step(1),
            signal.SIGTTOU: lambda: self._operations.step(-1),
            # Nothing is reopened here, but what rotates logs sends it, and it would kill us.
            signal.SIGUSR1: lambda: None,
            signal.SIGUSR2: self._dump,
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

    def _dump(self) -> None:
        """Log what `limpet status` tells of the processes, and have them log where they stand."""
        for child in self._in_order():
            more = "".join(f", {one}" for one in (child.status, child.last_end) if one)
            facts = (child.name, child.state.value, child.pid, child.restarts, more)
            log.info("%s: %s, pid %d, restarts: %d%s", *facts)
            if child.is_up:  # one that is starting may not listen yet, and would end
                self._signal(child, signal.SIGUSR2)

    def _hung_up(self) -> None:
        """Tell a reload, which somebody asks for, from a terminal that was closed."""
        if self._terminal and not has_terminal():
            self.stop()
        else:
            self._operations.hung_up()

    def _told(self, pid: int, fields: dict[str, str]) -> None:
        child = next((c for c in self._children.values() if c.pid == pid and pid), None)
        if child is None:
            count("limpet_notify_bad_total", reason="stranger")
            return
        before = child.state
        child.told(fields, self._loop.time())
        asks = fields.get("EXTEND_TIMEOUT_USEC", "")
        if self.phase in _ENDING and asks.isdigit():
            self._notifier.extend(int(asks) / 1e6)  # what our own supervisor has to know
        if child.state is State.READY and before is not State.READY:
            _resolve(self._arrivals, child.name)
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
                    ended = next(filter(None, map(peek, self._pids())), None)
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
        was_up = child.is_up
        pause = child.exited(now, code)
        if any(self._workers.get(slot) is child for slot in self._operations.home):
            reason = child.last_reason  # the spare of a reload is replaced by nobody
            self._worker_ends[reason] = self._worker_ends.get(reason, 0) + 1
        if not child.wanted:
            _resolve(self._departures, child.name)
        asked = was is State.STOPPING or not pause or not child.wanted
        if self.phase in _ENDING or asked:
            log.debug("%s (pid %d) %s", child.name, pid, child.last_end)
            return
        if child.name in self._arrivals and not was_up:  # else its successor is waited for
            _resolve(self._arrivals, child.name, FleetError(self._why(child, code, was)))
            return
        if self.phase is not Phase.RUNNING and self._fails_start(child, code, was):
            return
        if self._watch is not None and child.error and child in self._workers.values():
            child.hold()
            self._show(child)
            log.warning("%s waits for the code to change", child.name)
            return
        if child.error:
            self._show(child)
        log.warning(
            "%s (pid %d) %s; it starts again in %.2g s", child.name, pid, child.last_end, pause
        )

    def _why(self, child: Child, code: int, was: State) -> str:
        """Return why a process was never ready."""
        if was in (State.ABORTING, State.KILLED):
            doing = f" ({child.status})" if child.status else ""
            return f"{child.name} was not ready after {self.policy.start_timeout:g} s{doing}"
        return child.error or f"{child.name} {describe_exit(code)} before it was ready"

    def _fails_start(self, child: Child, code: int, was: State) -> bool:
        if self._watch is not None and child.error and child in self._workers.values():
            return False
        too_slow = was in (State.ABORTING, State.KILLED) and not child.was_ready
        if code < 0 and not too_slow and child.failures < _START_ATTEMPTS:
            return False
        self._failure = self._why(child, code, was if too_slow else State.STARTING)
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
            for child in self._workers.values():
                if child.wanted and child.restart(self._loop.time(), End.CODE):
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
        if any(one.state is State.READY and one.due_at() <= now for one in self._children.values()):
            self._look_around(now)
        for child in self._children.values():
            was = child.state
            action = child.due(now)
            if action is SPAWN:
                self._spawn(child)
            elif isinstance(action, signal.Signals):
                self._lose_patience(child, action, was)
        self._advance(now)
        self._arm()

    def _look_around(self, now: float) -> None:
        """See whether the run directory was removed: then silence says nothing, and we heal it.

        What cleans up temporary folders does that, and a login's end under ``/run/user``.
        """
        if not self._board.lost:
            return
        for child in self._children.values():
            child.forgive(now)
        path = self.run_directory.path
        log.error("%s was removed: it is made anew, hub and balancer start again", path)
        try:
            RunDirectory(path)
            self._lock = lock_again(path, self._lock)
            self._board.renew(self._loop)
        except (OSError, RunDirectoryError, StartError) as error:
            log.warning("%s cannot be made: %s; processes go on as they are", path, error)
            return
        self._server.close()
        self._settling = self._loop.create_task(self._server.start())
        for child in (self._hub, self._balancer):
            if child.wanted and child.restart(now):
                self._signal(child, signal.SIGTERM)

    def _advance(self, now: float) -> None:
        if self.phase is Phase.HUB and self._hub.state is State.READY:
            self.phase = Phase.OTHERS
            for child in (*self._workers.values(), self._balancer):
                child.start(now)
        elif self.phase is Phase.OTHERS and self._all_ready():
            self.phase = Phase.RUNNING
            if self._on_ready is not None:
                self._on_ready(time.monotonic() - self._began)
            self._notifier.ready(f"{len(self._workers)} workers")
        elif self.phase is Phase.ENDING_WORKERS and _all_idle(self._workers.values()):
            self.phase = Phase.ENDING_OTHERS
            self._end([self._balancer, self._hub])
        if self.phase is Phase.ENDING_OTHERS and _all_idle(self._children.values()):
            self.phase = Phase.ENDED
            if not self.ended.done():
                self.ended.set_result(None)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = min(child.due_at() for child in self._children.values())
        if at < inf and self.phase is not Phase.ENDED:
            self._timer_at = max(at, self._loop.time())
            self._timer = self._loop.call_at(self._timer_at, self._pump)

    def _all_ready(self) -> bool:
        wanted = [child for child in self._children.values() if child.wanted]
        return bool(wanted) and all(child.state is State.READY for child in wanted)

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
        self._spawned[child.name] = self._commands[child.name]
        log.debug("%s started, pid %d", child.name, pid)

    def _lose_patience(self, child: Child, number: signal.Signals, was: State) -> None:
        if number is signal.SIGABRT:
            up = was is State.READY
            log.error(
                "%s (pid %d) %s %g s; it is replaced",
                child.name,
                child.pid,
                "has been silent for" if up else "was not ready after",
                self.policy.stall_after if up else self.policy.start_timeout,
            )
        elif was is State.STOPPING:
            self.forced = self.forced or (self.phase in _ENDING and child.is_up)
            log.error("%s (pid %d) did not end in time; it is killed", child.name, child.pid)
        self._signal(child, number)

    def _end(self, children: Iterable[Child]) -> None:
        now = self._loop.time()
        for child in children:
            if child.stop(now):
                self._signal(child, signal.SIGTERM)
            if self._at_once:
                child.hurry(now, _AT_ONCE)

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


def _all_idle(children: Iterable[Child]) -> bool:
    return all(child.state is State.IDLE for child in children)


def _resolve(
    waiting: Mapping[str, asyncio.Future[None]], name: str, error: FleetError | None = None
) -> None:
    future = waiting.get(name)
    if future is None or future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
