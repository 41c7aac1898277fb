"""Who may use the HTTP API: whoever reaches its unix socket, on TCP whoever bears a token."""

from __future__ import annotations

import hmac
import os
import socket
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from limpet_adapters.counters import count
from limpet_cluster.hub.problems import Handler, Problem

_PROBES: Final = frozenset({"/livez", "/readyz"})


class TokenFileError(ValueError):
    """The token file cannot be used; the message names it and says what would be right."""


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """Return the bearer tokens of a file: one per line, so that they can be rotated.

    Raises:
        TokenFileError: the file cannot be read, is open to others, or holds no good token.
    """
    name = f"api_token_file={str(path)!r}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(65_537)
    except OSError as error:
        raise TokenFileError(f"{name}: {error.strerror}; expected a file with a token") from None
    if mode & 0o007:
        raise TokenFileError(f"{name}: mode {mode & 0o777:04o} lets anybody in; expected 0600")
    tokens = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not tokens or len(content) > 65_536:
        raise TokenFileError(f"{name}: expected one token per line, at most 64 KiB")
    for token in tokens:
        if len(token) < 16 or not all(33 <= byte <= 126 for byte in token):
            raise TokenFileError(
                f"{name}: a token has at least 16 characters, visible ASCII without blanks"
            )
    return tokens


def authentication(
    tokens: tuple[bytes, ...],
) -> Middleware:
    """Return the middleware that lets in whoever came by the unix socket or bears a token."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        peer = None if transport is None else transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            return await handler(request)  # mode 0600 in a directory of mode 0700
        if request.path in _PROBES or _bears(request, tokens):
            return await handler(request)
        count("limpet_http_unauthenticated_total")
        challenge = 'Bearer realm="limpet"'
        if "Authorization" in request.headers:
            challenge += ', error="invalid_token"'
        raise Problem(
            "unauthenticated",
            "expected Authorization: Bearer <token>, with a token of the hub's token file",
            (),
            {"WWW-Authenticate": challenge},
        )

    return authenticate


def _bears(request: web.Request, tokens: tuple[bytes, ...]) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    given = token.strip().encode("utf-8", "surrogateescape")
    fits = False
    for known in tokens:  # all of them, so that time tells nothing
        fits |= hmac.compare_digest(given, known)
    return fits
