"""What every process of a cluster does first: stay with its parent, log, tell that it lives."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from limpet_adapters.forks import close_directory_in_forks, set_parent_death_signal
from limpet_adapters.notify import Notifier
from limpet_adapters.rundir import RunDirectoryError
from limpet_balancer.config import ConfigError as BalancerConfigError
from limpet_balancer.listening import BindError
from limpet_cluster import logs
from limpet_cluster.appload import AppError
from limpet_cluster.failures import forget_failure, note_failure
from limpet_cluster.settings.config import Common, ConfigError
from limpet_worker.errors import OptionError

log = logging.getLogger("limpet.child")

PARENT: Final = "LIMPET_PARENT"
"""Environment: pid of the supervisor that this process must not outlive."""
ROLE: Final = "LIMPET_ROLE"
"""Environment: which role this process has in a cluster; for the application to see."""
_PR_SET_NAME: Final = 15
_INVALID: Final = 3
"""Exit code of an invalid configuration."""


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


class _Herald(Notifier):
    """Tells the supervisor; once this process is ready, its earlier failures are forgotten."""

    __slots__ = ("run_directory", "title")

    def __init__(self, address: str | None = None, watchdog: float = 0.0) -> None:
        super().__init__(address, watchdog)
        self.run_directory = Path()
        self.title = ""

    def ready(self, status: str = "") -> None:
        """Say that this process does its work; its earlier failures are forgotten."""
        forget_failure(self.run_directory, self.title)
        super().ready(status)


@dataclass(frozen=True, slots=True)
class Life:
    """Who watches over this process."""

    notifier: Notifier
    supervised: bool
    """Whether that is our own supervisor, which shows our errors once for all of us."""

    @contextmanager
    def errors_told(self) -> Iterator[None]:
        """Leave an error that a user can mend to the supervisor; without one it goes its way.

        systemd shows no errors and starts us again at once: the error is left in the run directory,
        and the process waits before it ends, longer after each failure.
        """
        try:
            yield
        except _MENDABLE as error:
            if self.supervised:
                self.notifier.failed(str(error))
                raise SystemExit(1) from None
            if not self._failed_to_start:
                raise
            log.error("%s", error)  # noqa: TRY400 - the traceback is nobody's business
            self._pause(str(error))
            raise SystemExit(_INVALID if isinstance(error, ConfigError) else 1) from None
        except Exception as error:
            if not self.supervised and self._failed_to_start:
                log.exception("the process cannot start")
                self._pause("".join(traceback.format_exception(error)).rstrip())
                raise SystemExit(1) from None
            raise

    @property
    def _failed_to_start(self) -> bool:
        herald = self.notifier
        return herald.address is not None and isinstance(herald, _Herald) and not herald.was_ready

    def _pause(self, error: str) -> None:
        herald = self.notifier
        assert isinstance(herald, _Herald)  # noqa: S101
        pause = note_failure(herald.run_directory, herald.title, error)
        herald.status(f"failed, tried again in {pause:.1f} s: {error}"[:500])
        time.sleep(pause)


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
    # SIGABRT, the watchdog's first shot, then shows where a stalled process stands; so does USR2,
    # and the process goes on. What rotates logs sends USR1. Either would end it.
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR2, sys.stderr)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    _set_title(f"limpet-{title}")
    logs.set_up(title, common.log_level, common.log_format)
    close_directory_in_forks(common.run_directory)
    os.environ[ROLE] = title.partition("-")[0]
    herald = _Herald.from_environment()
    herald.run_directory, herald.title = common.run_directory, title
    return Life(herald, supervised)


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
