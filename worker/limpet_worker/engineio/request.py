"""The request that opened a session, as an application sees it."""

from __future__ import annotations

from collections.abc import Mapping


class HandshakeRequest:
    """What the first request of a session said. It is kept as long as the session: be small."""

    __slots__ = ("address", "headers", "method", "path", "query", "secure", "target", "time")

    def __init__(
        self,
        *,
        target: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        address: tuple[str, int] | str,
        method: str = "GET",
        secure: bool = False,
        time: float = 0.0,
    ) -> None:
        self.method = method
        self.target = target
        """Path and query as they were sent."""
        self.path = path
        """The path, decoded."""
        self.query = query
        """Parameters of the query, reserved ones included; the last of several values wins."""
        self.headers = headers
        """Headers by lower-case name; may be parsed only when it is asked."""
        self.address = address
        """Host and port of the client, or a path (possibly empty) of a unix socket."""
        self.secure = secure
        """Whether the client came over TLS, as far as is known."""
        self.time = time
        """When it came, seconds since 1970: for display, decisions use other clocks."""

    def __repr__(self) -> str:
        # Neither the query nor the headers: they hold secrets.
        return f"<HandshakeRequest {self.method} {self.path} from {self.address}>"
