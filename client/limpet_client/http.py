"""Requests of one connection, with aiohttp: polls, posts, and the opening of a WebSocket.

What touches the inside of aiohttp is in ``_take_over``: after the server has agreed to the
WebSocket protocol, the connection leaves aiohttp, which has no more to do with it, and its objects
(some 30 KiB for each connection) go.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import aiohttp
from yarl import URL

from limpet_client.deflate import OFFER
from limpet_client.errors import TransportError

if TYPE_CHECKING:
    from limpet_client.address import Address
    from limpet_client.options import Options

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None)
_BODY: Final = {"Content-Type": "text/plain;charset=UTF-8"}
_ERRORS: Final = (aiohttp.ClientError, OSError, ValueError, RuntimeError)
"""What requests raise; ``RuntimeError`` when somebody closed the session that was given to us."""
_SHOWN: Final = 200
"""Bytes of an error's body that are shown."""


class Receiver(Protocol):
    """What takes a connection over: an asyncio protocol for streams."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""

    def data_received(self, data: bytes) -> None:
        """Take bytes."""


class Http:
    """Requests to one endpoint; the aiohttp session lasts for as long as this does."""

    __slots__ = ("_headers", "_options", "_own", "_query", "_session", "_url")

    def __init__(
        self, address: Address, options: Options, cookies: aiohttp.abc.AbstractCookieJar
    ) -> None:
        self._options = options
        self._url = URL(address.origin + options.endpoint, encoded=False)
        self._query = {**dict(address.query), **options.query, "EIO": "4"}
        self._headers = dict(options.extra_headers)
        self._own = options.http_session is None
        self._session = options.http_session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=options.ssl),
            cookie_jar=cookies,
            trust_env=options.trust_env,
            timeout=_NO_LIMIT,
        )

    async def get(self, sid: str) -> bytes:
        """Poll; return the payload.

        Raises:
            TransportError: no connection, another status than 200, or a payload that is too large.
        """
        return await self._request("GET", self._at("polling", sid), None)

    async def post(self, sid: str, payload: bytes) -> None:
        """Send a payload.

        Raises:
            TransportError: no connection, or another status than 200.
        """
        await self._request("POST", self._at("polling", sid), payload)

    async def open(self, sid: str, receiver: Callable[[str], Receiver]) -> None:
        """Open a WebSocket. ``receiver`` is called with the extensions that the server agreed
        to; what it returns gets all that comes.

        Raises:
            TransportError: no connection, or the server did not agree.
        """
        key = base64.b64encode(os.urandom(16))
        headers = {
            **self._headers,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key.decode(),
        }
        if self._options.per_message_deflate:
            headers["Sec-WebSocket-Extensions"] = OFFER
        try:
            response = await self._session.request(
                "GET",
                self._at("websocket", sid),
                headers=headers,
                timeout=_NO_LIMIT,
                read_until_eof=False,
                **self._through(),
            )
        except _ERRORS as error:
            raise _failed("websocket", error) from error
        try:
            _take_over(response, receiver(await self._check(response, key)))
        except BaseException:
            response.close()
            raise

    async def close(self) -> None:
        """End the requests that still run, and the connections they had."""
        if self._own:
            await self._session.close()

    async def _check(self, response: aiohttp.ClientResponse, key: bytes) -> str:
        """Return the extensions that the server agreed to.

        Raises:
            TransportError: it did not agree to the protocol (RFC 6455 section 4.1).
        """
        if response.status != 101:
            raise TransportError(
                f"websocket: HTTP status {response.status}",
                description=response.status,
                context=await _start_of(response),
            )
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        if response.headers.get("Sec-WebSocket-Accept", "") != accept.decode():
            raise TransportError("websocket: the answer is not to this request")
        extensions = response.headers.get("Sec-WebSocket-Extensions", "")
        if extensions and not self._options.per_message_deflate:
            raise TransportError("websocket: an extension that was not asked for")
        return extensions

    def _at(self, transport: str, sid: str) -> URL:
        query = {**self._query, "transport": transport}
        if sid:
            query["sid"] = sid
        return self._url.with_query(query)

    def _through(self) -> dict[str, Any]:
        options = self._options
        through: dict[str, Any] = {}
        if options.proxy is not None:
            through["proxy"] = options.proxy
            if options.proxy_headers is not None:
                through["proxy_headers"] = options.proxy_headers
        if not self._own:
            through["ssl"] = options.ssl
            if options.cookies:
                through["cookies"] = options.cookies
        return through

    async def _request(self, method: str, url: URL, body: bytes | None) -> bytes:
        limit = self._options.max_message_size
        headers: Mapping[str, str] = self._headers if body is None else {**self._headers, **_BODY}
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=_NO_LIMIT, **self._through()
            ) as response:
                if response.status != 200:
                    raise TransportError(
                        f"polling: HTTP status {response.status}",
                        description=response.status,
                        context=await _start_of(response),
                    )
                chunks = []
                size = 0
                async for chunk in response.content.iter_any():
                    size += len(chunk)
                    if size > limit:
                        raise TransportError(f"polling: an answer of more than {limit} bytes")
                    chunks.append(chunk)
                return b"".join(chunks)
        except _ERRORS as error:
            if isinstance(error, TransportError):
                raise
            raise _failed("polling", error) from error


class _Rest:
    """Takes what aiohttp has read beyond the answer's head; it is aiohttp's idea of a parser."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes; there is no end and no rest."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Know that nothing follows."""


def _take_over(response: aiohttp.ClientResponse, receiver: Receiver) -> None:
    """Move the connection of an answer from aiohttp to a protocol of ours.

    Raises:
        TransportError: it has been lost meanwhile.
    """
    connection = response.connection
    protocol = connection.protocol if connection is not None else None
    transport = connection.transport if connection is not None else None
    if protocol is None or transport is None or transport.is_closing():
        raise TransportError("websocket: the connection was lost")
    rest = _Rest()
    protocol.set_parser(rest, None)
    transport.set_protocol(cast("asyncio.Protocol", receiver))
    protocol.transport = None  # what aiohttp does not know it does not close
    response.release()
    receiver.connection_made(transport)
    if not transport.is_reading():
        transport.resume_reading()
    if rest.data:
        receiver.data_received(rest.data)


async def _start_of(response: aiohttp.ClientResponse) -> str:
    try:
        return (await response.content.read(_SHOWN)).decode("utf-8", "replace")
    except (aiohttp.ClientError, OSError):
        return ""


def _failed(transport: str, error: Exception) -> TransportError:
    text = str(error) or type(error).__name__
    return TransportError(f"{transport}: {text}")
