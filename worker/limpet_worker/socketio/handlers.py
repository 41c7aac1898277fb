"""What an app registers: handlers of events and how each is called, and the tasks they run in."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, TypeVar

from limpet_adapters.counters import count

logger = logging.getLogger("limpet.socketio")

F = TypeVar("F", bound=Callable[..., Any])

ANY: Final = "*"
"""What catch-all listeners are registered under, for the log."""
_UNLIMITED: Final = 1 << 30
_EAGER: Final = sys.version_info >= (3, 12)


class Handler:
    """A function of the app, and what the hot path must know of it."""

    __slots__ = ("call", "event", "least", "most", "once", "ordered", "warned")

    def __init__(
        self, event: str, function: Callable[..., Any], *, once: bool = False, ordered: bool = False
    ) -> None:
        if not callable(function):  # type: ignore[redundant-expr, unused-ignore]
            raise TypeError(f"the handler of {event!r} must be callable, not {function!r}")
        self.event = event
        self.call = function
        self.least, self.most = _arity(event, function)
        self.once = once
        self.ordered = ordered
        self.warned = False

    def accepts(self, amount: int) -> bool:
        """Return whether it can be called with so many arguments; if not, count and say so.

        A client chooses how many it sends, so only the first time is an error in the log.
        """
        if self.least <= amount <= self.most:
            return True
        count("limpet_events_refused_total", reason="wrong number of arguments")
        logger.log(
            logging.DEBUG if self.warned else logging.ERROR,
            "event %r came with %d arguments, its handler %s takes %s: not handled"
            " (later ones are logged at debug level)",
            self.event,
            amount,
            _name(self.call),
            self.least if self.least == self.most else f"{self.least} to {self.most}",
        )
        self.warned = True
        return False

    def failed(self, kind: str, error: BaseException) -> None:
        """Log and count what it raised."""
        count("limpet_handler_errors_total", kind=kind)
        logger.error("the %s handler of %r failed", kind, self.event, exc_info=error)

    def fit(self, *arguments: Any) -> Any:
        """Call it with as many of these arguments as it takes, and return what it returns."""
        return self.call(*arguments[: min(self.most, len(arguments))])


class Handlers:
    """The handlers of a namespace or a socket, by event."""

    __slots__ = ("by_event",)

    def __init__(self) -> None:
        self.by_event: dict[str, list[Handler]] = {}
        """Lists are replaced, never changed: dispatch may be walking through one."""

    def add(self, handler: Handler) -> None:
        """Add a handler; those of one event are called in the order in which they came."""
        self.by_event[handler.event] = [*self.by_event.get(handler.event, ()), handler]

    def remove(self, event: str | None, function: Callable[..., Any] | None) -> None:
        """Remove one handler of an event, or all of it, or all."""
        if event is None:
            self.by_event.clear()
            return
        left = [
            handler
            for handler in self.by_event.get(event, ())
            if function is not None and handler.call != function
        ]
        if left:
            self.by_event[event] = left
        else:
            self.by_event.pop(event, None)

    def discard(self, handler: Handler) -> None:
        """Remove this very handler: it was for one call."""
        left = [other for other in self.by_event.get(handler.event, ()) if other is not handler]
        if left:
            self.by_event[handler.event] = left
        else:
            self.by_event.pop(handler.event, None)

    def copy(self) -> Handlers:
        """Return handlers of their own that begin with these."""
        twin = Handlers()
        twin.by_event = dict(self.by_event)
        return twin


class Tasks:
    """The running coroutines of handlers, held so that none is collected while it runs."""

    __slots__ = ("_discard", "_loop", "running")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.running: set[asyncio.Task[None]] = set()
        self._discard = self.running.discard

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that handles its own exceptions; at once where Python can."""
        if _EAGER:
            # The constructor, because uvloop's create_task does not know eager_start.
            task = asyncio.Task(coroutine, loop=self._loop, eager_start=True)  # type: ignore[call-arg, unused-ignore]
            if task.done():
                return
        else:
            task = self._loop.create_task(coroutine)
        self.running.add(task)
        task.add_done_callback(self._discard)

    async def finish(self, seconds: float) -> None:
        """Wait for what runs, then cancel what still does; never for the caller itself."""
        mine = asyncio.current_task()
        others = [task for task in self.running if task is not mine]
        if not others:
            return
        _, late = await asyncio.wait(others, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            logger.warning(
                "%d handlers still ran after %s s and were cancelled", len(late), seconds
            )
            await asyncio.wait(late, timeout=1.0)


async def settle(result: Any) -> Any:
    """Return a result, awaited if it is a coroutine or another awaitable."""
    return await result if inspect.isawaitable(result) else result


def was_cancelled(error: BaseException) -> bool:
    """Return whether the running task itself was cancelled, as at the end of the server; else an
    app's coroutine only waited for something that was.
    """
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def is_coroutine(result: Any) -> bool:
    """Return whether a plain function returned a coroutine, as wrappers of async ones do."""
    return type(result) is CoroutineType


def _arity(event: str, function: Callable[..., Any]) -> tuple[int, int]:
    """Return the least and most positional arguments a function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have none
        return 0, _UNLIMITED
    least = most = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            most = _UNLIMITED
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += parameter.default is parameter.empty
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise TypeError(
                f"the handler of {event!r} needs the keyword argument {parameter.name!r}, "
                "which nobody gives it"
            )
    return least, most


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
