"""Listeners and middlewares that one socket has for itself: ``socket.on``, ``on_any``, ``use``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from limpet_worker.socketio.handlers import ANY, F, Handler, Handlers

if TYPE_CHECKING:
    from limpet_worker.socketio.namespace import Namespace


class Extras:
    """What few sockets have: listeners and middlewares of their own."""

    __slots__ = ("handlers", "incoming", "middlewares", "outgoing")

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.incoming: list[Handler] = []
        """Catch-all listeners."""
        self.outgoing: list[Handler] = []
        """Catch-all listeners of what is sent."""
        self.middlewares: list[Handler] = []
        """Called with each event before its handlers."""


class Listening:
    """The listeners of one socket alone; those of all sockets are the namespace's."""

    __slots__ = ("_extras",)

    nsp: Namespace
    _extras: Extras | None
    """None until it has some."""

    @overload
    def on(self, event: str, handler: F, *, ordered: bool | None = None) -> F: ...
    @overload
    def on(
        self, event: str, handler: None = None, *, ordered: bool | None = None
    ) -> Callable[[F], F]: ...
    def on(
        self,
        event: str,
        handler: Callable[..., Any] | None = None,
        *,
        ordered: bool | None = None,
    ) -> Any:
        """Listen to an event of this socket: ``handler(*args)``; also as a decorator.

        ``disconnecting`` and ``disconnect`` give the reason.
        """
        return self._listen(event, handler, once=False, ordered=ordered)

    @overload
    def once(self, event: str, handler: F) -> F: ...
    @overload
    def once(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def once(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Listen to an event of this socket, for one time."""
        return self._listen(event, handler, once=True, ordered=None)

    def off(self, event: str | None = None, handler: Callable[..., Any] | None = None) -> None:
        """Remove a listener, or all of an event, or all."""
        if self._extras is not None:
            self._extras.handlers.remove(event, handler)

    def on_any(self, handler: F) -> F:
        """Listen to every event that comes: ``handler(event, *args)``."""
        self._own().incoming.append(Handler(ANY, handler))
        return handler

    def off_any(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener, or all."""
        if self._extras is not None:
            self._extras.incoming = without(self._extras.incoming, handler)

    def on_any_outgoing(self, handler: F) -> F:
        """Listen to every event sent to this client: ``handler(event, *args)``; acks are none."""
        extras = self._own()
        if not extras.outgoing:
            self.nsp.watched_sockets += 1
        extras.outgoing.append(Handler(ANY, handler))
        return handler

    def off_any_outgoing(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener of sent events, or all."""
        if self._extras is not None and self._extras.outgoing:
            self._extras.outgoing = without(self._extras.outgoing, handler)
            if not self._extras.outgoing:
                self.nsp.watched_sockets -= 1

    def use(self, middleware: F) -> F:
        """Call ``middleware(packet)`` before each event's handlers; raise in it to drop the event.

        ``packet`` is the list ``[event, *args]`` and may be changed. It may be async. A dropped
        event is counted and not acknowledged.
        """
        self._own().middlewares.append(Handler("middleware", middleware))
        return middleware

    def _own(self) -> Extras:
        if self._extras is None:
            self._extras = Extras()
        return self._extras

    def _listen(
        self, event: str, handler: Callable[..., Any] | None, *, once: bool, ordered: bool | None
    ) -> Any:
        if ordered is None:
            ordered = self.nsp.server.ordered

        def register(function: F) -> F:
            self._own().handlers.add(Handler(event, function, once=once, ordered=ordered))
            return function

        return register if handler is None else register(handler)


def without(handlers: list[Handler], function: Callable[..., Any] | None) -> list[Handler]:
    """Return the handlers but those that call a function; none at all when it is None."""
    if function is None:
        return []
    return [handler for handler in handlers if handler.call != function]
