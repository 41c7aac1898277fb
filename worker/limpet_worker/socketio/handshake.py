"""What a socket's client said when it connected: the HTTP request, and its ``auth``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from limpet_worker.engineio.request import HandshakeRequest


class Handshake:
    """A view of the first request of a connection, and of the CONNECT of one namespace."""

    __slots__ = ("_request", "auth")

    def __init__(self, request: HandshakeRequest, auth: dict[str, Any]) -> None:
        self._request = request
        self.auth = auth
        """What the client gave as ``auth`` for this namespace; ``{}`` when nothing."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the request, by lower-case name."""
        return self._request.headers

    @property
    def query(self) -> Mapping[str, str]:
        """Parameters of the URL, those of the protocol (``EIO``, ``transport``) included."""
        return self._request.query

    @property
    def url(self) -> str:
        """Path and query of the request, as they were sent."""
        return self._request.target

    @property
    def address(self) -> str:
        """Address of the client, without a port; the path of a unix socket, mostly empty."""
        address = self._request.address
        return address if isinstance(address, str) else address[0]

    @property
    def secure(self) -> bool:
        """Whether the client came over TLS, as far as is known."""
        return self._request.secure

    @property
    def xdomain(self) -> bool:
        """Whether the request names an ``Origin``, as browsers do."""
        return "origin" in self._request.headers

    @property
    def issued(self) -> float:
        """When the connection was opened, in seconds since 1970."""
        return self._request.time

    @property
    def time(self) -> datetime:
        """When the connection was opened, in UTC."""
        return datetime.fromtimestamp(self._request.time, UTC)

    def as_dict(self) -> dict[str, Any]:
        """Return what a JavaScript server calls the handshake, fit to be emitted.

        It holds the client's cookies and credentials: not for anybody else.
        """
        return {
            "headers": dict(self.headers),
            "time": self.time,
            "address": self.address,
            "xdomain": self.xdomain,
            "secure": self.secure,
            "issued": round(self.issued * 1000),
            "url": self.url,
            "query": dict(self.query),
            "auth": self.auth,
        }

    def __repr__(self) -> str:
        return f"<Handshake from {self.address}>"  # the rest may be secret
