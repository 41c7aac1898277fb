"""How events of the server reach the handlers of an application, and how answers go back."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from limpet_adapters.counters import count
from limpet_client.inbox import Inbox
from limpet_worker.socketio.handlers import Handler, Handlers, is_coroutine, settle

if TYPE_CHECKING:
    from limpet_client.namespace import NamespaceCore
    from limpet_worker.socketio.handlers import Tasks

logger = logging.getLogger("limpet.client")


class Dispatcher:
    """The handlers of one namespace of a client, and the events they have not done with."""

    __slots__ = (
        "_core",
        "_limit",
        "_ordered",
        "_overrun",
        "_through",
        "_unfinished",
        "handlers",
        "inbox",
        "incoming",
        "middlewares",
        "outgoing",
        "tasks",
    )

    def __init__(self, core: NamespaceCore, limit: int, overrun: Callable[[], None]) -> None:
        self._core = core
        self._limit = limit
        """Events that may wait or be handled."""
        self._overrun = overrun
        """Called when there are more."""
        self._unfinished = 0
        """Events whose handlers wait or run."""
        self._ordered: deque[tuple[Handler, list[Any], int | None]] | None = None
        """What waits for the ordered handler that runs; None while none does."""
        self._through: deque[tuple[list[Any], int | None]] | None = None
        """Events that wait for the one in the middlewares; None while none is."""
        self.tasks: Tasks | None = None
        """Where handlers run; None before the first connection."""
        self.handlers = Handlers()
        self.incoming: list[Handler] = []
        """Catch-all listeners."""
        self.outgoing: list[Handler] = []
        """Catch-all listeners of what is sent."""
        self.middlewares: list[Handler] = []
        self.inbox: Inbox | None = None
        """For ``async for``; None until somebody may want it."""

    # --- events of the server ---------------------------------------------

    def on_event(self, data: list[Any], id_: int | None) -> None:
        """Take an event: its name, its arguments, and the id of the acknowledgement wanted."""
        for handler in self.incoming:
            self._start(handler, [*data], None, offset=False)
        if not self.middlewares:
            self._dispatch(data, id_)
        elif self._admits_another():
            if self._through is not None:
                self._through.append((data, id_))
                return
            # It waits there first: from Python 3.12 on, the task begins at once.
            self._through = deque([(data, id_)])
            self._run(self._pass(self._through))

    async def _pass(self, waiting: deque[tuple[list[Any], int | None]]) -> None:
        """Pass events through the middlewares, one after the other: they keep their order."""
        try:
            while waiting:
                data, id_ = waiting.popleft()
                self._unfinished -= 1
                try:
                    for middleware in list(self.middlewares):
                        await settle(middleware.call(data))
                except Exception:  # to raise is how a middleware says no
                    count("limpet_client_events_refused_total", reason="middleware")
                    logger.debug("a middleware dropped %r", data[0], exc_info=True)
                else:
                    self._dispatch(data, id_)
        finally:
            self._through = None

    def _dispatch(self, data: list[Any], id_: int | None) -> None:
        handlers = self.handlers.by_event.get(data[0])
        if handlers is None:
            if self.inbox is not None:
                self.inbox.put(data)
                if len(self.inbox) > self._limit:
                    self._overrun()
            else:
                count("limpet_client_events_unhandled_total")
            return
        # The server may have added an offset, see ``_fitting``.
        offset = self._core.pid is not None and id_ is None
        arguments = data[1:]
        for handler in handlers:
            self._start(handler, arguments, id_, offset=offset)
            id_ = None  # what the first returns is the acknowledgement

    def _start(
        self, handler: Handler, arguments: list[Any], id_: int | None, *, offset: bool
    ) -> None:
        """Call a handler: its plain part here and now, the rest as a task; an ordered one when
        those before it have ended.
        """
        if not handler.least <= len(arguments) <= handler.most:
            if not offset or not _fitting(handler, arguments):
                handler.accepts(len(arguments))  # counts and logs
                return
            arguments = arguments[:-1]
        if handler.once:
            self.handlers.discard(handler)
        if handler.ordered:
            if self._admits_another():
                if self._ordered is not None:
                    self._ordered.append((handler, arguments, id_))
                    return
                # First, as above.
                self._ordered = deque([(handler, arguments, id_)])
                self._run(self._run_ordered(self._ordered))
            return
        try:
            result = handler.call(*arguments)
            if is_coroutine(result):
                if self._admits_another():
                    self._run(self._finish(handler, result, id_))
                else:
                    result.close()
            elif id_ is not None:
                self._acknowledge(id_, result)
        except Exception as error:  # noqa: BLE001 - the application's
            handler.failed("event", error)

    async def _run_ordered(self, waiting: deque[tuple[Handler, list[Any], int | None]]) -> None:
        try:
            while waiting:
                handler, arguments, id_ = waiting.popleft()
                await self._finish(handler, _call(handler, arguments), id_)
        finally:
            self._ordered = None

    async def _finish(self, handler: Handler, coroutine: Awaitable[Any], id_: int | None) -> None:
        try:
            result = await coroutine
            if id_ is not None:
                self._acknowledge(id_, result)
        except Exception as error:  # noqa: BLE001 - the application's
            handler.failed("event", error)
        finally:
            self._unfinished -= 1

    def _acknowledge(self, id_: int, result: Any) -> None:
        """Send what a handler returned: a tuple as several values, None as none."""
        if type(result) is not tuple:
            result = () if result is None else (result,)
        self._core.acknowledge(id_, result)

    def _admits_another(self) -> bool:
        if self._unfinished >= self._limit:
            self._overrun()
            return False
        self._unfinished += 1
        return True

    # --- what is no event of the server's ---------------------------------

    def show_outgoing(self, arguments: tuple[object, ...]) -> None:
        """Show an event that is being sent to the catch-all listeners."""
        for handler in self.outgoing:
            if handler.accepts(len(arguments)):
                self.call("outgoing", handler, *arguments)

    def tell(self, event: str, *arguments: Any) -> None:
        """Call the handlers of an event of the client's own; they may take fewer arguments."""
        for handler in self.handlers.by_event.get(event, ()):
            if handler.once:
                self.handlers.discard(handler)
            self.call("lifecycle", handler, *arguments)

    def call(self, kind: str, handler: Handler, *arguments: Any) -> None:
        """Call a handler with as many arguments as it takes; its coroutine as a task."""
        try:
            result = handler.fit(*arguments)
            if is_coroutine(result):
                self._run(_guard(kind, handler, result))
        except Exception as error:  # noqa: BLE001 - the application's
            handler.failed(kind, error)

    def answer(
        self, event: object, ack: Callable[..., Any], error: Exception | None, values: list[Any]
    ) -> None:
        """Call what the application wants called with an acknowledgement."""
        try:
            result = ack(error, *values)
            if is_coroutine(result):
                self._run(_answer(event, result))
        except Exception:
            logger.exception("the callback of the acknowledgement of %r failed", event)

    def _run(self, coroutine: Any) -> None:
        if self.tasks is None:  # an event of the client's own, without a loop to run it in
            coroutine.close()
            raise RuntimeError("an async handler needs a running connection")
        self.tasks.start(coroutine)


def _fitting(handler: Handler, arguments: list[Any]) -> bool:
    """Return whether a handler takes an event but for the text at its end.

    With connection state recovery a server adds an offset to each event, as its last argument.
    It cannot be told from an argument of the application's; a handler that takes so many gets it.
    """
    return bool(arguments) and (
        type(arguments[-1]) is str and handler.least <= len(arguments) - 1 <= handler.most
    )


async def _guard(kind: str, handler: Handler, coroutine: Awaitable[Any]) -> None:
    try:
        await coroutine
    except Exception as error:  # noqa: BLE001 - the application's
        handler.failed(kind, error)


async def _answer(event: object, coroutine: Awaitable[Any]) -> None:
    try:
        await coroutine
    except Exception:
        logger.exception("the callback of the acknowledgement of %r failed", event)


async def _call(handler: Handler, arguments: list[Any]) -> Any:
    return await settle(handler.call(*arguments))
