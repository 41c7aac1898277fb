"""`limpet balancer`: one process of a cluster, run by the supervisor or by systemd."""

from __future__ import annotations

import click

from limpet_balancer.config import BalancerConfig
from limpet_balancer.process import run_balancer
from limpet_cluster import child
from limpet_cluster.cli import options
from limpet_cluster.settings.config import Common, Resolved, pings
from limpet_cluster.settings.table import BALANCER


@click.command()
@options.settings(BALANCER)
def balancer(*, resolved: Resolved) -> None:
    """Run the balancer of this host: the public port."""
    settings = resolved.settings
    with options.told():
        common = Common.of(settings)
    life = child.enter("balancer", common)
    if not life.supervised:
        options.warn(resolved)
    with options.told(), life.errors_told():
        interval, timeout = pings(settings)
        config = BalancerConfig(
            run=common.open(),
            node=common.node,
            bind=settings.bind,
            engine_path=settings.path,
            health_path=settings.health_path,
            ping_interval=interval,
            ping_timeout=timeout,
        )
        raise SystemExit(
            child.run(lambda: run_balancer(config, life.notifier.ready), life, child.fast_loop)
        )
