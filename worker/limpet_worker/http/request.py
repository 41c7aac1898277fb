"""HTTP/1.x request heads: found, parsed by llhttp, and kept as one slim record per request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote_plus

import httptools

MAX_HEAD: Final = 16_384
"""Bytes of a request head, the empty line included."""

MAX_TRAILERS: Final = 8_192
"""Bytes of the lines after the last chunk of a chunked body."""

_METHODS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class BadRequest(Exception):  # noqa: N818 # the field's name for it
    """The bytes are no request we take; the connection ends after the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """HTTP status of the answer."""
        self.reason = reason
        """What was wrong: one of a small fixed set, fit for a counter's label."""


class Headers(Mapping[str, str]):
    """Request headers by lower-case name, decoded when they are asked for."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        return self._raw[name.lower().encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        for name in self._raw:
            yield name.decode("latin-1")

    def __len__(self) -> int:
        return len(self._raw)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower().encode("latin-1", "replace") in self._raw

    def __repr__(self) -> str:
        return f"Headers({dict(self)!r})"


class Head:
    """What a request says before its body."""

    __slots__ = (
        "chunked",
        "headers",
        "http10",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        method: bytes,
        target: str,
        headers: dict[bytes, bytes],
        *,
        keep_alive: bool,
        http10: bool = False,
        upgrade: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        """Path and query, without scheme and host even when the request line had them."""
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        """By lower-case name; lines of the same name joined as RFC 9110 section 5.3 says."""
        self.keep_alive = keep_alive
        """Whether the client will use the connection again."""
        self.http10 = http10
        """HTTP/1.0: there, keeping the connection must be said."""
        self.upgrade = upgrade
        """``Connection: upgrade`` with an ``Upgrade`` header, or the method CONNECT."""
        self.chunked = b"transfer-encoding" in headers
        """The body is chunked; its length is not known."""
        self.length = 0
        """Bytes of the body, 0 without one or when it is chunked."""
        length = headers.get(b"content-length")
        if length is not None:
            if not length.isdigit() or len(length) > 18:
                raise BadRequest(400, "content length")
            self.length = int(length)

    def body(self) -> SizedBody | ChunkedBody | None:
        """Return what finds the end of this request's body; None when it has none."""
        if self.chunked:
            return ChunkedBody()
        return SizedBody(self.length) if self.length else None


class HeadParser:
    """Parses whole heads, one after the other; one serves every connection of a process.

    llhttp has no reset: its parser is used again after a request that leaves it clean (no body,
    keep-alive, no upgrade: every poll), else a new one is made.
    """

    __slots__ = ("_headers", "_keep_alive", "_method", "_parser", "_upgrade", "_url")

    def __init__(self) -> None:
        self._parser: httptools.HttpRequestParser | None = None
        self._headers: dict[bytes, bytes] = {}
        self._url = b""
        self._method = b""
        """Empty until the head is complete."""
        self._keep_alive = False
        self._upgrade = False

    # Called by httptools, on whatever object it is given.

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        value = value.strip(b" \t")
        headers = self._headers
        if name in headers:
            value = headers[name] + (b"; " if name == b"cookie" else b", ") + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is not None:
            self._method = parser.get_method()
            self._keep_alive = parser.should_keep_alive()
            self._upgrade = parser.should_upgrade()

    def parse(self, head: bytes) -> Head:
        """Return the record of a head that ends with its empty line.

        Raises:
            BadRequest: It is malformed, of another HTTP version, or asks for what is not offered.
        """
        try:
            return self._parse(head)
        except BadRequest:
            # It may wait for a body now, and would take another client's request for that.
            self._parser = None
            raise

    def _parse(self, head: bytes) -> Head:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        self._headers = {}
        self._url = self._method = b""
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError:
            raise BadRequest(400, "malformed head") from None
        if not self._method:
            raise BadRequest(400, "malformed head")
        headers = self._headers
        end = head.index(b"\r\n")
        version = head[end - 3 : end]
        if version not in {b"1.1", b"1.0"}:
            raise BadRequest(505, "http version")
        if head.count(b" ", 0, end) != 2:
            # llhttp lets more spaces pass; whoever routed the request read it without them.
            raise BadRequest(400, "malformed head")
        record = Head(
            self._method,
            _target(self._url),
            headers,
            keep_alive=self._keep_alive,
            http10=version == b"1.0",
            upgrade=self._upgrade,
        )
        if record.length or record.chunked or not record.keep_alive:
            self._parser = None
        if record.chunked and headers[b"transfer-encoding"].lower() != b"chunked":
            raise BadRequest(501, "transfer encoding")
        if version == b"1.1" and b"host" not in headers:
            raise BadRequest(400, "no host")
        return record


def _target(url: bytes) -> str:
    """Return path and query of a request target (RFC 9112 section 3.2)."""
    target = url.decode("utf-8", "replace")
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if separator and scheme.lower() in {"http", "https"}:
            slash = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=-1)
            target = rest[slash:] if slash >= 0 else "/"
            if target.startswith("?"):
                target = "/" + target
    if "#" in target:
        target = target[: target.index("#")]
    return target


def find_head(buffer: bytes) -> int:
    """Return where the head in ``buffer`` ends (after its empty line), or 0 when it is not whole.

    Raises:
        BadRequest: It is longer than allowed, or the bytes cannot become a request.
    """
    at = buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
    if at >= 0:
        return at + 4
    if len(buffer) >= MAX_HEAD:
        raise BadRequest(431, "head too large")
    if buffer and buffer[0] not in _METHODS:
        raise BadRequest(400, "not http")
    return 0


def parse_query(query: str) -> dict[str, str]:
    """Return the parameters of a query string; of a repeated one the last value wins.

    As browsers read it: ``+`` is a space, bytes that are no UTF-8 become U+FFFD, a percent sign
    that starts no escape stands for itself.
    """
    result: dict[str, str] = {}
    plain = "%" not in query and "+" not in query
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            if plain:
                result[name] = value
            else:
                result[unquote_plus(name)] = unquote_plus(value)
    return result


class SizedBody:
    """Finds the end of a body of declared length."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length
        """The body is whole: what follows belongs to the next request."""

    def feed(self, data: bytes) -> tuple[list[bytes], int]:
        """Take bytes; return the pieces of the body in them and how many bytes were used."""
        piece = data[: self._left] if len(data) > self._left else data
        self._left -= len(piece)
        self.done = not self._left
        return [piece], len(piece)


class ChunkedBody:
    """Finds the end of a chunked body (RFC 9112 section 7.1) and takes the chunks apart.

    Strict: CRLF only, no white space around sizes, trailers read and dropped.
    """

    __slots__ = ("_buffer", "_left", "_state", "_trailers", "done")

    def __init__(self) -> None:
        self._buffer = b""
        """A line of which the end has not come; never longer than a size line may be."""
        self._left = 0
        """Bytes of the current chunk still to come."""
        self._state = "size"
        self._trailers = 0
        self.done = False
        """The body is whole: what follows belongs to the next request."""

    def feed(self, data: bytes) -> tuple[list[bytes], int]:
        """Take bytes; return the pieces of the body in them and how many bytes were used.

        Raises:
            BadRequest: The framing is wrong.
        """
        pieces: list[bytes] = []
        kept = len(self._buffer)
        if kept:
            data = self._buffer + data
            self._buffer = b""
        at = 0
        end = len(data)
        while at < end and not self.done:
            if self._state == "data":
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "end"
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                if end - at > self._longest_line():
                    raise BadRequest(400, "chunk")
                self._buffer = data[at:]
                at = end
                break
            self._line(data[at:line_end])
            at = line_end + 2
        return pieces, at - kept

    def _longest_line(self) -> int:
        return {"size": 512, "end": 1, "trailers": MAX_TRAILERS}[self._state]

    def _line(self, line: bytes) -> None:
        if self._state == "size":
            size = line.partition(b";")[0]
            if not size or len(size) > 15 or size.strip(b"0123456789abcdefABCDEF"):
                raise BadRequest(400, "chunk")
            if len(line) > 512 or b"\n" in line or b"\r" in line:
                raise BadRequest(400, "chunk")
            self._left = int(size, 16)
            self._state = "data" if self._left else "trailers"
        elif self._state == "end":
            if line:
                raise BadRequest(400, "chunk")
            self._state = "size"
        else:
            self._trailers += len(line) + 2
            if self._trailers > MAX_TRAILERS or b"\n" in line:
                raise BadRequest(400, "chunk")
            if not line:
                self.done = True
