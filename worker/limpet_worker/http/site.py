"""Where the app's own HTTP routes begin: nothing of aiohttp is imported before there are some.

It takes a worker a third of a second to import, and many applications have no routes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    from aiohttp import web

    from limpet_worker.http.routes import Site


@runtime_checkable
class ResponseListener(Protocol):
    """The protocol of a connection, as far as aiohttp's answers concern it."""

    def site_answered(self, keep_alive: bool) -> None:
        """Told when the last byte of a response was handed to the transport."""


async def start_site(app: web.Application | None) -> Site | None:
    """Start an application's routes; None when it has none."""
    if app is None:
        return None
    from limpet_worker.http.routes import Site  # noqa: PLC0415 - see above

    site = Site(app)
    await site.start()
    return site


def detach(handler: asyncio.Protocol) -> None:
    """Let a handler go whose connection lives on elsewhere."""
    # connection_lost() closes the transport it knows; the connection is no longer its own.
    cast("web.RequestHandler", handler).transport = None
    handler.connection_lost(None)
