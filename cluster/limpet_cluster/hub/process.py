"""The hub process: control connections, bus forwarder, members, presence and the HTTP API in one.

The order of its start is the order of what depends on what: workers are let in once everything
that listens to them is there, and the API answers from the first instant on, honestly.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import web

from limpet_adapters.rundir import RoleLock, RunDirectory, held_slots
from limpet_balancer.listening import describe, inherited
from limpet_cluster.hub.api import Api, ApiContext
from limpet_cluster.hub.control import HubControl
from limpet_cluster.hub.forwarder import BEAT_SECONDS, Forwarder
from limpet_cluster.hub.members import Members
from limpet_cluster.hub.presence import HubPresence
from limpet_cluster.hub.problems import ProblemServer
from limpet_cluster.settings.tokens import read_tokens

logger = logging.getLogger("limpet.hub")

_LINE_LIMIT: Final = 65_536
"""Bytes of a request line: percent-encoding makes up to 12 of one character of a room's name."""
_PASSED_NAME: Final = "api"
"""What limpet-api.socket calls the socket it passes (FileDescriptorName=)."""


class HubConfigError(ValueError):
    """An option of the hub is wrong; the message names it, its value and what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """Options of a hub.

    Raises:
        HubConfigError: one is wrong.
    """

    run_directory: Path
    node_name: str = field(default_factory=socket.gethostname)
    """How this host is shown."""
    node_number: int = 0
    """0 to 65,535: what the ids of this host begin with."""
    buckets: int = 1024
    """Of the bus; the same in the whole cluster."""
    api_bind: str | None = None
    """``HOST:PORT`` or ``[IPV6]:PORT`` on which the API listens too; port 0 takes a free one."""
    api_token_file: Path | None = None
    """File with the bearer tokens that are good there, one per line; needed with ``api_bind``."""
    stall_after: float = 15.0
    """Seconds after which a worker that does not read the bus is replaced."""
    supervised: bool = True
    """Whether our own supervisor runs the workers, and counts which ones it replaces."""

    def __post_init__(self) -> None:
        if not 0 < len(self.node_name) <= 255 or not self.node_name.isprintable():
            raise HubConfigError(f"node_name={self.node_name!r}: expected 1 to 255 characters")
        if not 0 <= self.node_number <= 65_535:
            raise HubConfigError(f"node_number={self.node_number}: expected 0 to 65535")
        if not 1 <= self.buckets <= 65_536:
            raise HubConfigError(f"buckets={self.buckets}: expected 1 to 65536")
        if not self.stall_after >= 3 * BEAT_SECONDS:
            raise HubConfigError(
                f"stall_after={self.stall_after}: expected seconds, at least {3 * BEAT_SECONDS:g} "
                f"(three beats of the bus)"
            )
        if self.api_bind is not None:
            parse_bind(self.api_bind)
            if self.api_token_file is None:
                raise HubConfigError(
                    f"api_bind={self.api_bind!r} without api_token_file: "
                    "expected a file with a bearer token, because TCP lets anybody connect"
                )


def parse_bind(bind: str) -> tuple[str, int]:
    """Return host and port of an ``api_bind``.

    Raises:
        HubConfigError: it is neither ``HOST:PORT`` nor ``[IPV6]:PORT``.
    """
    match = re.fullmatch(
        r"(?:\[(?P<v6>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^\[\]:]+)):(?P<port>\d{1,5})", bind
    )
    if match is None or int(match["port"]) > 65_535:
        raise HubConfigError(f"api_bind={bind!r}: expected HOST:PORT or [IPV6]:PORT")
    return match["v6"] or match["host"], int(match["port"])


async def run_hub(config: HubConfig, ready: Callable[[], None]) -> int:
    """Run a hub until it is cancelled, which is how signals end it (`child.run`).

    Its sockets are removed then, and workers reconnect to the hub that follows.

    Args:
        ready: called once workers and API clients can connect.

    Raises:
        RunDirectoryError: the run directory cannot be used, or another hub is there.
        TokenFileError: the token file cannot be used.
        HubConfigError: a socket that was passed is not meant for a hub.
        OSError: the API's address cannot be bound.
    """
    tokens = () if config.api_token_file is None else read_tokens(config.api_token_file)
    passed = passed_listeners()
    directory = RunDirectory(config.run_directory)
    async with AsyncExitStack() as stack:
        for listener in passed:
            stack.callback(listener.close)
        lock = RoleLock(directory, "hub")
        stack.callback(lock.release)
        control = HubControl(directory.hub)
        members = Members(
            control,
            config.node_number,
            held_slots=lambda: held_slots(directory),
            counts_deaths=not config.supervised,
        )
        stack.callback(members.close)
        presence = HubPresence(control, members, config.node_name, lambda: held_slots(directory))
        stack.callback(presence.close)

        forwarder = Forwarder(
            directory,
            control,
            buckets=config.buckets,
            stall_after=config.stall_after,
            on_deaf=members.on_deaf,
        )
        for direction in ("in", "out"):
            address = Path(directory.bus(direction, forwarder.incarnation).removeprefix("ipc://"))
            stack.callback(address.unlink, missing_ok=True)
        stack.push_async_callback(forwarder.close)
        await forwarder.start()

        def checks() -> Mapping[str, bool]:
            return {"bus": forwarder.open}

        api = Api(
            ApiContext(
                presence=presence,
                members=members,
                node=config.node_name,
                number=config.node_number,
                epoch=f"{forwarder.incarnation:08x}",
                version=importlib.metadata.version("limpet"),
                checks=checks,
                bus=forwarder.stats,
                started_at=time.time(),
                run=directory,
            )
        )
        directory.api.unlink(missing_ok=True)  # an earlier hub may have left it
        await _serve_api(stack, api.application(tokens), directory.api, config.api_bind, passed)
        stack.push_async_callback(control.close)
        await control.start()
        stack.callback(_calm_collector())
        ready()
        logger.info("hub of %s is ready", config.node_name)
        try:
            await asyncio.Event().wait()
        finally:
            logger.info("hub of %s ends", config.node_name)
    return 0


def passed_listeners(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Take over the sockets on which systemd holds the API (``FileDescriptorName=api``).

    Raises:
        HubConfigError: one is not a unix socket, whose mode says who may connect; or has another
            name.
        BindError: one is no listening stream socket.
    """
    names = environ.get("LISTEN_FDNAMES", "")
    listeners = inherited(environ)
    strange = {name for name in names.split(":") if name not in ("", _PASSED_NAME)}
    if listeners and strange:
        raise HubConfigError(
            f"sockets named {', '.join(sorted(strange))} were passed: "
            f"expected FileDescriptorName={_PASSED_NAME}"
        )
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            raise HubConfigError(
                f"{describe(listener)} was passed for the API: expected a unix socket; "
                "for TCP there are --api and --api-token-file"
            )
    return listeners


async def _serve_api(
    stack: AsyncExitStack,
    application: web.Application,
    path: Path,
    bind: str | None,
    passed: Sequence[socket.socket],
) -> None:
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=1.0,
        max_line_size=_LINE_LIMIT,
        auto_decompress=False,  # no resource takes a compressed body
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    if runner.server is not None:
        runner.server.__class__ = ProblemServer
    stack.callback(path.unlink, missing_ok=True)
    mask = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(path)).start()
    finally:
        os.umask(mask)
    for listener in passed:
        await web.SockSite(runner, listener).start()
        logger.info("API on %s, held by systemd", describe(listener))
    if bind is not None:
        host, port = parse_bind(bind)
        site = web.TCPSite(runner, host, port)
        await site.start()
        for address in runner.addresses:
            if not isinstance(address, str):
                logger.info("API on http://%s:%d", *address[:2])


def _calm_collector() -> Callable[[], None]:
    """Keep full collections from walking a million entries, and return what undoes it.

    Nothing in the index leaves cycles behind, so they would find nothing.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(20_000, 20, 1_000_000)

    def undo() -> None:
        gc.set_threshold(*before)
        gc.unfreeze()

    return undo
