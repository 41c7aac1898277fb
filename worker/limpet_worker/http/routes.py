"""The app's own HTTP routes: everything that touches aiohttp, one request at a time.

aiohttp's connection handler is given the connection's transport and the bytes of one request; the
front door stays the transport's protocol. That a response is complete is learned from a
middleware outside all others, which awaits ``prepare`` and ``write_eof`` itself. Where the end
cannot be known (an error of aiohttp's own, a route that upgrades), aiohttp ends the connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from limpet_adapters.counters import count
from limpet_worker import running
from limpet_worker.http.request import MAX_HEAD
from limpet_worker.http.site import ResponseListener

logger = logging.getLogger("limpet.http")

# The front door decides how long an idle connection lives. aiohttp's own timer must not fire: it
# would close a connection that is waiting for a poll.
_NEVER = 10.0 * 365 * 86_400


class Site:
    """The running form of the app's routes in a worker.

    Args:
        app: the routes; its middlewares get one more, outside the others.
        access_log: where requests to these routes are logged; None: nowhere.
    """

    __slots__ = ("_access_log", "_app", "_runner", "_server")

    def __init__(self, app: web.Application, access_log: logging.Logger | None = None) -> None:
        self._app = app
        self._access_log = access_log
        self._runner: web.AppRunner | None = None
        self._server: web.Server | None = None

    async def start(self) -> None:
        """Run the app's start-up; from here on requests are taken.

        Raises:
            RuntimeError: The app is already served by something else.
        """
        if announce not in self._app.middlewares:
            if self._app.frozen:
                raise RuntimeError("the aiohttp application is already running elsewhere")
            self._app.middlewares.insert(0, announce)
        runner = web.AppRunner(
            self._app,
            handle_signals=False,
            access_log=self._access_log,
            keepalive_timeout=_NEVER,
            # What the front door took in is not to fail behind it.
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            # Set once on the listener and inherited.
            tcp_keepalive=False,
        )
        await runner.setup()
        self._runner = runner
        self._server = cast(web.Server, runner.server)

    async def close(self) -> None:
        """Wait for running handlers (up to a minute), then run the app's shutdown and clean-up."""
        runner, self._runner = self._runner, None
        self._server = None
        if runner is not None:
            await runner.cleanup()

    @property
    def running(self) -> bool:
        """Whether requests are taken."""
        return self._server is not None

    def connect(self, transport: asyncio.Transport) -> asyncio.Protocol:
        """Return a handler for the requests of one connection.

        Raises:
            RuntimeError: The site is not running.
        """
        if self._server is None:
            raise RuntimeError("the site is not running")
        handler = self._server()
        handler.connection_made(transport)
        return handler


class _Sent(web.StreamResponse):
    """Stands for a response that is out already and must not be prepared twice."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__(status=response.status)
        self._response = response

    @property
    def keep_alive(self) -> bool | None:
        return self._response.keep_alive

    @property
    def body_length(self) -> int:
        return self._response.body_length

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: it is done."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: it is done."""


@web.middleware
async def announce(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Complete the response and tell the connection's front door that it is complete."""
    running.SOCKET.set(None)  # a connection may be shared with a client's polls
    running.REQUEST.set(running.request_id(request.headers.get("X-Request-Id")))
    began = time.perf_counter()
    try:
        response = await handler(request)
    except web.HTTPException as refusal:
        if isinstance(refusal, web.HTTPRequestEntityTooLarge):
            count("limpet_requests_refused_total", reason="route body too large")
        await _complete(request, refusal)
        _log_answer(request, refusal, began)
        raise
    # What handlers should return is not what all of them do.
    if not isinstance(cast(object, response), web.StreamResponse):
        logger.error("%s %s: the handler returned %r", request.method, request.path, response)
        response = web.Response(status=500, text="500 Internal Server Error")
        response.force_close()
    await _complete(request, response)
    _log_answer(request, response, began)
    # aiohttp prepares what it is returned. For most responses that does nothing the second time.
    return _Sent(response) if isinstance(response, web.FileResponse) else response


def _log_answer(request: web.Request, response: web.StreamResponse, began: float) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        ms = round(1000 * (time.perf_counter() - began), 3)
        # The path alone: the query may hold what is nobody's business.
        status = response.status
        logger.debug("%s %s %d", request.method, request.path, status, extra={"duration_ms": ms})


async def _complete(request: web.Request, response: web.StreamResponse) -> None:
    transport = request.transport
    if transport is None:
        return
    listener = transport.get_protocol()
    if not isinstance(listener, ResponseListener):
        # The connection was given to aiohttp for an upgrade; if that did not happen, or is over,
        # nobody could tell apart what follows.
        response.force_close()
    await response.prepare(request)
    await response.write_eof()
    if isinstance(listener, ResponseListener):
        listener.site_answered(bool(response.keep_alive))
