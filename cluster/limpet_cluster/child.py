"""What every process of a cluster does first: stay with its parent, log, tell that it lives."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from limpet_adapters.forks import close_directory_in_forks, set_parent_death_signal
from limpet_adapters.notify import Notifier
from limpet_adapters.rundir import RunDirectoryError
from limpet_balancer.config import ConfigError as BalancerConfigError
from limpet_balancer.listening import BindError
from limpet_cluster import logs
from limpet_cluster.appload import AppError
from limpet_cluster.config import Common, ConfigError
from limpet_worker.errors import OptionError

log = logging.getLogger("limpet.child")

PARENT: Final = "LIMPET_PARENT"
"""Environment: pid of the supervisor that this process must not outlive."""
ROLE: Final = "LIMPET_ROLE"
"""Environment: which role this process has in a cluster; for the application to see."""
_PR_SET_NAME: Final = 15


def die_with_parent() -> bool:
    """Have the kernel kill this process when its supervisor ends; return whether there is one.

    A supervisor that ended before we could ask is found by looking at who our parent is now.
    """
    parent = os.environ.pop(PARENT, "")
    if not parent.isdigit():
        return False
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != int(parent):
        raise SystemExit(0)
    return True


_MENDABLE: Final = (
    AppError,
    BalancerConfigError,
    BindError,
    ConfigError,
    OptionError,
    RunDirectoryError,
)


@dataclass(frozen=True, slots=True)
class Life:
    """Who watches over this process."""

    notifier: Notifier
    supervised: bool
    """Whether that is our own supervisor, which shows our errors once for all of us."""

    @contextmanager
    def errors_told(self) -> Iterator[None]:
        """Leave an error that a user can mend to the supervisor; without one it goes its way."""
        try:
            yield
        except _MENDABLE as error:
            if not self.supervised:
                raise
            self.notifier.failed(str(error))
            raise SystemExit(1) from None


def enter(title: str, common: Common) -> Life:
    """Begin the life of a cluster's process.

    Under our supervisor Ctrl-C is left to the supervisor, and the passed sockets become ours: it
    cannot know our pid when it sets LISTEN_PID, so a supervised process fills it in itself.

    Args:
        title: the role, with the slot of a worker: ``worker-0``.
        common: what all processes share.
    """
    supervised = die_with_parent()
    if supervised:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # It came blocked, lest Ctrl-C reaches a Python that is still starting.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if "LISTEN_FDS" in os.environ:
            os.environ["LISTEN_PID"] = str(os.getpid())
    # SIGABRT, the watchdog's first shot, then shows where a stalled process stands.
    faulthandler.enable(sys.stderr)
    _set_title(f"limpet-{title}")
    logs.set_up(title, common.log_level, common.log_format)
    close_directory_in_forks(common.run_directory)
    os.environ[ROLE] = title.partition("-")[0]
    return Life(Notifier.from_environment(), supervised)


def run(
    main: Callable[[], Coroutine[Any, Any, int]],
    life: Life,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run a process's main coroutine until it returns or TERM (or INT, in a terminal) comes.

    The signal cancels the coroutine, unless it has put its own handler in place; a second one
    ends the process on the spot.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_watched(main, life.notifier))


async def _watched(main: Callable[[], Coroutine[Any, Any, int]], notifier: Notifier) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(main())
    asked: list[int] = []

    def stop(number: int) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)
        notifier.stopping()
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop, signal.SIGTERM)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, stop, signal.SIGINT)
    notifier.start_watchdog(loop)
    try:
        return await task
    except asyncio.CancelledError:
        if not asked:
            raise
        return 0
    finally:
        notifier.close()


def fast_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform, and only the worker pays for it
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _set_title(title: str) -> None:
    """Show a name of up to 15 characters in ps, top and /proc."""
    if sys.platform == "linux":
        name = ctypes.c_char_p(title.encode()[:15])
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)
