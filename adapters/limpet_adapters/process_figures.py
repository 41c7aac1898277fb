"""What every process of a cluster tells about itself: memory, descriptors, time, a late loop."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import resource
import time
from typing import Final

import zmq

from limpet_adapters.counters import gauge, histogram

LAG_INTERVAL: Final = 0.25
"""Seconds between two looks at how late the loop is."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_LISTED_EVERY: Final = 15.0
"""Seconds between two counts of descriptors where each must be listed: before Linux 6.2."""


class ProcessFigures:
    """Watches an event loop, the running one if None, and sets the gauges of the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._lags = histogram("limpet_event_loop_lag_seconds")
        self._worst = 0.0
        self._timer: asyncio.TimerHandle | None = None  # while it watches
        self._descriptors = 0
        self._listed_at = float("-inf")
        gauge("limpet_process_start_time_seconds", round(_started(), 2))
        gauge(
            "limpet_build_info",
            1,
            version=_version(),
            python=platform.python_version(),
            zmq=zmq.zmq_version(),
        )

    def start(self) -> None:
        """Begin to watch the loop."""
        self._wait()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take_lag(self) -> float:
        """Return the seconds the loop ran late, the worst since the last call."""
        worst, self._worst = self._worst, 0.0
        return worst

    def sample(self) -> int:
        """Set the gauges of the process; return its resident memory in bytes."""
        memory = resident()
        gauge("process_resident_memory_bytes", memory)
        gauge("process_open_fds", self._open_descriptors())
        gauge("process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        gauge("process_cpu_seconds_total", round(time.process_time(), 6))
        return memory

    def _wait(self) -> None:
        # Not by the loop's own clock: uvloop's stands still during a turn, and counts whole ms.
        due = time.monotonic() + LAG_INTERVAL
        self._timer = self._loop.call_later(LAG_INTERVAL, self._look, due)

    def _look(self, due: float) -> None:
        late = max(0.0, time.monotonic() - due)
        self._lags.observe(late)
        self._worst = max(self._worst, late)
        self._wait()

    def _open_descriptors(self) -> int:
        try:
            size = os.stat("/proc/self/fd").st_size  # noqa: PTH116 - once a second: cheap
            if size:
                return size
            now = self._loop.time()
            if now - self._listed_at >= _LISTED_EVERY:
                self._listed_at = now
                self._descriptors = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208
        except OSError:
            return self._descriptors
        return self._descriptors


def _version() -> str:
    try:
        return importlib.metadata.version("limpet")
    except (ImportError, OSError):  # not installed, or out of reach for an unprivileged user
        return "unknown"


def resident() -> int:
    """Return the resident memory of this process in bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as figures:  # noqa: PTH123 - once a second: cheap
            return int(figures.read().split()[1]) * _PAGE
    except OSError:
        return 0


def _started() -> float:
    """Return when this process started, in seconds since 1970, for display."""
    try:
        with open("/proc/self/stat", "rb") as stat:  # noqa: PTH123
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
    except OSError:
        return time.time()
    return time.time() - (
        time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    )
