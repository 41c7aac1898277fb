"""Who may use the HTTP API: whoever reaches a unix socket of it, on TCP whoever bears a token."""

from __future__ import annotations

import hmac
import socket
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from limpet_adapters.counters import count
from limpet_cluster.hub.problems import Handler, Problem

_PROBES: Final = frozenset({"/livez", "/readyz", "/startupz"})


def authentication(
    tokens: tuple[bytes, ...],
) -> Middleware:
    """Return the middleware that lets in whoever came by the unix socket or bears a token."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        peer = None if transport is None else transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            # Its mode let the peer in: 0600 in a directory of mode 0700, or what the administrator
            # gave limpet-api.socket, 0660 for the group limpet. Who it is cannot be asked: the
            # unit's PrivateUsers= leaves the kernel no name for other users than root and ours.
            return await handler(request)
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
