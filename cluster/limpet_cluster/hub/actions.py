"""What the HTTP API does to workers and connections: drain, undrain, disconnect."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from limpet_adapters.control import ControlError
from limpet_adapters.counters import count
from limpet_adapters.identity import address_of
from limpet_adapters.worker_control import DisconnectOrder, DrainAnswer, DrainOrder
from limpet_cluster.hub import models
from limpet_cluster.hub.members import Member, Members
from limpet_cluster.hub.problems import Problem
from limpet_cluster.hub.queries import Query, path_name

logger = logging.getLogger("limpet.api")

_PATIENCE: Final = 3.0
"""Seconds a worker has to answer; its loop may be busy."""
_LONGEST: Final = 86_400.0
_YES: Final = ("", "true", "1")


class Actions:
    """The handlers of what changes something; each asks the worker that it is about.

    Args:
        members: the workers of this host.
        node: number of this host.
        describe: returns a worker's document.
    """

    def __init__(
        self, members: Members, node: int, describe: Callable[[Member], models.WorkerItem]
    ) -> None:
        self._members = members
        self._node = node
        self._describe = describe

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post("/v1/workers/{worker:[^/]+}/drain", self.drain)
        router.add_post("/v1/workers/{worker:[^/]+}/undrain", self.undrain)
        router.add_delete("/v1/connections/{socket_id:[^/]+}", self.disconnect)

    async def drain(self, request: web.Request) -> web.Response:
        """Have a worker send its clients away and stay, empty: 202, it takes its time.

        Draining it again begins anew, with other times perhaps.
        """
        query = Query(request, ("force",))
        force = query.choice("force", ("false", *_YES)) != "false"
        order = await _order(request)
        member = self._member(path_name(request, "worker"))
        if not (force or member.state == "draining" or self._members.others(member)):
            raise Problem(
                "conflict",
                f"no other worker would take the clients of {member.name}; with ?force=true "
                "(--force) it drains nevertheless",
            )
        answer = await self._ask(member, "drain", msgspec.to_builtins(order))
        count("limpet_api_actions_total", action="drain")
        logger.info("%s drains because the API wants it", member.name)
        member.state = "draining"
        return self._show(member, answer, 202)

    async def undrain(self, request: web.Request) -> web.Response:
        """Have a worker take sessions again."""
        Query(request, ())
        member = self._member(path_name(request, "worker"))
        if member.ending:
            raise Problem("conflict", f"{member.name} is ending, which cannot be undone")
        answer = await self._ask(member, "undrain", None)
        count("limpet_api_actions_total", action="undrain")
        if member.state == "draining":
            member.state = "ready"
        return self._show(member, answer, 200)

    async def disconnect(self, request: web.Request) -> web.Response:
        """Disconnect a socket; with ``close``, its whole client."""
        query = Query(request, ("close",))
        close = query.choice("close", ("false", *_YES)) != "false"
        socket_id = path_name(request, "socket_id")
        # The id names its worker: nobody has to be asked, and nothing has to have come here yet.
        address = address_of(socket_id)
        member = None if address is None else self._members.in_slot(address.slot)
        if (
            address is None
            or member is None
            or (address.node, address.incarnation) != (self._node, member.hello.incarnation)
        ):
            raise Problem("not-found", "no connection has this socket id")
        order = DisconnectOrder(socket_id=socket_id, close=close)
        if await self._ask(member, "disconnect", msgspec.to_builtins(order)) is not True:
            raise Problem("not-found", "no connection has this socket id")
        count("limpet_api_actions_total", action="disconnect")
        return web.Response(status=204)

    # --- parts ------------------------------------------------------------

    def _member(self, name: str) -> Member:
        """Return the living worker of a name, slot or id."""
        for member in self._members.living.values():
            if name in {member.name, str(member.hello.slot), f"{member.worker_id:016x}"}:
                return member
        names = ", ".join(
            member.name for member in self._members.everyone() if member.state != "gone"
        )
        raise Problem(
            "not-found", f"no worker {name[:64]!r}; there are: {names or 'none'} (name or slot)"
        )

    async def _ask(self, member: Member, kind: str, body: object) -> object:
        connection = member.connection
        if connection is None:
            raise Problem("not-reachable", f"{member.name} has no control connection just now")
        try:
            return await connection.request(kind, body, _PATIENCE)
        except ControlError as refusal:
            reason = str(refusal)
            if reason.startswith("unknown request"):
                reason = "it runs an older version, which does not know this"
            raise Problem("conflict", f"{member.name}: {reason}") from None
        except TimeoutError:
            raise Problem(
                "no-answer",
                f"{member.name}: no answer within {_PATIENCE:g} s; it may still {kind} when it "
                "can, which its state tells",
            ) from None
        except ConnectionError:
            raise Problem("not-reachable", f"{member.name}: it has just gone") from None

    def _show(self, member: Member, answer: object, status: int) -> web.Response:
        done = msgspec.convert(answer, DrainAnswer)
        document = models.DrainDetail(
            worker=self._describe(member),
            sessions_left=done.sessions,
            seconds_left=done.seconds,
        )
        return web.Response(
            status=status, body=msgspec.json.encode(document), content_type="application/json"
        )


async def _order(request: web.Request) -> DrainOrder:
    """Read how a drain is wanted; no body is an empty one."""
    try:
        body = await request.read()
    except (web.RequestPayloadError, ConnectionError):
        raise Problem("bad-request", "body: it ended early") from None
    if not body.strip():
        return DrainOrder()
    try:
        given: Any = msgspec.json.decode(body)
        order = msgspec.convert(given, DrainOrder)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Problem("bad-request", f"body: {error}") from None
    unknown = sorted(set(given) - set(DrainOrder.__struct_fields__))
    if unknown:
        expected = ", ".join(DrainOrder.__struct_fields__)
        raise Problem(
            "bad-request", f"body: unknown field {unknown[0][:40]!r}; there are {expected}"
        )
    for name in DrainOrder.__struct_fields__:
        value = getattr(order, name)
        if value is not None and not 0 <= value <= _LONGEST:
            raise Problem("bad-request", f"body: {name}={value}: expected seconds from 0 to 86400")
    return order
