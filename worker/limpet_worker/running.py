"""Whose code runs now: what logs and traces say of the socket, the event or the HTTP request.

A handler's task, and the tasks it starts, inherit the socket as any context variable. For a plain
``def`` handler the socket is put into the context of the connection itself, and left there: the
next event of the same connection finds it in place, so that an event costs one look (14 ns) and
no setting and resetting (110 ns). What else runs in that context is of the same client; HTTP, which
clients may share, puts ``None`` there first. The event's name is not kept at all, but read off the
stack by who asks.
"""

from __future__ import annotations

import os
import re
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

    from limpet_worker.socketio.socket import Socket

SOCKET: Final[ContextVar[Socket | None]] = ContextVar("limpet_socket", default=None)
"""The socket whose handler, middleware or lifecycle handler runs, or began what runs."""
REQUEST: Final[ContextVar[str | None]] = ContextVar("limpet_request", default=None)
"""Id of the HTTP request to the app's routes that is being answered."""

_CALLERS: Final = frozenset(
    (
        "Client._admit",
        "Socket._finish",
        "Socket._finish_lifecycle",
        "Socket._show",
        "Socket._start",
        "Socket.call_lifecycle",
    )
)
"""What calls an app's handlers, and has them in a local variable ``handler``."""
_MODULE: Final = f"{__package__}.socketio."
_DEPTH: Final = 200
_LONGEST_USER: Final = 64
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}")


def event() -> str | None:
    """Return which event's handler is running; None outside of one, and in tasks it started.

    Costs a walk up the stack: for who logs, not for each message.
    """
    frame = _caller()
    name = getattr(frame.f_locals.get("handler"), "event", None) if frame is not None else None
    return name if isinstance(name, str) else None


def describe(socket: Socket) -> dict[str, object]:
    """Return what a log says of a socket; of its session's id, a secret, the beginning only."""
    fields: dict[str, object] = {
        "worker": socket.nsp.server.worker_name,
        "sid": socket.id,
        "eio_sid": socket.session.sid[:6],
        "namespace": socket.nsp.name,
    }
    user = socket.user
    if (isinstance(user, str) and len(user) <= _LONGEST_USER) or type(user) is int:
        fields["user"] = user
    return fields


def forget() -> None:
    """Let the context no longer keep a socket whose client is gone, unless its handler runs."""
    if SOCKET.get() is not None and _caller() is None:
        SOCKET.set(None)


def _caller() -> FrameType | None:
    """Return the innermost frame that called a handler of the app's."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - how the stack is walked
    for _ in range(_DEPTH):
        if frame is None or (frame.f_code.co_qualname in _CALLERS and _is_ours(frame)):
            return frame
        frame = frame.f_back
    return None


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.startswith(_MODULE)


def request_id(wanted: str | None) -> str:
    """Return the id of a request: what a proxy gave it, if that is harmless, or a new one.

    Args:
        wanted: the ``X-Request-Id`` header.
    """
    if wanted is not None and _REQUEST_ID.fullmatch(wanted):
        return wanted
    return os.urandom(8).hex()
