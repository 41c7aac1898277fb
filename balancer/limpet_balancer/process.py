"""The balancer as a process: its listeners opened, its life from start to signal to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence

from limpet_adapters.rundir import RoleLock
from limpet_balancer.balancer import Balancer
from limpet_balancer.config import BalancerConfig
from limpet_balancer.listening import open_listeners

logger = logging.getLogger("limpet.balancer")


async def run_balancer(
    config: BalancerConfig,
    ready: Callable[[], None],
    listeners: Sequence[socket.socket] = (),
) -> int:
    """Run a balancer until TERM or INT; returns the exit code.

    Args:
        config: see there.
        ready: called once when clients are accepted and workers can register.
        listeners: public sockets; without any, those of ``LISTEN_FDS``, else ``config.bind``.

    Raises:
        RunDirectoryError: another balancer is there: workers would find only one of the two.
        BindError: an address cannot be listened on.
        OSError: the socket in the run directory cannot be made.
    """
    lock = RoleLock(config.run, "balancer")
    try:
        return await _run(config, ready, listeners)
    finally:
        lock.release()


async def _run(
    config: BalancerConfig, ready: Callable[[], None], listeners: Sequence[socket.socket]
) -> int:
    loop = asyncio.get_running_loop()
    opened = list(listeners) or open_listeners(
        config.bind,
        user_timeout=config.ping_interval + config.ping_timeout,
        backlog=config.backlog,
    )
    balancer = Balancer(config, opened, loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    balancer.start()
    ready()
    await stop.wait()
    logger.info("ending")
    await balancer.finish()
    return 0
