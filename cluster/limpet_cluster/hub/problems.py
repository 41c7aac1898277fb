"""Errors of the HTTP API: each is an ``application/problem+json`` document (RFC 9457)."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from msgspec import UNSET, Struct, UnsetType

from limpet_adapters.counters import count

logger = logging.getLogger("limpet.api")

TYPE_PREFIX: Final = "urn:limpet:problem:"

KINDS: Final[Mapping[str, tuple[int, str]]] = {
    "bad-request": (400, "The request is malformed"),
    "invalid-parameter": (400, "A parameter is not valid"),
    "cursor-mismatch": (400, "The cursor belongs to another query"),
    "unauthenticated": (401, "A bearer token is needed"),
    "forbidden": (403, "Not allowed"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "The resource does not have this method"),
    "conflict": (409, "Not in the present state"),
    "payload-too-large": (413, "The request body is too large"),
    "internal-error": (500, "The server failed"),
    "not-reachable": (503, "A worker does not answer"),
    "no-answer": (504, "A worker took too long to answer"),
    "starting": (503, "Not ready yet"),
}
"""Every type of problem: its status and title."""


class Detail(Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong with a request."""

    detail: str
    parameter: str | UnsetType = UNSET
    """Query parameter that is meant."""


class ProblemDocument(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every error (RFC 9457, section 3)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    """The path that was asked for, as it came."""
    request_id: str
    """Names this one answer; the same is in the log when the server failed."""
    errors: tuple[Detail, ...] = ()


class Problem(Exception):  # noqa: N818  (the name of the thing in RFC 9457)
    """Ends a request with a problem document.

    Args:
        kind: a key of `KINDS`.
        detail: what is wrong this time, and what would be right.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        errors: tuple[Detail, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})

    def response(self, request: web.BaseRequest, status: int | None = None) -> web.Response:
        """Return the answer; ``status`` overrides that of the kind."""
        usual, title = KINDS[self.kind]
        request_id = secrets.token_hex(8)
        document = ProblemDocument(
            type=TYPE_PREFIX + self.kind,
            title=title,
            status=status or usual,
            detail=self.detail,
            instance=request.raw_path[:2000],
            request_id=request_id,
            errors=self.errors,
        )
        return web.Response(
            status=document.status,
            body=_encode(document),
            content_type="application/problem+json",
            headers={**self.headers, "Cache-Control": "no-store", "X-Request-Id": request_id},
        )


def invalid(parameter: str, detail: str) -> Problem:
    """Return the problem of a query parameter that is not valid."""
    return Problem("invalid-parameter", f"{parameter}: {detail}", (Detail(detail, parameter),))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into a problem document; outermost of the middlewares."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response(request)
    except web.HTTPException as error:
        return _of_http(request, error).response(request, error.status)
    except Exception:
        response = Problem("internal-error", "see the hub's log").response(request)
        logger.exception(
            "%s %s failed (%s)", request.method, request.path, response.headers["X-Request-Id"]
        )
        return response


class ProblemProtocol(RequestHandler):
    """aiohttp's connection, but what is no HTTP at all is refused with a problem document too."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that did not reach the application; the connection ends then.

        Raises:
            ConnectionError: an answer has begun already.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already") from exc
        if status >= 500:
            logger.error("request failed", exc_info=exc)
            problem = Problem("internal-error", "see the hub's log")
        else:
            logger.debug("bad request: %s", message)
            count("limpet_http_malformed_total")
            problem = Problem("bad-request", (message or "not understood").strip()[:500])
        response = problem.response(request, status)
        response.force_close()
        return response


class ProblemServer(web.Server):
    """aiohttp's server with `ProblemProtocol` for its connections.

    aiohttp has no option for that; ``runner.server.__class__`` is set to this one, which changes
    the class of each new connection likewise.
    """

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        protocol = super().__call__()
        protocol.__class__ = ProblemProtocol
        return protocol


def _of_http(request: web.Request, error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(
            "method-not-allowed", f"{request.method}: allowed are {allowed}", (), {"Allow": allowed}
        )
    if error.status == 404:
        return Problem("not-found", "no resource has this path")
    if error.status == 413:
        return Problem("payload-too-large", "no resource takes a body of this size")
    kind = "internal-error" if error.status >= 500 else "bad-request"
    return Problem(kind, HTTPStatus(error.status).phrase)


def _encode(document: ProblemDocument) -> bytes:
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:  # bytes of the path that are no text
        return json.dumps(msgspec.to_builtins(document)).encode()
