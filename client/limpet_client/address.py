"""A server's URL taken apart: where to connect, and the namespace that its path names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from limpet_worker.errors import OptionError

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://").match
_SCHEMES: Final = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """Name or address, IPv6 without brackets."""
    port: int
    path: str
    """Path of the Engine.IO endpoint."""
    namespace: str
    """What the URL's own path names: ``/`` unless it has one."""
    query: tuple[tuple[str, str], ...]
    """Parameters of the URL, decoded."""

    @property
    def origin(self) -> str:
        """Scheme, host and port as they begin a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def id(self) -> str:
        """Same for URLs that mean the same endpoint."""
        return self.origin + self.path


def parse(url: str, path: str = "/socket.io/") -> Address:
    """Take a URL apart: ``https://host:port/namespace?query``.

    Without a scheme it is ``https``. The URL's path is a namespace; that of the endpoint is an
    option of its own.

    Raises:
        OptionError: it names no host, or another protocol.
    """
    text = url if _SCHEME(url) else f"https://{url.removeprefix('//')}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise OptionError(f"url={url!r}: {error}") from None
    scheme = _SCHEMES.get(parts.scheme.lower())
    if scheme is None:
        raise OptionError(f"url={url!r}: expected http, https, ws or wss")
    if not parts.hostname or (url.startswith("/") and not url.startswith("//")):
        raise OptionError(f"url={url!r}: expected a host, as in https://example.org/namespace")
    return Address(
        scheme,
        parts.hostname,
        _PORTS[scheme] if port is None else port,
        path,
        parts.path or "/",
        tuple(parse_qsl(parts.query, keep_blank_values=True)),
    )
