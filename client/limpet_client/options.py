"""Options of a connection, checked once: names, defaults and meaning of the JavaScript client's,
in snake case and seconds.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import aiohttp

from limpet_worker.errors import OptionError

TRANSPORTS: Final = ("polling", "websocket")
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

Auth: TypeAlias = Mapping[str, Any] | Callable[[], Any] | None
"""What a server is told at each connection to a namespace: a mapping, or a function, plain or
async, that is called for it each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of one connection and what runs over it. Seconds and bytes.

    Raises:
        OptionError: an option has a value that cannot be; the message says what can.
    """

    path: str = "/socket.io/"
    """Path of the Engine.IO endpoint."""
    add_trailing_slash: bool = True
    """Whether the path gets a slash at its end."""
    query: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Parameters of each request, beside those of the URL."""
    transports: Sequence[str] = TRANSPORTS
    """What may be used; the first is what a connection begins with."""
    upgrade: bool = True
    """Whether polling changes to WebSocket where the server offers it."""
    remember_upgrade: bool = False
    """Whether to begin with a WebSocket once one worked."""
    try_all_transports: bool = False
    """Whether the next transport is tried at once when one cannot connect."""
    per_message_deflate: bool = True
    """Whether compression of WebSocket messages is asked for."""
    compression_threshold: int = 1024
    """Smallest message that is compressed, when the server agreed to it."""
    max_message_size: int = 100_000_000
    """Largest message or polling answer that is taken; a larger one ends the connection."""
    max_attachments: int = 1000
    """Binary attachments of one packet."""

    reconnection: bool = True
    """Whether to connect again by itself."""
    reconnection_attempts: float = math.inf
    """How often in a row."""
    reconnection_delay: float = 1.0
    """Before the first attempt; it doubles each time."""
    reconnection_delay_max: float = 5.0
    """The longest."""
    randomization_factor: float = 0.5
    """Part of the delay by which chance shortens or lengthens it."""
    timeout: float | None = 20.0
    """For a connection to be made; None: as long as the system takes."""
    auto_connect: bool = True
    """Whether a namespace from ``of`` connects by itself, together with the client."""

    retries: int = 0
    """How often an event is sent again that was not acknowledged: see ``ack_timeout``."""
    ack_timeout: float | None = None
    """How long an acknowledgement is waited for, unless ``timeout(seconds)`` says otherwise."""
    ordered: bool = False
    """Whether handlers run one after the other, unless one says otherwise itself."""
    max_pending_events: int = 10_000
    """Events whose handlers run or wait, or that wait for ``async for``; beyond it the
    connection is closed and made anew."""
    max_buffered_packets: int = 10_000
    """Packets that wait for a connection; beyond it emits raise ``SendBufferFull``."""
    max_buffered_bytes: int = 64_000_000
    """Bytes that wait for the network to take them; beyond it emits raise."""

    extra_headers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Headers of each request."""
    cookies: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Cookies to begin with; those that the server sets are kept and sent too."""
    ssl: ssl.SSLContext | aiohttp.Fingerprint | bool = True
    """How the server's certificate is checked; False: not at all."""
    proxy: str | None = None
    """URL of an HTTP proxy."""
    proxy_headers: Mapping[str, str] | None = None
    """Headers for the proxy alone, as ``Proxy-Authorization``."""
    trust_env: bool = False
    """Whether ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``~/.netrc`` count."""
    http_session: aiohttp.ClientSession | None = None
    """An aiohttp session to make all requests with; its cookies and connector are used, and it
    is not closed. Its connector's ``limit`` counts polling connections."""

    def __post_init__(self) -> None:
        _sequence("transports", self.transports)
        if not self.path.startswith("/"):
            raise OptionError(f"path={self.path!r}: expected one that begins with a slash")
        for name in ("reconnection_delay", "reconnection_delay_max", "ack_timeout", "timeout"):
            _seconds(name, getattr(self, name))
        if not 0 <= self.randomization_factor <= 1:
            raise OptionError(
                f"randomization_factor={self.randomization_factor!r}: expected a number from 0 to 1"
            )
        _count("reconnection_attempts", self.reconnection_attempts, 0)
        for name, least in _COUNTS:
            _count(name, getattr(self, name), least)
        for name in ("query", "extra_headers", "cookies"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(
                isinstance(part, str) for pair in value.items() for part in pair
            ):
                raise OptionError(f"{name}={value!r}: expected a mapping of strings to strings")

    @property
    def endpoint(self) -> str:
        """The path as it is requested."""
        return self.path.rstrip("/") + ("/" if self.add_trailing_slash else "")


_COUNTS: Final = (
    ("compression_threshold", 0),
    ("max_message_size", 1),
    ("max_attachments", 1),
    ("retries", 0),
    ("max_pending_events", 1),
    ("max_buffered_packets", 1),
    ("max_buffered_bytes", 1),
)


def make(options: Mapping[str, Any]) -> Options:
    """Return checked options from keyword arguments.

    Raises:
        OptionError: a value that cannot be.
        TypeError: there is no option of that name.
    """
    unknown = sorted(options.keys() - Options.__dataclass_fields__.keys())
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}: see help(limpet.Client)")
    return Options(**options)


def _sequence(name: str, value: Iterable[str]) -> None:
    chosen = list(value) if not isinstance(value, str) else []
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(TRANSPORTS):
        raise OptionError(f"{name}={value!r}: expected one or both of {', '.join(TRANSPORTS)}")


def _seconds(name: str, value: Any) -> None:
    if value is None and name in {"timeout", "ack_timeout"}:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 86_400:
        raise OptionError(f"{name}={value!r}: expected seconds from 0 to 86400")


def _count(name: str, value: Any, least: int) -> None:
    if value == math.inf and name == "reconnection_attempts":
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name}={value!r}: expected a whole number of at least {least}")
