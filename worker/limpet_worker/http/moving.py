"""Connections that go back to the balancer, with what was read of their next request."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Protocol

from limpet_adapters.counters import count

logger = logging.getLogger("limpet.http")


class Migrator(Protocol):
    """The way back to the balancer; the worker's channel to it implements this."""

    def owns(self, sid: str) -> bool:
        """Say whether a session id is one of this worker's, whether the session lives or not."""

    def migrate(
        self, sock: socket.socket, data: bytes, address: tuple[str, int] | str, hops: int
    ) -> bool | None:
        """Take a connection and the bytes read from it; False: not possible just now.

        The socket is a copy that belongs to the migrator, unless it returns False or raises.
        ``hops`` is what the connection came with when this is its first request, else 0: how
        often this request was given back before.
        """


def hand_back(
    migrator: Migrator | None,
    transport: asyncio.Transport,
    data: bytes,
    address: tuple[str, int] | str,
    hops: int,
) -> bool:
    """Give a copy of the connection to the balancer; False: it did not take it.

    Reading must be paused and everything written must be out. On True the caller aborts the
    transport, which closes its own descriptor without shutting the connection down.
    """
    if migrator is None:
        return False
    own = transport.get_extra_info("socket")
    try:
        copy = socket.socket(own.family, own.type, own.proto, fileno=os.dup(own.fileno()))
    except OSError as error:
        count("limpet_connections_not_moved_total", reason="descriptor")
        logger.warning("a connection could not be copied to move it: %s", error)
        return False
    try:
        taken = migrator.migrate(copy, data, address, hops)
    except Exception:  # whatever the channel meets, the client gets an answer
        logger.exception("a connection could not be moved")
        taken = False
    if taken is False:  # None: a migrator that says nothing has taken it
        copy.close()
        count("limpet_connections_not_moved_total", reason="no balancer")
        return False
    count("limpet_connections_moved_total")
    return True
