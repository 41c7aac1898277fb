"""Cross-origin rules: the headers of responses and preflights, and who may open a WebSocket.

The options and what they produce are those of the ``cors`` package of npm, which users of
Engine.IO know. One thing is added: browsers do not apply CORS to WebSockets, so any page could
open one with the user's cookies. When origins are *chosen* (one origin, a list, a pattern, a
function), a WebSocket handshake from a browser whose page is neither of a chosen origin nor of
this server's own is refused. ``"*"`` and ``True`` allow any page, so nothing is refused there;
neither is anything when CORS is not configured, as with stock servers: give
``CorsOptions(origin=[], websocket=True)`` to admit own pages alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from limpet_worker.errors import OptionError

Origin: TypeAlias = str | re.Pattern[str] | bool
Origins: TypeAlias = Origin | Sequence[str | re.Pattern[str]]
OriginFunction: TypeAlias = Callable[[str | None], Origins | None]

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,]+", re.IGNORECASE).fullmatch
# What may stand in a header value: tab, visible ASCII and space, and bytes above ASCII.
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch
_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsOptions:
    """Which pages of other origins may talk to the server, and how."""

    origin: Origins | OriginFunction = "*"
    """``"*"`` any page; an origin such as ``"https://example.org"``; ``True``: any, named back to
    it; a pattern; a list of origins and patterns; a function of the request's origin (or None)
    that returns one of these; ``False``: no CORS at all."""
    credentials: bool = False
    """Whether browsers may send cookies; needs an origin other than ``"*"``."""
    methods: Sequence[str] = ("GET", "HEAD", "PUT", "PATCH", "POST", "DELETE")
    """Methods that a preflight is told."""
    allowed_headers: Sequence[str] | None = None
    """Request headers that a preflight is told; None: those it asks for."""
    exposed_headers: Sequence[str] = ()
    """Response headers that pages may read."""
    max_age: int | None = None
    """Seconds a browser may remember a preflight; None: its own default."""
    websocket: bool | None = None
    """Whether WebSocket handshakes from other pages are refused; None: when origins are chosen."""

    def __post_init__(self) -> None:
        if not callable(self.origin):
            _check_origins(self.origin)
        if not isinstance(self.credentials, bool):
            raise OptionError(f"cors credentials={self.credentials!r}: expected True or False")
        for name in ("methods", "allowed_headers", "exposed_headers"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str):
                value = tuple(part.strip() for part in value.split(","))
                object.__setattr__(self, name, value)
            elif not isinstance(value, Collection):
                raise OptionError(f"cors {name}={value!r}: expected a list of names")
            for item in value:
                if not isinstance(item, str) or not _TOKEN(item):
                    raise OptionError(f"cors {name}: {item!r}: expected a list of names")
        age: object = self.max_age
        if age is not None and (not isinstance(age, int) or isinstance(age, bool) or age < 0):
            raise OptionError(f"cors max_age={age!r}: expected whole seconds >= 0 or None")


def _check_origins(origin: object) -> None:
    if isinstance(origin, bool | re.Pattern):
        return
    if isinstance(origin, str):
        if origin not in {"", "*", "null"} and not _ORIGIN(origin):
            raise OptionError(
                f"cors origin={origin!r}: expected '*' or scheme://host[:port] without a path"
            )
        return
    if isinstance(origin, Sequence) and not isinstance(origin, bytes | bytearray):
        for item in origin:
            if not isinstance(item, str | re.Pattern):
                raise OptionError(f"cors origin: {item!r}: expected a string or a pattern")
            _check_origins(item)
        return
    raise OptionError(
        f"cors origin={origin!r}: expected '*', an origin, a list, a pattern, a function or a bool"
    )


class Cors:
    """What the options mean for requests. ``Cors(None)`` says nothing and refuses nobody."""

    __slots__ = ("_common", "_function", "_lines_of", "_options", "_origins", "_websocket")

    def __init__(self, options: CorsOptions | None) -> None:
        self._options = options
        self._function: OriginFunction | None = None
        self._origins: Origins | None = None
        self._common = b""
        """Lines that do not depend on the origin."""
        self._websocket = False
        self._lines_of = lru_cache(_REMEMBERED)(self._make_lines)
        if options is None:
            return
        if callable(options.origin):
            self._function = options.origin
        else:
            self._origins = _any_if_listed(options.origin)
        common = []
        if options.credentials:
            common.append("Access-Control-Allow-Credentials: true\r\n")
        if options.exposed_headers:
            common.append(f"Access-Control-Expose-Headers: {','.join(options.exposed_headers)}\r\n")
        self._common = "".join(common).encode("ascii")
        chosen = self._function is not None or (
            not isinstance(self._origins, bool) and self._origins not in {"", "*"}
            if isinstance(self._origins, bool | str)
            else True
        )
        self._websocket = chosen if options.websocket is None else options.websocket

    @property
    def enabled(self) -> bool:
        """Whether preflights are answered at all."""
        return self._function is not None or bool(self._origins) or self._is_list()

    def _is_list(self) -> bool:
        # An empty list is a rule (nobody), unlike None, False and "", which switch CORS off.
        return self._origins is not None and not isinstance(self._origins, str | bool)

    def lines(self, origin: bytes | None) -> bytes:
        """Return the header lines of a response to a request from ``origin`` (None: no header).

        May raise whatever a function given as ``origin`` raises.
        """
        if self._options is None:
            return b""
        if self._function is not None:
            return self._make_lines(origin)
        return self._lines_of(origin)

    def preflight(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        """Return the header lines that answer a preflight, or None when CORS is off for it."""
        options = self._options
        if options is None:
            return None
        allow, vary = self._allow(headers.get(b"origin"))
        if allow is None:
            return None
        lines = [_line("Access-Control-Allow-Origin", allow)]
        if options.credentials:
            lines.append(b"Access-Control-Allow-Credentials: true\r\n")
        lines.append(_line("Access-Control-Allow-Methods", ",".join(options.methods).encode()))
        varies = ["Origin"] if vary else []
        if options.allowed_headers is not None:
            names = ",".join(options.allowed_headers).encode()
        else:
            names = headers.get(b"access-control-request-headers", b"")
            varies.append("Access-Control-Request-Headers")
        lines.append(_line("Access-Control-Allow-Headers", names))
        if options.max_age is not None:
            lines.append(_line("Access-Control-Max-Age", b"%d" % options.max_age))
        if options.exposed_headers:
            names = ",".join(options.exposed_headers).encode()
            lines.append(_line("Access-Control-Expose-Headers", names))
        lines.append(_line("Vary", ", ".join(varies).encode()))
        return b"".join(lines)

    def admits_websocket(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a WebSocket may be opened; without ``Origin`` it is no browser: yes.

        A page of this server's own host is always admitted. ``X-Forwarded-Host`` counts beside
        ``Host``: a proxy sets it, a page cannot.
        """
        if not self._websocket:
            return True
        origin = headers.get(b"origin")
        if origin is None:
            return True
        if origin != b"null":
            authority = origin.partition(b"://")[2].lower()
            forwarded = headers.get(b"x-forwarded-host", b"").split(b",")[0].strip()
            if authority and authority in {
                _without_default_port(headers.get(b"host", b"").lower(), origin),
                _without_default_port(forwarded.lower(), origin),
            }:
                return True
        origins = self._origins_for(origin)
        if origins is None or isinstance(origins, bool | str):
            if origins in {"*", True}:
                return True
            return bool(origins) and origin == str(origins).encode("latin-1", "replace")
        return _matches(origin, origins)

    def _origins_for(self, origin: bytes | None) -> Origins | None:
        if self._function is None:
            return self._origins
        given = self._function(None if origin is None else origin.decode("latin-1"))
        return None if given is None else _any_if_listed(given)

    def _allow(self, origin: bytes | None) -> tuple[bytes | None, bool]:
        """Return what to allow (b"": no such line, None: CORS is off) and whether it varies."""
        origins = self._origins_for(origin)
        if origins is None or origins is False or origins == "":
            return None, False
        if origins == "*":
            return b"*", False
        if isinstance(origins, str):
            return origins.encode("latin-1", "replace"), True
        if origin is not None and (origins is True or _matches(origin, origins)):
            return origin, True
        return b"", True

    def _make_lines(self, origin: bytes | None) -> bytes:
        allow, vary = self._allow(origin)
        if allow is None:
            return b""
        line = _line("Access-Control-Allow-Origin", allow)
        return line + (b"Vary: Origin\r\n" if vary else b"") + self._common


def valid_origin(origin: bytes) -> bool:
    """Return whether an ``Origin`` could be written into a header."""
    return _VALUE(origin) is not None


def _any_if_listed(origins: Origins) -> Origins:
    # A list that contains "*" can only mean one thing.
    if not isinstance(origins, bool | str | re.Pattern) and "*" in origins:
        return "*"
    return origins


def _matches(origin: bytes, origins: Origins) -> bool:
    text = origin.decode("latin-1")
    items = (origins,) if isinstance(origins, bool | str | re.Pattern) else origins
    for item in items:
        if isinstance(item, re.Pattern):
            if item.search(text):
                return True
        elif item is True or item == text:
            return True
    return False


def _without_default_port(authority: bytes, origin: bytes) -> bytes:
    # Browsers leave the default port out of Origin; a Host header may carry it.
    scheme = urlsplit(origin.decode("latin-1")).scheme if b"[" not in origin else ""
    suffix = {"http": b":80", "https": b":443"}.get(scheme)
    return authority.removesuffix(suffix) if suffix else authority


def _line(name: str, value: bytes) -> bytes:
    return b"%s: %s\r\n" % (name.encode("ascii"), value) if value else b""
