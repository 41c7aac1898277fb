"""The options of Engine.IO: their meaning, their units, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from limpet_worker.errors import OptionError

if TYPE_CHECKING:
    from limpet_worker.engineio.request import HandshakeRequest
    from limpet_worker.http.cors import CorsOptions

TRANSPORTS: Final = ("polling", "websocket")
"""The transports there are, in the order in which a session can be upgraded."""
_PATH: Final = re.compile(r"/[!$-.0-;=@-Z_a-z~%/]*").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How sessions behave and what is allowed to them. Durations are seconds, sizes bytes.

    Raises:
        OptionError: a value that cannot be.
    """

    path: str = "/socket.io/"
    """Requests whose path starts with this are ours; a missing slash at the end is forgiven."""
    ping_interval: float = 25.0
    """From a pong (or the start of the session) to the next ping."""
    ping_timeout: float = 20.0
    """From a ping to the end of the session, when no pong comes."""
    upgrade_timeout: float = 10.0
    """For a WebSocket to take over from polling, once it is connected."""
    close_timeout: float = 30.0
    """For the client to fetch the last packets, or to answer our close frame."""
    max_http_buffer_size: int = 1_000_000
    """Largest body of a POST, and largest WebSocket message."""
    transports: tuple[str, ...] = TRANSPORTS
    """What a session may begin with."""
    allow_upgrades: bool = True
    """Whether a polling session may change to WebSocket."""
    http_compression: bool = True
    """Whether answers to polls are compressed, where the client takes it."""
    http_compression_threshold: int = 1024
    """Smallest answer that is compressed."""
    cookie: bool | str | Mapping[str, object] = False
    """Cookie of the first polling answer: False, True (``io``), its name, or its attributes."""
    cors: CorsOptions | None = None
    """Which other origins may read the answers; None: no CORS headers at all."""
    allow_request: Callable[[HandshakeRequest], object] | None = None
    """Asked before a session begins, plain or async: True or None lets it in, False refuses it,
    a string refuses it with that message."""
    max_sessions: int | None = None
    """Sessions of this process; beyond it new ones are refused. None: no limit."""
    max_payload_packets: int = 20_000
    """Packets in one POST; the session ends at the next one. Stock clients send all that they
    buffered in one POST, so it is far above what people do."""
    soft_limit: int = 1 << 20
    """Unsent bytes of a session that it may not have for longer than ``soft_seconds``."""
    soft_packets: int = 1000
    """Unsent packets, likewise."""
    soft_seconds: float = 5.0
    """How long a session may be over a soft limit before it ends as a slow consumer."""
    hard_limit: int = 16 << 20
    """Unsent bytes with which a session ends as a slow consumer at once."""
    bulk_slice: int = 128
    """Sessions that a broadcast writes to before other work has its turn."""

    def __post_init__(self) -> None:
        """Check every value."""
        path: object = self.path
        if not isinstance(path, str) or not _PATH(path):
            raise _wrong("path", path, 'a path that starts with "/", as it stands in a URL')
        for name in (
            "ping_interval",
            "ping_timeout",
            "upgrade_timeout",
            "close_timeout",
            "soft_seconds",
        ):
            self._check_seconds(name)
        object.__setattr__(self, "transports", _transports(self.transports))
        for name, least in (
            ("max_http_buffer_size", 1),
            ("http_compression_threshold", 0),
            ("max_payload_packets", 1),
            ("soft_limit", 1),
            ("soft_packets", 1),
            ("hard_limit", self.soft_limit),
            ("bulk_slice", 1),
        ):
            self._check_whole(name, least)
        if self.max_sessions is not None:
            self._check_whole("max_sessions", 1)
        for name in ("allow_upgrades", "http_compression"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise _wrong(name, value, "True or False")
        if not isinstance(self.cookie, (bool, str, Mapping)):
            raise _wrong("cookie", self.cookie, "True, False, a name or a mapping")
        if self.allow_request is not None and not callable(self.allow_request):
            raise _wrong("allow_request", self.allow_request, "a function or None")

    def _check_seconds(self, name: str) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0.001 <= value <= 86_400:
            raise _wrong(name, value, "seconds from 0.001 to 86400")

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise _wrong(name, value, f"a whole number of at least {least}")


def _transports(value: object) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, (tuple, list)) else ()
    if not names or any(name not in TRANSPORTS or names.count(name) > 1 for name in names):
        raise _wrong("transports", value, 'a tuple of "polling" and "websocket"')
    return names


def _wrong(option: str, value: object, expected: str) -> OptionError:
    return OptionError(f"{option}={value!r}: expected {expected}")
