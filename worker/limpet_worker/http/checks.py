"""The refusals of Engine.IO: what a request must satisfy, in which order, and what it is told.

Each refusal has a code and a text. A polling client reads both as JSON, a WebSocket client only
sees that the handshake failed, so it gets the text. The order is the one stock clients were
written against: transport, origin, then with a ``sid`` its session, its transport, its protocol
version; without one the method, the upgrade, the app's ``allow_request`` and the version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import orjson

from limpet_worker.http.cors import valid_origin
from limpet_worker.http.request import Head


class Refusal:
    """Why a request is turned away."""

    __slots__ = ("body", "code", "message", "name", "status")

    def __init__(self, code: int, message: str, name: str = "", status: int = 400) -> None:
        self.code = code
        """Number in the JSON body, 0 to 5."""
        self.message = message
        """Text in the JSON body, and the whole body of a refused WebSocket handshake."""
        self.name = name or message
        """What exactly was wrong: for counters and logs, never sent."""
        self.status = status
        """HTTP status for polling; a refused WebSocket handshake is always a 400."""
        self.body = orjson.dumps({"code": code, "message": message})
        """The JSON body."""


UNKNOWN_TRANSPORT: Final = Refusal(0, "Transport unknown")
UNKNOWN_SID: Final = Refusal(1, "Session ID unknown")
BAD_HANDSHAKE_METHOD: Final = Refusal(2, "Bad handshake method")
UPGRADE_MISSING: Final = Refusal(3, "Bad request", "TRANSPORT_HANDSHAKE_ERROR")
UPGRADE_UNEXPECTED: Final = Refusal(3, "Bad request", "TRANSPORT_HANDSHAKE_ERROR")
TRANSPORT_MISMATCH: Final = Refusal(3, "Bad request", "TRANSPORT_MISMATCH")
PROTOCOL_MISMATCH: Final = Refusal(3, "Bad request", "PROTOCOL_MISMATCH")
INVALID_ORIGIN: Final = Refusal(3, "Bad request", "INVALID_ORIGIN")
FOREIGN_ORIGIN: Final = Refusal(3, "Origin not allowed", "FOREIGN_ORIGIN")
APP_FAILURE: Final = Refusal(3, "Bad request", "MIDDLEWARE_FAILURE")
# Stock servers answer an empty 500 here; this tells the client what it did.
BAD_METHOD: Final = Refusal(2, "Bad handshake method", "METHOD")
FORBIDDEN: Final = Refusal(4, "Forbidden", status=403)
UNSUPPORTED_VERSION: Final = Refusal(5, "Unsupported protocol version")


def forbidden(message: str) -> Refusal:
    """Return the refusal of an ``allow_request`` that gave its own text."""
    text = message.encode("utf-8", "replace").decode("utf-8")  # half a surrogate is no JSON
    return Refusal(4, text, "Forbidden", status=403)


def check_request(
    head: Head, query: Mapping[str, str], transports: Collection[str], upgrading: bool
) -> Refusal | None:
    """Check what needs no session: the transport, that it fits the request, the origin."""
    transport = query.get("transport")
    if transport not in transports:
        return UNKNOWN_TRANSPORT
    origin = head.headers.get(b"origin")
    if origin is not None and not valid_origin(origin):
        return INVALID_ORIGIN
    if upgrading and transport != "websocket":
        return UPGRADE_UNEXPECTED
    return None


def check_session(
    head: Head, query: Mapping[str, str], session_transport: str, upgrading: bool
) -> Refusal | None:
    """Check a request with the sid of a session that lives here and uses ``session_transport``."""
    # A WebSocket may come for a polling session (an upgrade) and for one that has been
    # upgraded (it is accepted, then closed): both are the session's matter.
    if not upgrading and query["transport"] != session_transport:
        return TRANSPORT_MISMATCH
    if not upgrading and session_transport == "websocket":
        return UPGRADE_MISSING
    if query.get("EIO") != "4":
        return PROTOCOL_MISMATCH
    if not upgrading and head.method not in {b"GET", b"POST"}:
        return BAD_METHOD
    return None


def check_handshake(head: Head, query: Mapping[str, str], upgrading: bool) -> Refusal | None:
    """Check a request without sid as far as the app is not asked."""
    if head.method != b"GET":
        return BAD_HANDSHAKE_METHOD
    if query["transport"] == "websocket" and not upgrading:
        return UPGRADE_MISSING
    return None


def check_version(query: Mapping[str, str]) -> Refusal | None:
    """Check the protocol version of a new session: the last check, as stock servers do it."""
    return None if query.get("EIO") == "4" else UNSUPPORTED_VERSION
