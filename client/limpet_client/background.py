"""An event loop in a thread, for programs that have none; and threads that handlers run in."""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

_FAREWELL: Final = 2.0
"""Seconds for all connections to end when the interpreter does."""


class Closable(Protocol):
    """What is closed at the interpreter's end."""

    async def aclose(self) -> None:
        """Close it."""


class Background:
    """An event loop that runs in a daemon thread for as long as the process."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self.open: weakref.WeakSet[Closable] = weakref.WeakSet()
        """What has to be closed before the end; changed by the loop's thread alone."""
        self._thread = threading.Thread(target=self._run, name="limpet", daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call a plain function in the loop's thread; return or raise what it does.

        Raises:
            RuntimeError: this is the loop's thread, or the interpreter is ending.
        """
        outcome: Future[T] = Future()

        def call() -> None:
            try:
                outcome.set_result(function(*arguments, **named))
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                outcome.set_exception(error)

        self._refuse_own_thread()
        self.loop.call_soon_threadsafe(call)
        return outcome.result()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop; return or raise what it does. Interrupted, it is cancelled.

        Raises:
            RuntimeError: this is the loop's thread, or the interpreter is ending.
            TimeoutError: it took longer than ``timeout`` seconds.
        """
        try:
            self._refuse_own_thread()
            outcome = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise
        try:
            return outcome.result(timeout)
        except BaseException:
            outcome.cancel()
            raise

    def stop(self) -> None:
        """Close what is open, and end the thread."""
        if not self._thread.is_alive():
            return
        try:
            self.run(self._close_all(), _FAREWELL + 1)
        except TimeoutError:
            pass
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_FAREWELL)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    async def _close_all(self) -> None:
        closing = [asyncio.create_task(one.aclose()) for one in list(self.open)]
        if closing:
            await asyncio.wait(closing, timeout=_FAREWELL)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=0.5)

    def _refuse_own_thread(self) -> None:
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError("this would wait for itself: it is the thread of the event loop")


_lock: Final = threading.Lock()
_current: list[Background] = []
"""The one there is; empty before the first, and in a process that was forked."""


def background() -> Background:
    """Return the loop's thread, started if need be."""
    with _lock:
        if not _current:
            _current.append(Background())
        return _current[0]


def _stop() -> None:
    if _current:
        _current[0].stop()


atexit.register(_stop)
os.register_at_fork(after_in_child=_current.clear)


class HandlerThread:
    """A daemon thread that runs functions one after the other; it begins with the first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have a function called; return the future of its outcome. For the loop's thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="limpet-handlers", daemon=True)
            self._thread.start()
        future = self._loop.create_future()
        self._queue.put((function, future))
        return future

    def stop(self) -> None:
        """Let the thread end after what it has to do; a later ``submit`` starts another."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            function, future = work
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 - logged by who awaits it
                error = raised
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop has ended, and with it the process


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception):
        future.set_exception(error)
    else:  # SystemExit and its like must not end the loop
        future.set_exception(RuntimeError(f"a handler raised {error!r}"))


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
